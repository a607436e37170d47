"""A connection that is lost is replaced, and no other one with it; where all are lost, that is noticed before a try."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.conninfo.transient_errors import ends_all_connections
from checkpoint_store.database.liveness import has_ended
from tests.faults.test_retrying import until

POOL = 10
OURS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'under test'"

Saver = AsyncPostgresSaver | PostgresSaver


def backends(url: str) -> set[int]:
    """The processes that serve the connections under test."""
    with psycopg.connect(url, autocommit=True) as admin:
        return {row[0] for row in admin.execute(f"SELECT pid {OURS}".encode()).fetchall()}


def end(url: str, pids: set[int]) -> None:
    """End connections, and wait until they are gone."""
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid, 10000) FROM unnest(%s) pid", [list(pids)])


async def put(saver: Saver) -> None:
    config: Any = {"configurable": {"thread_id": uuid.uuid4().hex, "checkpoint_ns": ""}}
    if isinstance(saver, AsyncPostgresSaver):
        await saver.aput(config, empty_checkpoint(), {}, {})
    else:
        await asyncio.to_thread(saver.put, config, empty_checkpoint(), {}, {})


@pytest.fixture(params=["asyncpg", "psycopg", "sync psycopg"])
async def saver(url: str, request: pytest.FixtureRequest) -> AsyncIterator[Saver]:
    """A saver on a pool of ten connections, all of them open."""
    driver = request.param.split()[-1]
    named: Any = {"server_settings": {"application_name": "under test"}}
    options: Any = {
        "pool_size": POOL,
        "max_overflow": 0,
        "connect_args": named if driver == "asyncpg" else {"application_name": "under test"},
    }
    place = make_url(url).set(drivername=f"postgresql+{driver}")
    engine: AsyncEngine | Engine
    if request.param.startswith("sync"):
        engine = create_engine(place, **options)
        with_all_open(engine)
        yield PostgresSaver(engine)
        engine.dispose()
        return
    engine = create_async_engine(place, **options)
    conns = [await engine.connect() for _ in range(POOL)]
    for conn in conns:
        await conn.close()
    yield AsyncPostgresSaver(engine)
    await engine.dispose()


def with_all_open(engine: Engine) -> None:
    for conn in [engine.connect() for _ in range(POOL)]:
        conn.close()


async def test_one_lost_connection_costs_no_other(url: str, saver: Saver) -> None:
    """The others stay, whether the lost one was noticed in the pool or by a statement."""
    before = backends(url)
    assert len(before) == POOL
    lost = {min(before)}
    await asyncio.to_thread(end, url, lost)

    for _ in range(3):
        await asyncio.gather(*[put(saver) for _ in range(POOL)])

    assert before - lost <= backends(url)


@pytest.mark.parametrize("saver", ["asyncpg", "psycopg"], indirect=True)
@pytest.mark.shortcut
async def test_a_connection_that_is_lost_in_a_statement_costs_no_other(url: str, saver: AsyncPostgresSaver) -> None:
    """It waits for a lock as it is ended."""
    before = backends(url)
    waiting = f"SELECT pid {OURS} AND wait_event_type = 'Lock'"
    with psycopg.connect(url) as locking, psycopg.connect(url, autocommit=True) as admin:
        locking.execute("LOCK TABLE checkpoints IN SHARE MODE")
        call = asyncio.create_task(put(saver))
        await until(lambda: admin.execute(waiting.encode()).fetchall())
        lost = {row[0] for row in admin.execute(waiting.encode()).fetchall()}
        await asyncio.to_thread(end, url, lost)
        locking.rollback()
        await call

    await asyncio.gather(*[put(saver) for _ in range(POOL)])
    assert len(lost) == 1
    assert before - lost <= backends(url)
    assert saver.retries == 1


async def test_where_all_are_lost_that_costs_one_try_at_most(url: str, saver: Saver) -> None:
    """As when the server has restarted: it has closed every socket, which is seen before a connection is used."""
    await asyncio.to_thread(end, url, backends(url))

    for _ in range(2 * POOL):
        await put(saver)

    assert saver.retries <= 1


@pytest.mark.parametrize(
    ("error", "ends_all"),
    [
        (ConnectionResetError(), False),
        (psycopg.errors.AdminShutdown(), False),
        (psycopg.OperationalError("consuming input failed: server closed the connection unexpectedly"), False),
        (psycopg.OperationalError("consuming input failed: Connection timed out"), True),
        (psycopg.errors.ReadOnlySqlTransaction(), True),
        (TimeoutError(110, "timed out"), True),
    ],
    ids=str,
)
def test_what_ends_all_connections(error: Exception, ends_all: bool) -> None:
    """A silent network, and another server."""
    assert ends_all_connections(error) is ends_all


def test_to_look_whether_a_connection_has_ended_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a host's `socket.setdefaulttimeout()`; and what is there to be read stays there."""
    ours, servers = socket.socketpair()
    with ours, servers:
        monkeypatch.setattr(socket.socket, "recv", _at_once(socket.socket.recv))
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(30)
        try:
            assert not has_ended(ours.fileno())
            servers.send(b"N")  # a notice
            assert not has_ended(ours.fileno())
            assert ours.recv(1, socket.MSG_DONTWAIT) == b"N"
            servers.close()
            assert has_ended(ours.fileno())
        finally:
            socket.setdefaulttimeout(before)


def _at_once(receive: Any) -> Any:
    def received(sock: socket.socket, size: int, flags: int) -> bytes:
        assert sock.gettimeout() == 0 or flags == socket.MSG_DONTWAIT
        return receive(sock, size, flags)

    return received
