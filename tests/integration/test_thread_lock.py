"""`thread_lock`: the runs of a thread wait for each other, whatever process they are in; a lost lock is told."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import psycopg
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import Connection, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver, partitioning
from checkpoint_store.database import event_loop
from checkpoint_store.database.locks import connection as lock_connection
from checkpoint_store.database.locks import request as lock_request
from checkpoint_store.database.locks import session as lock_session
from checkpoint_store.errors import (
    Closed,
    InvalidConfig,
    InvalidOption,
    LockLost,
    NotSetUp,
    ThreadLocked,
    Unavailable,
    WrongThread,
    WrongTransaction,
)
from checkpoint_store.saver.thread_lock import ThreadLock
from checkpoint_store.sql.compiled import Statement
from checkpoint_store.sql.executor import ConnectionExecutor
from checkpoint_store.sql.statements import Statements, statements_of
from checkpoint_store.storage import locks

THREAD: RunnableConfig = {"configurable": {"thread_id": "t1", "checkpoint_ns": ""}}


@pytest.fixture
async def other(url: str) -> AsyncIterator[AsyncPostgresSaver]:
    """A saver on an engine of its own, as in another process."""
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        yield saver


@pytest.fixture
def sql(url: str) -> Iterator[psycopg.Connection]:
    """A connection of the test's own."""
    with psycopg.connect(url, autocommit=True) as conn:
        yield conn


def sessions_with_locks(sql: psycopg.Connection) -> list[int]:
    """The server's processes that hold a session's advisory lock in this database."""
    rows = sql.execute(
        "SELECT DISTINCT pid FROM pg_locks WHERE locktype = 'advisory' AND granted "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return [pid for (pid,) in rows]


async def put(saver: AsyncPostgresSaver) -> None:
    await saver.aput(THREAD, empty_checkpoint(), {}, {})


async def test_runs_of_a_thread_wait_for_each_other(saver: AsyncPostgresSaver, other: AsyncPostgresSaver) -> None:
    """In this process and in another there is never more than one in the block, and all get their turn."""
    inside, most, entered = 0, 0, 0

    async def run(saver: AsyncPostgresSaver) -> None:
        nonlocal inside, most, entered
        async with saver.thread_lock("t1"):
            inside += 1
            entered += 1
            most = max(most, inside)
            await put(saver)
            inside -= 1

    await asyncio.gather(*[run(one) for one in (saver, other) * 8])

    assert (most, entered) == (1, 16)


async def test_another_thread_is_free(saver: AsyncPostgresSaver, other: AsyncPostgresSaver) -> None:
    """Each thread has a lock of its own, and each schema its threads."""
    async with saver.thread_lock("t1"), saver.thread_lock("t2", timeout=0), other.thread_lock("t3", timeout=0):
        pass


async def test_waiting_ends_with_an_error(saver: AsyncPostgresSaver, other: AsyncPostgresSaver) -> None:
    """A lock that somebody else has is given up on after the time-out, here and elsewhere, and is free afterwards."""
    async with saver.thread_lock("t1"):
        for one in (saver, other):
            for timeout, words in ((0, "has the lock. Let"), (0.1, "has had the lock for the 0.1 s that this one")):
                with pytest.raises(ThreadLocked, match=f"thread 't1': another run {words}"):
                    await one.thread_lock("t1", timeout=timeout).__aenter__()
    for one in (other, saver):
        async with one.thread_lock("t1", timeout=0):
            pass


async def test_locks_take_no_connection_of_the_pool(url: str, sql: psycopg.Connection) -> None:
    """Fifty runs with a lock on a pool of one make their steps; all locks are in one session, which ends with them."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), pool_size=1, max_overflow=0)
    saver = AsyncPostgresSaver(engine)
    together, sessions, all_are_in = 0, set(), asyncio.Event()

    async def run(thread_id: str) -> None:
        nonlocal together
        async with saver.thread_lock(thread_id):
            together += 1
            if together == 50:
                all_are_in.set()
            await all_are_in.wait()
            sessions.update(sessions_with_locks(sql))
            config = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
            await saver.aput(config, empty_checkpoint(), {}, {})  # type: ignore[arg-type]

    await asyncio.gather(*[run(f"t{number}") for number in range(50)])

    assert len(sessions) == 1
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert lock_session.lock_session_of(engine.dialect)._connection is None
    await engine.dispose()
    assert sessions_with_locks(sql) == []


async def test_a_waiter_that_is_cancelled_leaves_no_lock(
    saver: AsyncPostgresSaver, other: AsyncPostgresSaver, sql: psycopg.Connection
) -> None:
    """Cancelled at any moment, also when the lock has just come: the next one gets it, and locks of others stay."""
    async with saver.thread_lock("bystander"):
        for turn in range(40):
            waiting = asyncio.ensure_future(saver.thread_lock("t1").__aenter__())
            for _ in range(turn):
                await asyncio.sleep(0)
            if not waiting.done():
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            else:
                await (await waiting).__aexit__(None, None, None)
            async with other.thread_lock("t1", timeout=5):
                pass
        assert len(sessions_with_locks(sql)) == 1
        with pytest.raises(ThreadLocked):
            await other.thread_lock("bystander", timeout=0).__aenter__()


async def test_a_block_that_is_cancelled_gives_the_lock_back(
    saver: AsyncPostgresSaver, other: AsyncPostgresSaver
) -> None:
    """Also if it is cancelled once more while it does."""

    async def run() -> None:
        async with saver.thread_lock("t1"):
            await asyncio.Event().wait()

    for cancellations in (1, 2, 3):
        running = asyncio.ensure_future(run())
        while lock_session.lock_session_of(saver._backend.provider.engine.dialect)._connection is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for _ in range(cancellations):
            running.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await running
        async with other.thread_lock("t1", timeout=5):
            pass


async def test_a_lost_lock_is_told(
    saver: AsyncPostgresSaver, other: AsyncPostgresSaver, sql: psycopg.Connection
) -> None:
    """When the session ends nothing more is stored for the thread, and the block ends with the error."""
    with pytest.raises(LockLost, match="thread 't1': the lock was lost"):  # noqa: PT012
        async with saver.thread_lock("t1") as lock:
            await put(saver)
            assert not lock.lost
            (pid,) = sessions_with_locks(sql)
            sql.execute("SELECT pg_terminate_backend(%s)", [pid])
            async with other.thread_lock("t1", timeout=5):
                await put(other)
            while not lock.lost:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            with pytest.raises(LockLost):
                await put(saver)
            with pytest.raises(LockLost):
                await saver.aput_writes({"configurable": {"thread_id": "t1", "checkpoint_id": "1"}}, [("a", 1)], "x")
            await saver.aput({"configurable": {"thread_id": "t2", "checkpoint_ns": ""}}, empty_checkpoint(), {}, {})
    async with saver.thread_lock("t1", timeout=5):
        await put(saver)

    assert len([found async for found in saver.alist(THREAD)]) == 3


async def test_what_was_wrong_in_the_block_is_told_rather_than_the_loss(
    saver: AsyncPostgresSaver, sql: psycopg.Connection
) -> None:
    """An error of the block's own is the one that comes out."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with saver.thread_lock("t1") as lock:
            sql.execute("SELECT pg_terminate_backend(%s)", sessions_with_locks(sql))
            while not lock.lost:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            raise ZeroDivisionError


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Have processes of the server's stand still."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    except PermissionError:
        pytest.skip("the server is not ours to stop")
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def test_a_server_that_does_not_answer_has_lost_the_lock(
    saver: AsyncPostgresSaver, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is open and dead is found out by a sign of life that doesn't come."""
    monkeypatch.setattr(lock_session, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(lock_connection, "ANSWER_SECONDS", 0.2)
    async with saver.thread_lock("t0"):
        pass
    with ExitStack() as standing_still, pytest.raises(LockLost):  # noqa: PT012
        async with saver.thread_lock("t1") as lock:
            standing_still.enter_context(stopped(sessions_with_locks(sql)[:1]))
            while not lock.lost:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_lock_is_held_by_a_beating_session(
    saver: AsyncPostgresSaver, other: AsyncPostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signs of life do it no harm, nor do others who ask for it meanwhile."""
    monkeypatch.setattr(lock_session, "CHECK_SECONDS", 0.001)
    async with saver.thread_lock("t1") as lock:
        with pytest.raises(ThreadLocked):
            await other.thread_lock("t1", timeout=0.3).__aenter__()
        assert not lock.lost


HOLDER = """
import sys
from checkpoint_store import PostgresSaver

with PostgresSaver.from_conn_string(sys.argv[1]) as saver, saver.thread_lock("t1"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_lock_is_free_when_its_holder_is_killed(url: str, sync_saver: PostgresSaver) -> None:
    """Kill -9 gives nobody time to clean up; the server does."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ThreadLocked):
            sync_saver.thread_lock("t1", timeout=0.1).__enter__()
        holder.kill()
        with sync_saver.thread_lock("t1", timeout=10):
            pass


RUNNER = """
import asyncio, sys
from contextlib import nullcontext
from langgraph.graph import START, StateGraph
from typing import TypedDict
from checkpoint_store import AsyncPostgresSaver

class State(TypedDict):
    runs: list

async def main(url, name, locks, runs):
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        async def work(state):
            await asyncio.sleep(0.002)
            return {"runs": [*state.get("runs", []), name]}
        graph = StateGraph(State).add_node(work).add_edge(START, "work").compile(checkpointer=saver)
        thread = {"configurable": {"thread_id": "t1"}}
        await graph.aget_state(thread)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for _ in range(runs):
            async with saver.thread_lock("t1") if locks else nullcontext():
                state = await graph.aget_state(thread)
                await graph.ainvoke({"runs": state.values.get("runs", [])}, thread)

asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] == "locks", int(sys.argv[4])))
"""


def run_at_once(url: str, *options: str) -> None:
    """Have two processes run a graph on one thread."""
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    commands = [[sys.executable, "-c", RUNNER, url, name, *options] for name in ("one", "other")]
    with subprocess.Popen(commands[0], **pipes) as one, subprocess.Popen(commands[1], **pipes) as other:
        for process in (one, other):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in (one, other):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in (one, other):
            process.communicate(timeout=300)
            assert process.returncode == 0


async def outcome(saver: AsyncPostgresSaver) -> tuple[Counter[str], int]:
    """How many runs of each process the state has, and how many checkpoints have a sibling."""
    found = [item async for item in saver.alist(THREAD)]
    parents = Counter(str(item.parent_config) for item in found)
    return Counter(found[0].checkpoint["channel_values"]["runs"]), sum(parents.values()) - len(parents)


async def test_two_processes_lose_no_run(url: str, saver: AsyncPostgresSaver) -> None:
    """Each of their runs is in the thread's state, and no checkpoint has two children."""
    run_at_once(url, "locks", "20")

    assert await outcome(saver) == ({"one": 20, "other": 20}, 0)


@pytest.mark.slow
async def test_two_processes_lose_runs_without_it(url: str, saver: AsyncPostgresSaver) -> None:
    """The test above can fail: without locks the same two fork the thread and lose runs in silence."""
    run_at_once(url, "none", "20")
    runs, forks = await outcome(saver)

    assert forks > 0
    assert sum(runs.values()) < 40


# --- sync, and on what the caller hands over ---


@pytest.fixture(params=["asyncpg", "async psycopg", "psycopg"])
def sync(request: pytest.FixtureRequest, url: str) -> Iterator[PostgresSaver]:
    """A saver for sync code, on an async engine or a sync one."""
    if request.param == "asyncpg":
        with PostgresSaver.from_conn_string(url) as saver:
            yield saver
        return
    driver, options = make_url(url).set(drivername="postgresql+psycopg"), {"pool_size": 2, "max_overflow": 0}
    if request.param == "async psycopg":
        saver = PostgresSaver(create_async_engine(driver, **options))  # type: ignore[arg-type]
        yield saver
        saver.close()
        return
    engine = create_engine(driver, **options)
    yield PostgresSaver(engine)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


def test_threads_wait_for_each_other(sync: PostgresSaver, url: str) -> None:
    """The sync twin, from sixteen threads and another engine at once."""
    inside, most, entered = 0, 0, 0

    def run(saver: PostgresSaver) -> None:
        nonlocal inside, most, entered
        with saver.thread_lock("t1"):
            inside += 1
            entered += 1
            most = max(most, inside)
            saver.put(THREAD, empty_checkpoint(), {}, {})
            inside -= 1

    with PostgresSaver.from_conn_string(url) as elsewhere:
        threads = [threading.Thread(target=run, args=(one,)) for one in (sync, elsewhere) * 8]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert (most, entered) == (1, 16)


def test_a_lost_lock_is_told_in_sync_code(sync: PostgresSaver, sql: psycopg.Connection) -> None:
    """At the latest when the block ends."""
    with pytest.raises(LockLost):  # noqa: SIM117
        with sync.thread_lock("t1"):
            sql.execute("SELECT pg_terminate_backend(%s)", sessions_with_locks(sql))
    with sync.thread_lock("t1", timeout=5):
        sync.put(THREAD, empty_checkpoint(), {}, {})


def test_a_sign_of_life_that_fails_is_told_in_sync_code(
    sync: PostgresSaver, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of a run that goes on are refused."""
    monkeypatch.setattr(lock_session, "CHECK_SECONDS", 0.05)
    with pytest.raises(LockLost):  # noqa: SIM117, PT012
        with sync.thread_lock("t1") as lock:
            sql.execute("SELECT pg_terminate_backend(%s)", sessions_with_locks(sql))
            waiting = threading.Event()
            while not lock.lost:
                waiting.wait(0.01)
            sync.put(THREAD, empty_checkpoint(), {}, {})


async def test_async_callers_of_a_sync_engine_may_be_cancelled(url: str) -> None:
    """They wait in worker threads, which stop when nobody waits for them any more."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    saver = PostgresSaver(engine)
    async with saver.thread_lock("t1"):
        for turn in range(5):
            waiting = asyncio.ensure_future(saver.thread_lock("t1").__aenter__())
            await asyncio.sleep(turn * 0.02)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
    async with saver.thread_lock("t1", timeout=0):
        pass
    engine.dispose()


async def test_a_lock_in_a_transaction_lasts_as_long(
    engine: AsyncEngine, saver: AsyncPostgresSaver, other: AsyncPostgresSaver
) -> None:
    """Others get in when they can see what was stored: after the commit, not after the block."""
    async with engine.begin() as conn:
        bound = saver.bind(conn)
        async with bound.thread_lock("t1"), bound.thread_lock("t1", timeout=0):
            await put(bound)
        with pytest.raises(ThreadLocked):
            await other.thread_lock("t1", timeout=0).__aenter__()
    async with other.thread_lock("t1", timeout=5):
        assert await other.aget_tuple(THREAD) is not None
        async with engine.begin() as conn:
            with pytest.raises(ThreadLocked, match="another run has had the lock"):
                await saver.bind(conn).thread_lock("t1", timeout=0.1).__aenter__()


async def test_a_connection_in_autocommit_is_refused(engine: AsyncEngine, saver: AsyncPostgresSaver) -> None:
    """Nothing there would hold the lock."""
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(WrongTransaction, match=r"thread_lock\(\) can't work on a connection in AUTOCOMMIT"):
            await saver.bind(conn).thread_lock("t1").__aenter__()


async def test_a_schema_has_one_lock_by_whatever_name(url: str, engine: AsyncEngine) -> None:
    """The table counts, not how a saver calls it; a table of the same name elsewhere has threads of its own."""
    unnamed, named = AsyncPostgresSaver(engine), AsyncPostgresSaver(engine, schema="public")
    elsewhere = AsyncPostgresSaver(engine, schema="agents")
    await elsewhere.setup()
    async with unnamed.thread_lock("t1"):
        with pytest.raises(ThreadLocked):
            await named.thread_lock("t1", timeout=0).__aenter__()
        async with elsewhere.thread_lock("t1", timeout=0):
            pass


PARTITIONED = "partitioned"
RESTORED = """
    BEGIN; ALTER TABLE checkpoints RENAME TO former; CREATE TABLE checkpoints (LIKE former INCLUDING ALL);
    DROP TABLE former; COMMIT
"""


@pytest.mark.parametrize("change", [PARTITIONED, RESTORED], ids=["partitioned", "restored"])
async def test_a_lock_outlives_another_table_of_the_name(
    saver: AsyncPostgresSaver, other: AsyncPostgresSaver, engine: AsyncEngine, sql: psycopg.Connection, change: Any
) -> None:
    """Partitioning makes another table, and so does a restore: whoever asks then meets the lock that was had before."""
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (Statements.lock_removal, {"thread_ids": ["t1"]}),
        (Statements.lock_namespaces, {"thread_ids": ["t1"], "checkpoint_nss": [""]}),
    ]
    async with saver.thread_lock("t1"), engine.connect() as holding, engine.connect() as asking:
        sqls = statements_of(None)
        for kind, binds in kinds:
            await holding.run_sync(fetch, kind.__get__(sqls), {**binds, "table": "checkpoints"})
        before = sql.execute("SELECT 'checkpoints'::regclass::oid").fetchone()
        if change == PARTITIONED:
            async with engine.connect() as conn:
                await conn.run_sync(partitioning.partition)
        else:
            sql.execute(change)
        assert sql.execute("SELECT 'checkpoints'::regclass::oid").fetchone() != before

        with pytest.raises(ThreadLocked):
            await other.thread_lock("t1", timeout=0).__aenter__()
        async with engine.begin() as conn:
            with pytest.raises(ThreadLocked):
                await saver.bind(conn).thread_lock("t1", timeout=0).__aenter__()
        for kind, binds in kinds:
            await asking.exec_driver_sql("SET lock_timeout = '10ms'")
            with pytest.raises(DBAPIError, match="lock timeout"):
                await asking.run_sync(fetch, kind.__get__(sqls), {**binds, "table": '"public".checkpoints'})
            await asking.rollback()


def fetch(conn: Connection, statement: Statement, binds: dict[str, Any]) -> Any:
    return ConnectionExecutor(conn).fetch(statement, binds)


@pytest.mark.parametrize("kind", ["connection", "session"])
@pytest.mark.parametrize("noticed", ["put", "end"])
async def test_a_savepoint_that_is_rolled_back_loses_the_lock_that_was_taken_in_it(
    engine: AsyncEngine, other: AsyncPostgresSaver, saver: AsyncPostgresSaver, kind: str, noticed: str
) -> None:
    """The server frees it, the transaction goes on: who believes to have it stores nothing, and the block tells."""
    async with engine.connect() if kind == "connection" else AsyncSession(engine) as conn, conn.begin():
        bound, elsewhere = saver.bind(conn), saver.bind(conn)
        savepoint = await conn.begin_nested()
        with pytest.raises(LockLost, match="the savepoint that it was taken in was rolled back"):  # noqa: PT012
            async with bound.thread_lock("t1") as lock:
                await put(elsewhere)
                await savepoint.rollback()
                async with other.thread_lock("t1", timeout=5):  # somebody else's by now
                    pass
                if noticed == "put":
                    assert not lock.lost
                    with pytest.raises(LockLost):
                        await put(elsewhere)
                    assert lock.lost
                    with pytest.raises(LockLost):
                        await put(bound)
        # It was of the block; without it nothing is missing.
        await put(bound)
        async with bound.thread_lock("t1", timeout=5):
            await put(bound)
    assert await other.aget_tuple(THREAD) is not None


@pytest.mark.parametrize("ending", ["release", "roll back a later one", "twice", "commit", "error"])
async def test_a_lock_in_a_transaction_that_was_not_lost_is_not_said_to_be(
    engine: AsyncEngine, saver: AsyncPostgresSaver, ending: str
) -> None:
    """Whatever has become of savepoints, and also where the transaction has ended in the block, or failed."""
    async with AsyncSession(engine) as session:
        await session.begin()
        bound = saver.bind(session)
        if ending == "error":
            with pytest.raises(ZeroDivisionError):  # noqa: PT012
                async with bound.thread_lock("t1"):
                    with pytest.raises(DBAPIError):
                        await session.execute(text("SELECT 1 / 0"))
                    raise ZeroDivisionError
            return
        savepoint = None if ending == "roll back a later one" else await session.begin_nested()
        async with bound.thread_lock("t1") as lock:
            if ending == "twice":
                later = await session.begin_nested()
                async with bound.thread_lock("t1"):
                    await put(bound)
                await later.rollback()
            if savepoint is None:
                await (await session.begin_nested()).rollback()
            else:
                await savepoint.commit()
            await put(bound)
            if ending == "commit":
                await session.commit()
            assert not lock.lost
        assert session.in_transaction() == (ending != "commit")


def test_a_savepoint_in_sync_code(sync: PostgresSaver, url: str) -> None:
    """The same on a sync engine."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    saver = PostgresSaver(engine)
    with engine.begin() as conn:
        savepoint = conn.begin_nested()
        with pytest.raises(LockLost), saver.bind(conn).thread_lock("t1"):  # noqa: PT012
            savepoint.rollback()
            with sync.thread_lock("t1", timeout=5):
                pass
    engine.dispose()


async def test_what_is_wrong_is_told_on_entering(empty_url: str, saver: AsyncPostgresSaver) -> None:
    """A bad id or time at once; missing tables, and a server that isn't there, when the lock is asked for."""
    for thread_id in ("", 42, None, "a\x00"):
        with pytest.raises(InvalidConfig, match="thread_id"):
            saver.thread_lock(thread_id)  # type: ignore[arg-type]
    for timeout in (-1, float("nan"), float("inf"), "1", True):
        with pytest.raises(InvalidOption, match="timeout must be"):
            saver.thread_lock("t1", timeout=timeout)  # type: ignore[arg-type]
    with pytest.raises(WrongThread, match=r"`async with saver\.thread_lock\(\)`"):
        saver.thread_lock("t1").__enter__()
    async with AsyncPostgresSaver.from_conn_string(empty_url) as empty:
        with pytest.raises(NotSetUp, match=r'table "checkpoints" does not exist. Run `setup\(\)`'):
            await empty.thread_lock("t1").__aenter__()
        async with empty._backend._engine.connect() as conn:  # type: ignore[attr-defined]
            with pytest.raises(NotSetUp):
                await empty.bind(conn).thread_lock("t1").__aenter__()
    nothing = "postgresql://nobody@127.0.0.1:1/nothing"
    async with AsyncPostgresSaver.from_conn_string(nothing, retry_timeout=0) as nowhere:
        with pytest.raises(Unavailable):
            await nowhere.thread_lock("t1").__aenter__()


async def test_closing_a_saver_ends_its_locks(url: str, other: AsyncPostgresSaver) -> None:
    """What was made from a URL takes its session along; the block is told."""
    with pytest.raises(LockLost):  # noqa: PT012
        async with AsyncPostgresSaver.from_conn_string(url) as saver:
            lock = saver.thread_lock("t1")
            await lock.__aenter__()
            await saver.aclose()
            async with other.thread_lock("t1", timeout=5):
                pass
            await lock.__aexit__(None, None, None)


async def test_a_lock_goes_with_a_pipeline(engine: AsyncEngine, sql: psycopg.Connection) -> None:
    """What waits for a shared commit is refused too, once the lock is lost."""
    saver = AsyncPostgresSaver(engine, AsyncPipeline(engine))
    with pytest.raises(LockLost):  # noqa: PT012
        async with saver.thread_lock("t1") as lock:
            sql.execute("SELECT pg_terminate_backend(%s)", sessions_with_locks(sql))
            while not lock.lost:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            outcomes = await asyncio.gather(
                *[
                    saver.aput(
                        {"configurable": {"thread_id": f"t{n % 3}", "checkpoint_ns": ""}}, empty_checkpoint(), {}, {}
                    )
                    for n in range(30)
                ],
                return_exceptions=True,
            )
            assert [type(found) for found in outcomes] == [dict, LockLost, dict] * 10


# --- a server that is silent, a wait that is interrupted, a lock that is lost at a bad moment ---


async def lose(lock: ThreadLock, sql: psycopg.Connection) -> None:
    """End the session that holds a lock, and wait until that is known."""
    for pid in sessions_with_locks(sql):
        sql.execute("SELECT pg_terminate_backend(%s)", [pid])
    while not lock.lost:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def put_on(saver: AsyncPostgresSaver, thread_id: str) -> None:
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    await saver.aput(config, empty_checkpoint(), {}, {})


@pytest.fixture
def silent() -> Iterator[str]:
    """Something that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"//nobody@127.0.0.1:{server.getsockname()[1]}/nothing"


async def test_a_put_that_is_tried_again_is_refused_once_the_lock_is_lost(
    saver: AsyncPostgresSaver, other: AsyncPostgresSaver, sql: psycopg.Connection
) -> None:
    """It began when the lock was held; what counts is when it is stored."""
    waiting = "SELECT pid FROM pg_locks JOIN pg_database d ON d.oid = database WHERE NOT granted AND datname = %s"
    with pytest.raises(LockLost):  # noqa: PT012
        async with saver.thread_lock("t1") as lock:
            with psycopg.connect(sql.info.dsn) as holder:
                holder.execute("LOCK TABLE checkpoints IN EXCLUSIVE MODE")
                storing = asyncio.ensure_future(put(saver))
                while not (found := sql.execute(waiting, [sql.info.dbname]).fetchall()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                (pid,) = found[0]
                await lose(lock, sql)
                async with other.thread_lock("t1", timeout=5):
                    sql.execute("SELECT pg_terminate_backend(%s)", [pid])
                    holder.rollback()
                    with pytest.raises(LockLost):
                        await storing

    assert await saver.aget_tuple(THREAD) is None


async def test_a_put_that_waits_for_a_connection_is_refused_once_the_lock_is_lost(
    url: str, sql: psycopg.Connection
) -> None:
    """Its turn comes too late."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), pool_size=1, max_overflow=0)
    saver = AsyncPostgresSaver(engine)
    with pytest.raises(LockLost):  # noqa: PT012
        async with saver.thread_lock("t1") as lock:
            with saver._backend.provider.slot:  # type: ignore[attr-defined]
                storing = asyncio.ensure_future(put(saver))
                await lose(lock, sql)
            with pytest.raises(LockLost):
                await storing
    await engine.dispose()


async def test_who_waits_in_vain_takes_no_loss_away(saver: AsyncPostgresSaver, sql: psycopg.Connection) -> None:
    """Only the end of the block that has lost the lock does."""
    with pytest.raises(LockLost):  # noqa: PT012
        async with saver.thread_lock("t1") as lock:
            await lose(lock, sql)
            with pytest.raises(ThreadLocked):
                await saver.thread_lock("t1", timeout=0.1).__aenter__()
            with pytest.raises(LockLost):
                await put(saver)
    await put(saver)


async def test_a_lost_lock_fails_nobody_elses_puts(engine: AsyncEngine, sql: psycopg.Connection) -> None:
    """Those that share a commit with one that is refused are stored."""
    saver = AsyncPostgresSaver(engine, AsyncPipeline(engine))
    with pytest.raises(LockLost):  # noqa: PT012
        async with saver.thread_lock("t20") as lock:
            await lose(lock, sql)
            puts = [put_on(saver, f"t{number}") for number in range(40)]
            outcomes = await asyncio.gather(*puts, return_exceptions=True)
            assert [number for number, outcome in enumerate(outcomes) if outcome is not None] == [20]


async def test_a_loss_goes_by_the_table(engine: AsyncEngine, sql: psycopg.Connection) -> None:
    """However a saver calls its schema, the thread is the same; and it is another one in another schema."""
    unnamed, named = AsyncPostgresSaver(engine), AsyncPostgresSaver(engine, schema="public")
    elsewhere = AsyncPostgresSaver(engine, schema="agents")
    await elsewhere.setup()
    for holder in (unnamed, named):
        with pytest.raises(LockLost):  # noqa: PT012
            async with holder.thread_lock("t1") as lock:
                await lose(lock, sql)
                await put(elsewhere)
                for one in (unnamed, named):
                    with pytest.raises(LockLost):
                        await put(one)
                    async with engine.connect() as conn:
                        with pytest.raises(LockLost):
                            await put(one.bind(conn))


def test_a_silent_server_has_lost_the_lock(
    sync: PostgresSaver, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a thread waits for the sign of life, and with drivers that wait on when they are cancelled."""
    monkeypatch.setattr(lock_session, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(lock_connection, "ANSWER_SECONDS", 0.5)
    with pytest.raises(LockLost), sync.thread_lock("t1") as lock, stopped(sessions_with_locks(sql)):  # noqa: PT012
        pause = threading.Event()
        while not lock.lost:
            pause.wait(0.01)


def test_nobody_waits_longer_behind_who_waits_for_the_server(
    sync: PostgresSaver, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time-out is one even while another statement of the session is not answered; who holds a lock keeps it."""
    beats, session_id = threading.Event(), locks.session_id
    monkeypatch.setattr(locks, "session_id", lambda *args: beats.set() or session_id(*args))
    monkeypatch.setattr(lock_session, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(lock_connection, "ANSWER_SECONDS", 60)
    monkeypatch.setattr(lock_request, "SERVER_SECONDS", 0.1)
    with sync.thread_lock("t1") as lock:
        with stopped(sessions_with_locks(sql)):
            beats.clear()
            beats.wait()
            with pytest.raises(Unavailable, match="the lock could not be asked for within"):
                sync.thread_lock("t2", timeout=0).__enter__()
        assert not lock.lost
        with sync.thread_lock("t2"):
            pass


async def test_the_time_out_holds_while_the_session_is_opened(
    silent: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a server that says nothing, with none, and where the pool has no connection; and one may be cancelled."""
    monkeypatch.setattr(lock_request, "SERVER_SECONDS", 0.1)
    for driver in ("asyncpg", "psycopg"):
        engine = create_async_engine(f"postgresql+{driver}:{silent}")
        saver = AsyncPostgresSaver(engine)
        for timeout in (0, 0.2):
            with pytest.raises(Unavailable, match="could not be asked for"):
                await saver.thread_lock("t1", timeout=timeout).__aenter__()
        waiting = asyncio.ensure_future(saver.thread_lock("t1").__aenter__())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await engine.dispose()
        nowhere = create_async_engine(f"postgresql+{driver}://nobody@127.0.0.1:1/nothing")
        with pytest.raises(Unavailable, match=r"Tried again for 0(\.\d{1,4})? s"):
            await AsyncPostgresSaver(nowhere).thread_lock("t1", timeout=0.2).__aenter__()
    address = make_url(url).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(address, pool_size=1, max_overflow=0, pool_timeout=60)
    saver = AsyncPostgresSaver(engine)
    async with engine.connect():
        with pytest.raises(Unavailable, match="only connection of the pool is held by the app"):
            await saver.thread_lock("t1", timeout=0.2).__aenter__()
    monkeypatch.undo()
    async with saver.thread_lock("t1"):
        pass
    await engine.dispose()


async def test_the_time_out_of_a_thread_holds_while_the_session_is_opened(
    silent: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on sync engines, for threads and for coroutines; a connection that comes late is closed."""
    monkeypatch.setattr(lock_request, "SERVER_SECONDS", 0.1)
    saver = PostgresSaver(create_engine(f"postgresql+psycopg:{silent}", pool_size=1, max_overflow=0))
    with pytest.raises(Unavailable, match=r"could not be asked for.*the server does not answer"):
        saver.thread_lock("t1", timeout=0).__enter__()
    waiting = asyncio.ensure_future(saver.thread_lock("t1").__aenter__())
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), pool_size=1, max_overflow=0)
    saver = PostgresSaver(engine)
    with engine.connect(), pytest.raises(Unavailable, match="only connection of the pool is held by the app"):
        saver.thread_lock("t1", timeout=0.2).__enter__()
    monkeypatch.undo()
    with saver.thread_lock("t1"):
        pass
    while engine.pool.checkedout():  # type: ignore[attr-defined]  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_who_is_cancelled_as_the_session_begins_leaves_no_session(
    driver: str, url: str, sql: psycopg.Connection
) -> None:
    """SQLAlchemy doesn't close an interrupted connection that is out of the pool."""
    own = create_async_engine(make_url(url).set(drivername=f"postgresql+{driver}"))
    saver = AsyncPostgresSaver(own)
    entering = asyncio.ensure_future(saver.thread_lock("t1").__aenter__())

    @event.listens_for(own.sync_engine, "before_cursor_execute")
    def interrupt(_conn: Any, _cursor: Any, statement: str, *_: object) -> None:
        if "set_config" in statement:
            entering.cancel()

    with pytest.raises(asyncio.CancelledError):
        await entering
    await own.dispose()
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    while sql.execute(others).fetchone() != (0,):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("moment", ["at once", "when it is done"])
@pytest.mark.parametrize("interrupted", ["taking", "giving back"])
def test_ctrl_c_leaves_no_lock(interrupted: str, moment: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it comes while a thread waits for the loop, the lock is free afterwards."""
    wait = event_loop._wait

    def interrupt(call: Any, seconds: float) -> bool:
        monkeypatch.undo()
        while moment != "at once" and not wait(call, seconds):
            pass
        raise KeyboardInterrupt

    on_asyncpg = url.replace("postgresql:", "postgresql+asyncpg:", 1)
    with PostgresSaver.from_conn_string(on_asyncpg) as saver, PostgresSaver.from_conn_string(url) as other:
        for _ in range(5):
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012
                if interrupted == "taking":
                    monkeypatch.setattr(event_loop, "_wait", interrupt)
                with saver.thread_lock("t1"):
                    if interrupted == "giving back":
                        monkeypatch.setattr(event_loop, "_wait", interrupt)
            with other.thread_lock("t1", timeout=5):
                pass


def press_ctrl_c(function: Any) -> None:
    """Have this thread interrupted just as it enters a function, before the first instruction there."""

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is function.__code__:
            raise KeyboardInterrupt  # which ends the tracing too

    sys.settrace(interrupt)


def keep_from_giving_back(saver: PostgresSaver, block: Callable[[], object] = int) -> None:
    """Hold the lock for a block, and be interrupted as it begins to end."""
    with pytest.raises(KeyboardInterrupt), saver.thread_lock("t1"):  # noqa: PT012
        block()
        press_ctrl_c(ThreadLock.__exit__)


def test_ctrl_c_may_come_as_a_block_begins_to_end(
    url: str, sync: PostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is left then to give the lock back, so the session does."""
    monkeypatch.setattr(lock_session, "CHECK_SECONDS", 0.05)
    keep_from_giving_back(sync)
    with PostgresSaver.from_conn_string(url) as other, other.thread_lock("t1", timeout=5):
        pass


@pytest.mark.parametrize("interrupted", ["take_lock_blocking", "drop_lock_blocking"])
def test_ctrl_c_may_come_twice(
    interrupted: str, url: str, sync: PostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the lock has just come, or is being given back, and again when it is given up because of that."""
    monkeypatch.setattr(lock_session, "CHECK_SECONDS", 0.05)
    source = type(sync._backend)

    def interrupt(*args: Any) -> None:
        if interrupted == "take_lock_blocking":
            take(*args)
        press_ctrl_c(source.leave_lock_blocking)
        raise KeyboardInterrupt

    take = source.take_lock_blocking
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(source, interrupted, interrupt)
        with sync.thread_lock("t1"):
            pass
    assert sys.gettrace() is None
    with PostgresSaver.from_conn_string(url) as other, other.thread_lock("t1", timeout=5):
        pass


def test_a_lock_that_was_not_given_back_is_free_at_once_in_its_own_process(
    sync: PostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not before the others of the process for long."""
    monkeypatch.setattr(lock_session, "CHECK_SECONDS", 60)
    for _ in range(2):
        keep_from_giving_back(sync)
    with sync.thread_lock("t1", timeout=0), pytest.raises(ThreadLocked):
        sync.thread_lock("t1", timeout=0).__enter__()


def test_a_lock_that_was_lost_and_not_given_back_keeps_nobody_from_storing(
    sync: PostgresSaver, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused is what the block would have stored, and it has ended."""
    monkeypatch.setattr(lock_session, "CHECK_SECONDS", 0.05)
    held = lock_session.lock_session_of(sync._backend.provider.engine.dialect)

    def be_lost() -> None:
        sql.execute("SELECT pg_terminate_backend(%s)", sessions_with_locks(sql))
        waiting = threading.Event()
        while not held.lost:
            waiting.wait(0.01)
        with pytest.raises(LockLost):
            sync.put(THREAD, empty_checkpoint(), {}, {})

    keep_from_giving_back(sync, be_lost)
    sync.put(THREAD, empty_checkpoint(), {}, {})
    with sync.thread_lock("t1", timeout=0):
        assert not held.lost


async def test_a_lock_that_a_coroutine_has_lost_sight_of_is_given_back(
    saver: AsyncPostgresSaver, other: AsyncPostgresSaver, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others that the session has stay."""
    monkeypatch.setattr(lock_session, "CHECK_SECONDS", 0.05)
    async with saver.thread_lock("bystander"):
        await saver.thread_lock("t1").__aenter__()
        async with other.thread_lock("t1", timeout=5):
            pass
        with pytest.raises(ThreadLocked):
            await other.thread_lock("bystander", timeout=0).__aenter__()


async def test_who_is_cancelled_in_another_loop_leaves_no_lock(
    url: str, other: AsyncPostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coroutine that waits for the loop of a sync saver may be cancelled when the lock has just come."""
    with PostgresSaver.from_conn_string(url.replace("postgresql:", "postgresql+asyncpg:", 1)) as saver:
        acall = event_loop.EventLoop.acall

        async def cancelled(*args: Any) -> None:
            monkeypatch.undo()
            await acall(*args)
            raise asyncio.CancelledError

        monkeypatch.setattr(event_loop.EventLoop, "acall", cancelled)
        with pytest.raises(asyncio.CancelledError):
            await saver.thread_lock("t1").__aenter__()
        async with other.thread_lock("t1", timeout=5):
            pass


async def test_a_saver_that_was_closed_waits_for_no_lock(
    url: str, engine: AsyncEngine, sql: psycopg.Connection
) -> None:
    """What it waits for ends with Closed, and leaves nothing; others on the same engine go on waiting."""
    mine, others = AsyncPostgresSaver(engine), AsyncPostgresSaver(engine)
    async with AsyncPostgresSaver.from_conn_string(url) as holder, holder.thread_lock("t1"):
        async with AsyncPostgresSaver.from_conn_string(url) as owner:
            savers = (owner, mine, others)
            first, second, third = (asyncio.ensure_future(one.thread_lock("t1").__aenter__()) for one in savers)
            sessions = [lock_session.lock_session_of(one._backend.provider.engine.dialect) for one in savers]
            while not all(one._connection for one in sessions):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await mine.aclose()
        for waiting in (first, second):
            with pytest.raises(Closed):
                await waiting
        assert len(sessions_with_locks(sql)) == 1
        assert lock_session.lock_session_of(owner._backend.provider.engine.dialect)._connection is None
    await (await third).__aexit__(None, None, None)


async def test_the_lock_of_a_saver_with_a_replica_is_the_primarys(url: str, engine: AsyncEngine) -> None:
    """Also where a listener begins transactions: it is the session's, and excludes others."""
    reading = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    event.listen(engine.sync_engine, "begin", lambda _: None)
    saver = AsyncPostgresSaver(engine, read_engine=reading)
    async with saver.thread_lock("t1"), AsyncPostgresSaver.from_conn_string(url) as other:
        await put(saver)
        with pytest.raises(ThreadLocked):
            await other.thread_lock("t1", timeout=0).__aenter__()
    await reading.dispose()
    primary, replica = (create_engine(make_url(url).set(drivername="postgresql+psycopg")) for _ in range(2))
    with PostgresSaver(primary, read_engine=replica).thread_lock("t1"), pytest.raises(ThreadLocked):
        async with AsyncPostgresSaver(engine).thread_lock("t1", timeout=0):
            pass
    primary.dispose()
