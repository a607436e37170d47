"""One engine and saver on several event loops, one after the other: as pytest, Celery and scripts have them."""

from __future__ import annotations

import asyncio
import gc
import operator
import warnings
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import START, StateGraph
from sqlalchemy import NullPool, StaticPool, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver
from checkpoint_store.errors import WrongThread

THREAD: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
CALLED: Any = {"configurable": {"thread_id": "without LangGraph", "checkpoint_ns": ""}}


class Log(TypedDict):
    log: Annotated[list[str], operator.add]


def noting(saver: Any) -> Any:
    graph = StateGraph(Log).add_node("note", lambda state: {"log": [f"{len(state['log'])} before"]})
    return graph.add_edge(START, "note").compile(checkpointer=saver)


def engine_on(url: str, driver: str = "asyncpg", **options: Any) -> AsyncEngine:
    if driver == "psycopg":
        return create_async_engine(make_url(url).set(drivername="postgresql+psycopg"), **options)
    return create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}, **options)


@pytest.fixture
def abandoned(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Has what a loop left open when it was closed collected in silence, sockets included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        caplog.get_records("call").clear()  # SQLAlchemy's complaints, which hold on to connections
        for _ in range(3):
            gc.collect()


async def use(saver: AsyncPostgresSaver, engine: AsyncEngine) -> int:
    """All that lives on a loop: a run, many calls at once, a thread's lock, a transaction, a thread that calls."""
    async with saver.thread_lock("t"):
        await noting(saver).ainvoke({"log": ["hello"]}, THREAD)
    config = await saver.aput(CALLED, empty_checkpoint(), {}, {})
    await asyncio.gather(*[saver.aput_writes(config, [("a", n)], f"task {n}") for n in range(30)])
    async with AsyncSession(engine) as session, session.begin():
        await saver.bind(session).aput(CALLED, empty_checkpoint(), {}, {})
    await asyncio.to_thread(saver.put, CALLED, empty_checkpoint(), {}, {})
    return len([found async for found in saver.alist(None)])


@pytest.mark.parametrize("pipeline", [False, True])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("pool", ["NullPool", "StaticPool, disposed of", "disposed of"])
def test_a_saver_works_on_one_loop_after_the_other(url: str, pool: str, driver: str, pipeline: bool) -> None:
    """Made outside of any; wherever SQLAlchemy's own engine works too."""
    kinds: Any = {"NullPool": {"poolclass": NullPool}, "StaticPool, disposed of": {"poolclass": StaticPool}}
    engine = engine_on(url, driver, **kinds.get(pool, {"pool_size": 2, "max_overflow": 0}))
    saver = AsyncPostgresSaver(engine, AsyncPipeline(engine) if pipeline else False)

    async def turn() -> int:
        try:
            if "Static" in pool:  # a session and the saver would wait for each other
                await noting(saver).ainvoke({"log": ["hello"]}, THREAD)
                return len([found async for found in saver.alist(THREAD)])
            return await use(saver, engine)
        finally:
            await engine.dispose()

    found = [asyncio.run(turn()) for _ in range(3)]

    assert found == [found[0], found[0] * 2, found[0] * 3]


def test_another_saver_on_the_engine_works_on_the_next_loop_too(url: str) -> None:
    """A saver for each loop, or a new one beside the old one."""
    engine = engine_on(url)
    savers: list[AsyncPostgresSaver] = []

    async def turn() -> None:
        savers.append(AsyncPostgresSaver(engine))
        for saver in savers:
            await use(saver, engine)
        await engine.dispose()

    for _ in range(3):
        asyncio.run(turn())
    sync_saver = PostgresSaver(engine)  # which has a loop of its own from now on, for all of them
    assert sync_saver.get(THREAD) is not None
    assert asyncio.run(savers[0].aget(THREAD)) is not None
    sync_saver.close()


def test_a_sync_saver_goes_on_when_the_loop_that_it_shared_has_ended(url: str) -> None:
    """Beside an async saver it uses that one's loop; afterwards one of its own."""
    engine = engine_on(url)

    async def first() -> PostgresSaver:
        saver = AsyncPostgresSaver(engine)
        await saver.aput(THREAD, empty_checkpoint(), {}, {})
        sync_saver = PostgresSaver(engine)
        assert await asyncio.to_thread(sync_saver.get, THREAD) is not None
        await engine.dispose()
        return sync_saver

    sync_saver = asyncio.run(first())
    assert sync_saver.get(THREAD) is not None
    sync_saver.close()


@pytest.mark.parametrize("options", [{}, {"echo": True}, {"pool_pre_ping": True}], ids=str)
def test_connections_left_by_a_loop_that_has_ended_are_told_of_with_the_way_out(
    url: str, options: Any, abandoned: None
) -> None:
    """Those of asyncpg can't be used any more; the saver can, as soon as the engine has forgotten them."""
    engine = engine_on(url, **options)
    saver = AsyncPostgresSaver(engine)
    asyncio.run(saver.aget(THREAD))
    with pytest.raises(WrongThread, match=r"that has ended.*`await engine.dispose\(close=False\)`"):
        asyncio.run(saver.aget(THREAD))

    async def again() -> None:
        await engine.dispose(close=False)
        await use(saver, engine)
        await engine.dispose()

    asyncio.run(again())


@pytest.mark.parametrize("pipeline", [False, True])
def test_calls_that_ended_with_their_loop_stand_in_nobodys_way(url: str, pipeline: bool, abandoned: None) -> None:
    """They had the pool's only connection, the lock's session, places in queues; the loop was closed under them."""
    engine = engine_on(url, pool_size=1, max_overflow=0)
    saver = AsyncPostgresSaver(engine, AsyncPipeline(engine) if pipeline else False)
    lock = saver.thread_lock("t")
    calls: list[Any] = []

    async def abandon() -> None:
        await lock.__aenter__()
        calls.extend(asyncio.create_task(saver.aput(THREAD, empty_checkpoint(), {}, {})) for _ in range(20))
        turns = saver._backend.provider.slot  # type: ignore[attr-defined]
        for _ in range(10_000):
            if saver._backend._pipe._waiting if pipeline else turns._waiting:  # type: ignore[attr-defined]
                return
            await asyncio.sleep(0)
        pytest.fail("nobody waits")

    async def again() -> None:
        await engine.dispose(close=False)
        await asyncio.wait_for(use(saver, engine), 60)
        await engine.dispose()

    with psycopg.connect(url) as gate, psycopg.connect(url, autocommit=True) as admin:
        gate.execute("LOCK TABLE checkpoints IN EXCLUSIVE MODE")
        loop = asyncio.new_event_loop()
        loop.run_until_complete(abandon())
        loop.close()  # as by a worker that ends: nothing is cancelled, nothing given back
        gate.rollback()
        # The lock's session ends with its socket.
        sessions = "FROM pg_stat_activity WHERE datname = current_database() AND pid NOT IN (pg_backend_pid(), %s)"
        admin.execute(f"SELECT pg_terminate_backend(pid) {sessions}", [gate.info.backend_pid])
        asyncio.run(again())
    assert lock.lost


def test_a_saver_on_a_connection_belongs_to_its_loop(url: str) -> None:
    """A connection does, whatever pool it came from."""
    engine = engine_on(url, poolclass=NullPool)
    bound: list[AsyncPostgresSaver] = []

    async def bind() -> None:
        async with engine.connect() as conn:
            await conn.scalar(text("SELECT 1"))
            bound.append(AsyncPostgresSaver(engine).bind(conn))

    asyncio.run(bind())
    with pytest.raises(WrongThread, match=r"connection belongs to another event loop, which is closed. Bind"):
        asyncio.run(bound[0].aget(THREAD))


def test_a_saver_with_an_engine_of_its_own_is_closed_on_the_next_loop(url: str, abandoned: None) -> None:
    """A block that a worker has entered on one loop and leaves on another."""
    entered = AsyncPostgresSaver.from_conn_string(url)

    async def enter() -> AsyncPostgresSaver:
        saver = await entered.__aenter__()
        await saver.aput(THREAD, empty_checkpoint(), {}, {})
        return saver

    loop = asyncio.new_event_loop()
    saver = loop.run_until_complete(enter())
    loop.close()  # asyncio.run() would have left the block, with all async generators
    with pytest.raises(WrongThread, match="make a new saver"):
        asyncio.run(saver.aget(THREAD))
    asyncio.run(entered.__aexit__(None, None, None))
