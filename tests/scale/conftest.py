"""What stands between us and the server where it has grown: a pooler, here PgBouncer."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from checkpoint_store.embedded import _unprivileged

PGBOUNCER = "CHECKPOINT_STORE_TEST_PGBOUNCER"
SERVER_CONNECTIONS = 4


def pgbouncer() -> str | None:
    """The program under test: Debian's package, or what the environment names."""
    return os.environ.get(PGBOUNCER) or shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")


def version_of(program: str) -> tuple[int, ...]:
    """PgBouncer's version."""
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, told.split()[1].split(".")))


@contextmanager
def bouncer(server_url: str, **settings: str | int) -> Iterator[Path]:
    """Run PgBouncer in transaction mode, with so few connections to the server that clients have to share them.

    Yields the directory of its socket; any database of the server can be named.
    """
    server = conninfo_to_dict(server_url)
    server.pop("dbname", None)
    program = pgbouncer()
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
    process = subprocess.Popen([*_unprivileged(), program, "--quiet", str(home / "pgbouncer.ini")])
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
