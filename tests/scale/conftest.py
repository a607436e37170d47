"""Where one server alone is not all: a pooler in front of it, a standby beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from checkpoint_store import PostgresSaver, embedded
from checkpoint_store.embedded import EmbeddedPostgres

PGBOUNCER = "CHECKPOINT_STORE_TEST_PGBOUNCER"
SERVER_CONNECTIONS = 4


def pgbouncer() -> str | None:
    """The program under test: Debian's package, or what the environment names."""
    return os.environ.get(PGBOUNCER) or installed_pgbouncer()


def installed_pgbouncer() -> str | None:
    """Debian's package."""
    return shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")


def version_of(program: str) -> tuple[int, ...]:
    """PgBouncer's version."""
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, told.split()[1].split(".")))


@contextmanager
def bouncer(server_url: str, program: str | None = None, **settings: str | int) -> Iterator[Path]:
    """Run PgBouncer in transaction mode, with so few connections to the server that clients have to share them.

    Yields the directory of its socket; any database of the server can be named.
    """
    server = conninfo_to_dict(server_url)
    server.pop("dbname", None)
    program = program or pgbouncer()
    assert program is not None
    # Directly in /tmp: a socket's address has room for 104 bytes.
    home = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir="/tmp"))
    options = {
        "listen_addr": "",
        "listen_port": 6432,
        "unix_socket_dir": home,
        "auth_type": "any",
        "pool_mode": "transaction",
        "default_pool_size": SERVER_CONNECTIONS,
        "max_client_conn": 500,
        "logfile": home / "log",
        "query_wait_timeout": 60,
        # Since 1.21 it can carry prepared statements from one connection to the next.
        **({"max_prepared_statements": 0} if version_of(program) >= (1, 21) else {}),
        **settings,
    }
    lines = ["[databases]", f"* = {make_conninfo(**{'user': 'postgres', **server})}", "[pgbouncer]"]
    lines += [f"{name} = {value}" for name, value in options.items()]
    (home / "pgbouncer.ini").write_text("\n".join(lines))
    home.chmod(0o755)
    process = subprocess.Popen([*embedded._unprivileged(), program, "--quiet", str(home / "pgbouncer.ini")])
    try:
        while not (home / ".s.PGSQL.6432").exists():
            assert process.poll() is None, (home / "log").read_text()
            time.sleep(0.01)
        yield home
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(home)


Pooled = Callable[[str], str]


@pytest.fixture(scope="session")
def pooled(server_url: str) -> Iterator[Pooled]:
    """Turns the URL of a database into one that goes through PgBouncer, which lends it four connections."""
    if pgbouncer() is None:
        pytest.skip(f"PgBouncer is not installed (on Debian: apt install pgbouncer), nor is {PGBOUNCER} set")
    with ExitStack() as running:
        home: list[Path] = []

        def through(url: str) -> str:
            if not home:
                home.append(running.enter_context(bouncer(server_url)))
            return f"postgresql://app@{urlsplit(url).path}?host={home[0]}&port=6432"

        yield through


@pytest.fixture
def pooled_url(url: str, pooled: Pooled) -> str:
    """A fresh database at head, through PgBouncer."""
    return pooled(url)


@pytest.fixture
def carrying_url(url: str, server_url: str) -> Iterator[str]:
    """The same through a PgBouncer that carries prepared statements from one of the server's connections to another."""
    program = pgbouncer()
    if program is None or version_of(program) < (1, 21):
        pytest.skip(f"PgBouncer 1.21 or newer is needed: {PGBOUNCER}=/path/to/it")
    with bouncer(server_url, max_prepared_statements=200) as home:
        yield f"postgresql://app@{urlsplit(url).path}?host={home}&port=6432"


@pytest.fixture
def session_url(url: str, server_url: str) -> Iterator[str]:
    """The same through a PgBouncer in session mode, which needs no option of the saver's."""
    if pgbouncer() is None:
        pytest.skip("PgBouncer is not installed")
    with bouncer(server_url, pool_mode="session") as home:
        yield f"postgresql://app@{urlsplit(url).path}?host={home}&port=6432"


@dataclass(frozen=True)
class Pair:
    """A database on a primary and on a streaming standby of it."""

    primary: str
    standby: str

    def on_standby(self, statement: str) -> Any:
        """The answer of the standby to a statement."""
        with psycopg.connect(self.standby, autocommit=True) as conn:
            row = conn.execute(statement).fetchone()
            return row and row[0]

    def pause(self) -> None:
        """Have the standby replay nothing of what it gets from now on."""
        self.on_standby("SELECT pg_wal_replay_pause()")
        self._wait("SELECT pg_is_wal_replay_paused()", True)

    def resume(self) -> None:
        """Have it go on."""
        self.on_standby("SELECT pg_wal_replay_resume()")

    def catch_up(self) -> None:
        """Wait until the standby has all that the primary has."""
        with psycopg.connect(self.primary, autocommit=True) as conn:
            (position,) = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone() or ()
        self._wait(f"SELECT pg_last_wal_replay_lsn() >= '{position}'", True)

    def _wait(self, query: str, answer: object) -> None:
        deadline = time.monotonic() + 60
        while self.on_standby(query) != answer:
            assert time.monotonic() < deadline, query
            time.sleep(0.01)


@contextmanager
def streaming() -> Iterator[tuple[str, str]]:
    """A primary of our own and a streaming standby, from the programs of the embedded server."""
    with (
        tempfile.TemporaryDirectory(prefix="standby-") as directory,
        EmbeddedPostgres(settings={"fsync": "off"}) as one,
    ):
        cluster = Path(directory, "cluster")
        cluster.mkdir(mode=0o700)
        program = [*embedded._unprivileged(), embedded._program("pg_basebackup")]
        options = ["--dbname", one.url, "--pgdata", str(cluster / "data"), "--write-recovery-conf", "--checkpoint=fast"]
        subprocess.run([*program, *options], check=True)
        with EmbeddedPostgres(directory, settings={"fsync": "off"}) as other:
            yield one.url, other.url


@pytest.fixture(scope="session")
def servers() -> Iterator[tuple[str, str]]:
    """A primary of our own and its standby."""
    with streaming() as urls:
        yield urls


@pytest.fixture
def pair(servers: tuple[str, str]) -> Iterator[Pair]:
    """A fresh database at head, on a primary and on its standby."""
    with paired(servers) as pair:
        yield pair


@contextmanager
def paired(servers: tuple[str, str]) -> Iterator[Pair]:
    """A fresh database at head on both."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(servers[0], autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    pair = Pair(*[urlsplit(url)._replace(path=f"/{name}").geturl() for url in servers])
    with PostgresSaver.from_conn_string(pair.primary) as saver:
        saver.setup()
    with psycopg.connect(servers[1], autocommit=True) as conn:
        while conn.execute("SELECT count(*) FROM pg_database WHERE datname = %s", [name]).fetchone() != (1,):
            time.sleep(0.01)
    pair.catch_up()
    yield pair
    pair.resume()
    with psycopg.connect(servers[0], autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
