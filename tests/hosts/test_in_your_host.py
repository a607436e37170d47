"""The listings of docs/how-to/in-your-host.md, as printed, in the hosts that they are for."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from alembic.config import Config
from alembic.util import CommandError
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver as StockSaver
from langgraph.graph import START, MessagesState, StateGraph
from psycopg.types.json import Jsonb
from sqlalchemy import create_engine, exc, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from alembic import command
from checkpoint_store import AsyncPostgresSaver, PostgresSaver, errors
from checkpoint_store.database.error_translation import translate
from checkpoint_store.embedded import EmbeddedPostgres
from checkpoint_store.migrations.alembic_config import script_location
from checkpoint_store.schema import Tables, tables

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/how-to/in-your-host.md").read_text()
LISTINGS = dict(re.findall(r"^`(\w[\w.]+)`\n\n```py\n(.+?)^```$", PAGE, re.DOTALL | re.MULTILINE))
THREAD: Any = {"configurable": {"thread_id": "user-7", "checkpoint_ns": ""}}


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def blocks(title: str, language: str) -> list[str]:
    """The blocks of a section that are not listings of files."""
    found = re.findall(rf"^```{language}\n(.+?)^```$", section(title), re.DOTALL | re.MULTILINE)
    return [block for block in found if block not in LISTINGS.values()]


def talking(saver: Any) -> Any:
    """An agent whose answers are large enough to be cut into pages."""

    def answer(state: MessagesState) -> Any:
        return {"messages": [("ai", f"{len(state['messages'])} " * 50_000)]}

    return StateGraph(MessagesState).add_node(answer).add_edge(START, "answer").compile(checkpointer=saver)


@pytest.fixture
def folder(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all listings, and the environment for them."""
    for name, listing in LISTINGS.items():
        (tmp_path / name).write_text(listing)
    monkeypatch.setenv("CHECKPOINT_STORE_URL", url)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(tmp_path)]))
    return tmp_path


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[None]:
    """Run a program of this environment's in the background; SIGTERM ends it."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", *arguments], cwd=folder, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                assert process.wait(60) == 0, (folder / "log").read_text()
            finally:
                process.kill()  # if it has not ended


@pytest.mark.parametrize("number", [0, 1], ids=["each for itself", "preload"])
def test_gunicorn_with_and_without_preload(folder: Path, number: int) -> None:
    """Two workers answer on one thread, after the master has set up in the second case."""
    program, *arguments = shlex.split(blocks("gunicorn", "sh")[0].splitlines()[number])

    with running(folder, program, "--bind", f"unix:{folder}/socket", *arguments):
        transport = httpx.HTTPTransport(uds=str(folder / "socket"), retries=20)
        wait_for((folder / "socket").exists)
        with httpx.Client(transport=transport, timeout=60) as client:
            said = [client.post("http://host/chat/1", params={"say": "Hello"}).text for _ in range(6)]

    assert said == [f"That was message {number}." for number in range(1, 12, 2)], (folder / "log").read_text()


def test_what_a_worker_says_that_was_not_told_to_forget(folder: Path, url: str) -> None:
    """As the page quotes it."""
    (folder / "forked.py").write_text(
        "import os, wsgi\n"
        "if os.fork() == 0:\n"
        "    try: wsgi.saver.get({'configurable': {'thread_id': '1'}})\n"
        "    except Exception as error: print(type(error).__name__, error, sep=': ', flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    said = subprocess.run([sys.executable, "forked.py"], cwd=folder, capture_output=True, text=True, check=True).stdout

    quoted = re.findall(r"raises `(WrongThread: [^`]+)`", section("gunicorn"))
    assert [each for each in quoted if each not in said] == []
    assert "engine.dispose(close=False)" in said


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


CELERY_CONFIG = """
broker_url = "filesystem://"
broker_transport_options = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"}
result_backend = "file://results"
broker_connection_retry_on_startup = True
"""

CELERY_CLIENT = """
from tasks import reply, reply_async

for task in (reply, reply_async):
    print(*[task.delay(task.__name__, "Hello").get(timeout=100) for _ in range(3)])
"""


def test_celery_with_forked_processes_and_a_loop_for_each_task(folder: Path, url: str) -> None:
    """Sync and async tasks, in two processes."""
    with PostgresSaver.from_conn_string(url) as saver:
        saver.setup()
    (folder / "celeryconfig.py").write_text(CELERY_CONFIG)
    for name in ("queue", "control", "results"):
        (folder / name).mkdir()
    (command_line,) = blocks("Celery", "sh")

    with running(folder, *shlex.split(command_line)):
        done = subprocess.run(
            [sys.executable, "-c", CELERY_CLIENT], cwd=folder, capture_output=True, text=True, check=False
        )

    replies = " ".join(f"That was message {number}." for number in (1, 3, 5))
    assert done.stdout.splitlines() == [replies, replies], done.stderr + (folder / "log").read_text()


def test_twenty_greenlets(folder: Path) -> None:
    """Each runs the agent on a thread of its own."""
    pytest.importorskip("gevent")  # no wheel for the newest Python
    done = subprocess.run([sys.executable, "greenlets.py"], cwd=folder, capture_output=True, text=True, check=False)

    assert done.stdout == "{'That was message 1.'}\n", done.stderr


NOTEBOOK = """
import sys

from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for _ in range(2):
    shell.run_cell(sys.argv[1]).raise_error()
"""


def test_the_cell_for_a_notebook(folder: Path, url: str) -> None:
    """In IPython, which runs a notebook's cells, and once more in the same one."""
    (cell,) = blocks("Jupyter", "py")
    cell = cell.replace("postgresql://localhost/app", url)

    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, cell], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "IPYTHONDIR": str(folder)},
    )  # fmt: skip

    assert done.stdout.split("\n")[:2] == ["That was message 1.", "That was message 3."], done.stdout + done.stderr


@pytest.fixture
def guarded() -> Iterator[EmbeddedPostgres]:
    """A server on which the role `app` needs a password."""
    with EmbeddedPostgres() as server:
        with psycopg.connect(server.url, autocommit=True) as conn:
            ((rules,),) = conn.execute("SHOW hba_file").fetchall()
            Path(rules).write_text("local all app scram-sha-256\nlocal all all trust\n")
            conn.execute("CREATE ROLE app LOGIN PASSWORD 'first'; GRANT ALL ON SCHEMA public TO app")
            conn.execute("SELECT pg_reload_conf()")
            wait_for(lambda: conn.execute("SELECT count(*) FROM pg_hba_file_rules").fetchone() == (2,))
        yield server


def change_password(server: EmbeddedPostgres, token: Path, password: str) -> None:
    """Change it, and end what is connected by the old one."""
    with psycopg.connect(server.url, autocommit=True) as conn:
        conn.execute(f"ALTER ROLE app PASSWORD '{password}'")  # type: ignore[call-overload]
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
    token.write_text(password)


async def test_a_password_that_changes(
    folder: Path, guarded: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asyncpg asks for it at each connection, psycopg by a listener; locks and setup() too."""
    token = folder / "token"
    token.write_text("wrong")
    monkeypatch.setenv("TOKEN_FILE", str(token))
    url = guarded.url.replace("postgres@", "app@").partition("://")[2]
    monkeypatch.syspath_prepend(folder)
    import rotating_asyncpg  # type: ignore[import-not-found]
    import rotating_psycopg  # type: ignore[import-not-found]

    engine = rotating_asyncpg.make_engine(f"postgresql+asyncpg://{url}")
    saver = AsyncPostgresSaver(engine)
    sync_engine = rotating_psycopg.make_engine(f"postgresql+psycopg://{url}")
    sync_saver = PostgresSaver(sync_engine)
    own = AsyncPostgresSaver.from_conn_string(
        f"postgresql://{url}", connect_args={"password": rotating_asyncpg.password}, retry_timeout=0
    )
    async with own as own_saver:
        with pytest.raises(errors.Unavailable, match=r"password|login"):
            await own_saver.aget(THREAD)
        for password in ("second", "third"):
            change_password(guarded, token, password)
            await saver.setup()
            await saver.aput(THREAD, empty_checkpoint(), {}, {})
            async with saver.thread_lock("user-7"):
                assert await own_saver.aget(THREAD) is not None
            assert await asyncio.to_thread(sync_saver.get, THREAD) is not None
    await engine.dispose()
    sync_engine.dispose()


def test_alembic_from_code_asks_for_all_heads(host_of: Callable[[str], Any]) -> None:
    """And the words that fail are those that the page names."""
    clinic = host_of("clinic")
    config = Config(clinic.folder / "alembic.ini")
    locations = str(config.get_main_option("version_locations"))
    config.set_main_option("version_locations", locations.replace("checkpoint_store:_alembic", str(script_location())))
    space: dict[str, Any] = {}
    exec(LISTINGS["migrate.py"], space)  # noqa: S102
    engine = create_engine(make_url(clinic.url).set(drivername="postgresql+psycopg"))

    with engine.connect() as connection:
        assert not space["is_at_head"](config, connection)
    with pytest.raises(CommandError, match="Multiple head revisions are present"):
        command.upgrade(config, "head")
    space["upgrade"](config)

    with engine.connect() as connection:
        assert space["is_at_head"](config, connection)
        with pytest.raises(CommandError):
            space["MigrationContext"].configure(connection).get_current_revision()
    with pytest.raises(CommandError):
        space["ScriptDirectory"].from_config(config).get_current_head()
    engine.dispose()


ERRORS = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", section("`except psycopg.Error`"), re.MULTILINE)


@pytest.mark.parametrize(("raised", "now"), ERRORS)
def test_an_error_of_psycopgs_is_now_the_one_in_the_table(raised: str, now: str) -> None:
    """By its SQLSTATE, whichever driver it comes from."""
    name = "ConnectionFailure" if raised == "OperationalError" else raised  # the base class has no SQLSTATE
    error = exc.DBAPIError("SELECT 1", {}, getattr(psycopg.errors, name)("said"))

    assert len(ERRORS) == 12
    assert type(translate(error, "here", Tables(), callers=now == "WrongTransaction")).__name__ == now


async def test_threads_are_deleted_by_the_pages_code(engine: AsyncEngine, url: str, stock_saver: StockSaver) -> None:
    """With the host's rows, by the API; or by SQL, which leaves no row in any table, and other threads whole."""
    saver = AsyncPostgresSaver(engine, share_pages=True)
    (by_api,), (by_sql,) = blocks("Cleanup SQL of your own", "py"), blocks("Cleanup SQL of your own", "sql")
    async with engine.begin() as conn:
        await conn.execute(text("CREATE TABLE users (id int)"))
    agent = talking(saver)
    code = compile(by_api, "the page", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names = {"AsyncSession": AsyncSession, "engine": engine, "saver": saver, "text": text}

    async def left() -> set[str]:
        async with engine.connect() as conn:
            return {
                thread_id
                for table in tables.all
                for thread_id in await conn.scalars(text(f"SELECT thread_id FROM {table}"))
            }

    for way in ("api", "sql"):
        for thread_id in ("user-7", "user-8"):
            await agent.ainvoke({"messages": [("user", "Hello")]}, {"configurable": {"thread_id": thread_id}})
        assert await left() == {"user-7", "user-8"}
        if way == "api":
            await eval(code, names)  # noqa: S307
        else:
            with psycopg.connect(url, autocommit=True) as conn:
                conn.execute(by_sql)  # type: ignore[call-overload]
        assert await left() == {"user-8"}
    again = await agent.ainvoke({"messages": [("user", "Hello")]}, THREAD)
    assert len(again["messages"]) == 2


async def test_a_program_that_reads_as_the_stock_saver_does(engine: AsyncEngine, stock_saver: StockSaver) -> None:
    """Pages it can't read, and can once they are inlined; what is stored with `share_pages=False` it can at once."""
    large: Any = {"configurable": {"thread_id": "large", "checkpoint_ns": ""}}
    checkpoint: Any = {
        **empty_checkpoint(),
        "channel_values": {"list": ["x" * 100] * 1000},
        "channel_versions": {"list": "1"},
    }
    await AsyncPostgresSaver(engine, share_pages=True).aput(THREAD, checkpoint, {}, {"list": "1"})
    whole, inline = blocks("Programs that read the tables", "py")
    names: dict[str, Any] = {"engine": engine, "AsyncPostgresSaver": AsyncPostgresSaver}
    exec(whole, names)  # noqa: S102

    await names["saver"].aput(large, checkpoint, {}, {"list": "1"})

    assert (await stock_saver.aget(large) or {})["channel_values"] == checkpoint["channel_values"]
    with pytest.raises(NotImplementedError, match="pages"):
        await stock_saver.aget(THREAD)
    await eval(compile(inline, "the page", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)  # noqa: S307
    assert (await stock_saver.aget(THREAD) or {})["channel_values"] == checkpoint["channel_values"]


def test_a_thread_of_javascripts_is_read_and_not_continued(url: str) -> None:
    """Rows that @langchain/langgraph-checkpoint-postgres 1.0.5 has written; versions are numbers in them."""
    seen = {"answer": {"branch:to:answer": 2}, "__input__": {}, "__start__": {"__start__": 1}}
    versions = {"messages": 3, "__start__": 2, "branch:to:answer": 3}
    checkpoint_id = "1f1ec5b4-1b0c-6940-8001-daf7bc4f327b"
    checkpoint = {"v": 4, "id": checkpoint_id, "ts": "2026-11-30T01:13:31.349Z"}
    checkpoint |= {"versions_seen": seen, "channel_versions": versions}
    said = [("HumanMessage", "hi", "1"), ("AIMessage", "from js 1", "2")]
    messages = ",".join(
        f'{{"lc":1,"type":"constructor","id":["langchain_core","messages","{kind}"],'
        f'"kwargs":{{"content":"{content}","additional_kwargs":{{}},"response_metadata":{{}},"id":"{number}"}}}}'
        for kind, content, number in said
    )
    blobs = [("__start__", "2", "empty", None), ("branch:to:answer", "3", "empty", None)]
    with psycopg.connect(url) as conn:
        conn.execute(
            "INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint, metadata) VALUES ('js', %s, %s, %s)",
            (checkpoint_id, Jsonb(checkpoint), Jsonb({"step": 1, "source": "loop", "parents": {}})),
        )
        for blob in [*blobs, ("messages", "3", "json", f"[{messages}]".encode())]:
            conn.execute("INSERT INTO checkpoint_blobs VALUES ('js', '', %s, %s, %s, %s)", blob)

    with PostgresSaver.from_conn_string(url) as saver:
        agent = talking(saver)
        thread: Any = {"configurable": {"thread_id": "js"}}
        state = agent.get_state(thread)
        assert [(type(each).__name__, each.content) for each in state.values["messages"]] == [each[:2] for each in said]
        assert len(list(agent.get_state_history(thread))) == 1
        with pytest.raises(TypeError, match="'str' and 'int'"):
            agent.invoke({"messages": [("user", "more")]}, thread)
