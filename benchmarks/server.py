"""The server that every contender shares, as durable as a production one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
from psycopg import sql
from sqlalchemy import make_url

from checkpoint_store.embedded import EmbeddedPostgres

DURABILITY = ("fsync", "synchronous_commit", "full_page_writes")
OTHER_SETTINGS = ("server_version", "max_connections", "shared_buffers", "wal_sync_method")


class Server:
    """A running PostgreSQL server: hands out fresh databases and says how it is set up."""

    def __init__(self, url: str) -> None:
        self.url = url

    def create_database(self, name: str) -> str:
        """Create a database of about that name and return its URL."""
        name = _identifier(name)
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def drop_database(self, url: str) -> None:
        """Drop a database that `create_database` made, so that it costs the measures after it nothing."""
        name = make_url(url).database
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(str(name))))

    def settings(self) -> dict[str, str]:
        """The settings in force, asked from the server; raises if one of them is not durable."""
        with psycopg.connect(self.url) as conn:
            query = "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name"
            values: dict[str, str] = dict(conn.execute(query, ([*DURABILITY, *OTHER_SETTINGS],)).fetchall())
        if careless := [name for name in DURABILITY if values[name] != "on"]:
            msg = f"the server runs with {', '.join(careless)} off: no figure from it would be worth anything"
            raise RuntimeError(msg)
        return values

    def cpu_seconds(self, name: str) -> float:
        """The CPU time so far of the processes that serve connections to the database that was created as `name`.

        Only of a server on this machine.
        """
        with psycopg.connect(self.url) as conn:
            query = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"
            return sum(_cpu_seconds(pid) for (pid,) in conn.execute(query, (_identifier(name),)))


def _identifier(name: str) -> str:
    return "_".join(re.findall(r"\w+", name.lower()))


def _cpu_seconds(pid: int) -> float:
    exact = Path(f"/proc/{pid}/schedstat")
    # Elsewhere than on Linux in steps of 10 ms.
    return int(exact.read_text().split()[0]) / 1e9 if exact.exists() else sum(psutil.Process(pid).cpu_times()[:2])


@contextmanager
def running(url: str | None = None) -> Iterator[Server]:
    """The server at a URL, or a new one in a temporary directory, gone afterwards."""
    if url is not None:
        yield Server(url)
        return
    with EmbeddedPostgres(settings=dict.fromkeys(DURABILITY, "on")) as server:
        yield Server(server.url)
