"""A saver is closed, or its engine disposed of, while calls are under way: they end, and leave no session behind."""

from __future__ import annotations

import _thread
import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from sqlalchemy import StaticPool
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver
from checkpoint_store.database import engine_provider
from checkpoint_store.database.closing import State
from checkpoint_store.database.locks.session import LockSession
from checkpoint_store.database.pool import dispose
from checkpoint_store.errors import Closed, WrongThread
from checkpoint_store.transfer import acopy_threads
from tests.faults.bed import PATIENCE_SECONDS

CONFIG: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
ONE_CONNECTION: Any = {"pool_size": 1, "max_overflow": 0}


class Gate:
    """Holds the tables, so that whoever reads or writes has to wait, and counts the sessions of others."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._conn = psycopg.connect(url)
        self._pid = self._conn.info.backend_pid
        self._conn.execute("LOCK TABLE checkpoints IN ACCESS EXCLUSIVE MODE")

    def open(self) -> None:
        """Let them go on."""
        self._conn.close()

    def waiting(self) -> int:
        return self._count("AND wait_event_type = 'Lock'")

    def sessions(self) -> int:
        return self._count("")

    def _count(self, condition: str) -> int:
        others = "datname = current_database() AND backend_type = 'client backend'"
        ours = f"pid NOT IN ({self._pid}, pg_backend_pid())"
        with psycopg.connect(self._url, autocommit=True) as conn:
            query = f"SELECT count(*) FROM pg_stat_activity WHERE {others} AND {ours} {condition}"
            (number,) = conn.execute(query.encode()).fetchone() or (0,)
        return int(number)


@pytest.fixture
def gate(url: str) -> Iterator[Gate]:
    gate = Gate(url)
    yield gate
    gate.open()


def engine_on(url: str, **options: Any) -> AsyncEngine:
    return create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}, **options)


on_both = pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])


def with_driver(url: str, driver: str) -> str:
    return url.replace("postgresql:", f"postgresql+{driver}:", 1)


async def is_true(condition: Any) -> None:
    for _ in range(PATIENCE_SECONDS * 100):
        if await asyncio.to_thread(condition):
            return
        await asyncio.sleep(0.01)
    pytest.fail("it has not come to pass")


@contextmanager
def calls(*savers: PostgresSaver) -> Iterator[list[Any]]:
    """Look something up in a thread for each saver; yields what comes of it."""
    outcomes: list[Any] = []

    def call(saver: PostgresSaver) -> None:
        try:
            outcomes.append(saver.get_tuple(CONFIG))
        except Closed as error:
            outcomes.append(error)

    threads = [threading.Thread(target=call, args=(saver,)) for saver in savers]
    for thread in threads:
        thread.start()
    yield outcomes
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


async def test_a_call_under_way_closes_its_connection_when_the_saver_is_gone(url: str, gate: Gate) -> None:
    """It would go back to a pool that nobody looks after any more, and stay open as long as the loop runs."""
    async with AsyncPostgresSaver.from_conn_string(url, pipeline=False) as saver:
        call = asyncio.create_task(saver.aput(CONFIG, empty_checkpoint(), {}, {}))
        await is_true(lambda: gate.waiting() == 1)
    gate.open()

    stored = await call
    await is_true(lambda: gate.sessions() == 0)
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        assert await saver.aget_tuple(stored) is not None


async def test_a_call_under_way_closes_its_connection_when_the_host_disposes_of_the_engine(
    url: str, gate: Gate
) -> None:
    """SQLAlchemy leaves connections that are in use to who uses them."""
    engine = engine_on(url)
    call = asyncio.create_task(AsyncPostgresSaver(engine).aget_tuple(CONFIG))
    await is_true(lambda: gate.waiting() == 1)
    await engine.dispose()
    gate.open()

    assert await call is None
    await is_true(lambda: gate.sessions() == 0)
    assert await AsyncPostgresSaver(engine).aget_tuple(CONFIG) is None  # on a pool as good as new
    assert gate.sessions() == 1
    await engine.dispose()


async def test_a_cancelled_call_closes_its_connection_too(url: str, gate: Gate) -> None:
    """Whichever way it ends."""
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        call = asyncio.create_task(saver.aget_tuple(CONFIG))
        await is_true(lambda: gate.waiting() == 1)
    call.cancel()

    await asyncio.wait([call])
    assert call.cancelled()
    await is_true(lambda: gate.sessions() == 0)


def test_a_sync_saver_on_the_hosts_engine_leaves_no_session_behind(url: str, gate: Gate) -> None:
    """The loop is the saver's: the host has no way to close what lives there."""
    saver = PostgresSaver(engine_on(url))
    with calls(saver) as outcomes:
        asyncio.run(is_true(lambda: gate.waiting() == 1))
        saver.close()
        gate.open()
    assert outcomes == [None]
    asyncio.run(is_true(lambda: gate.sessions() == 0))


@on_both
def test_a_sync_saver_with_an_engine_of_its_own_leaves_no_session_behind(url: str, gate: Gate, driver: str) -> None:
    """What is under way is cancelled; the loop ends, if there is one."""
    with PostgresSaver.from_conn_string(with_driver(url, driver)) as saver, calls(saver) as outcomes:
        asyncio.run(is_true(lambda: gate.waiting() == 1))
        saver.close()
    assert [type(outcome) for outcome in outcomes] == [Closed]
    asyncio.run(is_true(lambda: gate.sessions() == 0))


async def test_a_call_that_waits_for_a_connection_opens_none_after_the_end(url: str, gate: Gate) -> None:
    """It would be opened in the engine's next pool, which nobody knows of."""
    async with AsyncPostgresSaver.from_conn_string(url, **ONE_CONNECTION) as saver:
        first, second = (asyncio.create_task(saver.aget_tuple(CONFIG)) for _ in range(2))
        await is_true(lambda: gate.waiting() == 1)
    gate.open()

    assert await first is None
    with pytest.raises(Closed, match="closed"):
        await second
    await is_true(lambda: gate.sessions() == 0)


def test_a_sync_call_that_waits_for_a_connection_opens_none_after_the_end(url: str, gate: Gate) -> None:
    """The same, where the loop is the saver's and the engine the host's."""
    saver = PostgresSaver(engine_on(url, **ONE_CONNECTION))
    with calls(saver, saver) as outcomes:
        turns = saver._backend.provider.slot  # type: ignore[attr-defined]
        asyncio.run(is_true(lambda: gate.waiting() == 1 and turns._waiting))
        saver.close()
        gate.open()
    assert {type(outcome) for outcome in outcomes} == {type(None), Closed}
    asyncio.run(is_true(lambda: gate.sessions() == 0))


async def test_who_does_not_wait_for_a_pipeline_to_close_leaves_no_session_either(url: str, gate: Gate) -> None:
    """Closing waits for what the pipeline has accepted; it may be cancelled, by a host that has to end."""
    async with AsyncPostgresSaver.from_conn_string(url, pipeline=True) as saver:
        call = asyncio.create_task(saver.aput(CONFIG, empty_checkpoint(), {}, {}))
        await is_true(lambda: gate.waiting() == 1)
        closing = asyncio.create_task(saver.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
    gate.open()

    await call
    await is_true(lambda: gate.sessions() == 0)


@pytest.mark.shortcut
async def test_a_second_close_is_done_when_the_first_is(url: str, gate: Gate) -> None:
    """Whoever is told that a saver is closed may drop the database."""
    async with AsyncPostgresSaver.from_conn_string(url, pipeline=True) as saver:
        call = asyncio.create_task(saver.aput(CONFIG, empty_checkpoint(), {}, {}))
        await is_true(lambda: gate.waiting() == 1)
        closing = [asyncio.create_task(saver.aclose()) for _ in range(2)]
        gate.open()
        await asyncio.wait(closing, return_when=asyncio.FIRST_COMPLETED)
        assert call.done()
    await asyncio.gather(*closing)


def test_a_close_that_was_refused_can_be_made_up_for(url: str, gate: Gate) -> None:
    """On another loop the engine can't be disposed of; on its own one it still can."""
    gate.open()

    async def run() -> None:
        async with AsyncPostgresSaver.from_conn_string(url) as saver:
            await saver.aget_tuple(CONFIG)
            with pytest.raises(WrongThread, match="another event loop"):
                await asyncio.to_thread(asyncio.run, saver.aclose())
        await is_true(lambda: gate.sessions() == 0)

    asyncio.run(run())


async def test_a_migration_under_way_closes_its_connection(empty_url: str) -> None:
    """setup() takes connections by a way of its own."""
    with psycopg.connect(empty_url) as other:
        other.execute("CREATE TABLE checkpoints (a int)")
        async with AsyncPostgresSaver.from_conn_string(empty_url) as saver:
            call = asyncio.create_task(saver.setup())
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
            with psycopg.connect(empty_url, autocommit=True) as conn:
                await is_true(lambda: conn.execute(waiting, [conn.info.dbname]).fetchone() == (1,))
        other.rollback()
        await call
        ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        await is_true(lambda: other.execute(ours).fetchone() == (0,) or other.rollback())


async def test_a_transfer_that_waits_for_a_connection_opens_none_after_the_end(url: str, gate: Gate) -> None:
    """It works on one connection of the target, which it has to get first."""
    source = InMemorySaver()
    source.put(CONFIG, empty_checkpoint(), {}, {})
    async with AsyncPostgresSaver.from_conn_string(url, **ONE_CONNECTION) as saver:
        first = asyncio.create_task(saver.aget_tuple(CONFIG))
        await is_true(lambda: gate.waiting() == 1)
        transfer = asyncio.create_task(acopy_threads(source, saver))
        turns = saver._backend.provider.slot  # type: ignore[attr-defined]
        await is_true(lambda: turns._waiting)
    gate.open()

    await first
    with pytest.raises(Closed, match="closed"):
        await transfer
    await is_true(lambda: gate.sessions() == 0)


def test_what_a_shared_pipeline_stores_after_the_end_leaves_no_session_behind(url: str, gate: Gate) -> None:
    """It is stored, since there may be other savers' changes among it; on a loop where nobody else closes anything."""
    engine = engine_on(url, **ONE_CONNECTION)
    saver = PostgresSaver(engine, AsyncPipeline(engine))
    stored: list[Any] = []

    def put(thread_id: str) -> None:
        config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        stored.append(saver.put(config, empty_checkpoint(), {}, {}))

    with calls(saver) as found, ThreadPoolExecutor() as pool:
        asyncio.run(is_true(lambda: gate.waiting() == 1))
        turns = saver._backend.provider.slot  # type: ignore[attr-defined]
        puts = [pool.submit(put, f"t{n}") for n in range(3)]
        asyncio.run(is_true(lambda: turns._waiting))
        saver.close()
        gate.open()
        wait(puts)
    assert (len(stored), found) == (3, [None])
    asyncio.run(is_true(lambda: gate.sessions() == 0))


@on_both
@pytest.mark.shortcut
def test_ctrl_c_in_close_leaves_neither_session_nor_thread_behind(url: str, gate: Gate, driver: str) -> None:
    """It ends the wait for what is under way, and no more than that."""
    before = set(threading.enumerate())
    with PostgresSaver.from_conn_string(with_driver(url, driver)) as saver, ThreadPoolExecutor() as pool:
        call = pool.submit(saver.put, CONFIG, empty_checkpoint(), {}, {})
        asyncio.run(is_true(lambda: gate.waiting() == 1))
        backend: Any = saver._backend

        def is_closing() -> bool:
            return bool(backend._pipe._closed) if driver == "asyncpg" else backend.provider.state is State.DRAINING

        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            pool.submit(lambda: asyncio.run(is_true(is_closing)) or _thread.interrupt_main())
            saver.close()
        with pytest.raises(Closed):
            call.result(PATIENCE_SECONDS)
    gate.open()
    asyncio.run(is_true(lambda: gate.sessions() == 0))
    assert set(threading.enumerate()) <= before


async def test_aclose_ends_the_loop_of_a_sync_saver(url: str) -> None:
    """As close() does."""
    before = set(threading.enumerate())
    with PostgresSaver.from_conn_string(with_driver(url, "asyncpg")) as saver:
        await saver.aget_tuple(CONFIG)
        await saver.aclose()
        left = [thread for thread in threading.enumerate() if thread.name == "checkpoint_store"]
        assert set(left) <= before


async def test_a_saver_of_a_worker_thread_leaves_the_hosts_engine_alone(url: str) -> None:
    """It works on the host's loop, with the host's pipeline; closed, once or twice, it disposes of nothing."""
    engine = engine_on(url)
    async with AsyncPipeline(engine) as pipe:
        saver = AsyncPostgresSaver(engine, pipe)
        await saver.aput(CONFIG, empty_checkpoint(), {}, {})
        pool = engine.sync_engine.pool

        def work() -> None:
            sync = PostgresSaver(engine, pipe)
            sync.put(CONFIG, empty_checkpoint(), {}, {})
            sync.close()
            sync.close()

        await asyncio.to_thread(work)
        await saver.aput(CONFIG, empty_checkpoint(), {}, {})
        assert engine.sync_engine.pool is pool
    await engine.dispose()


async def test_the_one_connection_of_a_pool_is_closed_when_it_is_free(url: str, gate: Gate) -> None:
    """SQLAlchemy's StaticPool would close it under the call."""
    async with AsyncPostgresSaver.from_conn_string(url, poolclass=StaticPool, pipeline=False) as saver:
        call = asyncio.create_task(saver.aput(CONFIG, empty_checkpoint(), {}, {}))
        await is_true(lambda: gate.waiting() == 1)
    gate.open()

    await call
    await is_true(lambda: gate.sessions() == 0)


async def test_savers_from_before_and_after_a_dispose_share_the_one_connection(url: str) -> None:
    """An engine has another pool then, and the connection still does one thing at a time."""
    engine = engine_on(url, poolclass=StaticPool)
    before = AsyncPostgresSaver(engine)
    await before.aget_tuple(CONFIG)
    await engine.dispose()
    after = AsyncPostgresSaver(engine)

    assert await asyncio.gather(*[saver.aget_tuple(CONFIG) for saver in (before, after) * 3]) == [None] * 6
    await engine.dispose()


@pytest.mark.parametrize("kind", [AsyncPostgresSaver, PostgresSaver])
async def test_what_went_wrong_in_the_block_is_not_hidden_by_what_closing_says(
    url: str, kind: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first error is raised; the second one, which often follows from it, is logged without its text."""

    def fail(engine: Any) -> None:
        dispose(engine)
        raise OSError("SSN-078-05-1120")

    async def enter(first: Exception | None) -> None:
        if kind is AsyncPostgresSaver:
            async with kind.from_conn_string(url) as saver:
                await saver.aget_tuple(CONFIG)
                if first:
                    raise first
        else:
            with kind.from_conn_string(url) as saver:
                saver.get_tuple(CONFIG)
                if first:
                    raise first

    monkeypatch.setattr(engine_provider, "dispose", fail)
    first = ValueError("the first one")
    with pytest.raises(ValueError, match="the first one") as caught:
        await enter(first)
    assert caught.value is first
    assert caplog.messages == ["after the error that is raised, closing has failed too: OSError"]
    with pytest.raises(OSError, match="SSN"):
        await enter(None)


async def test_a_lock_that_can_not_be_given_back_does_not_keep_the_engine_open(
    url: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thing is closed, whatever went wrong with the one before."""
    gate.open()

    def fail(_: Any) -> None:
        raise OSError("first")

    monkeypatch.setattr(LockSession, "close", fail)
    with pytest.raises(OSError, match="first"):
        async with AsyncPostgresSaver.from_conn_string(url) as saver:
            await saver.aget_tuple(CONFIG)
    with psycopg.connect(url, autocommit=True) as conn:
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        await is_true(lambda: conn.execute(others).fetchone() == (0,))
