"""The pytest plugin, in runs of pytest that are processes of their own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from sqlalchemy import make_url

REPOSITORY = Path(__file__).parents[2]

NOTED = """
import asyncio
import os

import pytest


@pytest.fixture(autouse=True)
def noted(checkpoint_store_template, checkpoint_store_url):
    with open(os.environ["NOTES"], "a") as notes:
        print(checkpoint_store_template, checkpoint_store_url, sep="\\n", file=notes)
"""

AGENT = """
from langgraph.graph import START, MessagesState, StateGraph

THREAD = {"configurable": {"thread_id": "1"}}


async def answer(state):
    return {"messages": [("ai", "Hello")]}


def agent(saver):
    return StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile(checkpointer=saver)


async def talk(saver):
    state = await agent(saver).ainvoke({"messages": [("user", "Hello")]}, THREAD)
    assert len(state["messages"]) == 2  # and no other test's
"""


WARNINGS = """\
filterwarnings =
    error
    ignore:'asyncio.iscoroutinefunction':DeprecationWarning:langsmith
"""

FIXTURE_LOOPS = "asyncio_default_fixture_loop_scope = function\n"
"""The setting without which pytest-asyncio warns."""


@dataclass(frozen=True)
class Project:
    """A folder of tests, run by pytest with the plugin."""

    folder: Path
    temporary: Path
    server_url: str

    def write(self, tests: str, settings: str = FIXTURE_LOOPS) -> None:
        """Write a module of tests, and pytest's settings; warnings are errors."""
        agent = AGENT if "talk(" in tests else ""
        (self.folder / "test_agent.py").write_text(NOTED + agent + textwrap.dedent(tests))
        (self.folder / "pytest.ini").write_text(f"[pytest]\n{WARNINGS}{settings}")

    def start(self, *arguments: str, embedded: bool = False) -> subprocess.Popen[str]:
        """Start pytest; on the server under test, or on one of its own."""
        # Where CI is set, pytest prints each message once more in its summary.
        own = ("PYTEST_", "CHECKPOINT", "CI")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        server = {} if embedded else {"CHECKPOINT_STORE_TEST_URL": self.server_url}
        places = {"TMPDIR": str(self.temporary), "NOTES": str(self.folder / "notes"), "PYTHONPATH": str(REPOSITORY)}
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "checkpoint_store.testing", "-p", "no:cacheprovider", *arguments],
            cwd=self.folder, env={**inherited, **server, **places}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *arguments: str, embedded: bool = False) -> str:
        """Run pytest and return what it prints."""
        with self.start(*arguments, embedded=embedded) as process:
            printed, _ = process.communicate()
        return printed

    def left(self) -> list[str]:
        """Return the databases, files and processes that the runs have left."""
        notes = self.folder / "notes"
        made = {url.partition("?")[0].rpartition("/")[2] for url in notes.read_text().split()} if notes.exists() else ()
        with psycopg.connect(self.server_url) as conn:
            there = [name for (name,) in conn.execute("SELECT datname FROM pg_database")]
        files = [path.name for path in self.temporary.iterdir() if not path.name.startswith("pytest-of-")]
        processes = [one.name() for one in psutil.process_iter(["cmdline"]) if is_about(one, str(self.temporary))]
        return [*(name for name in there if name in made), *files, *processes]


def is_about(process: psutil.Process, text: str) -> bool:
    return any(text in argument for argument in process.info["cmdline"] or ())


@pytest.fixture
def project(tmp_path: Path, server_url: str) -> Iterator[Project]:
    temporary = Path(tempfile.mkdtemp(prefix="plugin-"))
    yield Project(tmp_path, temporary, server_url)
    shutil.rmtree(temporary)


def outcome(printed: str) -> str:
    """Return pytest's last line, without the time."""
    found = re.findall(r"^=* ?((?:\d+ \w+,? ?)+) in ", printed, re.MULTILINE)
    return str(found[-1]).strip() if found else printed


SCOPED = """
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("time", [1, 2])
async def test_on_the_modules_loop(checkpoint_store_saver, time):
    await talk(checkpoint_store_saver)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("time", [1, 2])
async def test_on_the_sessions_loop(checkpoint_store_saver, time):
    await talk(checkpoint_store_saver)
"""

MODES: dict[str, tuple[tuple[str, ...], str, str, str]] = {
    "strict": ((), FIXTURE_LOOPS, "@pytest.mark.asyncio", SCOPED),
    "auto": ((), f"{FIXTURE_LOOPS}asyncio_mode = auto", "", SCOPED),
    "anyio": (
        ("-p", "no:asyncio"),
        "",
        "@pytest.mark.anyio\n@pytest.mark.parametrize('anyio_backend', ['asyncio'])",
        "",
    ),
    "xdist": (("-n", "2"), FIXTURE_LOOPS, "@pytest.mark.asyncio", ""),
}
"""Arguments, settings, the marks of a test, and more tests."""

ASYNC_TESTS = """
{mark}
async def test_talks(checkpoint_store_saver):
    await talk(checkpoint_store_saver)


{mark}
async def test_talks_at_once(checkpoint_store_saver, checkpoint_store_engine):
    await asyncio.gather(*[checkpoint_store_saver.aget(THREAD) for _ in range(20)])
    await talk(checkpoint_store_saver)


def test_runs_loops_itself(checkpoint_store_saver):
    asyncio.run(talk(checkpoint_store_saver))
    assert asyncio.run(checkpoint_store_saver.aget(THREAD)) is not None
"""


@pytest.mark.parametrize("mode", MODES)
def test_the_fixtures_work_with_every_plugin_for_async_tests(project: Project, mode: str) -> None:
    """A database for each test, an engine on whatever loop the plugin has, and nothing left over."""
    arguments, settings, mark, more = MODES[mode]
    project.write(ASYNC_TESTS.format(mark=mark) + more, settings)

    assert outcome(project.run(*arguments)) == ("7 passed" if more else "3 passed")
    assert project.left() == []


def test_an_async_saver_works_in_sync_code(project: Project) -> None:
    """By a loop of its own, which ends with the test; also when an async test uses both."""
    project.write("""
        def reply(state):
            return {"messages": [("ai", "Hello")]}

        def test_sync(checkpoint_store_saver):
            graph = StateGraph(MessagesState).add_node(reply).add_edge(START, "reply")
            state = graph.compile(checkpointer=checkpoint_store_saver).invoke({"messages": []}, THREAD)
            assert len(state["messages"]) == 1

        @pytest.mark.asyncio
        async def test_both(checkpoint_store_saver):
            await asyncio.to_thread(checkpoint_store_saver.get, THREAD)
            await talk(checkpoint_store_saver)
    """)

    assert outcome(project.run()) == "2 passed"
    assert project.left() == []


def test_sync_twins_see_the_same_database(project: Project) -> None:
    """Without any plugin for async tests."""
    project.write(
        """
        def test_twins(checkpoint_store_sync_saver, checkpoint_store_sync_engine, checkpoint_store_saver):
            asyncio.run(talk(checkpoint_store_saver))
            assert len(agent(checkpoint_store_sync_saver).get_state(THREAD).values["messages"]) == 2
            with checkpoint_store_sync_engine.connect() as conn:
                assert conn.exec_driver_sql("SELECT count(*) FROM checkpoints").scalar() == 3
    """,
        settings="",
    )

    assert outcome(project.run("-p", "no:asyncio", "-p", "no:anyio")) == "1 passed"
    assert project.left() == []


def test_the_template_can_have_more(project: Project) -> None:
    """An override adds what the application needs; a database for the session has it too."""
    project.write("""
        import psycopg

        @pytest.fixture(scope="session")
        def checkpoint_store_template(checkpoint_store_template):
            with psycopg.connect(checkpoint_store_template) as conn:
                conn.execute("CREATE TABLE orders (id int)")
            return checkpoint_store_template

        @pytest.mark.parametrize("time", [1, 2])
        def test_has_orders(checkpoint_store_url, checkpoint_store_session_url, time):
            assert checkpoint_store_url != checkpoint_store_session_url
            for url, rows in ((checkpoint_store_url, 1), (checkpoint_store_session_url, time)):
                with psycopg.connect(url) as conn:
                    conn.execute("INSERT INTO orders VALUES (1)")
                    assert conn.execute("SELECT count(*) FROM orders").fetchone() == (rows,)
    """)

    assert outcome(project.run()) == "2 passed"
    assert project.left() == []


LEAKS = """
from sqlalchemy.ext.asyncio import create_async_engine

left = []


@pytest.mark.asyncio
async def test_leaves_a_connection(checkpoint_store_engine):
    left.append(await checkpoint_store_engine.connect())
    await left[-1].exec_driver_sql("SELECT\\n  1")


@pytest.mark.asyncio
async def test_leaves_an_engine(checkpoint_store_url):
    left.append(create_async_engine("postgresql+asyncpg://", connect_args={"dsn": checkpoint_store_url}))
    async with left[-1].connect():
        pass


def test_leaves_nothing(checkpoint_store_sync_engine):
    with checkpoint_store_sync_engine.connect() as conn:
        conn.exec_driver_sql("SELECT 1")
"""


def test_what_a_test_leaves_open_fails_it(project: Project) -> None:
    """With the session, its last statement, and the way out; the next test is not concerned."""
    project.write(LEAKS)

    printed = project.run("-W", "ignore")

    assert outcome(printed) == "3 passed, 2 errors"
    assert printed.count("1 session is left in the test's database checkpoint_store_test_") == 2
    assert "idle in transaction; last statement: SELECT 1" in printed
    assert "await engine.dispose()" in printed
    assert project.left() == []


MISTAKES = """
import psycopg
import pytest_asyncio
from fastapi.testclient import TestClient
from fastapi import FastAPI
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPostgresSaver


@pytest.fixture(scope="module")
def wide_saver(checkpoint_store_session_url):
    url = make_url(checkpoint_store_session_url).set(drivername="postgresql+asyncpg")
    return AsyncPostgresSaver(create_async_engine(url))


@pytest.mark.asyncio
@pytest.mark.parametrize("time", [1, 2])
async def test_an_engine_that_is_wider_than_the_loop(wide_saver, time):
    await wide_saver.aget({"configurable": {"thread_id": "1"}})


@pytest.mark.asyncio
async def test_client_in_an_async_test(checkpoint_store_saver):
    app = FastAPI()

    @app.get("/")
    async def get() -> None:
        await checkpoint_store_saver.aget({"configurable": {"thread_id": "1"}})

    await checkpoint_store_saver.aget({"configurable": {"thread_id": "1"}})
    TestClient(app).get("/")


def test_a_template_that_is_in_use(checkpoint_store_template, request):
    with psycopg.connect(checkpoint_store_template):
        request.getfixturevalue("checkpoint_store_url")
"""


def test_mistakes_have_the_messages_that_the_page_explains(project: Project) -> None:
    """In its last table."""
    (project.folder / "test_mistakes.py").write_text("import pytest\n" + MISTAKES)
    (project.folder / "pytest.ini").write_text(f"[pytest]\n{FIXTURE_LOOPS}")

    printed = project.run("-rA", "--tb=line")

    assert outcome(printed).startswith("3 failed, 1 passed"), printed
    page = (REPOSITORY / "docs/how-to/test-your-agents.md").read_text()
    for said in ("an event loop that has ended", "belongs to another event loop", "is being accessed by other users"):
        assert said in printed
        assert said in page


@pytest.mark.parametrize(
    ("number", "embedded"),
    [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGKILL, False), (signal.SIGKILL, True)],
    ids=["interrupted", "interrupted-embedded", "crashed", "crashed-embedded"],
)
def test_nothing_is_left_by_a_run_that_is_ended(project: Project, number: signal.Signals, embedded: bool) -> None:
    """By Ctrl-C, or by a crash: databases, server, files and processes."""
    project.write("""
        import time

        def test_hangs(checkpoint_store_sync_engine, tmp_path):
            with checkpoint_store_sync_engine.connect() as conn:
                conn.exec_driver_sql("SELECT 1")
                open(os.environ["NOTES"] + ".ready", "x").close()
                time.sleep(60)
    """)

    with project.start(embedded=embedded) as process:
        wait_for((project.folder / "notes.ready").exists)
        assert project.left() != []
        process.send_signal(number)
        process.communicate()

    if number == signal.SIGINT:
        assert project.left() == []
    wait_for(lambda: project.left() == [])


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_workers_share_a_server_and_one_that_crashes_is_replaced(project: Project) -> None:
    """The databases of a worker are dropped with it; the others go on, and so does the one that takes its place."""
    project.write("""
        @pytest.mark.parametrize("number", range(4))
        def test_crashes_once(checkpoint_store_saver, number):
            asyncio.run(talk(checkpoint_store_saver))
            if number == 1:
                os._exit(1)
    """)

    printed = project.run("-n", "2", embedded=True)

    assert outcome(printed) == "1 failed, 3 passed"
    servers = {url.partition("?")[2] for url in (project.folder / "notes").read_text().split()}
    assert len(servers) == 1
    wait_for(lambda: project.left() == [])


def test_a_server_that_ends_sessions_does_not_end_the_run(project: Project) -> None:
    """As a restart does: the next test has a database again, and nothing is left."""
    project.write("""
        import psycopg

        def test_ends_all_sessions(checkpoint_store_url):
            with psycopg.connect(checkpoint_store_url) as conn:
                others = "FROM pg_stat_activity WHERE pid != pg_backend_pid() AND backend_type = 'client backend'"
                conn.execute(f"SELECT pg_terminate_backend(pid) {others}")

        def test_that_comes_next(checkpoint_store_url):
            psycopg.connect(checkpoint_store_url).close()
    """)

    assert outcome(project.run(embedded=True)) == "2 passed"
    assert project.left() == []


def test_a_url_can_be_given_in_three_ways(project: Project) -> None:
    """The command line before the environment before the ini file."""
    project.write(
        "def test_nothing(checkpoint_store_url): pass",
        f"{FIXTURE_LOOPS}checkpoint_store_test_url = postgresql://ini:s3cret@[::1]:1/x",
    )
    option = ("--checkpoint-store-test-url", "postgresql://option:s3cret@[::1]:1/x")

    assert outcome(project.run()) == "1 passed"
    for arguments, embedded, place in (
        (option, False, "the option --checkpoint-store-test-url"),
        ((), True, "the ini setting checkpoint_store_test_url"),
    ):
        printed = project.run(*arguments, embedded=embedded)
        assert outcome(printed) == "1 error"
        assert "Unavailable: the databases for tests can't be made" in printed
        assert f". The server is that of {place}." in printed
        assert "s3cret" not in printed
    assert project.left() == []


def test_a_database_that_cant_be_made_fails_without_the_password(project: Project) -> None:
    """Which stands in the arguments of the fixtures that make it."""
    url = make_url(project.server_url).set(password="s3cret").render_as_string(hide_password=False)  # noqa: S106
    project.write("""
        import psycopg

        def test_a_template_that_is_in_use(checkpoint_store_template, request):
            with psycopg.connect(checkpoint_store_template):
                request.getfixturevalue("checkpoint_store_session_url")
    """)
    printed = replace(project, server_url=url).run("-W", "ignore")
    assert outcome(printed) == "1 failed"
    assert "is being accessed by other users" in printed
    assert "s3cret" not in printed
    assert project.left() == []


def test_what_is_not_installed_is_named_with_the_way_out(project: Project) -> None:
    """The driver of the sync fixtures, and on Windows the module that locks files; async fixtures need neither."""
    project.write("""
        import sys

        @pytest.fixture(autouse=True)
        def missing(noted, monkeypatch):
            for name in [each for each in sys.modules if each.startswith("psycopg")]:
                monkeypatch.delitem(sys.modules, name)
            monkeypatch.setitem(sys.modules, "psycopg", None)

        def test_async(checkpoint_store_engine):
            pass

        def test_sync(checkpoint_store_sync_engine):
            pass
    """)
    printed = project.run()
    assert outcome(printed) == "1 passed, 1 error"
    assert 'the sync fixtures need an extra: pip install "checkpoint-store[testing]"' in printed

    project.write("""
        import sys

        sys.modules["fcntl"] = None

        def test_on_windows():
            pass
    """)
    printed = project.run()
    assert outcome(printed) == "1 error"
    assert "need Linux or macOS; on Windows use them in WSL" in printed
    assert project.left() == []


def test_a_database_that_cant_be_dropped_is_the_only_one_left(project: Project) -> None:
    """As one that a prepared transaction keeps, or here that is a template of the server's."""
    project.write("""
        import psycopg

        def test_keeps_one(checkpoint_store_session_url, checkpoint_store_url):
            name = checkpoint_store_session_url.partition("?")[0].rpartition("/")[2]
            with psycopg.connect(checkpoint_store_url, autocommit=True) as conn:
                conn.execute(f'ALTER DATABASE "{name}" IS_TEMPLATE true')
            with open(os.environ["NOTES"], "a") as notes:
                print(checkpoint_store_session_url, file=notes)
            os._exit(1)
    """)
    project.run()
    kept = (project.folder / "notes").read_text().split()[-1].partition("?")[0].rpartition("/")[2]

    wait_for(lambda: project.left() == [kept])
    with psycopg.connect(project.server_url, autocommit=True) as conn:
        conn.execute(f'ALTER DATABASE "{kept}" IS_TEMPLATE false')  # type: ignore[call-overload]
        conn.execute(f'DROP DATABASE "{kept}"')  # type: ignore[call-overload]


def test_the_plugin_costs_nothing_where_it_is_not_used(project: Project) -> None:
    """Every run of pytest loads it where the package is installed: it imports our errors, and starts nothing."""
    script = """
        import sys, pytest, _pytest.config
        before = set(sys.modules)
        import checkpoint_store.testing
        print(*sorted(set(sys.modules) - before))
    """
    imported = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert imported == ["checkpoint_store", "checkpoint_store.errors", "checkpoint_store.testing"]

    (project.folder / "test_other.py").write_text("def test_nothing(): pass")
    (project.folder / "pytest.ini").touch()
    assert outcome(project.run("-p", "no:asyncio", embedded=True)) == "1 passed"
    assert project.left() == []
