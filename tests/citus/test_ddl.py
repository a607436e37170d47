"""Migrations of distributed tables, from every revision, and back."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres.base import MIGRATIONS as STOCK_MIGRATIONS
from sqlalchemy import Connection, MetaData, NullPool, create_engine, make_url

from checkpoint_store import AsyncPostgresSaver, PostgresSaver, distribution, migrations, partitioning
from checkpoint_store.errors import MigrationError
from checkpoint_store.schema import HEAD
from tests.citus.cluster import TABLES, VERSION, distribute, workers_of
from tests.integration.test_scripts import wire_to

REPOSITORY = Path(__file__).parents[2]
REVISIONS = ["cs01_baseline", "cs02_pages", "cs03_lifecycle", "cs04_subgraphs"]
LARGE = [f"{number:0300}" for number in range(200)]
THREADS = 10
ON_WORKER = "this server is a worker of a Citus cluster; connect to the coordinator"


@contextmanager
def connection(url: str, **options: Any) -> Iterator[Connection]:
    """A connection of a host's."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool, **options)
    with engine.connect() as conn:
        yield conn


def at_revision(url: str, revision: str) -> None:
    """Bring a database to a revision, fill it, and distribute the tables that there are then."""
    with connection(url) as conn:
        migrations.upgrade(conn, revision=revision)
    fill(url, pages=revision != "cs01_baseline")
    distribute(url, TABLES[:3] if revision == "cs01_baseline" else TABLES)


def worker_of(url: str) -> str:
    """The URL of the same database on a worker."""
    host, port = workers_of(url)[0]
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.username}@{host}:{port}").geturl()


def fill(url: str, *, pages: bool) -> None:
    """Store a large value and pending writes in each of some threads."""
    with PostgresSaver.from_conn_string(url, share_pages=pages) as saver:
        for number in range(THREADS):
            put(saver, f"t{number}")


def put(saver: PostgresSaver, thread_id: str) -> None:
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    checkpoint: Any = {**empty_checkpoint(), "channel_values": {"a": [*LARGE, thread_id], "n": 1}}
    checkpoint["channel_versions"] = {"a": "1", "n": "1"}
    stored = saver.put(config, checkpoint, {"source": "loop", "run_id": thread_id}, {"a": "1", "n": "1"})
    saver.put_writes(stored, [("a", [thread_id])], "task")


def everything(url: str) -> dict[str, Any]:
    """What the threads have, by thread."""
    with PostgresSaver.from_conn_string(url, share_pages=False) as saver:
        configs: list[Any] = [{"configurable": {"thread_id": f"t{number}"}} for number in range(THREADS)]
        found = {config["configurable"]["thread_id"]: saver.get_tuple(config) for config in configs}
    return {thread: item and (item.checkpoint, item.metadata, item.pending_writes) for thread, item in found.items()}


def alembic(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Alembic's own command."""
    command, environment = [sys.executable, "-m", "alembic", *arguments], {**os.environ, "CHECKPOINT_STORE_URL": url}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, check=False, capture_output=True, text=True)


def query(url: str, statement: str) -> list[Any]:
    """The first column of a query's rows."""
    with psycopg.connect(url, autocommit=True) as conn:
        return [row[0] for row in conn.execute(statement).fetchall()]


def together(url: str) -> set[str]:
    """The tables that are distributed together with the checkpoints."""
    names = "SELECT c.logicalrelid::text FROM pg_dist_partition p JOIN pg_dist_partition c USING (colocationid)"
    return set(query(url, f"{names} WHERE p.logicalrelid = 'checkpoints'::regclass AND p.partmethod = 'h'"))


def indexes_of_shards(url: str) -> set[int]:
    """How many valid indexes the shards of the checkpoints have: the same number, each of them."""
    count = "SELECT count(*) FROM pg_index WHERE indrelid = '%s'::regclass AND indisvalid"
    return set(map(int, query(url, f"SELECT result FROM run_command_on_shards('checkpoints', $${count}$$)")))


@pytest.mark.parametrize(("revision", "in_transaction"), [*[(each, False) for each in REVISIONS], (REVISIONS[0], True)])
def test_up_and_down_and_up_again(empty_citus_url: str, revision: str, in_transaction: bool) -> None:
    """From each revision, with rows: what was stored is there at each end, and all tables are distributed together."""
    url = empty_citus_url
    at_revision(url, revision)
    stored = everything(url)
    assert all(stored.values())

    def migrate(direction: Any, target: str) -> None:
        with connection(url) as conn:
            if in_transaction:
                conn.begin()
            direction(conn, revision=target)
            conn.commit()

    for target in (revision, "cs01_baseline"):
        migrate(migrations.upgrade, "head")
        assert together(url) == set(TABLES)
        assert indexes_of_shards(url) == {4}
        assert everything(url) == stored
        with connection(url) as conn:
            migrations.check(conn)
        fill(url, pages=True)
        stored = everything(url)
        migrate(migrations.downgrade, target)
        assert everything(url) == stored

    migrate(migrations.upgrade, "head")
    migrate(migrations.downgrade, "base")
    assert query(url, "SELECT logicalrelid::text FROM pg_dist_partition") == [VERSION]
    left = "SELECT count(*) FROM pg_class WHERE relname ~ '^checkpoint' AND relkind = 'r'"
    assert {*query(url, f"SELECT result FROM run_command_on_workers($${left}$$)")} <= {"1", "2"}, "the version table"

    migrate(migrations.upgrade, "head")
    with connection(url) as conn:
        assert distribution.distribute(conn).shards > 0
    fill(url, pages=True)
    assert all(everything(url).values())


@pytest.mark.parametrize("migrations_run", [7, len(STOCK_MIGRATIONS)])
def test_tables_of_the_stock_savers_are_adopted_distributed(empty_citus_url: str, migrations_run: int) -> None:
    """Those that an operator has distributed before the first upgrade; ours join them."""
    with psycopg.connect(empty_citus_url, autocommit=True) as conn:
        for version, migration in enumerate(STOCK_MIGRATIONS[:migrations_run]):
            conn.execute(migration)
            conn.execute("INSERT INTO checkpoint_migrations (v) VALUES (%s)", [version])
        for table in TABLES[:3]:
            conn.execute("SELECT create_distributed_table(%s, 'thread_id')", [table])

    with connection(empty_citus_url) as conn:
        migrations.upgrade(conn)
        assert distribution.distribute(conn).changes[0] == f"made {VERSION} a reference table"

    assert together(empty_citus_url) == set(TABLES)
    fill(empty_citus_url, pages=True)
    assert all(everything(empty_citus_url).values())


def test_an_upgrade_that_was_ended_goes_on(empty_citus_url: str) -> None:
    """Building an index online waits for older transactions on the nodes; what it leaves is dropped and built anew."""
    url = empty_citus_url
    at_revision(url, "cs02_pages")
    with psycopg.connect(url) as host:
        host.execute("UPDATE checkpoints SET type = NULL WHERE thread_id = 't1'")
        options = {"connect_args": {"options": "-c statement_timeout=1500"}}
        with connection(url, **options) as conn, pytest.raises(MigrationError, match="timeout"):
            migrations.upgrade(conn)
        host.rollback()

    with connection(url) as conn:
        migrations.upgrade(conn)
        assert migrations.current(conn) == HEAD
    assert indexes_of_shards(url) == {4}
    assert query(url, "SELECT count(*) FROM pg_index WHERE indrelid = 'checkpoints'::regclass AND NOT indisvalid") == [
        0
    ]


def test_autogenerate_has_nothing_to_propose(own_citus_url: str) -> None:
    """Neither `alembic check` nor a host's, which sees the shards that lie on the coordinator if it asks for them."""
    for visible in ("on", "off"):
        options = f"-c citus.override_table_visibility={visible}"
        done = alembic(f"{own_citus_url}?options={options.replace(' ', '%20')}", "check")
        assert "No new upgrade operations detected" in done.stdout, done.stdout + done.stderr

        with connection(own_citus_url, connect_args={"options": options}) as conn:
            context = MigrationContext.configure(conn, opts={"include_object": migrations.not_ours})
            assert compare_metadata(context, MetaData()) == []


@pytest.mark.parametrize("schema", [None, "agents"])
@pytest.mark.parametrize("in_transaction", [False, True])
def test_a_worker_is_not_migrated(empty_citus_url: str, schema: str | None, in_transaction: bool) -> None:
    """Neither by code nor by SQL: its tables would be in the way of those that the coordinator distributes."""
    url = worker_of(empty_citus_url)
    with connection(url) as conn:
        if in_transaction:
            conn.begin()
        with pytest.raises(MigrationError, match=ON_WORKER):
            migrations.upgrade(conn, schema)
    with PostgresSaver.from_conn_string(url, schema=schema) as saver, pytest.raises(MigrationError, match=ON_WORKER):
        saver.setup()
    with psycopg.connect(url) as direct, pytest.raises(psycopg.Error, match=ON_WORKER):
        direct.execute(migrations.offline_sql(schema).encode())
    option = [] if schema is None else ["-x", f"schema={schema}"]
    assert ON_WORKER in alembic(url, *option, "upgrade", "head").stderr

    assert query(url, "SELECT relname FROM pg_class WHERE relname ~ '^checkpoint'") == []
    assert query(url, "SELECT nspname FROM pg_namespace WHERE nspname = 'agents'") == []


def test_a_worker_of_distributed_tables_is_not_migrated(own_citus_url: str) -> None:
    """At head there is nothing to do, and back is refused, on a connection to it."""
    url = worker_of(own_citus_url)
    with PostgresSaver.from_conn_string(url) as saver:
        saver.setup()
    with connection(url) as conn:
        with pytest.raises(MigrationError, match=ON_WORKER):
            migrations.downgrade(conn)
        assert migrations.current(conn) == HEAD
    assert ON_WORKER in alembic(url, "downgrade", "base").stderr
    assert together(own_citus_url) == set(TABLES)


async def test_setup_at_head_is_one_round_trip(citus_url: str) -> None:
    """As on a single server."""
    async with wire_to(citus_url) as wire, AsyncPostgresSaver.from_conn_string(wire.url, pool_size=1) as saver:
        await saver.setup()
        assert await wire.count(saver.setup) == 1


def test_tables_that_nobody_distributes(empty_citus_url: str) -> None:
    """A database with the extension is a single server like others."""
    with PostgresSaver.from_conn_string(empty_citus_url) as saver:
        saver.setup()
        put(saver, "t1")
        put(saver, "t2")
        saver.copy_thread("t1", "copy")
        saver.delete_thread("t1")
        found = [item.config["configurable"]["thread_id"] for item in saver.list(None)]
    with connection(empty_citus_url) as conn:
        migrations.check(conn)
        assert distribution.current(conn) is None
        partitioning.partition(conn, partitions=2)

    assert sorted(found) == ["copy", "t2"]
    assert query(empty_citus_url, "SELECT count(*) FROM pg_dist_partition") == [0]


@pytest.fixture
def role(cluster_url: str) -> Iterator[str]:
    """A role that may log in on every node, as roles that are created on the coordinator do."""
    name = f"app_{uuid.uuid4().hex}"
    with psycopg.connect(cluster_url, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {name} LOGIN")
    yield name
    with psycopg.connect(cluster_url, autocommit=True) as conn:
        conn.execute(f"DROP ROLE {name}")


def test_a_service_needs_the_same_rights(role: str, own_citus_url: str) -> None:
    """Citus hands grants on to the shards, and lets every role read where they are."""
    with psycopg.connect(own_citus_url, autocommit=True) as conn:
        conn.execute(migrations.grants(role))
    parts = urlsplit(own_citus_url)
    url = parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}").geturl()

    with PostgresSaver.from_conn_string(url) as saver:
        saver.setup()
        saver.check()
    fill(url, pages=True)
    assert all(everything(url).values())
    with connection(url) as conn:
        migrations.check(conn)
        assert distribution.current(conn) is not None
