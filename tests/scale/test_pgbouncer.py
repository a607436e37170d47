"""Through PgBouncer in transaction mode, 4 connections of the server's to all clients: nothing is lost or mixed up."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.conformance import validate
from langgraph.checkpoint.conformance.capabilities import BASE_CAPABILITIES
from langgraph.checkpoint.conformance.initializer import RegisteredCheckpointer
from sqlalchemy import event, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver, schema
from checkpoint_store.database.pool import is_pooled
from checkpoint_store.errors import InvalidOption
from checkpoint_store.url import pooler_options

CONFIG: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
REPOSITORY = Path(__file__).parents[2]

ADVISORY_LOCKS = """
SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
PROCESSES, CLIENTS = 2, 32


@asynccontextmanager
async def from_a_url(url: str) -> AsyncIterator[BaseCheckpointSaver[str]]:
    async with AsyncPostgresSaver.from_conn_string(url, pooler="transaction") as saver:
        yield saver


@asynccontextmanager
async def with_a_pipeline_and_pages(url: str) -> AsyncIterator[BaseCheckpointSaver[str]]:
    with PostgresSaver.from_conn_string(url, pooler="transaction", pipeline=True, share_pages=True) as saver:
        yield saver


@asynccontextmanager
async def on_a_hosts_engine_that_is_watched(url: str) -> AsyncIterator[BaseCheckpointSaver[str]]:
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), **pooler_options())
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: None)
    yield AsyncPostgresSaver(engine, AsyncPipeline(engine))
    await engine.dispose()


@asynccontextmanager
async def within_a_hosts_transaction(url: str) -> AsyncIterator[BaseCheckpointSaver[str]]:
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), **pooler_options())
    async with engine.begin() as conn:
        yield AsyncPostgresSaver(conn)
    await engine.dispose()


@asynccontextmanager
async def on_psycopg(url: str) -> AsyncIterator[BaseCheckpointSaver[str]]:
    engine = create_async_engine(make_url(url).set(drivername="postgresql+psycopg"), **pooler_options("psycopg"))
    yield AsyncPostgresSaver(engine, pooler="transaction")
    await engine.dispose()


HELD = [
    from_a_url,
    with_a_pipeline_and_pages,
    on_a_hosts_engine_that_is_watched,
    within_a_hosts_transaction,
    on_psycopg,
]


@pytest.mark.parametrize("held", HELD, ids=lambda held: held.__name__)
async def test_the_conformance_suite_passes_whole(held: Callable[[str], Any], pooled_url: str) -> None:
    """LangGraph's own suite: all that a saver can do, done through the pooler; no test was skipped."""

    async def saver() -> AsyncIterator[BaseCheckpointSaver[str]]:
        async with held(pooled_url) as opened:
            yield opened

    report = await validate(RegisteredCheckpointer(held.__name__, saver))

    detected = {name: result for name, result in report.results.items() if result.detected}
    assert detected.keys() >= {capability.value for capability in BASE_CAPABILITIES}
    for result in detected.values():
        assert result.passed, "\n".join(result.failures)
        assert result.tests_passed
        assert not result.tests_skipped


def crowd(url: str, steps: int, *kinds: str) -> Counter[str]:
    """What comes of 64 clients in two processes; see `clients`."""
    command = [sys.executable, str(Path(__file__).with_name("clients.py")), url, str(CLIENTS), str(steps)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    running = [
        subprocess.Popen([*command, str(seed), *kinds], stdout=subprocess.PIPE, env=environment)
        for seed in range(PROCESSES)
    ]
    return sum((Counter(json.loads(process.communicate()[0])) for process in running), Counter())


@pytest.mark.parametrize("steps", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_64_clients_get_their_own_values(url: str, pooled_url: str, steps: int) -> None:
    """Every answer to every client is what an in-memory saver answers to the same calls; there is no error."""
    outcome = crowd(pooled_url, steps)

    assert outcome == {"right": PROCESSES * CLIENTS * steps * 3}
    with psycopg.connect(url) as conn:
        left = conn.execute(
            "SELECT state, count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() GROUP BY state"
        ).fetchall()
    assert [state for state, _ in left] == ["idle"]
    assert 1 < left[0][1] <= 4, "connections of the server's"


async def test_without_the_option_an_error_says_which_one(pooled_url: str) -> None:
    """A statement that was prepared on one of the server's connections is missed on another."""
    async with AsyncPostgresSaver.from_conn_string(pooled_url, pool_size=1) as saver:
        await saver.aget_tuple(CONFIG)
        # PgBouncer lends first what came back last: so the next call gets another one.
        holding = await asyncpg.connect(pooled_url, statement_cache_size=0)
        try:
            await holding.execute("BEGIN")
            with pytest.raises(InvalidOption, match=r'pooler="transaction".*pooler_options\(\)'):
                await saver.aget_tuple(CONFIG)
        finally:
            await holding.close()


@pytest.mark.parametrize("kind", ["plain engine", "own engine", "watched engine"])
def test_one_that_carries_prepared_statements_needs_no_option(carrying_url: str, kind: str) -> None:
    """Since PgBouncer 1.21 an ordinary engine works through it, and so does one that is made for a pooler."""
    assert crowd(carrying_url, 5, kind) == {"right": PROCESSES * CLIENTS * 5 * 3}


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("watched", [False, True])
async def test_an_engine_that_is_not_made_for_it_is_refused(url: str, driver: str, watched: bool) -> None:
    """Whoever asks for a pooler on an engine that keeps prepared statements is told before anything is sent."""
    engine = create_async_engine(make_url(url).set(drivername=f"postgresql+{driver}"))
    seen: list[str] = []
    if watched:
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *call: seen.append(call[2]))
    saver = AsyncPostgresSaver(engine, pooler="transaction")

    with pytest.raises(InvalidOption, match=r"pooler_options\(\)"):
        await saver.aget_tuple(CONFIG)
    assert seen == []
    await engine.dispose()


@pytest.mark.parametrize("api", [AsyncPostgresSaver, PostgresSaver])
def test_a_kind_of_pooler_that_does_not_exist_is_refused(url: str, api: Any) -> None:
    """The message says which there are, and that session mode needs none."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    with pytest.raises(InvalidOption, match=r"'statement'.*session mode"):
        api(engine, pooler="statement")


@pytest.mark.parametrize("pooler", ["transaction", None])
def test_setup_works_through_it_and_leaves_no_lock_behind(
    empty_url: str, pooled: Callable[[str], str], pooler: Any
) -> None:
    """Many processes at once, one migration: in one transaction, with the lock, since the next may be elsewhere.

    Without the option too, which as a rule comes later: that something stands before the server can be told.
    """
    through = pooled(empty_url)

    def set_up(_: int) -> None:
        with PostgresSaver.from_conn_string(through, pooler=pooler, pool_size=1) as saver:
            saver.setup()

    async def all_at_once() -> None:
        await asyncio.gather(*[asyncio.to_thread(set_up, number) for number in range(6 if pooler else 1)])

    asyncio.run(all_at_once())

    with psycopg.connect(empty_url) as conn:
        assert conn.execute("SELECT version_num FROM checkpoint_store_version").fetchall() == [(schema.HEAD,)]
        assert conn.execute(ADVISORY_LOCKS).fetchone() == (0,)


def test_alembic_works_through_it_and_leaves_no_lock_behind(empty_url: str, pooled: Callable[[str], str]) -> None:
    """`alembic upgrade head` with the pooler's URL."""
    environment = {**os.environ, "CHECKPOINT_STORE_URL": pooled(empty_url)}
    for arguments in (["upgrade", "head"], ["downgrade", "base"], ["upgrade", "head"], ["check"]):
        subprocess.run([sys.executable, "-m", "alembic", *arguments], cwd=REPOSITORY, env=environment, check=True)

    with psycopg.connect(empty_url) as conn:
        assert conn.execute("SELECT version_num FROM checkpoint_store_version").fetchall() == [(schema.HEAD,)]
        assert conn.execute(ADVISORY_LOCKS).fetchone() == (0,)


async def test_one_that_refuses_generic_plans_is_asked_once(session_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows no such startup parameter; the next connections are made without it, and none is refused."""
    asked: list[bool] = []
    connect = asyncpg.connect

    async def counted(**arguments: Any) -> Any:
        asked.append("server_settings" in arguments)
        return await connect(**arguments)

    monkeypatch.setattr(asyncpg, "connect", counted)
    async with AsyncPostgresSaver.from_conn_string(session_url, pool_size=2, retry_timeout=0) as saver:
        for _ in range(3):
            await asyncio.gather(*[saver.aget_tuple(CONFIG) for _ in range(4)])
            await saver._backend._engine.dispose()  # type: ignore[attr-defined]

    assert asked.count(True) <= 2  # those that were opened at once
    assert asked.count(False) >= 3


async def test_it_can_be_told_from_a_server(url: str, pooled_url: str) -> None:
    """By the process id: the pooler tells one of its own making."""
    told = []
    for each in (url, pooled_url):
        for driver in ("asyncpg", "psycopg"):
            engine = create_async_engine(make_url(each).set(drivername=f"postgresql+{driver}"))
            async with engine.connect() as conn:
                told.append(await conn.run_sync(is_pooled))
                assert not conn.in_transaction()
            await engine.dispose()

    assert told == [False, False, True, True]


@pytest.mark.shortcut
async def test_no_statement_stays_behind_on_the_servers_connections(url: str, pooled_url: str) -> None:
    """However many calls go through it: what is prepared has no name, and so leaves nothing to pile up."""
    async with AsyncPostgresSaver.from_conn_string(pooled_url, pooler="transaction", share_pages=True) as saver:

        async def chat(number: int) -> None:
            thread: Any = {"configurable": {"thread_id": str(number), "checkpoint_ns": ""}}
            for _ in range(10):
                checkpoint: Any = {**empty_checkpoint(), "channel_values": {"a": ["x" * 20_000]}}
                checkpoint["channel_versions"] = {"a": "1"}
                stored = await saver.aput(thread, checkpoint, {}, {"a": "1"})
                await saver.aput_writes(stored, [("a", 1)], "task")
                await saver.aget_tuple(thread)

        await asyncio.gather(*map(chat, range(12)))
        counts = []
        connections = [await asyncpg.connect(pooled_url, statement_cache_size=0) for _ in range(4)]
        for connection in connections:  # each holds another one of the server's
            await connection.execute("BEGIN")
            counts.append(await connection.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''"))
        for connection in connections:
            await connection.close()

    assert counts == [0, 0, 0, 0]
