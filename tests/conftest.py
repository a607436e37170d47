"""One server for all workers, a template database migrated through `setup()`, and a clone of it for every test."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import uuid
import venv
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from hypothesis import settings
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver as StockSaver
from psycopg import sql
from sqlalchemy import QueuePool
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver
from checkpoint_store.database import checkout, provider
from checkpoint_store.embedded import EmbeddedPostgres
from checkpoint_store.serde import messages, pages

REPOSITORY = Path(__file__).parents[1]
SERVER = "CHECKPOINT_STORE_TEST_URL"
SHORTCUTS = "CHECKPOINT_STORE_TEST_SHORTCUTS"
MEMORY = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a directory in it

# CI repeats the same generated examples; at a desk every run tries others.
settings.register_profile("ci", derandomize=True, database=None, print_blob=True)
if "CI" in os.environ:
    settings.load_profile("ci")

# Nothing here has to survive a power failure.
HASTY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": 300}


# A job of a shell without job control, such as `make test &` in a script, ignores SIGINT, and all its children would.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SLOW_SECONDS = 1800


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests more time than `timeout` in pyproject.toml has for the others; skip what is switched off."""
    for item in items:
        if item.get_closest_marker("shortcut") and os.environ.get(SHORTCUTS) == "off":
            item.add_marker(pytest.mark.skip(f"{SHORTCUTS} is off"))
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, object, object]:
    """Let the time limit strike again: the end of a `with` block may wait for what the test hung on."""
    result = yield
    signal.setitimer(signal.ITIMER_REAL, settings.timeout, min(settings.timeout, 10))
    return result


def pytest_configure(config: pytest.Config) -> None:
    """Start a server unless one is named; xdist's workers find it named, in the environment they inherit.

    With the shortcuts off each call has a connection from the pool, a commit of its own, and statements that SQLAlchemy
    executes, as where listeners watch; and messages go LangGraph's way.
    """
    if os.environ.get(SHORTCUTS) == "off":
        checkout.is_watched = provider.is_watched = lambda _: True  # type: ignore[assignment, attr-defined]
        messages._KINDS.clear()
    if SERVER not in os.environ:
        server = EmbeddedPostgres(settings=HASTY)
        with pytest.MonkeyPatch.context() as patch:
            # Creating a database creates 300 files, which takes several times as long on a disk that is busy.
            if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 << 30:
                patch.setattr(tempfile, "tempdir", str(MEMORY))
            server.start()
        config.add_cleanup(server.stop)
        config.add_cleanup(partial(os.environ.pop, SERVER))
        os.environ[SERVER] = server.url


@contextmanager
def database(server_url: str, template: str = "template1") -> Iterator[str]:
    """Create a database, yield its URL, and drop it whoever is still connected."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template))))
    yield urlsplit(server_url)._replace(path=f"/{name}").geturl()
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def server_url() -> str:
    """The maintenance database of the server under test."""
    return os.environ[SERVER]


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a database that `setup()` has brought to head."""
    with database(server_url) as url:
        with PostgresSaver.from_conn_string(url) as saver:
            saver.setup()
        yield urlsplit(url).path.removeprefix("/")


@pytest.fixture
def make_database(server_url: str) -> Iterator[Callable[[], str]]:
    """Makes a fresh database without tables at every call."""
    with ExitStack() as made:
        yield lambda: made.enter_context(database(server_url))


@pytest.fixture
def empty_url(make_database: Callable[[], str]) -> str:
    """A fresh database without tables."""
    return make_database()


@pytest.fixture
def url(server_url: str, template: str) -> Iterator[str]:
    """A fresh database at head."""
    with database(server_url, template) as clone:
        yield clone


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    """A host's engine on `url`; whoever borrows a connection from its pool must have given it back by the end."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    yield engine
    assert isinstance(engine.pool, QueuePool)
    left = engine.pool.checkedout()
    await engine.dispose()
    assert left == 0, f"{left} connections are still checked out"


@dataclass(frozen=True)
class Setting:
    """How our savers store what they are given."""

    pipeline: bool = False
    pages: bool = False


ALL_SETTINGS = [
    pytest.param(Setting(), id="plain"),
    pytest.param(Setting(pipeline=True, pages=True), id="pipeline-pages"),
    pytest.param(Setting(pipeline=True), id="pipeline", marks=pytest.mark.slow),
    pytest.param(Setting(pages=True), id="pages", marks=pytest.mark.slow),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What LangGraph does with a saver is tested in all settings."""
    whole = ("test_graph_", "test_conformance", "test_state_machine")
    if "setting" in metafunc.fixturenames and metafunc.module.__name__.rpartition(".")[2].startswith(whole):
        metafunc.parametrize("setting", ALL_SETTINGS, indirect=True)


@pytest.fixture
def setting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """The setting under test; pages are then made of every value that can be cut, not of large ones only."""
    setting: Setting = getattr(request, "param", Setting())
    if setting.pages:
        monkeypatch.setattr(pages, "LARGE_BYTES", 0)
    return setting


@pytest.fixture
async def saver(engine: AsyncEngine, setting: Setting) -> AsyncIterator[AsyncPostgresSaver]:
    """Our saver on the host's engine."""
    pipe = AsyncPipeline(engine) if setting.pipeline else False
    saver = AsyncPostgresSaver(engine, pipe, share_pages=setting.pages)
    yield saver
    await saver.aclose()


@pytest.fixture
def sync_saver(url: str, setting: Setting) -> Iterator[PostgresSaver]:
    """Our saver for sync code, on an engine of its own on `url`."""
    with PostgresSaver.from_conn_string(url, pipeline=setting.pipeline, share_pages=setting.pages) as saver:
        yield saver


@pytest.fixture
async def stock_saver(url: str) -> AsyncIterator[StockSaver]:
    """The stock saver on `url`: on tables that we made."""
    async with StockSaver.from_conn_string(url) as saver:
        yield saver


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, built from the repository, and an environment in which it is installed; made once."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    home = root / "installation"
    with (root / "installation.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "done").exists():
            install(home)
            (home / "done").touch()
    return home


def install(home: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(home / "dist"),
        str(REPOSITORY),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = (home / "dist").iterdir()
    venv.create(home, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    # The dependencies are those of the environment that runs this test. Its own .pth files, and the repository that is
    # named in one of them, stay out: Python reads them only in the folders of its own environment.
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    # So they bring no commands either.
    alembic = home / "bin" / "alembic"
    alembic.write_text(f'#!/bin/sh\nexec {home}/bin/python -m alembic "$@"\n')
    alembic.chmod(0o755)
    (home / "alembic.ini").write_text("[alembic]\nscript_location = checkpoint_store:_alembic\n")


@pytest.fixture(scope="session")
def wheel(installation: Path) -> Path:
    """The wheel, built from the repository."""
    (built,) = (installation / "dist").iterdir()
    return built


@pytest.fixture(scope="session")
def python(installation: Path) -> Callable[..., str]:
    """Runs Python where the wheel is installed, in a folder with an ini file of two lines, and returns what it prints.

    The environment has `url` as CHECKPOINT_STORE_URL, and as DATABASE_URL in the way SQLAlchemy wants it.
    """

    def run(*arguments: str, url: str = "", cwd: Path = installation) -> str:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
        urls = {"CHECKPOINT_STORE_URL": url, "DATABASE_URL": url.replace("postgresql:", "postgresql+asyncpg:")}
        command = [str(installation / "bin" / "python"), *arguments]
        done = subprocess.run(command, cwd=cwd, env={**inherited, **urls}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
