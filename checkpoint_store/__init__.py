"""LangGraph checkpoints in PostgreSQL, for applications that speak SQLAlchemy.

    async with AsyncPostgresSaver.from_conn_string("postgresql://localhost/app") as saver:
        await saver.setup()
        graph = builder.compile(checkpointer=saver)

Savers are imported when they are first used: a deploy job that only migrates never imports LangGraph. The errors here
are those that a running application may want to handle; all of them are in `checkpoint_store.errors`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from checkpoint_store.errors import (
    CheckpointStoreError,
    Closed,
    Conflict,
    InvalidConfig,
    LimitReached,
    LockLost,
    NotSetUp,
    Refused,
    ThreadExists,
    ThreadLocked,
    ThreadNotFound,
    Unavailable,
    UnreadableValue,
    UnstorableValue,
    WrongTransaction,
)

if TYPE_CHECKING:
    from checkpoint_store.database.group_commit import AsyncPipeline
    from checkpoint_store.options import ConnectionOptions, SaverOptions
    from checkpoint_store.saver.aio import AsyncPostgresSaver
    from checkpoint_store.saver.sync import PostgresSaver
    from checkpoint_store.saver.thread_lock import ThreadLock
    from checkpoint_store.storage.sweep_report import SweepReport
    from checkpoint_store.storage.thread_list import ThreadSummary
    from checkpoint_store.storage.thread_stats import ChannelSize, TableSize, ThreadStats

__version__ = "0.1.0"

_MODULES = {
    "AsyncPipeline": "database.group_commit",
    "AsyncPostgresSaver": "saver.aio",
    "ChannelSize": "storage.thread_stats",
    "ConnectionOptions": "options",
    "PostgresSaver": "saver.sync",
    "SaverOptions": "options",
    "SweepReport": "storage.sweep_report",
    "TableSize": "storage.thread_stats",
    "ThreadLock": "saver.thread_lock",
    "ThreadStats": "storage.thread_stats",
    "ThreadSummary": "storage.thread_list",
}

__all__ = [
    "AsyncPipeline",
    "AsyncPostgresSaver",
    "ChannelSize",
    "CheckpointStoreError",
    "Closed",
    "Conflict",
    "ConnectionOptions",
    "InvalidConfig",
    "LimitReached",
    "LockLost",
    "NotSetUp",
    "PostgresSaver",
    "Refused",
    "SaverOptions",
    "SweepReport",
    "TableSize",
    "ThreadExists",
    "ThreadLock",
    "ThreadLocked",
    "ThreadNotFound",
    "ThreadStats",
    "ThreadSummary",
    "Unavailable",
    "UnreadableValue",
    "UnstorableValue",
    "WrongTransaction",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
