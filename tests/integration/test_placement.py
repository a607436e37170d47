"""The question whether Citus has distributed the tables: asked once of an engine's server, for each schema."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from checkpoint_store import AsyncPostgresSaver

THREAD: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


def questions_on(engine: AsyncEngine) -> list[str]:
    """The questions that are asked on an engine from now on."""
    seen: list[str] = []

    def note(*args: Any) -> None:
        if "pg_extension" in args[2]:
            seen.append(args[2])

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    return seen


async def test_the_first_call_on_an_engine_asks(engine: AsyncEngine) -> None:
    """Later ones know it, in another saver and in a transaction of the host's too."""
    seen = questions_on(engine)
    saver = AsyncPostgresSaver(engine)
    for _ in range(3):
        await saver.aget_tuple(THREAD)
    await AsyncPostgresSaver(engine, pipe=False).aget_tuple(THREAD)
    async with AsyncSession(engine) as session, session.begin():
        await saver.bind(session).aget_tuple(THREAD)

    assert len(seen) == 1


async def test_what_is_asked_of_the_database_alone_does_not_ask(engine: AsyncEngine) -> None:
    """`setup()` at head is one round trip."""
    seen = questions_on(engine)
    await AsyncPostgresSaver(engine).setup()

    assert not seen
