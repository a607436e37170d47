"""Servers that can be restarted, crashed and replaced, and a network in front of them that can be cut."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from checkpoint_store import embedded
from checkpoint_store.embedded import EmbeddedPostgres

PATIENCE_SECONDS = 60
"""How long to wait for what has to happen at last, however busy the machine."""


def has_standbys() -> bool:
    """Whether the programs that a standby is made with are there."""
    try:
        return Path(embedded._program("pg_basebackup")).exists()
    except embedded.NotInstalled:
        return False


class Server(EmbeddedPostgres):
    """A durable server whose URL stays the same whatever happens to it.

    Args:
        home: An empty directory with a short and simple name.
        settings: As in postgresql.conf.
    """

    def __init__(self, home: Path, settings: Mapping[str, str | float] | None = None) -> None:
        super().__init__(home, settings={"fsync": "on", "synchronous_commit": "on", **(settings or {})})
        self.home = home

    def of(self, database: str = "postgres", user: str = "postgres") -> str:
        """The URL of a database, for a user."""
        return f"postgresql://{user}@/{database}?host={self.home}/cluster&port=5432"

    @property
    def socket(self) -> Path:
        """The socket it listens on."""
        return self.home / "cluster" / ".s.PGSQL.5432"

    @property
    def is_running(self) -> bool:
        """Whether it has been started and not stopped or killed since."""
        return self._process is not None

    def restart(self) -> None:
        """Stop it as an operator does, which ends all sessions, and start it."""
        self.stop()
        self.start()

    def crash(self) -> None:
        """Kill it with SIGKILL and start it: it recovers from its log."""
        self.kill()
        self.start()

    def execute(self, statement: str, *args: Any, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Execute a statement as the superuser; returns its rows."""
        with psycopg.connect(self.of(database), autocommit=True) as conn:
            cursor = conn.execute(statement, args)
            return cursor.fetchall() if cursor.description else []

    def reaches(self, query: str, *args: Any, database: str = "postgres") -> None:
        """Wait until a query says true."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.execute(query, *args, database=database) != [(True,)]:
            if time.monotonic() > deadline:
                raise TimeoutError(query)
            time.sleep(0.01)

    def copy_to(self, other: Server, *, synchronous: bool = True) -> None:
        """Make another one a streaming standby of this one, with a copy of its data, and start it.

        From then on a commit returns when the standby has it too, if that is synchronous.
        """
        other.kill()
        cluster = other.home / "cluster"
        shutil.rmtree(cluster, ignore_errors=True)
        cluster.mkdir(mode=0o700, parents=True)
        program = [*embedded._unprivileged(), embedded._program("pg_basebackup")]
        source = ["--host", str(self.socket.parent), "--port", "5432", "--username", "postgres"]
        options = ["--pgdata", str(cluster / "data"), "--write-recovery-conf", "--checkpoint", "fast"]
        copied = subprocess.run([*program, *source, *options], capture_output=True, text=True, check=False)
        assert copied.returncode == 0, copied.stderr
        other.start()
        if synchronous:
            self.configure("synchronous_standby_names", "*")
        state = "sync" if synchronous else "async"
        self.reaches(
            "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = %s", state
        )

    def configure(self, name: str, value: str) -> None:
        """Change a setting that does not need a restart."""
        self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        self.execute("SELECT pg_reload_conf()")

    def follow(self, network: Network) -> None:
        """Have a standby get what it replays through a network."""
        self.configure("primary_conninfo", f"host=127.0.0.1 port={network.port} user=postgres sslmode=disable")
        self.reaches(
            "SELECT count(*) = 1 FROM pg_stat_wal_receiver WHERE sender_port = %s AND status = 'streaming'",
            network.port,
        )

    def promote(self) -> None:
        """Make a standby the primary."""
        # The names came with the copy; what has no standby of its own yet would wait for one forever.
        self.execute("ALTER SYSTEM RESET synchronous_standby_names")
        self.execute("SELECT pg_reload_conf()")
        self.execute("SELECT pg_promote()")


@contextmanager
def servers(number: int, settings: Mapping[str, str | float] | None = None) -> Iterator[list[Server]]:
    """Servers in a temporary directory; the first one runs."""
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as directory, ExitStack() as stack:
        made = [Server(Path(directory, f"{index}"), settings) for index in range(number)]
        for server in made:
            stack.callback(server.stop)
        made[0].start()
        yield made


class Network:
    """A TCP port in front of a server, on an event loop in a thread of its own.

    Args:
        upstream: The socket of the server, or its host and port.
        window: How many bytes of a client's the system takes in before they are read; its own choice by default.
    """

    def __init__(self, upstream: Path | tuple[str, int], window: int | None = None) -> None:
        self._upstream = upstream
        self._window = window
        self._is_stalled = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._links: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_deaf = self._is_black_hole = False
        self.swallowed = 0
        """How many answers of the server's have not reached their client."""
        self.port = 0

    def __enter__(self) -> Network:
        self._thread.start()
        sock = socket.socket()
        if self._window is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._window)
        sock.bind(("127.0.0.1", 0))
        listening = self._run(asyncio.start_server(self._accept, sock=sock))
        self._server = listening
        self.port = listening.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def lead_to(self, upstream: Path | tuple[str, int]) -> None:
        """Lead new connections to another server: it takes over at the same address."""
        self._upstream = upstream

    @staticmethod
    def before(url: str, window: int | None = None) -> Network:
        """A network in front of the server of a URL."""
        info = conninfo_to_dict(url)
        host, port = str(info.get("host") or "localhost"), int(info.get("port") or 5432)
        return Network(Path(host, f".s.PGSQL.{port}") if host.startswith("/") else (host, port), window)

    def through(self, url: str) -> str:
        """The URL of the same database behind it."""
        info = conninfo_to_dict(url)
        login = quote(str(info.get("user", "postgres")))
        if "password" in info:
            login += ":" + quote(str(info["password"]))
        return f"postgresql://{login}@127.0.0.1:{self.port}/{info['dbname']}?sslmode=disable"

    def cut(self) -> None:
        """Reset all connections, and carry new ones."""
        self._run(self._cut())

    def deafen(self) -> None:
        """Carry what clients say, but not what they are answered."""
        self.swallowed = 0
        self._is_deaf = True

    def black_hole(self) -> None:
        """Carry nothing any more, and tell nobody."""
        self._is_black_hole = True

    def stall(self) -> None:
        """Carry nothing and lose nothing: what is sent stays where it is until `flow`. Nobody gets through."""
        self._run(self._stall(True))

    def flow(self) -> None:
        """Carry on."""
        self._run(self._stall(False))

    def mend(self) -> None:
        """Reset the connections on which anything was missing, and carry everything."""
        self._is_deaf = self._is_black_hole = False
        self.cut()

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_SECONDS)

    async def _stall(self, is_stalled: bool) -> None:
        self._is_stalled = is_stalled
        for link in self._links:
            for writer in link:
                if not writer.transport.is_closing():
                    transport: Any = writer.transport
                    (transport.pause_reading if is_stalled else transport.resume_reading)()

    async def _cut(self) -> None:
        for link in list(self._links):
            for writer in link:
                _reset(writer)
        self._links.clear()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_stalled:
            await reader.read()  # until the client gives up
            writer.close()
            return
        try:
            server_reader, server_writer = await self._connect()
        except OSError:
            _reset(writer)
            return
        link = (writer, server_writer)
        self._links.add(link)
        for direction in (self._carry(reader, server_writer, False), self._carry(server_reader, writer, True)):
            task = self._loop.create_task(direction)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._upstream, Path):
            return await asyncio.open_unix_connection(self._upstream)
        return await asyncio.open_connection(*self._upstream)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_answer: bool) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(1 << 16):
                if self._is_black_hole:
                    continue
                if is_answer and self._is_deaf:
                    self.swallowed += 1
                    continue
                writer.write(piece)
                await writer.drain()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close without a goodbye, as a firewall does."""
    with suppress(OSError):
        # Nothing lingers: the other side gets a reset.
        sock = writer.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
