"""Engines are shared and left as they are; a caller's connection keeps its transaction."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import asyncpg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.errors import Closed, Unavailable, WrongThread
from checkpoint_store.storage.checkpoint_list import FIRST_ROWS

CONFIG: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


async def put(saver: AsyncPostgresSaver, **values: Any) -> Any:
    checkpoint: Any = {
        **empty_checkpoint(),
        "channel_values": values,
        "channel_versions": dict.fromkeys(values, "1"),
    }
    return await saver.aput(CONFIG, checkpoint, {}, checkpoint["channel_versions"])


async def test_a_callers_rollback_takes_the_checkpoint_with_it(engine: AsyncEngine, saver: AsyncPostgresSaver) -> None:
    """On a connection nothing is committed but by the caller."""
    async with engine.connect() as conn:
        within = AsyncPostgresSaver(conn)
        stored = await put(within, a=[1])
        await within.aput_writes(stored, [("a", 2)], "task")
        assert await within.aget_tuple(CONFIG) is not None
        assert await saver.aget_tuple(CONFIG) is None, "visible before the caller's commit"
        await conn.rollback()

    assert await saver.aget_tuple(CONFIG) is None


async def test_a_callers_commit_makes_the_checkpoint_visible_with_the_callers_rows(
    engine: AsyncEngine, saver: AsyncPostgresSaver
) -> None:
    """The host's order and the agent's checkpoint are one transaction."""
    async with engine.begin() as conn:
        await conn.execute(text("CREATE TABLE orders (id int)"))
        await conn.execute(text("INSERT INTO orders VALUES (1)"))
        await put(AsyncPostgresSaver(conn), a=1)

    assert await saver.aget_tuple(CONFIG) is not None
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM orders")) == 1


async def test_calls_on_one_connection_wait_for_each_other(engine: AsyncEngine) -> None:
    """A graph's parallel branches may share a connection that can do one thing at a time, through several savers."""
    async with engine.begin() as conn:
        stored = await put(AsyncPostgresSaver(conn), a=1)
        savers = [AsyncPostgresSaver(conn) for _ in range(3)]
        await asyncio.gather(
            *[saver.aput_writes(stored, [("a", i)], f"task-{i}") for i, saver in enumerate(savers * 5)]
        )
        found = await savers[0].aget_tuple(CONFIG)

    assert found is not None
    assert len(found.pending_writes or ()) == 15


async def test_the_hosts_transactions_stay_transactions(engine: AsyncEngine, saver: AsyncPostgresSaver) -> None:
    """The saver's AUTOCOMMIT never rubs off on connections that the host takes from the same pool."""
    for _ in range(5):
        await put(saver, a=1)
        async with engine.connect() as conn:
            await conn.execute(text("CREATE TABLE IF NOT EXISTS left_behind (id int)"))
            await conn.rollback()
            assert await conn.scalar(text("SELECT to_regclass('left_behind')")) is None


async def test_a_call_that_gets_no_connection_in_time_says_so(url: str) -> None:
    """Where the server hangs, later calls wait as long as the pool's timeout says, and the pool is whole afterwards."""
    engine = create_async_engine(
        "postgresql+asyncpg://", connect_args={"dsn": url}, pool_size=1, max_overflow=0, pool_timeout=0.2
    )
    saver = AsyncPostgresSaver(engine)
    locking = await asyncpg.connect(url)
    async with locking.transaction():
        await locking.execute("LOCK TABLE checkpoints")
        hanging = asyncio.create_task(saver.aget_tuple(CONFIG))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="no connection became free in time"):
            await saver.aget_tuple(CONFIG)
        assert not hanging.done()
    await locking.close()

    assert await hanging is None
    assert await saver.aget_tuple(CONFIG) is None
    await engine.dispose()


async def test_an_engine_that_was_handed_in_survives_aclose(engine: AsyncEngine) -> None:
    """We dispose of what we created and nothing else."""
    saver = AsyncPostgresSaver(engine)
    await put(saver, a=1)
    await saver.aclose()

    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM checkpoints")) == 1


async def test_the_pool_is_whole_after_errors_and_cancellations(engine: AsyncEngine, saver: AsyncPostgresSaver) -> None:
    """A call that is given up gives its connection back, or the pool a new one."""
    stored = await put(saver, a=1)
    for delay in range(30):
        task = asyncio.ensure_future(saver.aput_writes(stored, [("a", [delay])], f"task-{delay}"))
        for _ in range(delay):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert await saver.aget_tuple(CONFIG) is not None
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("api", [AsyncPostgresSaver, PostgresSaver])
async def test_setup_works_on_an_engine_in_autocommit(empty_url: str, api: Any) -> None:
    """The host's isolation level does not matter: a migration is one transaction all the same."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": empty_url}, isolation_level="AUTOCOMMIT")
    setup = api(engine).setup
    if api is PostgresSaver:
        await asyncio.to_thread(setup)
        await asyncio.to_thread(setup)
    else:
        await setup()
        async with engine.connect() as conn:
            await AsyncPostgresSaver(conn).setup()
        await engine.dispose()


def test_a_sync_saver_survives_its_engines_dispose(url: str) -> None:
    """SQLAlchemy lets an engine go on after dispose(), with a new pool; so does the saver on it."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    saver = PostgresSaver(engine)
    assert saver.get(CONFIG) is None
    saver._backend.event_loop.call(engine.dispose)
    gc.collect()

    assert saver.get(CONFIG) is None
    saver._backend.event_loop.call(engine.dispose)


async def test_a_closed_sync_saver_says_so_from_every_side(url: str) -> None:
    """Not that its loop does not run."""
    with PostgresSaver.from_conn_string(url) as saver:
        pass
    for call in (saver.setup, lambda: saver.get_tuple(CONFIG), lambda: list(saver.list(None))):
        with pytest.raises(Closed):
            call()
    with pytest.raises(Closed):
        await saver.aget_tuple(CONFIG)


def test_a_saver_made_before_the_loop_belongs_to_the_first_loop_that_uses_it(url: str) -> None:
    """A module-level saver works in an application whose loop starts later; a second one beside it is told why not."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    saver = AsyncPostgresSaver(engine)

    async def first() -> None:
        await put(saver, a=1)
        assert await asyncio.to_thread(saver.get, CONFIG) is not None
        with pytest.raises(WrongThread, match="another event loop"):
            await asyncio.to_thread(asyncio.run, saver.aget(CONFIG))
        await engine.dispose()

    async def second() -> None:
        assert await saver.aget(CONFIG) is not None
        await engine.dispose()

    asyncio.run(first())
    asyncio.run(second())


async def test_an_engine_used_on_this_loop_is_not_driven_from_another(url: str) -> None:
    """PostgresSaver's own loop can't use connections that this loop has opened; it says so and returns them."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    async with engine.connect() as conn:
        await conn.scalar(text("SELECT 1"))
    saver = PostgresSaver(engine)
    with pytest.raises(WrongThread, match="connections of another event loop"):
        await asyncio.to_thread(saver.get, CONFIG)
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT 1")) == 1
    await engine.dispose()


async def test_sync_and_async_savers_share_an_engine_of_this_loop(
    engine: AsyncEngine, saver: AsyncPostgresSaver
) -> None:
    """Where the engine has its loop already, a PostgresSaver on it uses that loop instead of one of its own."""
    sync_saver = PostgresSaver(engine)
    await put(saver, a=1)

    assert await asyncio.to_thread(sync_saver.get_tuple, CONFIG) == await saver.aget_tuple(CONFIG)


@pytest.fixture
async def long_thread(saver: AsyncPostgresSaver) -> list[str]:
    """A thread of 1,000 checkpoints in two namespaces, as (namespace, id) from new to old."""
    ids = []
    for number in range(1000):
        namespace = "sub" if number % 3 == 0 else ""
        checkpoint: Any = {**empty_checkpoint(), "id": f"{number:06}"}
        await saver.aput(
            {"configurable": {"thread_id": "t", "checkpoint_ns": namespace}}, checkpoint, {"n": number}, {}
        )
        ids.append(f"{namespace}/{number:06}")
    return ids[::-1]


async def test_a_list_is_read_in_pages_without_gap_or_repeat(
    engine: AsyncEngine, saver: AsyncPostgresSaver, long_thread: list[str]
) -> None:
    """However it is restricted, the pages join to the same list; no connection is held between them."""

    async def listed(config: Any, **options: Any) -> list[str]:
        found = []
        async for item in saver.alist(config, **options):
            place = item.config["configurable"]
            found.append(f"{place['checkpoint_ns']}/{place['checkpoint_id']}")
            assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        return found

    everything: Any = {"configurable": {"thread_id": "t"}}
    assert await listed(None) == await listed(everything) == long_thread
    assert await listed(CONFIG) == [name for name in long_thread if name.startswith("/")]
    assert await listed(everything, limit=FIRST_ROWS + 5) == long_thread[: FIRST_ROWS + 5]
    before = {"configurable": {"checkpoint_id": "000500"}}
    assert await listed(everything, before=before) == [name for name in long_thread if name[-6:] < "000500"]
    assert await listed(everything, filter={"n": 7}, before=before) == ["/000007"]
    assert await listed({"configurable": {"thread_id": "t", "checkpoint_id": "000009"}}) == ["sub/000009"]
    assert await listed(everything, limit=0) == []


async def test_what_is_stored_while_a_list_is_read_does_not_disturb_it(
    saver: AsyncPostgresSaver, long_thread: list[str]
) -> None:
    """New checkpoints are newer than the page that is being read."""
    found = 0
    async for _ in saver.alist({"configurable": {"thread_id": "t"}}):
        if found % 100 == 0:
            await saver.aput(CONFIG, {**empty_checkpoint(), "id": f"9{found:05}"}, {}, {})  # type: ignore[typeddict-item]
        found += 1

    assert found == len(long_thread)
