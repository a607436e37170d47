"""The process that creates and drops the databases of a test run, for all processes that run its tests.

    CHECKPOINT_STORE_TEST_URL=... python -m checkpoint_store.test_databases.keeper DIRECTORY

Each test process holds a connection to the socket in the directory. When the connection ends, however the test process
has ended, its databases are dropped; after the last one the keeper stops its server, deletes the directory and ends.

A request is a line of JSON: `{"create": URL}` for a copy of that database, `{"drop": URL}`, or `{"leave": null}`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import migrations
from checkpoint_store.conninfo.url import engine_arguments
from checkpoint_store.embedded import EmbeddedPostgres
from checkpoint_store.test_databases.client import LOCK, SERVER, SOCKET

FIRST_SECONDS = 60
"""The time in which the first test process must have connected."""

LEAVE_SECONDS = 2.0
"""The time that sessions in a database have to end before they count as left: a closed one ends a moment later."""

# Nothing here has to survive a power failure.
SETTINGS: dict[str, str | float] = {
    **dict.fromkeys(("fsync", "synchronous_commit", "full_page_writes"), "off"),
    "max_connections": 300,
}
MEMORY = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a directory in it

SESSIONS = r"""
    SELECT format(
        '%s%s, %s; last statement: %s', pid, ' of ' || nullif(application_name, ''), state,
        left(regexp_replace(query, '\s+', ' ', 'g'), 100)
    )
    FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend' ORDER BY pid
"""

_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
"""Errors of the server and of the connection to it; a client that is gone is an OSError too."""


class Keeper:
    """Creation and removal of the databases of one server.

    Args:
        url: The server's maintenance database, by a role that may create others.
        strategy: An option of CREATE DATABASE.
    """

    def __init__(self, url: str, strategy: str = "") -> None:
        self._url = url
        self._strategy = strategy
        self._template = ""
        self._clients: set[asyncio.StreamWriter] = set()
        self._is_idle = asyncio.Event()

    async def serve(self, directory: Path, ready: Callable[[], None]) -> None:
        """Create a migrated database, the template of all others, and serve until the last test process has left."""
        made: set[str] = set()
        try:
            async with self._connection() as admin:
                self._template = await self._create(admin, made, None)
            await self._migrate()
            async with await asyncio.start_unix_server(self._converse, directory / SOCKET):
                ready()
                await self._wait(directory / LOCK)
        finally:
            await self._drop_all(made)

    async def _migrate(self) -> None:
        url, arguments = engine_arguments(self._template)
        engine = create_async_engine(url, connect_args=arguments, poolclass=NullPool)
        async with engine.connect() as conn:
            await conn.run_sync(migrations.upgrade)

    async def _wait(self, path: Path) -> None:
        """Wait until there are no clients, and have the lock then, so that none is about to connect."""
        lock = os.open(path, os.O_RDWR | os.O_CREAT)
        while True:
            await asyncio.wait_for(self._is_idle.wait(), None if self._clients else FIRST_SECONDS)
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            await asyncio.sleep(0.02)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a client until it has left."""
        self._clients.add(writer)
        self._is_idle.clear()
        try:
            await self._answer_all(reader, writer)
        except _ERRORS as error:
            send(writer, {"error": str(error)})
        finally:
            self._clients.remove(writer)
            if not self._clients:
                self._is_idle.set()
            send(writer, {"is_last": not self._clients})
            writer.close()

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a client's requests; when it leaves or is gone, drop its databases."""
        made: set[str] = set()
        try:
            while line := await reader.readline():
                ((what, url),) = json.loads(line).items()
                if what == "leave":
                    break
                send(writer, await self._answer(made, what, url))
        finally:
            await self._drop_all(made)

    async def _answer(self, made: set[str], what: str, url: str | None) -> dict[str, Any]:
        try:
            async with self._connection() as admin:
                if what == "drop" and url is not None:
                    left = await self._sessions(admin, url)
                    await self._drop(admin, url)
                    made.remove(url)
                    return {"left": left}
                return {"url": await self._create(admin, made, url or self._template)}
        except _ERRORS as error:
            return {"error": str(error)}

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        """Connect anew for each request: a test may have ended all sessions, or the server."""
        admin = await asyncpg.connect(**engine_arguments(self._url)[1])
        try:
            yield admin
        finally:
            with suppress(*_ERRORS):
                await admin.close()

    async def _create(self, admin: Any, made: set[str], template: str | None) -> str:
        """Create a database, as a copy of another one or empty, and return its URL."""
        name = f"checkpoint_store_test_{uuid.uuid4().hex}"
        copied = f'TEMPLATE "{name_of(template)}" {self._strategy}' if template else ""
        await admin.execute(f'CREATE DATABASE "{name}" {copied}')
        made.add(url := urlsplit(self._url)._replace(path=f"/{name}").geturl())
        return url

    async def _sessions(self, admin: Any, url: str) -> list[str]:
        """Return the sessions that are left in a database, once those that are about to end have ended."""
        deadline = asyncio.get_running_loop().time() + LEAVE_SECONDS
        while left := [row[0] for row in await admin.fetch(SESSIONS, name_of(url))]:
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.01)
        return left

    async def _drop(self, admin: Any, url: str) -> None:
        await admin.execute(f'DROP DATABASE IF EXISTS "{name_of(url)}" WITH (FORCE)')

    async def _drop_all(self, made: set[str]) -> None:
        """Drop databases, all that can be dropped."""
        if made:
            async with self._connection() as admin:
                for url in made:
                    with suppress(*_ERRORS):
                        await self._drop(admin, url)


def send(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    """Send an answer, unless the client is gone."""
    writer.write(json.dumps(answer).encode() + b"\n")


def name_of(url: str) -> str:
    """Return the name of the database that a URL names."""
    return urlsplit(url).path.removeprefix("/")


def keep(directory: Path, url: str | None, ready: Callable[[], None]) -> None:
    """Keep the databases of a run, on a server of its own if none is named."""
    with ExitStack() as stack:
        if url is None:
            # Creating a database creates 300 files, which takes longer on a disk.
            if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 1 << 30:
                tempfile.tempdir = str(MEMORY)
            keeper = Keeper(stack.enter_context(EmbeddedPostgres(settings=SETTINGS)).url, "STRATEGY FILE_COPY")
        else:
            keeper = Keeper(url)
        asyncio.run(keeper.serve(directory, ready))


def main(directory: Path, url: str | None) -> None:
    """Start the keeper in a process and session of its own, which no Ctrl-C reaches, and return when it serves."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        with open(reading) as pipe:  # noqa: PTH123 - a descriptor
            sys.exit(pipe.read() or 0)
    os.close(reading)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    try:
        keep(directory, url, lambda: os.close(writing))
    except Exception as error:
        with suppress(OSError):
            os.write(writing, str(error).encode())
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), os.environ[SERVER] or None)
