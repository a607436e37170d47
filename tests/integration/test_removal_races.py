"""Removals meet writers halfway: what a checkpoint that is there refers to is there too."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver
from tests.integration.histories import unreachable

THREAD: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
VALUE = [f"message {number}" for number in range(2_000)]


async def put(saver: AsyncPostgresSaver, *, version: str = "1", run_id: str = "run", parent: Any = THREAD) -> Any:
    """Store a checkpoint with a value under a version that others may have too."""
    checkpoint: Any = {
        **empty_checkpoint(),
        "v": 4,
        "id": str(uuid6()),
        "channel_values": {"messages": VALUE},
        "channel_versions": {"messages": version},
    }
    return await saver.aput(parent, checkpoint, {"run_id": run_id}, {"messages": version})


async def values_of(saver: AsyncPostgresSaver) -> list[Any]:
    return [one.checkpoint["channel_values"].get("messages") async for one in saver.alist(None)]


@pytest.fixture
async def conn(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection of the test's own."""
    conn = await asyncpg.connect(url)
    yield conn
    await conn.close()


@asynccontextmanager
async def waiting_for_a_lock(url: str, call: Awaitable[Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Begin a call, and enter once the server says that it waits for somebody's lock."""
    watcher = await asyncpg.connect(url)
    task = asyncio.ensure_future(call)
    try:
        while not await watcher.fetchval(WAITING):
            assert not task.done(), "it did not wait"
        yield task
    finally:
        await watcher.close()


REMOVALS: dict[str, Callable[[AsyncPostgresSaver], Awaitable[Any]]] = {
    "delete_thread": lambda saver: saver.adelete_thread("t"),
    "prune": lambda saver: saver.aprune(["t"], strategy="delete"),
    "delete_for_runs": lambda saver: saver.adelete_for_runs(["run"]),
}


@pytest.mark.parametrize("share_pages", [False, True])
@pytest.mark.parametrize("name", REMOVALS)
async def test_a_removal_waits_for_who_counts_on_a_blob(
    engine: AsyncEngine, url: str, name: str, share_pages: bool
) -> None:
    """A checkpoint is stored whose value was found there; the removal doesn't take the value from under it."""
    saver = AsyncPostgresSaver(engine, share_pages=share_pages)
    await put(saver)
    async with engine.connect() as conn:
        await put(AsyncPostgresSaver(conn, share_pages=share_pages), run_id="another")
        async with waiting_for_a_lock(url, REMOVALS[name](saver)) as removal:
            await conn.commit()
            await removal

    assert await values_of(saver) == ([VALUE] if name == "delete_for_runs" else [])
    assert unreachable(url) == {}


@pytest.mark.parametrize("share_pages", [False, True])
@pytest.mark.parametrize("name", REMOVALS)
async def test_who_counts_on_a_blob_waits_for_a_removal(
    engine: AsyncEngine, url: str, name: str, share_pages: bool
) -> None:
    """The value is about to be removed; then it is stored again."""
    saver = AsyncPostgresSaver(engine, share_pages=share_pages)
    await put(saver)
    async with engine.connect() as conn:
        await REMOVALS[name](AsyncPostgresSaver(conn, share_pages=share_pages))
        async with waiting_for_a_lock(url, put(saver, run_id="another")) as storing:
            await conn.commit()
            await storing

    assert await values_of(saver) == [VALUE]
    assert unreachable(url) == {}


@pytest.mark.parametrize("share_pages", [False, True])
async def test_what_is_rolled_back_has_removed_nothing(engine: AsyncEngine, url: str, share_pages: bool) -> None:
    """On a caller's connection a removal is part of the caller's transaction, in as many batches as it takes."""
    saver = AsyncPostgresSaver(engine, share_pages=share_pages)
    for number in range(6):
        await put(saver, version=str(number), run_id=str(number % 2))
    async with engine.connect() as conn:
        within = AsyncPostgresSaver(conn, share_pages=share_pages)
        assert (await within.asweep(keep_last=4, batch_size=1)).checkpoints == 2
        assert (await within.adelete_for_runs(["1"])).checkpoints == 2
        assert len(await values_of(within)) == 2
        assert len(await values_of(saver)) == 6
        await conn.rollback()
        within = AsyncPostgresSaver(conn, share_pages=share_pages)
        assert (await within.aprune(["t"])).checkpoints == 5
        await conn.commit()

    assert await values_of(saver) == [VALUE]
    assert unreachable(url) == {}


@pytest.mark.parametrize("rounds", [10, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("share_pages", [False, True])
async def test_no_value_is_lost_that_is_stored_again_and_again(
    engine: AsyncEngine, url: str, rounds: int, share_pages: bool
) -> None:
    """Two writers reuse one version, a third process deletes: whatever checkpoint is there has its value."""
    elsewhere = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    savers = [AsyncPostgresSaver(one, share_pages=share_pages) for one in (engine, engine, elsewhere)]
    chance = random.Random(rounds)

    async def write(saver: AsyncPostgresSaver) -> None:
        for _ in range(4):
            await put(saver, run_id=chance.choice(["run", "another"]))

    async def remove(saver: AsyncPostgresSaver) -> None:
        for _ in range(3):
            await REMOVALS[chance.choice(list(REMOVALS))](saver)

    for _ in range(rounds):
        await asyncio.gather(write(savers[0]), write(savers[1]), remove(savers[2]))
        assert all(value == VALUE for value in await values_of(savers[0]))
        assert unreachable(url) == {}
    await elsewhere.dispose()


# Where a deletion that has deleted checkpoints for the first time, and who stores a certain one, wait for the test.
STOPS = """
    CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN PERFORM pg_advisory_xact_lock_shared(hashtext(TG_ARGV[0])); RETURN NULL; END$$;
    CREATE TRIGGER deleted AFTER DELETE ON checkpoints FOR EACH STATEMENT EXECUTE FUNCTION stop('deleted');
    CREATE TRIGGER stored AFTER INSERT ON checkpoints
        FOR EACH ROW WHEN (NEW.metadata @> '{"run_id": "second"}') EXECUTE FUNCTION stop('stored');
"""


async def test_a_thread_without_pages_gets_none_while_it_is_deleted(
    engine: AsyncEngine, url: str, conn: asyncpg.Connection[Any]
) -> None:
    """Or a second writer would count on those of the first while they are deleted with the first one's checkpoint."""
    await put(AsyncPostgresSaver(engine, share_pages=False), run_id="plain")
    saver = AsyncPostgresSaver(engine, share_pages=True)
    await conn.execute(STOPS)

    async def waiting(*events: str) -> int:
        number: int = await conn.fetchval(f"{WAITING} AND wait_event = ANY ($1)", events)
        return number

    async def as_far_as_it_goes(call: Awaitable[Any]) -> asyncio.Task[Any]:
        lasting = "advisory", "transactionid"  # other locks are had for a moment, to extend a file for one
        before, task = await waiting(*lasting), asyncio.ensure_future(call)
        while not task.done() and await waiting(*lasting) == before:
            pass
        return task

    await conn.execute("SELECT pg_advisory_lock(hashtext('deleted')), pg_advisory_lock(hashtext('stored'))")
    deletion = await as_far_as_it_goes(saver.adelete_thread("t"))
    first = await as_far_as_it_goes(put(saver, version="2", run_id="first"))
    second = await as_far_as_it_goes(put(saver, version="3", run_id="second"))
    await conn.execute("SELECT pg_advisory_unlock(hashtext('deleted'))")
    # Either all is over but the second put, or the deletion waits for that.
    while not (deletion.done() or (await waiting("transactionid") and first.done())):
        pass
    await conn.execute("SELECT pg_advisory_unlock(hashtext('stored'))")
    await asyncio.gather(deletion, first, second)

    assert all(value == VALUE for value in await values_of(saver))
    assert unreachable(url) == {}


async def test_two_removals_of_many_threads_never_deadlock(engine: AsyncEngine, url: str) -> None:
    """Whatever the order of the threads that they are called with: one waits for the other."""
    saver = AsyncPostgresSaver(engine, share_pages=False)
    threads = [str(uuid4()) for _ in range(20)]

    async def fill() -> None:
        for thread_id in threads:
            config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
            for _ in range(3):
                await put(saver, version=str(uuid4()), parent=config)

    def removals(order: Iterable[str]) -> list[Awaitable[Any]]:
        return [saver.aprune(list(order)), saver.asweep(keep_last=2, batch_size=10), saver.adelete_for_runs(["no"])]

    for _ in range(3):
        await fill()
        conn = await asyncpg.connect(url)
        before = await conn.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        await asyncio.gather(*removals(threads), *removals(reversed(threads)))
        assert (
            await conn.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == before
        )
        await conn.close()
    assert unreachable(url) == {}
