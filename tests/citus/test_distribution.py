"""`distribution.distribute`, its SQL and the command: what they do, refuse and say."""

from __future__ import annotations

import json
import threading
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import PostgresSaver, distribution, migrations, partitioning
from checkpoint_store.cli import main
from checkpoint_store.errors import CheckpointStoreError, MigrationError, NotSetUp, WrongTransaction
from tests.citus.cluster import TABLES, VERSION, distribute, migrate, run
from tests.citus.test_ddl import ON_WORKER, connection, everything, fill, put, query, together, worker_of

SIZES = "SELECT sum(pg_relation_size(logicalrelid)) FROM pg_dist_partition"


@pytest.fixture
def filled_url(empty_citus_url: str) -> str:
    """A database at head with rows, whose tables are not distributed."""
    migrate(empty_citus_url)
    fill(empty_citus_url, pages=True)
    return empty_citus_url


def distributed(url: str, schema: str | None = None) -> distribution.Distribution:
    with connection(url) as conn:
        return distribution.distribute(conn, schema)


async def test_tables_with_rows(filled_url: str) -> None:
    """Rows move along, none is left in the coordinator's tables, and a second call finds nothing to do."""
    stored = everything(filled_url)
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": filled_url})
    async with engine.connect() as conn:
        assert await conn.run_sync(distribution.current) is None
        async with conn.begin() as transaction:
            rehearsal = await conn.run_sync(distribution.distribute)
            await transaction.rollback()
        assert await conn.run_sync(distribution.current) is None

        found = await conn.run_sync(distribution.distribute)
        again = await conn.run_sync(distribution.distribute)
        known = await conn.run_sync(distribution.current)
    await engine.dispose()

    assert found == rehearsal
    assert found.changes[:6] == (*[f"distributed {table}" for table in TABLES], f"made {VERSION} a reference table")
    assert found.nodes == len(query(filled_url, "SELECT citus_get_active_worker_nodes()"))
    assert found.shards == int(query(filled_url, "SHOW citus.shard_count")[0])
    assert again == known == distribution.Distribution(found.shards, found.nodes)
    assert together(filled_url) == set(TABLES)
    assert query(filled_url, SIZES) == [0]
    assert everything(filled_url) == stored


def test_columns_are_stored_on_shards_as_before(own_citus_url: str) -> None:
    """Pages in their rows, compressed by LZ4."""
    how = "SELECT attstorage::text || attcompression::text FROM pg_attribute WHERE attrelid = '%s'::regclass"
    how += " AND attname IN ('page', 'blob')"
    for table, expected in (("checkpoint_pages", "ml"), ("checkpoint_blobs", "xl"), ("checkpoint_writes", "xl")):
        shards = query(own_citus_url, f"SELECT result FROM run_command_on_shards('{table}', $${how}$$)")
        assert set(shards) == {expected}
    options = "SELECT reloptions FROM pg_class WHERE oid = '%s'::regclass"
    shards = query(own_citus_url, f"SELECT result FROM run_command_on_shards('checkpoint_pages', $${options}$$)")
    assert set(shards) == {"{toast_tuple_target=128}"}


def test_what_was_begun_by_hand_is_completed(filled_url: str) -> None:
    """Tables that are distributed already stay; what Citus has left of their rows is deleted."""
    distribute(filled_url, TABLES[:2])
    with connection(filled_url) as conn, pytest.raises(NotSetUp, match="checkpoint_writes, checkpoint_pages, checkpoi"):
        migrations.check(conn)
    stored = query(filled_url, "SELECT checkpoint_id FROM checkpoints ORDER BY 1")

    changes = distributed(filled_url).changes

    assert changes[:3] == tuple(f"distributed {table}" for table in TABLES[2:])
    assert "deleted the rows of checkpoints that were left in the coordinator's own table" in changes
    assert query(filled_url, "SELECT checkpoint_id FROM checkpoints ORDER BY 1") == stored
    assert query(filled_url, SIZES) == [0]


@pytest.mark.parametrize("place", ["create_distributed_table('{}', 'thread_id', colocate_with => 'none')",
                                   "create_distributed_table('{}', 'channel', colocate_with => 'none')",
                                   "create_reference_table('{}')"])  # fmt: skip
def test_tables_that_are_distributed_otherwise(filled_url: str, place: str) -> None:
    """Apart, by another column, to all nodes: they are named, and the way out leads out."""
    table = "checkpoint_blobs"
    distribute(filled_url)
    undistribute = f"SELECT undistribute_table('{table}')"
    with psycopg.connect(filled_url, autocommit=True) as conn:
        conn.execute(undistribute)
        conn.execute(f"SELECT {place.format(table)}")

    with connection(filled_url) as conn:
        advice = rf"checkpoints: {table}. Run .* refuses, first run SELECT undistribute_table\(...\) for {table}, or"
        with pytest.raises(NotSetUp, match=advice):
            migrations.check(conn)
        with pytest.raises(MigrationError, match=rf"with checkpoints: {table}. Run SELECT undistribute_table"):
            distribution.distribute(conn)
    with psycopg.connect(filled_url, autocommit=True) as conn:
        conn.execute(undistribute)

    assert distributed(filled_url).changes[0] == f"distributed {table}"
    assert together(filled_url) == set(TABLES)


def test_a_schema_that_is_on_one_node(empty_citus_url: str) -> None:
    """Schemas that Citus distributes as a whole are for applications that know nothing of it: they are refused."""
    with connection(empty_citus_url) as conn:
        migrations.upgrade(conn, "agents")
    with psycopg.connect(empty_citus_url, autocommit=True) as direct, connection(empty_citus_url) as conn:
        direct.execute("SELECT citus_schema_distribute('agents')")
        with pytest.raises(NotSetUp, match=r"these not by thread_id .*: checkpoints, checkpoint_b.*citus_schema_undi"):
            migrations.check(conn, "agents")
        with pytest.raises(MigrationError, match=r"or citus_schema_undistribute\(...\), then this again"):
            distribution.distribute(conn, "agents")
        direct.execute("SELECT citus_schema_undistribute('agents')")
        assert len(distribution.distribute(conn, "agents").changes) >= len(TABLES)


def test_a_database_of_the_wrong_kind(filled_url: str) -> None:
    """A worker, tables that are missing, and partitions are refused; nothing has changed."""
    with connection(filled_url) as conn:
        with pytest.raises(NotSetUp, match="were never set up"):
            distribution.distribute(conn, "elsewhere")
        partitioning.partition(conn, partitions=2)
        with pytest.raises(MigrationError, match=r"partitioned tables can't be distributed: checkpoint"):
            distribution.distribute(conn)
        assert distribution.current(conn) is None

    migrations_of = "elsewhere"
    with connection(filled_url) as conn:
        migrations.upgrade(conn, migrations_of)
    assert distributed(filled_url, migrations_of).shards > 0
    with connection(worker_of(filled_url)) as conn:
        migrations.check(conn, migrations_of)
        with pytest.raises(MigrationError, match=ON_WORKER):
            distribution.distribute(conn, migrations_of)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_table_that_is_on_a_worker_already_is_named(filled_url: str, driver: str) -> None:
    """And the worker; without it there, the same call distributes."""
    table, worker = "checkpoint_writes", worker_of(filled_url)
    run(worker, f"CREATE TABLE {table} (thread_id text)")
    named = f'relation "{table}" already exists on the worker {urlsplit(worker).netloc.rpartition("@")[2]}. Drop it th'
    engine = create_async_engine(make_url(filled_url).set(drivername=f"postgresql+{driver}"))
    async with engine.connect() as conn:
        with pytest.raises(MigrationError, match=named):
            await conn.run_sync(distribution.distribute)
        assert await conn.run_sync(distribution.current) is None
        run(worker, f"DROP TABLE {table}")
        assert (await conn.run_sync(distribution.distribute)).shards > 0
    await engine.dispose()


def test_the_sql_names_tables_that_are_missing(empty_citus_url: str) -> None:
    """With the command that makes them."""
    missing = f"these tables are missing: {', '.join(TABLES)}; run `checkpoint-store upgrade` first"
    with psycopg.connect(empty_citus_url) as conn, pytest.raises(psycopg.Error, match=missing):
        conn.execute(distribution.sql())


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_connection_in_autocommit_is_refused(filled_url: str, driver: str) -> None:
    """With the way to one that works."""
    address = make_url(filled_url).set(drivername=f"postgresql+{driver}")
    engine = create_async_engine(address, isolation_level="AUTOCOMMIT")
    for job in (distribution.distribute, partitioning.partition):
        async with engine.connect() as conn:
            with pytest.raises(WrongTransaction, match=r"in AUTOCOMMIT. Nothing was changed. Use `engine.begin\(\)`"):
                await conn.run_sync(job)
            assert await conn.run_sync(distribution.current) is None
        with pytest.raises(WrongTransaction, match="in AUTOCOMMIT"):
            async with engine.begin() as conn:
                await conn.run_sync(job)
    await engine.dispose()
    assert distributed(filled_url).shards > 0


def test_partitions_are_refused(own_citus_url: str) -> None:
    """A partitioned table would take the rows back to the coordinator."""
    with connection(own_citus_url) as conn, pytest.raises(MigrationError, match="Citus has distributed the tables"):
        partitioning.partition(conn)
    with (
        psycopg.connect(own_citus_url, autocommit=True) as conn,
        pytest.raises(psycopg.Error, match="Citus has distributed the tables"),
    ):
        conn.execute(partitioning.sql())
    assert together(own_citus_url) == set(TABLES)


@pytest.mark.parametrize("schema", [None, "Ag'e%nts\":x"])
def test_the_sql_for_a_pipeline_does_the_same(
    empty_citus_url: str, schema: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a second time, and for schemas with names of any kind; the commands say what they have found."""
    option = [] if schema is None else ["--schema", schema]
    with connection(empty_citus_url) as conn:
        migrations.upgrade(conn, schema)
    assert main(["distribute", "--sql", *option]) == 0
    script = capsys.readouterr().out
    assert script == distribution.sql(schema) + "\n"
    with psycopg.connect(empty_citus_url, autocommit=True) as conn:
        conn.execute(script)
        conn.execute(script)

    assert main(["distribute", "--url", empty_citus_url, *option]) == 0
    said = capsys.readouterr().out
    assert said.startswith("distributed by thread over ")
    assert main(["check", "--url", empty_citus_url, *option]) == 0
    assert capsys.readouterr().out.endswith(said)
    assert main(["check", "--json", "--url", empty_citus_url, *option]) == 0
    found = distributed(empty_citus_url, schema)
    assert json.loads(capsys.readouterr().out)["distribution"] == {"shards": found.shards, "nodes": found.nodes}


def test_the_commands_name_what_is_missing(filled_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`check` fails until `distribute` has said what it has done."""
    distribute(filled_url, TABLES[:4])

    assert main(["check", "--url", filled_url]) == 3
    assert "checkpoint_threads. Run `checkpoint-store distribute` on the coordinator" in capsys.readouterr().err
    assert main(["distribute", "--url", filled_url]) == 0
    assert "distributed checkpoint_threads\n" in capsys.readouterr().out
    assert main(["check", "--url", filled_url]) == 0


def test_under_load(filled_url: str) -> None:
    """Calls wait while rows move; all that was acknowledged is there, and none has failed."""
    stored: list[str] = []
    failed: list[CheckpointStoreError] = []
    over = threading.Event()
    host = create_engine(make_url(filled_url).set(drivername="postgresql+psycopg"))

    def put_in_a_transaction(thread_id: str) -> None:
        """Pending writes before the checkpoint: the tables are locked in another order than all of them are."""
        with host.begin() as conn:
            bound = PostgresSaver(host, share_pages=False).bind(conn)
            config = {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": "0"}
            bound.put_writes({"configurable": config}, [("a", 1)], "task")
            over.wait(0.02)
            put(bound, thread_id)

    def write(saver: PostgresSaver, worker: int) -> None:
        while not over.is_set():
            thread_id = f"load-{worker}-{len(stored)}"
            try:
                put_in_a_transaction(thread_id) if worker % 2 else put(saver, thread_id)
            except CheckpointStoreError as error:
                failed.append(error)
            else:
                stored.append(thread_id)

    with PostgresSaver.from_conn_string(filled_url, share_pages=False, pool_size=4) as saver:
        workers = [threading.Thread(target=write, args=(saver, worker)) for worker in range(4)]
        for worker in workers:
            worker.start()
        distributed(filled_url)
        before = len(stored)
        while len(stored) < before + 50 and len(failed) < 300:
            over.wait(0.05)
        over.set()
        for worker in workers:
            worker.join()
        host.dispose()
        found: list[Any] = [saver.get_tuple({"configurable": {"thread_id": thread_id}}) for thread_id in stored]

    assert failed == []
    assert all(found)
    assert all(item.pending_writes for item in found)
