"""Calls that share a commit wait for locks, for each other and for the host as they would alone, or not much longer."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver
from checkpoint_store.errors import Refused, Unavailable

pytestmark = pytest.mark.shortcut


def config_of(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


def put(saver: AsyncPostgresSaver, thread_id: str, checkpoint: Any = None, **metadata: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(
        saver.aput(config_of(thread_id), checkpoint or empty_checkpoint(), metadata, {})  # type: ignore[arg-type]
    )


@pytest.fixture
async def wide(url: str) -> Any:
    """An engine with more connections than calls share commits on."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}, pool_size=20)
    yield engine
    await engine.dispose()


async def test_a_transaction_that_waits_for_a_call_beside_one_that_waits_for_it_goes_on(wide: AsyncEngine) -> None:
    """It holds a row that one of the calls needs, and stores something outside itself: both may be in one commit."""
    saver, known = AsyncPostgresSaver(wide), empty_checkpoint()
    await put(saver, "x", known)
    async with wide.connect() as conn:
        await conn.execute(text("UPDATE checkpoints SET metadata = metadata WHERE thread_id = 'x'"))
        crowd = [put(saver, f"{number}") for number in range(10)]
        crowd.append(put(saver, "x", known))
        await asyncio.sleep(0)

        await asyncio.wait_for(put(saver, "audit"), 20)
        await conn.commit()
    await asyncio.gather(*crowd)


async def test_commits_that_wait_for_locks_hold_no_other_thread_up(wide: AsyncEngine) -> None:
    """Two rows are locked for good; whoever has nothing to do with them is stored."""
    saver, known = AsyncPostgresSaver(wide), {name: empty_checkpoint() for name in ("x1", "x2")}
    for name, checkpoint in known.items():
        await put(saver, name, checkpoint)
    async with wide.connect() as conn:
        await conn.execute(text("SELECT 1 FROM checkpoints FOR UPDATE"))
        blocked = []
        for name, checkpoint in known.items():
            others = [put(saver, f"{name} {number}") for number in range(12)]
            blocked.append(put(saver, name, checkpoint))
            await asyncio.wait_for(asyncio.gather(*others), 20)
        for number in range(3):
            await asyncio.wait_for(put(saver, f"y{number}"), 20)
        assert not any(task.done() for task in blocked)
        await conn.rollback()
    await asyncio.gather(*blocked)


async def test_a_cancelled_put_does_not_come_after_the_threads_deletion(url: str, wide: AsyncEngine) -> None:
    """It had been sent in a commit of several calls; the deletion waits until that has ended."""
    saver = AsyncPostgresSaver(wide)
    conn = await asyncpg.connect(url)
    async with conn.transaction():
        await conn.execute("LOCK TABLE checkpoint_blobs, checkpoints IN EXCLUSIVE MODE")
        crowd = [put(saver, f"{number}") for number in range(10)]
        victim = put(saver, "victim")
        await asyncio.sleep(0.15)  # by then it waits for the lock
        victim.cancel()
        await asyncio.wait([victim])
        assert victim.cancelled()
        deletion = asyncio.create_task(saver.adelete_thread("victim"))
        await asyncio.sleep(0.1)
    await asyncio.gather(deletion, *crowd)
    await conn.close()

    assert await saver.aget_tuple(config_of("victim")) is None


async def test_of_the_calls_on_a_refused_thread_each_has_its_own_outcome(url: str, wide: AsyncEngine) -> None:
    """A trigger drops one checkpoint; another one of its thread and a task's writes, in the same commit, are stored."""
    conn = await asyncpg.connect(url)
    await conn.execute("""
        CREATE FUNCTION drop_bad() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN IF NEW.metadata ? 'bad' THEN RETURN NULL; END IF; RETURN NEW; END$$;
        CREATE TRIGGER drop_bad BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION drop_bad();
    """)
    await conn.close()
    saver, good = AsyncPostgresSaver(wide), empty_checkpoint()
    named: Any = {"configurable": {**config_of("t")["configurable"], "checkpoint_id": good["id"]}}
    crowd = [put(saver, f"{number}") for number in range(20)]
    calls = [
        put(saver, "t", bad=1),
        asyncio.create_task(saver.aput_writes(named, [("a", 1)], "task")),
        put(saver, "t", good),
    ]

    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert [isinstance(outcome, Refused) for outcome in outcomes] == [True, False, False]
    await asyncio.gather(*crowd)
    found = await saver.aget_tuple(named)
    assert found is not None
    assert found.pending_writes == [("task", "a", 1)]


async def test_the_host_gets_a_connection_of_its_own_pool_under_load(url: str) -> None:
    """A pool without overflow: our calls do not hand its connections on among themselves for ever."""
    engine = create_async_engine(
        "postgresql+asyncpg://", connect_args={"dsn": url}, pool_size=2, max_overflow=0, pool_timeout=20
    )
    saver, has_ended = AsyncPostgresSaver(engine), False

    async def read() -> None:
        while not has_ended:
            await saver.aget_tuple(config_of("t"))

    readers = [asyncio.create_task(read()) for _ in range(6)]
    await asyncio.sleep(0.1)
    for _ in range(3):
        async with engine.connect() as conn:
            await conn.execute(text("SELECT 1"))
    has_ended = True
    await asyncio.gather(*readers)
    await engine.dispose()


async def test_a_saver_that_gives_up_early_ends_no_call_of_another_one() -> None:
    """Each waits for a server as long as its own `retry_timeout` says."""
    engine = create_async_engine("postgresql+asyncpg://app@127.0.0.1:1/app", pool_size=20)
    hasty, patient = AsyncPostgresSaver(engine, retry_timeout=1.5), AsyncPostgresSaver(engine, retry_timeout=60)
    first = [put(hasty, f"{number}") for number in range(8)]
    await asyncio.sleep(0.1)
    waiting = [put(patient, f"p{number}") for number in range(3)]
    last = [put(hasty, f"h{number}") for number in range(8)]

    outcomes = await asyncio.gather(*first, *last, return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    assert not any(call.done() for call in waiting)
    for call in waiting:
        call.cancel()
    await asyncio.wait(waiting)
    await engine.dispose()
