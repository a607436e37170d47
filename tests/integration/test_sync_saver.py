"""The sync saver where sync code lives: scripts, notebooks, threads, and a user who presses Ctrl-C."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import add
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.graph import START, StateGraph
from langgraph.pregel import Pregel
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import PostgresSaver
from checkpoint_store.database import event_loop
from checkpoint_store.errors import CheckpointStoreError, Closed

THREAD = {"configurable": {"thread_id": "thread", "checkpoint_ns": ""}}
NAMED = {"application_name": "sync saver"}


@pytest.fixture(params=["psycopg", "asyncpg"])
def place(url: str, request: pytest.FixtureRequest) -> str:
    """`url` for each driver: in the calling thread, and on a loop of the saver's own."""
    return with_driver(url, request.param)


@pytest.fixture
def sync_saver(place: str) -> Iterator[PostgresSaver]:
    """Our saver, on each driver."""
    with PostgresSaver.from_conn_string(place) as saver:
        yield saver


def with_driver(url: str, driver: str) -> str:
    return url.replace("postgresql:", f"postgresql+{driver}:", 1)


class Log(TypedDict):
    log: Annotated[list[str], add]


def noting(saver: BaseCheckpointSaver[str]) -> Pregel:
    graph = StateGraph(Log)
    graph.add_node("note", lambda state: {"log": [f"{len(state['log'])} before"]})
    graph.add_edge(START, "note")
    return graph.compile(checkpointer=saver)


def loop_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if "checkpoint_store" in thread.name}


# --- scripts ---

SCRIPT = """
    import signal
    import sys
    from concurrent.futures import ThreadPoolExecutor
    from langgraph.graph import START, MessagesState, StateGraph
    from sqlalchemy.ext.asyncio import create_async_engine
    from checkpoint_store import AsyncPostgresSaver, PostgresSaver

    URL = sys.argv[1]

    def run(saver, thread_id="thread"):
        graph = StateGraph(MessagesState)
        graph.add_node("answer", lambda state: {"messages": ["answer"]})
        graph.add_edge(START, "answer")
        config = {"configurable": {"thread_id": thread_id}}
        ended = graph.compile(checkpointer=saver).invoke({"messages": ["question"]}, config)
        sys.stdout.write(f"{len(ended['messages'])} messages\\n")  # in one piece, for there are threads
        return config
"""

WAYS_TO_END = {
    "a with block": """
        with PostgresSaver.from_conn_string(URL) as saver:
            saver.setup()
            run(saver)
    """,
    "a with block on asyncpg": """
        with PostgresSaver.from_conn_string(URL.replace("postgresql:", "postgresql+asyncpg:")) as saver:
            saver.setup()
            run(saver)
    """,
    "exit inside the block": """
        with PostgresSaver.from_conn_string(URL) as saver:
            saver.setup()
            run(saver)
            sys.exit()
    """,
    "closed by hand": """
        saver = PostgresSaver(create_async_engine("postgresql+asyncpg://", connect_args={"dsn": URL}))
        saver.setup()
        run(saver)
        saver.close()
    """,
    "never closed, a list half read": """
        saver = PostgresSaver(create_async_engine("postgresql+asyncpg://", connect_args={"dsn": URL}))
        saver.setup()
        left_open = saver.list(run(saver))
        next(left_open)
    """,
    "never closed, used by threads": """
        saver = PostgresSaver(create_async_engine("postgresql+asyncpg://", connect_args={"dsn": URL}))
        saver.setup()
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda n: run(saver, f"thread {n}"), range(8)))
    """,
    "never left, a block entered by hand": """
        entered = PostgresSaver.from_conn_string(URL)
        saver = entered.__enter__()
        saver.setup()
        run(saver)
    """,
    "an async saver used by sync code only": """
        saver = AsyncPostgresSaver(create_async_engine("postgresql+asyncpg://", connect_args={"dsn": URL}))
        run(saver)
    """,
}


@pytest.mark.parametrize("way", WAYS_TO_END)
def test_a_script_ends_without_a_word(url: str, way: str) -> None:
    """However it ends: it exits with 0, at once, and without a warning about loops, threads or coroutines."""
    script = textwrap.dedent(SCRIPT) + textwrap.dedent(WAYS_TO_END[way])
    # Connections that are never closed are the script's own doing; where it closes its saver there must be none.
    careful = [] if "never" in way or "async" in way else ["-W", "always::ResourceWarning"]

    ended = subprocess.run(
        [sys.executable, *careful, "-c", script, url], capture_output=True, text=True, timeout=60, check=False
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert set(ended.stdout.splitlines()) == {"2 messages"}


def test_ctrl_c_while_a_call_waits_leaves_the_pool_usable(url: str, place: str) -> None:
    """The waiting statement is cancelled in the server too, and the pool's only connection serves the next call."""
    script = """
        with PostgresSaver.from_conn_string(URL, pool_size=1, max_overflow=0) as saver:
            config = run(saver)
            print("ready", flush=True)
            sys.stdin.readline()
            try:
                saver.get_tuple(config)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            sys.stdin.readline()
            print(saver.get_tuple(config).metadata["step"], flush=True)
    """
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT) + textwrap.dedent(script), place]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with (
        subprocess.Popen(command, text=True, **pipes) as user,
        psycopg.connect(url) as locking,
        psycopg.connect(url, autocommit=True) as watching,
    ):
        assert [user.stdout.readline() for _ in range(2)] == ["2 messages\n", "ready\n"]
        locking.execute("LOCK TABLE checkpoints IN ACCESS EXCLUSIVE MODE")
        user.stdin.write("go\n")
        user.stdin.flush()
        wait_until(watching, waiting, 1)

        user.send_signal(signal.SIGINT)

        assert user.stdout.readline() == "interrupted\n"
        wait_until(watching, waiting, 0)
        locking.rollback()
        out, err = user.communicate("go\n", timeout=60)

    assert (user.returncode, out, err) == (0, "1\n", "")


def wait_until(conn: psycopg.Connection[Any], query: str, expected: int) -> None:
    """Ask the server again and again, for half a minute at most."""
    for _ in range(3_000):
        if conn.execute(query).fetchone() == (expected,):
            return
        conn.execute("SELECT pg_sleep(0.01)")
    pytest.fail(f"{query} did not come to {expected}")


# --- notebooks ---


async def test_it_works_where_a_loop_runs_already(sync_saver: PostgresSaver) -> None:
    """In a notebook's cell a loop runs in the calling thread; every sync call works there, plain and in a graph."""
    agent = noting(sync_saver)

    assert agent.invoke({"log": ["first"]}, THREAD)["log"] == ["first", "1 before"]
    agent.update_state(THREAD, {"log": ["by hand"]})
    assert [*agent.stream({"log": ["last"]}, THREAD, stream_mode="updates")] == [{"note": {"log": ["4 before"]}}]
    history = list(agent.get_state_history(THREAD))

    assert [len(snapshot.values.get("log", [])) for snapshot in history] == [5, 4, 3, 3, 2, 1, 0]
    sync_saver.delete_thread("thread")
    assert sync_saver.get(THREAD) is None


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_it_opens_sets_up_and_closes_where_a_loop_runs_already(empty_url: str, driver: str) -> None:
    """From the first cell to the last."""
    with PostgresSaver.from_conn_string(with_driver(empty_url, driver)) as saver:
        saver.setup()
        stored = saver.put(THREAD, empty_checkpoint(), {"step": 1}, {})
        assert saver.get_tuple(stored).metadata == {"step": 1}


async def test_its_async_methods_work_from_any_loop(sync_saver: PostgresSaver) -> None:
    """From this loop, and at the same time from loops in other threads."""

    async def use(name: str) -> list[int]:
        config = {"configurable": {"thread_id": name}}
        await noting(sync_saver).ainvoke({"log": ["first"]}, config)
        return [found.metadata["step"] async for found in sync_saver.alist(config)]

    in_threads = [asyncio.to_thread(asyncio.run, use(f"thread {n}")) for n in range(4)]

    assert await asyncio.gather(use("here"), use("here too"), *in_threads) == [[1, 0, -1]] * 6


# --- threads ---


def test_sixteen_threads_use_one_saver_at_once(sync_saver: PostgresSaver) -> None:
    """Each does everything on a thread of its own and finds what it stored, nothing less and nothing else."""
    agent = noting(sync_saver)
    together = threading.Barrier(16)

    def use(n: int) -> None:
        config = {"configurable": {"thread_id": f"thread {n}"}}
        together.wait(timeout=30)
        for turn in range(3):
            agent.invoke({"log": [f"turn {turn} of {n}"]}, config)
        steps = [found.metadata["step"] for found in sync_saver.list(config)]
        assert steps == [7, 6, 5, 4, 3, 2, 1, 0, -1]
        log = sync_saver.get(config)["channel_values"]["log"]
        assert log[::2] == [f"turn {turn} of {n}" for turn in range(3)]
        if n % 2:
            sync_saver.delete_thread(f"thread {n}")

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(use, range(16)))

    left = {found.config["configurable"]["thread_id"] for found in sync_saver.list(None)}
    assert left == {f"thread {n}" for n in range(0, 16, 2)}


def test_more_threads_than_connections_take_turns(place: str) -> None:
    """Thirty-two threads on two connections: they wait for each other, and none for ever."""
    with PostgresSaver.from_conn_string(place, pool_size=2, max_overflow=0) as saver:
        agent = noting(saver)

        def use(n: int) -> list[str]:
            return agent.invoke({"log": [f"{n}"]}, {"configurable": {"thread_id": f"thread {n}"}})["log"]

        with ThreadPoolExecutor(32) as threads:
            assert list(threads.map(use, range(32))) == [[f"{n}", "1 before"] for n in range(32)]


def test_a_list_half_read_holds_no_connection(place: str) -> None:
    """With one connection in the pool, everything else goes on while an iterator is left where it is."""
    with PostgresSaver.from_conn_string(place, pool_size=1, max_overflow=0, pool_timeout=5) as saver:
        agent = noting(saver)
        for turn in range(10):
            agent.invoke({"log": [f"{turn}"]}, THREAD)
        whole = list(saver.list(THREAD))

        half_read = saver.list(THREAD)
        first = next(half_read)
        agent.invoke({"log": ["meanwhile"]}, {"configurable": {"thread_id": "another"}})

        assert [first, *half_read] == whole


def test_savers_on_one_engine_share_its_loop(url: str) -> None:
    """Several savers made in sync code on one engine work at once, and closing one leaves the others as they are."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    before = loop_threads()
    savers = [PostgresSaver(engine) for _ in range(4)]

    def use(n: int) -> int:
        config = {"configurable": {"thread_id": f"thread {n}"}}
        noting(savers[n % 4]).invoke({"log": []}, config)
        return len(list(savers[(n + 1) % 4].list(config)))

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(use, range(16))) == [3] * 16
    assert len(loop_threads() - before) == 1
    savers[0].close()
    with pytest.raises(Closed):
        savers[0].get(THREAD)
    assert savers[1].get({"configurable": {"thread_id": "thread 1"}}) is not None
    for saver in savers:
        saver.close()


def test_a_loop_that_is_slow_to_start_is_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine its thread may get no turn for a while; the first call is not told that nothing runs it."""

    def late(loop: asyncio.AbstractEventLoop) -> None:
        time.sleep(0.2)  # the busy machine
        run_forever(loop)

    run_forever = event_loop._run_forever
    monkeypatch.setattr(event_loop, "_run_forever", late)

    with PostgresSaver.from_conn_string(with_driver(url, "asyncpg")) as saver:
        assert saver.get(THREAD) is None


def test_closing_the_saver_closes_the_connections_of_its_loop(url: str) -> None:
    """On an engine that only sync code uses nobody else could: the loop that its connections live on is the saver's."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url, "server_settings": NAMED})
    sessions = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sync saver' AND datname = current_database()"
    )
    with psycopg.connect(url, autocommit=True) as watching:
        saver = PostgresSaver(engine)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: saver.get(THREAD), range(16)))
        assert watching.execute(sessions).fetchone() > (0,)

        saver.close()

        wait_until(watching, sessions, 0)
    again = PostgresSaver(engine)
    assert again.get(THREAD) is None
    again.close()


# --- the end ---

CALLS: dict[str, Callable[[PostgresSaver], Any]] = {
    "get": lambda saver: saver.get(THREAD),
    "get_tuple": lambda saver: saver.get_tuple(THREAD),
    "list": lambda saver: list(saver.list(THREAD)),
    "put": lambda saver: saver.put(THREAD, empty_checkpoint(), {}, {}),
    "put_writes": lambda saver: saver.put_writes(
        {"configurable": {**THREAD["configurable"], "checkpoint_id": "1"}}, [("log", "x")], "task"
    ),
    "delete_thread": lambda saver: saver.delete_thread("thread"),
    "get_delta_channel_history": lambda saver: saver.get_delta_channel_history(config=THREAD, channels=["log"]),
    "setup": lambda saver: saver.setup(),
    "invoke": lambda saver: noting(saver).invoke({"log": []}, THREAD),
    "aget_tuple": lambda saver: asyncio.run(saver.aget_tuple(THREAD)),
    "aput": lambda saver: asyncio.run(saver.aput(THREAD, empty_checkpoint(), {}, {})),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_saver_says_so(place: str, call: str) -> None:
    """Every method raises Closed after the block, whether the saver's own loop still runs or not."""
    with PostgresSaver.from_conn_string(place) as saver:
        saver.put(THREAD, empty_checkpoint(), {}, {})

    with pytest.raises(Closed, match="closed"):
        CALLS[call](saver)


def test_a_list_half_read_ends_with_its_saver(place: str) -> None:
    """What has been read is given out, and then the iterator says that the saver is closed."""
    with PostgresSaver.from_conn_string(place) as saver:
        for _ in range(40):
            saver.put(THREAD, empty_checkpoint(), {}, {})
        half_read = saver.list(THREAD)
        next(half_read)

    with pytest.raises(Closed):
        list(half_read)


def test_closing_twice_is_closing(url: str) -> None:
    """The loop's thread ends with the saver, and a second close finds nothing to do."""
    before = loop_threads()
    with PostgresSaver.from_conn_string(with_driver(url, "asyncpg")) as saver:
        saver.get(THREAD)
        assert len(loop_threads() - before) == 1
        saver.close()
    saver.close()

    assert loop_threads() <= before


def test_closing_does_not_leave_a_waiting_thread_behind(url: str, place: str) -> None:
    """A call that waits for the server when its saver is closed from another thread ends with an error of ours."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with (
        psycopg.connect(url) as locking,
        psycopg.connect(url, autocommit=True) as watching,
        ThreadPoolExecutor(1) as thread,
    ):
        with PostgresSaver.from_conn_string(place) as saver:
            locking.execute("LOCK TABLE checkpoints IN ACCESS EXCLUSIVE MODE")
            call = thread.submit(saver.get, THREAD)
            wait_until(watching, waiting, 1)
        with pytest.raises(CheckpointStoreError):
            call.result(timeout=30)
        wait_until(watching, waiting, 0)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # about the connections, as for any forgotten engine
# Python itself points out, in its own time, the connections that nobody has closed.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_saver_that_is_forgotten_takes_its_thread_with_it(url: str) -> None:
    """An application that makes a saver per request, and never closes one, does not collect threads."""
    before = loop_threads()
    for _ in range(3):
        saver = PostgresSaver(create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}))
        saver.get(THREAD)
        del saver
    for _ in range(3):
        gc.collect()

    assert loop_threads() <= before


def test_a_call_that_fails_behind_ctrl_c_makes_no_noise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is there any more to be told, and asyncio does not complain of that."""

    def interrupt(_: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with PostgresSaver.from_conn_string("postgresql+asyncpg://nobody@127.0.0.1:1/nothing", retry_timeout=0) as saver:
        monkeypatch.setattr(event_loop._Call, "result", interrupt)
        with pytest.raises(KeyboardInterrupt):
            saver.get_tuple({"configurable": {"thread_id": "t1"}})
    gc.collect()

    assert caplog.messages == []


async def test_many_who_wait_for_a_lock_leave_its_holder_a_thread(url: str) -> None:
    """On psycopg the async methods run in the loop's threads: more waiters than it has do not take them all."""
    order: list[int] = []
    with PostgresSaver.from_conn_string(url) as saver:

        async def run(number: int) -> None:
            async with saver.thread_lock("t", timeout=60):
                config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
                await saver.aput(config, empty_checkpoint(), {}, {})
                order.append(number)

        await asyncio.wait_for(asyncio.gather(*map(run, range((os.cpu_count() or 1) + 8))), 45)
    assert sorted(order) == list(range((os.cpu_count() or 1) + 8))
