"""Databases on all nodes of a Citus cluster."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from checkpoint_store import PostgresSaver

TABLES = ["checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_pages", "checkpoint_threads"]
VERSION = "checkpoint_store_version"
SHARDS = 8


@contextmanager
def database(cluster_url: str) -> Iterator[str]:
    """Create a database without tables on a cluster, as the docs of Citus say; yield its URL; drop it on every node.

    Its nodes are those of the database that the URL names. A coordinator without workers has all shards.
    """
    with psycopg.connect(cluster_url, autocommit=True) as admin:
        nodes = admin.execute("SELECT groupid, nodename, nodeport FROM pg_dist_node ORDER BY groupid").fetchall()
    workers = [(host, port) for group, host, port in nodes if group]
    servers = [cluster_url, *[make_conninfo(cluster_url, host=host, port=port) for host, port in workers]]
    name = f"test_{uuid.uuid4().hex}"
    try:
        for server in servers:
            run(server, f"CREATE DATABASE {name}")
            run(make_conninfo(server, dbname=name), "CREATE EXTENSION citus")
        url = urlsplit(cluster_url)._replace(path=f"/{name}").geturl()
        with psycopg.connect(url, autocommit=True) as conn:
            for group, host, port in nodes:
                call = "citus_add_node" if group else "citus_set_coordinator_host"
                conn.execute(sql.SQL("SELECT {}(%s, %s)").format(sql.Identifier(call)), [host, port])
        yield url
    finally:
        for server in servers:
            run(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def distribute(url: str, tables: Sequence[str] = TABLES) -> None:
    """Distribute the tables of a migrated database by thread, as the docs say."""
    with psycopg.connect(url) as conn:
        conn.execute(f"SET citus.shard_count = {SHARDS}")
        for table in tables:
            together = "default" if table == tables[0] else tables[0]
            conn.execute("SELECT create_distributed_table(%s, 'thread_id', colocate_with => %s)", [table, together])
        conn.execute("SELECT create_reference_table(%s)", [VERSION])


def migrate(url: str) -> None:
    """Bring a database to head."""
    with PostgresSaver.from_conn_string(url) as saver:
        saver.setup()


def run(url: str, statement: str) -> None:
    """Run a statement outside of transactions."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(statement)
