"""LangGraph checkpoints in PostgreSQL, for applications that speak SQLAlchemy.

    async with AsyncPostgresSaver.from_conn_string("postgresql://localhost/app") as saver:
        await saver.setup()
        graph = builder.compile(checkpointer=saver)

Names are imported when they are first used: a deploy job that only migrates never imports LangGraph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from checkpoint_store.pipeline import AsyncPipeline
    from checkpoint_store.saver import AsyncPostgresSaver, PostgresSaver

__version__ = "0.1.0"
__all__ = ["AsyncPipeline", "AsyncPostgresSaver", "PostgresSaver"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from checkpoint_store import saver

        return getattr(saver, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
