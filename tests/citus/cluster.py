"""Databases on all nodes of a Citus cluster."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from checkpoint_store import PostgresSaver

TABLES = ["checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_pages", "checkpoint_threads"]
VERSION = "checkpoint_store_version"
SHARDS = 8


Address = tuple[str, int]


def workers_of(cluster_url: str) -> list[Address]:
    """The workers of a cluster, as the database that the URL names has them; a coordinator alone has none."""
    with psycopg.connect(cluster_url, autocommit=True) as conn:
        known = conn.execute("SELECT nodename, nodeport FROM pg_dist_node WHERE groupid <> 0 ORDER BY nodeid")
        return [(host, port) for host, port in known]


@contextmanager
def apart(cluster_url: str) -> Iterator[str]:
    """Create a database without tables on each node of a cluster, and drop it; yield its URL on the coordinator.

    None of them knows the others: see `add_worker`.
    """
    name = f"test_{uuid.uuid4().hex}"
    workers = [make_conninfo(cluster_url, host=host, port=port) for host, port in workers_of(cluster_url)]
    try:
        for server in (cluster_url, *workers):
            run(server, f"CREATE DATABASE {name}")
            run(make_conninfo(server, dbname=name), "CREATE EXTENSION citus")
        url = urlsplit(cluster_url)._replace(path=f"/{name}").geturl()
        copy_coordinator(cluster_url, url)
        yield url
    finally:
        for server in (cluster_url, *workers):
            run(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def copy_coordinator(cluster_url: str, url: str) -> None:
    """Tell a database under which name the others reach the coordinator, if the cluster has one for it."""
    with psycopg.connect(cluster_url, autocommit=True) as conn:
        known = conn.execute("SELECT nodename, nodeport FROM pg_dist_node WHERE groupid = 0").fetchone()
    if known is not None:
        run(url, "SELECT citus_set_coordinator_host(%s, %s)", *known)


def add_worker(url: str, worker: Address) -> None:
    """Add a worker to the cluster, for one database; one at a time, since Citus alters roles, which databases share."""
    with psycopg.connect(make_conninfo(url, dbname="postgres"), autocommit=True) as others:
        others.execute("SELECT pg_advisory_lock(1)")
        run(url, "SELECT citus_add_node(%s, %s)", *worker)


@contextmanager
def database(cluster_url: str) -> Iterator[str]:
    """Create a database without tables on a cluster, and drop it; yield its URL."""
    with apart(cluster_url) as url:
        for worker in workers_of(cluster_url):
            add_worker(url, worker)
        yield url


def distribute(url: str, tables: Sequence[str] = TABLES) -> None:
    """Distribute the tables of a migrated database by thread, as the docs say."""
    with psycopg.connect(url) as conn:
        conn.execute(f"SET citus.shard_count = {SHARDS}")
        for table in tables:
            together = "default" if table == tables[0] else tables[0]
            conn.execute("SELECT create_distributed_table(%s, 'thread_id', colocate_with => %s)", [table, together])
        conn.execute("SELECT create_reference_table(%s)", [VERSION])


class Pair(NamedTuple):
    """Two databases of a cluster, and so of the same locale, which orders texts: of one the tables are distributed."""

    single: str
    distributed: str

    def copy_rows(self) -> None:
        """Copy all rows from the first to the second, which has none."""
        with psycopg.connect(self.single) as source, psycopg.connect(self.distributed) as target:
            for table in map(sql.Identifier, TABLES):
                with (
                    source.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(table)) as rows,
                    target.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(table)) as copy,
                ):
                    for row in rows:
                        copy.write(row)


@contextmanager
def pair_of(cluster_url: str) -> Iterator[Pair]:
    """Create both at head, without rows, and drop them."""
    with database(cluster_url) as single, database(cluster_url) as distributed:
        migrate(single)
        migrate(distributed)
        distribute(distributed)
        yield Pair(single, distributed)


def migrate(url: str) -> None:
    """Bring a database to head."""
    with PostgresSaver.from_conn_string(url) as saver:
        saver.setup()


def run(url: str, statement: str, *args: Any) -> None:
    """Run a statement outside of transactions."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(statement, args or None)
