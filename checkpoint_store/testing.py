"""A pytest plugin: for each test a PostgreSQL database with our tables, engines on it, and savers on these.

    pip install 'checkpoint-store[testing]'

    async def test_the_agent_remembers(checkpoint_store_saver):
        agent = builder.compile(checkpointer=checkpoint_store_saver)

Nothing is started or imported before a test asks for one of the fixtures. They are sync, so they work under any plugin
for async tests, in each of its modes, and an engine works on whatever event loop it is used on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from checkpoint_store import AsyncPostgresSaver, PostgresSaver
    from checkpoint_store.test_databases.client import Databases

_LEFT = """\
{count} left in the test's database {name}:
  {sessions}
Before a test ends, it or its fixtures must leave the `with` block of each connection and session, await all calls of \
savers and close streams that were not read to the end (`await stream.aclose()`), and dispose of engines that they \
have made (`await engine.dispose()`)."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names a server, to the command line and to ini files."""
    text = "a PostgreSQL server for the fixtures of checkpoint_store, by default an embedded one"
    group = parser.getgroup("checkpoint_store")
    group.addoption("--checkpoint-store-test-url", metavar="URL", help=f"{text} (CHECKPOINT_STORE_TEST_URL)")
    parser.addini("checkpoint_store_test_url", text)


@pytest.fixture(scope="session")
def _checkpoint_store_databases(request: pytest.FixtureRequest) -> Iterator[Databases]:
    """The databases of this process, on one server for all processes of the run."""
    try:
        from checkpoint_store.test_databases.client import SERVER, Databases
    except ModuleNotFoundError as error:
        if error.name != "fcntl":
            raise
        pytest.fail("the fixtures of checkpoint_store need Linux or macOS; on Windows use them in WSL", pytrace=False)

    config = request.config
    urls = {
        "the option --checkpoint-store-test-url": config.getoption("checkpoint_store_test_url"),
        f"the variable {SERVER}": os.environ.get(SERVER),
        "the ini setting checkpoint_store_test_url": config.getini("checkpoint_store_test_url"),
    }
    place, url = next(((place, url) for place, url in urls.items() if url), ("", None))
    # In a worker of pytest-xdist's, the id that all of them have in common.
    run = getattr(config, "workerinput", {}).get("testrunuid")
    with _without_traceback(f". The server is that of {place}." if place else ""):
        made = Databases(url, run)
    with made as databases:
        yield databases


@pytest.fixture(scope="session")
def checkpoint_store_template(_checkpoint_store_databases: Databases) -> str:
    """The URL of the database that the tests' databases are copies of, with our tables at head.

    Override it to have more in all of them, such as the tables of the application:

        @pytest.fixture(scope="session")
        def checkpoint_store_template(checkpoint_store_template):
            migrate(checkpoint_store_template)
            return checkpoint_store_template
    """
    with _without_traceback():
        return _checkpoint_store_databases.create()


@pytest.fixture(scope="session")
def checkpoint_store_session_url(
    _checkpoint_store_databases: Databases, checkpoint_store_template: str
) -> Iterator[str]:
    """The URL of one database for all tests of this process: for tests that roll back what they do."""
    yield from _database(_checkpoint_store_databases, checkpoint_store_template)


@pytest.fixture
def checkpoint_store_url(_checkpoint_store_databases: Databases, checkpoint_store_template: str) -> Iterator[str]:
    """The URL of the test's own database, `postgresql://...`.

    The test fails if a session is left in it at the end.
    """
    yield from _database(_checkpoint_store_databases, checkpoint_store_template)


@pytest.fixture
def checkpoint_store_engine(checkpoint_store_url: str) -> Iterator[AsyncEngine]:
    """An async engine of asyncpg's on the test's database.

    Use it on one event loop at a time: its connections are closed when the loop ends that they were opened on.
    """
    from checkpoint_store.test_databases.engine import engine_for_one_test

    with engine_for_one_test(checkpoint_store_url) as engine:
        yield engine


@pytest.fixture
def checkpoint_store_saver(checkpoint_store_engine: AsyncEngine) -> AsyncPostgresSaver:
    """An `AsyncPostgresSaver` on `checkpoint_store_engine`."""
    from checkpoint_store import AsyncPostgresSaver

    return AsyncPostgresSaver(checkpoint_store_engine)


@pytest.fixture
def checkpoint_store_sync_engine(checkpoint_store_url: str) -> Iterator[Engine]:
    """A sync engine of psycopg's on the test's database."""
    from sqlalchemy import create_engine, make_url

    try:
        engine = create_engine(make_url(checkpoint_store_url).set(drivername="postgresql+psycopg"))
    except ModuleNotFoundError:
        pytest.fail('the sync fixtures need an extra: pip install "checkpoint-store[testing]"', pytrace=False)
    yield engine
    engine.dispose()


@pytest.fixture
def checkpoint_store_sync_saver(checkpoint_store_sync_engine: Engine) -> Iterator[PostgresSaver]:
    """A `PostgresSaver` on `checkpoint_store_sync_engine`."""
    from checkpoint_store import PostgresSaver

    saver = PostgresSaver(checkpoint_store_sync_engine)
    yield saver
    saver.close()


@contextmanager
def _without_traceback(note: str = "") -> Iterator[None]:
    """Fail by the message alone: a traceback would show arguments, and with them the URL's password."""
    from checkpoint_store.errors import Unavailable

    try:
        yield
    except Unavailable as error:
        pytest.fail(f"Unavailable: {error}{note}", pytrace=False)


def _database(databases: Databases, template: str) -> Iterator[str]:
    """Create a database, yield its URL and drop it; fail if a session is left in it."""
    with _without_traceback():
        url = databases.create(template)
    yield url
    with _without_traceback():
        left = databases.drop(url)
    if left:
        count = f"{len(left)} session is" if len(left) == 1 else f"{len(left)} sessions are"
        name = url.partition("?")[0].rpartition("/")[2]
        pytest.fail(_LEFT.format(count=count, name=name, sessions="\n  ".join(left)), pytrace=False)
