"""Processes that fork, users who press Ctrl-C, loops that end: each gets an answer, and nothing hangs or leaks."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver
from checkpoint_store.errors import WrongThread
from tests.faults.bed import PATIENCE_SECONDS

CONFIG: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
BEGINNING = """
    import asyncio, logging, os, signal, sys, threading, time, warnings
    from langgraph.checkpoint.base import empty_checkpoint
    from sqlalchemy import StaticPool, create_engine, make_url
    from sqlalchemy.ext.asyncio import create_async_engine
    from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver
    from checkpoint_store.errors import WrongThread

    warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about forks of processes with threads
    URL = sys.argv[1]
    ON_ASYNCPG = URL.replace("postgresql:", "postgresql+asyncpg:", 1)
    CONFIG = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}

    def async_engine():
        return create_async_engine("postgresql+asyncpg://", connect_args={"dsn": URL})

    def sync_engine():
        return create_engine(make_url(URL).set(drivername="postgresql+psycopg"))

    def say(*words):
        sys.stdout.write(" ".join(map(str, words)) + "\\n")
        sys.stdout.flush()

    def in_child(function):
        if pid := os.fork():
            say("child ended with", os.waitpid(pid, 0)[1])
        else:
            try:
                say("child:", function())
            except WrongThread as error:
                say("child:", str(error).partition(";")[0])
            ending()

    def ending():
        os._exit(0)  # as multiprocessing does
"""


def script(body: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(BEGINNING) + textwrap.dedent(body)]


FORKS = {
    "a sync saver with a loop of its own": (
        """
        with PostgresSaver.from_conn_string(ON_ASYNCPG, pipeline=True) as saver:
            saver.put(CONFIG, empty_checkpoint(), {"step": 1}, {})
            in_child(lambda: saver.get_tuple(CONFIG))
            in_child(lambda: asyncio.run(saver.aget_tuple(CONFIG)))
            say("parent:", saver.get_tuple(CONFIG).metadata)
        """,
        [
            "child: this saver was made before the process forked",
            "child ended with 0",
            "child: this saver was made before the process forked",
            "child ended with 0",
            "parent: {'step': 1}",
        ],
    ),
    "a child that tidies up when it ends": (
        """
        ending = sys.exit
        logging.getLogger("checkpoint_store").setLevel(logging.ERROR)
        with PostgresSaver.from_conn_string(ON_ASYNCPG) as saver:
            saver.put(CONFIG, empty_checkpoint(), {"step": 1}, {})
            in_child(lambda: saver.get_tuple(CONFIG))
            say("parent:", saver.get_tuple(CONFIG).metadata)
        """,
        ["child: this saver was made before the process forked", "child ended with 0", "parent: {'step': 1}"],
    ),
    "a sync saver with an engine of its own": (
        """
        with PostgresSaver.from_conn_string(URL, pipeline=True) as saver:
            saver.put(CONFIG, empty_checkpoint(), {"step": 1}, {})
            in_child(lambda: saver.get_tuple(CONFIG))
            in_child(lambda: asyncio.run(saver.aget_tuple(CONFIG)))
            say("parent:", saver.get_tuple(CONFIG).metadata)
        """,
        [
            "child: this saver's engine was used before the process forked",
            "child ended with 0",
            "child: this saver's engine was used before the process forked",
            "child ended with 0",
            "parent: {'step': 1}",
        ],
    ),
    "a child that tidies up when it ends, on psycopg": (
        """
        ending = sys.exit
        logging.getLogger("checkpoint_store").setLevel(logging.ERROR)
        with PostgresSaver.from_conn_string(URL) as saver:
            saver.put(CONFIG, empty_checkpoint(), {"step": 1}, {})
            in_child(lambda: saver.get_tuple(CONFIG))
            say("parent:", saver.get_tuple(CONFIG).metadata)
        """,
        ["child: this saver's engine was used before the process forked", "child ended with 0", "parent: {'step': 1}"],
    ),
    "an async saver": (
        """
        async def main():
            saver = AsyncPostgresSaver(async_engine())
            await saver.aput(CONFIG, empty_checkpoint(), {"step": 1}, {})
            return saver
        loop = asyncio.new_event_loop()
        saver = loop.run_until_complete(main())
        in_child(lambda: asyncio.run(saver.aget_tuple(CONFIG)))
        say("parent:", loop.run_until_complete(saver.aget_tuple(CONFIG)).metadata)
        loop.run_until_complete(saver._backend._engine.dispose())
        loop.close()
        """,
        ["child: this saver was made before the process forked", "child ended with 0", "parent: {'step': 1}"],
    ),
    "a saver on a sync engine": (
        """
        engine = sync_engine()
        saver = PostgresSaver(engine)
        saver.put(CONFIG, empty_checkpoint(), {"step": 1}, {})
        in_child(lambda: saver.get_tuple(CONFIG))
        say("parent:", saver.get_tuple(CONFIG).metadata)
        engine.dispose()
        """,
        [
            "child: this saver's engine was used before the process forked",
            "child ended with 0",
            "parent: {'step': 1}",
        ],
    ),
    "a sync engine that the child has parted with": (
        """
        engine = sync_engine()
        saver = PostgresSaver(engine)
        saver.put(CONFIG, empty_checkpoint(), {"step": 1}, {})
        def child():
            engine.dispose(close=False)
            found = saver.get_tuple(CONFIG)
            engine.dispose()
            return found.metadata
        in_child(child)
        say("parent:", saver.get_tuple(CONFIG).metadata)
        engine.dispose()
        """,
        ["child: {'step': 1}", "child ended with 0", "parent: {'step': 1}"],
    ),
    "a group commit that another thread is in": (
        """
        with PostgresSaver.from_conn_string(URL) as saver:
            commits, held, forked = saver._backend._commits, threading.Event(), threading.Event()
            def hold():
                with commits._lock:
                    held.set()
                    forked.wait()
            for number in range(commits._most):
                commits._waiting.begin(f"{number}")
                commits._under_way += 1
            threading.Thread(target=hold).start()
            held.wait()
            def child():
                saver.put(CONFIG, empty_checkpoint(), {"step": 1}, {})
                return saver.get_tuple(CONFIG).metadata
            in_child(child)
            forked.set()
            commits._under_way = 0
        """,
        ["child: {'step': 1}", "child ended with 0"],
    ),
    "a lock that another thread holds": (
        """
        from contextlib import ExitStack
        from checkpoint_store import errors
        from checkpoint_store.database import event_loop, retry, semaphore
        from checkpoint_store.migrations import lock as migration_lock
        logging.getLogger("checkpoint_store").setLevel(logging.ERROR)
        held, forked = threading.Event(), threading.Event()
        def hold():
            with ExitStack() as locks:
                registries = (event_loop._registry_lock, semaphore._registry_lock)
                for lock in (*registries, migration_lock._mutex, retry._lock):
                    locks.enter_context(lock.current)
                held.set()
                forked.wait()
        threading.Thread(target=hold).start()
        held.wait()
        def child():
            nowhere = create_engine("postgresql+psycopg://app@127.0.0.1:1/app")
            try:
                PostgresSaver(nowhere, retry_timeout=0.1).get(CONFIG)
            except errors.Unavailable:
                pass
            engine = sync_engine()
            with PostgresSaver.from_conn_string(URL) as saver, migration_lock.process_lock(timeout=0):
                saver.put(CONFIG, empty_checkpoint(), {"step": 1}, {})
                with engine.connect() as conn:
                    found = PostgresSaver(conn).get_tuple(CONFIG)
            engine.dispose()
            return found.metadata
        in_child(child)
        forked.set()
        """,
        ["child: {'step': 1}", "child ended with 0"],
    ),
    "the one connection of a pool that a thread of the parent's uses": (
        """
        engine = create_engine(sync_engine().url, poolclass=StaticPool)
        sync = PostgresSaver(engine)
        sync.put(CONFIG, empty_checkpoint(), {"step": 1}, {})
        with sync._backend.provider.slot:
            def child():
                engine.dispose(close=False)
                return sync.get_tuple(CONFIG).metadata
            forker = threading.Thread(target=in_child, args=(child,))
            forker.start()
            forker.join()
        """,
        ["child: {'step': 1}", "child ended with 0"],
    ),
    "savers made before, used after": (
        """
        sync = PostgresSaver(sync_engine())
        def child():
            with PostgresSaver.from_conn_string(URL) as saver:
                saver.put(CONFIG, empty_checkpoint(), {"step": 1}, {})
            found = sync.get_tuple(CONFIG)
            sync._backend.provider.engine.dispose()
            return found.metadata
        in_child(child)
        say("parent:", sync.get_tuple(CONFIG).metadata)
        """,
        ["child: {'step': 1}", "child ended with 0", "parent: {'step': 1}"],
    ),
}


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="nothing forks here")
@pytest.mark.parametrize("case", FORKS)
def test_a_forked_process_is_told_and_leaves_its_parents_connections_alone(url: str, case: str) -> None:
    """At once, instead of waiting for a loop that stayed behind or talking into the parent's sessions."""
    body, expected = FORKS[case]

    ended = subprocess.run([*script(body), url], capture_output=True, text=True, timeout=60, check=False)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == expected


INTERRUPTED = {
    "loop": "saver = PostgresSaver(async_engine())",
    "pipeline": "engine = async_engine(); saver = PostgresSaver(engine, AsyncPipeline(engine))",
    "sync engine": "saver = PostgresSaver(sync_engine())",
}
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
SESSIONS = "SELECT count(*) > 1 FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"


@contextmanager
def user(body: str, url: str) -> Iterator[subprocess.Popen[str]]:
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([*script(body), url], text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def reaches(conn: psycopg.Connection[Any], query: str, expected: Any) -> None:
    for _ in range(PATIENCE_SECONDS * 100):
        if conn.execute(query.encode()).fetchone() == (expected,):
            return
        conn.execute("SELECT pg_sleep(0.01)")
    pytest.fail(f"{query} did not come to {expected}")


@pytest.mark.parametrize("kind", INTERRUPTED)
def test_ctrl_c_in_a_put_leaves_nothing_half_done(url: str, kind: str) -> None:
    """The call ends at once, its statement too, and the saver goes on: plain, with a pipeline, on a sync engine."""
    body = (
        textwrap.dedent(BEGINNING)
        + INTERRUPTED[kind]
        + textwrap.dedent("""
        saver.put(CONFIG, {**empty_checkpoint(), "id": "1"}, {}, {})
        say("ready")
        sys.stdin.readline()
        try:
            saver.put(CONFIG, {**empty_checkpoint(), "id": "2"}, {}, {})
        except KeyboardInterrupt:
            say("interrupted")
        sys.stdin.readline()
        saver.put(CONFIG, {**empty_checkpoint(), "id": "3"}, {}, {})
        say([found.checkpoint["id"] for found in saver.list(CONFIG)])
        saver.close()
    """)
    )
    with (
        user(body, url) as process,
        psycopg.connect(url) as locking,
        psycopg.connect(url, autocommit=True) as watching,
    ):
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        locking.execute("LOCK TABLE checkpoints IN ACCESS EXCLUSIVE MODE")
        process.stdin.write("go\n")
        process.stdin.flush()
        reaches(watching, WAITING, 1)

        process.send_signal(signal.SIGINT)

        assert process.stdout.readline() == "interrupted\n"
        reaches(watching, WAITING, 0)
        locking.rollback()
        reaches(watching, SESSIONS, False)
        out, err = process.communicate("go\n", timeout=60)

    assert (process.returncode, out, err) == (0, "['3', '1']\n", "")


def test_ctrl_c_ends_the_wait_for_the_next_try() -> None:
    """A server that is away keeps nobody from stopping the program."""
    body = """
        savers = {
            "loop": PostgresSaver(async_engine(), retry_timeout=1000),
            "sync engine": PostgresSaver(sync_engine(), retry_timeout=1000),
        }
        for name, saver in savers.items():
            def stop():
                while saver.retries < 3:
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGINT)
            threading.Thread(target=stop).start()
            try:
                saver.get(CONFIG)
            except KeyboardInterrupt:
                say(name)
    """
    nowhere = "postgresql://app@127.0.0.1:1/app"
    ended = subprocess.run([*script(body), nowhere], capture_output=True, text=True, timeout=60, check=False)

    assert (ended.returncode, ended.stdout) == (0, "loop\nsync engine\n"), ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("pipeline", [False, True], ids=["plain", "pipeline"])
def test_a_program_whose_loop_ends_with_calls_in_flight_ends_without_a_word(url: str, pipeline: bool) -> None:
    """`asyncio.run()` cancels them; nothing is left in the server either."""
    body = f"""
        async def main():
            engine = async_engine()
            saver = AsyncPostgresSaver(engine, AsyncPipeline(engine) if {pipeline} else False)
            await saver.aput(CONFIG, empty_checkpoint(), {{}}, {{}})
            calls = [asyncio.create_task(saver.aput(CONFIG, empty_checkpoint(), {{}}, {{}})) for _ in range(40)]
            calls += [asyncio.create_task(saver.aget_tuple(CONFIG)) for _ in range(10)]
            await asyncio.sleep(0.005)
            say("ends")
        asyncio.run(main())
    """
    ended = subprocess.run([*script(body), url], capture_output=True, text=True, timeout=60, check=False)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ends\n", "")
    with psycopg.connect(url, autocommit=True) as watching:
        reaches(watching, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()", 1)
        orphans = "SELECT count(*) FROM checkpoint_blobs b LEFT JOIN checkpoints c USING (thread_id) WHERE c IS NULL"
        reaches(watching, orphans, 0)


def test_a_sync_caller_is_told_when_the_loop_it_waits_for_ends(url: str) -> None:
    """Its call was under way on a loop of somebody else's, which is stopped and closed."""
    outcome: list[BaseException] = []
    loop = asyncio.new_event_loop()
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})

    async def made() -> AsyncPostgresSaver:
        saver = AsyncPostgresSaver(engine, AsyncPipeline(engine))
        await saver.aget_tuple(CONFIG)
        return saver

    saver = loop.run_until_complete(made())

    def call() -> None:
        try:
            saver.get_tuple(CONFIG)
        except BaseException as error:
            outcome.append(error)

    async def wait(watching: psycopg.Connection[Any]) -> None:
        thread.start()
        await asyncio.to_thread(reaches, watching, WAITING, 1)

    thread = threading.Thread(target=call)
    with psycopg.connect(url) as locking, psycopg.connect(url, autocommit=True) as watching:
        locking.execute("LOCK TABLE checkpoints IN ACCESS EXCLUSIVE MODE")
        loop.run_until_complete(wait(watching))
        # The loop does not run any more: nobody would ever tell the caller.
        thread.join(PATIENCE_SECONDS)
        locking.rollback()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(engine.dispose())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    assert [type(error) for error in outcome] == [WrongThread]
    assert "ended before the call did" in str(outcome[0])
