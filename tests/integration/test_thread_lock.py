"""`thread_lock`: the runs of a thread wait for each other, whatever process they are in; a lost lock is told."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver
from checkpoint_store.errors import (
    InvalidConfig,
    InvalidOption,
    LockLost,
    NotSetUp,
    ThreadLocked,
    Unavailable,
    WrongThread,
)
from checkpoint_store.source import keeper

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
            for timeout in (0, 0.1):
                with pytest.raises(ThreadLocked, match="thread 't1': another run has had the lock for the"):
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
    assert keeper.keeper_of(engine.dialect)._conn is None
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
        while keeper.keeper_of(saver._source.origin.engine.dialect)._conn is None:  # noqa: ASYNC110
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


async def test_a_server_that_does_not_answer_has_lost_the_lock(
    saver: AsyncPostgresSaver, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is open and dead is found out by a sign of life that doesn't come."""
    monkeypatch.setattr(keeper, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(keeper, "ANSWER_SECONDS", 0.2)
    async with saver.thread_lock("t0"):
        pass
    stopped: list[int] = []
    try:
        with pytest.raises(LockLost):  # noqa: PT012
            async with saver.thread_lock("t1") as lock:
                stopped = sessions_with_locks(sql)
                os.kill(stopped[0], signal.SIGSTOP)
                while not lock.lost:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    except PermissionError:
        pytest.skip("the server is not ours to stop")
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


async def test_a_lock_is_held_by_a_beating_session(
    saver: AsyncPostgresSaver, other: AsyncPostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signs of life do it no harm, nor do others who ask for it meanwhile."""
    monkeypatch.setattr(keeper, "BEAT_SECONDS", 0.001)
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
from typing_extensions import TypedDict
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
    monkeypatch.setattr(keeper, "BEAT_SECONDS", 0.05)
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
        with pytest.raises(InvalidOption, match=r"thread_lock\(\) can't work on a connection in AUTOCOMMIT"):
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


async def test_what_is_wrong_is_told_on_entering(empty_url: str, saver: AsyncPostgresSaver) -> None:
    """A bad id or time at once; missing tables, and a server that isn't there, when the lock is asked for."""
    for thread_id in ("", 42, None, "a\x00"):
        with pytest.raises(InvalidConfig, match="thread_id"):
            saver.thread_lock(thread_id)  # type: ignore[arg-type]
    for timeout in (-1, float("nan"), float("inf"), "1", True):
        with pytest.raises(InvalidOption, match="timeout is"):
            saver.thread_lock("t1", timeout=timeout)  # type: ignore[arg-type]
    with pytest.raises(WrongThread):
        saver.thread_lock("t1").__enter__()
    async with AsyncPostgresSaver.from_conn_string(empty_url) as empty:
        with pytest.raises(NotSetUp, match=r'table "checkpoints" does not exist. Run `setup\(\)`'):
            await empty.thread_lock("t1").__aenter__()
        async with empty._source._engine.connect() as conn:  # type: ignore[attr-defined]
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
