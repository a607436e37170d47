"""A saver is closed, or its engine disposed of, while calls are under way: they end, and leave no session behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.errors import Closed
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
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
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


def test_a_sync_saver_with_an_engine_of_its_own_leaves_no_session_behind(url: str, gate: Gate) -> None:
    """Its loop ends, and what is under way there is cancelled."""
    with PostgresSaver.from_conn_string(url) as saver, calls(saver) as outcomes:
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
        turns = saver._source.origin.turn.__self__  # type: ignore[attr-defined]
        asyncio.run(is_true(lambda: gate.waiting() == 1 and turns._waiting))
        saver.close()
        gate.open()
    assert {type(outcome) for outcome in outcomes} == {type(None), Closed}
    asyncio.run(is_true(lambda: gate.sessions() == 0))
