"""LangGraph checkpoints in PostgreSQL, for applications that speak SQLAlchemy.

    async with AsyncPostgresSaver.from_conn_string("postgresql://localhost/app") as saver:
        await saver.setup()
        graph = builder.compile(checkpointer=saver)

Names are imported when they are first used: a deploy job that only migrates never imports LangGraph.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from checkpoint_store.database.group_commit import AsyncPipeline
    from checkpoint_store.errors import (
        CheckpointStoreError,
        Conflict,
        InvalidConfig,
        NotSetUp,
        Unavailable,
        UnreadableValue,
        UnstorableValue,
    )
    from checkpoint_store.saver.aio import AsyncPostgresSaver
    from checkpoint_store.saver.sync import PostgresSaver
    from checkpoint_store.saver.thread_lock import ThreadLock
    from checkpoint_store.storage.report import SweepReport
    from checkpoint_store.storage.thread_list import ChannelSize, TableSize, ThreadStats, ThreadSummary

__version__ = "0.1.0"

_MODULES = {
    "AsyncPipeline": "database.group_commit",
    "AsyncPostgresSaver": "saver.aio",
    "PostgresSaver": "saver.sync",
    "SweepReport": "storage.report",
    "ThreadLock": "saver.thread_lock",
    **dict.fromkeys(("ChannelSize", "TableSize", "ThreadStats", "ThreadSummary"), "storage.thread_list"),
    **dict.fromkeys(
        (
            "CheckpointStoreError",
            "Conflict",
            "InvalidConfig",
            "NotSetUp",
            "Unavailable",
            "UnreadableValue",
            "UnstorableValue",
        ),
        "errors",
    ),
}

__all__ = [
    "AsyncPipeline",
    "AsyncPostgresSaver",
    "ChannelSize",
    "CheckpointStoreError",
    "Conflict",
    "InvalidConfig",
    "NotSetUp",
    "PostgresSaver",
    "SweepReport",
    "TableSize",
    "ThreadLock",
    "ThreadStats",
    "ThreadSummary",
    "Unavailable",
    "UnreadableValue",
    "UnstorableValue",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
