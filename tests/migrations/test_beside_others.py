"""Migrations beside others who take no lock of ours: the stock saver's setup(), and users of the tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver as StockSaver
from langgraph.checkpoint.postgres.base import MIGRATIONS as STOCK_MIGRATIONS
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPostgresSaver, errors, migrations, partitioning, schema

INDEXES = dict.fromkeys(
    ["checkpoint_store_latest_idx", "checkpoint_store_run_idx", "checkpoint_store_subgraphs_idx"], True
)
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
REPORT = {"application_name": "nightly report"}


@pytest.fixture
async def conn(empty_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    conn = await asyncpg.connect(empty_url)
    yield conn
    await conn.close()


@pytest.fixture
async def report(request: pytest.FixtureRequest) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Somebody else, in the database of the test."""
    database = "url" if "url" in request.fixturenames else "empty_url"
    conn = await asyncpg.connect(request.getfixturevalue(database), server_settings=REPORT)
    yield conn
    await conn.close()


async def adoptable(conn: asyncpg.Connection[Any]) -> None:
    """The stock saver's tables, with a checkpoint in them."""
    for version, migration in enumerate(STOCK_MIGRATIONS):
        await conn.execute(migration)
        await conn.execute("INSERT INTO checkpoint_migrations (v) VALUES ($1)", version)
    await conn.execute("INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint) VALUES ('t', '1', '{}')")


async def states(conn: asyncpg.Connection[Any]) -> dict[str, bool]:
    rows = await conn.fetch(
        "SELECT indexrelid::regclass::text, indisvalid FROM pg_index"
        " WHERE indrelid = 'checkpoints'::regclass AND indexrelid::regclass::text LIKE 'checkpoint_store%'"
    )
    return dict(map(tuple, rows))


async def waits(conn: asyncpg.Connection[Any], task: asyncio.Task[Any]) -> None:
    while not await conn.fetchval(WAITING):
        assert not task.done(), await task


async def revision(conn: asyncpg.Connection[Any]) -> str:
    return await conn.fetchval(f"SELECT version_num FROM {schema.VERSION_TABLE}")


async def set_up(url: str, **options: Any) -> None:
    async with AsyncPostgresSaver.from_conn_string(url, retry_timeout=0) as saver:
        await saver.setup(**options)


@pytest.mark.parametrize("migration", [1, 2, 3])
async def test_a_table_that_the_stock_saver_makes_at_the_same_time_is_adopted(
    empty_url: str, conn: asyncpg.Connection[Any], report: asyncpg.Connection[Any], migration: int
) -> None:
    """IF NOT EXISTS doesn't help there: the catalog refuses the second one, and setup() begins again."""
    making = report.transaction()
    await making.start()
    await report.execute(STOCK_MIGRATIONS[migration])
    setting_up = asyncio.create_task(set_up(empty_url))
    await waits(conn, setting_up)
    await making.commit()
    await setting_up

    assert await revision(conn) == schema.HEAD


async def test_a_migration_that_waits_gives_way_before_the_server_finds_a_deadlock(
    empty_url: str, conn: asyncpg.Connection[Any], report: asyncpg.Connection[Any]
) -> None:
    """So it is never the other one, such as the stock saver's setup(), that the server undoes."""
    await adoptable(conn)
    await report.execute("SET deadlock_timeout = '10min'")
    theirs = report.transaction()
    await theirs.start()
    await report.execute("LOCK TABLE checkpoint_writes")
    setting_up = asyncio.create_task(set_up(empty_url))
    await waits(conn, setting_up)  # with locks on the other tables

    await report.execute("LOCK TABLE checkpoint_blobs")
    await theirs.commit()
    await setting_up

    assert await revision(conn) == schema.HEAD


@pytest.mark.parametrize("rounds", [4, pytest.param(60, marks=pytest.mark.slow)])
async def test_both_savers_set_up_an_empty_database_at_once(
    empty_url: str, conn: asyncpg.Connection[Any], rounds: int
) -> None:
    """A deployment that has both: ours succeed, every time."""

    async def stock() -> None:
        async with StockSaver.from_conn_string(empty_url) as saver:
            await saver.setup()

    for _ in range(rounds):
        await conn.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        outcomes = await asyncio.gather(stock(), set_up(empty_url), set_up(empty_url), return_exceptions=True)

        assert outcomes[1:] == [None, None]
        assert await revision(conn) == schema.HEAD


async def test_who_keeps_an_index_from_being_built_is_named_and_the_deadline_kept(
    empty_url: str, conn: asyncpg.Connection[Any], report: asyncpg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """CREATE INDEX CONCURRENTLY waits for every older snapshot; a later setup() finishes what this one has begun."""
    await adoptable(conn)
    await conn.execute("CREATE TABLE orders AS SELECT 'SSN-078' AS item")
    async with report.transaction(isolation="repeatable_read"):
        await report.fetch("SELECT * FROM orders WHERE item <> 'SSN-078'")
        named = f"process {report.get_server_pid()} (application_name 'nightly report', idle in transaction"
        with pytest.raises(errors.MigrationLocked) as raised:
            await set_up(empty_url, timeout=2)

        assert named in str(raised.value)
        assert "an index is built online, which waits for transactions that are older: " + named in caplog.text
        assert "SSN" not in f"{raised.value}{caplog.text}"
        assert await conn.fetchval("SHOW lock_timeout") == "0"
        assert await states(conn) == {"checkpoint_store_run_idx": False}
    await set_up(empty_url)

    assert await states(conn) == INDEXES


async def test_who_keeps_a_table_from_being_altered_is_named_and_the_deadline_kept(
    empty_url: str, conn: asyncpg.Connection[Any], report: asyncpg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Behind a transaction that has read the tables and does not end; meanwhile others come to their turn."""
    await adoptable(conn)
    async with report.transaction():
        await report.fetch("SELECT * FROM checkpoint_writes")
        with pytest.raises(errors.MigrationLocked, match=r"nightly report.*idle in transaction.*End them, then try"):
            await set_up(empty_url, timeout=2)
        assert "rolled back. Trying again until the timeout." in caplog.text

        engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": empty_url})
        async with engine.connect() as callers:
            with pytest.raises(errors.MigrationLocked, match="nightly report"):
                await AsyncPostgresSaver(callers).setup(timeout=0.1)
            await callers.execute(text("CREATE TABLE of_host (a text)"))  # a transaction of the caller's
            with pytest.raises(errors.MigrationLocked, match=r"nightly report.*idle in transaction.*rolled back"):
                await callers.run_sync(lambda sync: migrations.upgrade(sync, timeout=0.1))
            assert (await callers.execute(text("SELECT count(*) FROM of_host"))).scalar_one() == 0
        async with engine.connect() as plain:
            with pytest.raises(errors.MigrationLocked, match="nightly report"):
                await plain.run_sync(lambda sync: migrations.upgrade(sync, timeout=0.1))
        await engine.dispose()
    await set_up(empty_url)

    assert await revision(conn) == schema.HEAD


async def test_who_keeps_tables_from_being_partitioned_is_named_and_the_deadline_kept(
    url: str, report: asyncpg.Connection[Any]
) -> None:
    """Which takes every table as a whole."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    async with report.transaction(), engine.connect() as conn:
        await report.fetch("SELECT * FROM checkpoints")
        with pytest.raises(errors.MigrationLocked, match=r"partitioning waits.*nightly report.*idle in transaction"):
            await conn.run_sync(lambda sync: partitioning.partition(sync, partitions=2, timeout=0.1))
        await conn.execute(text("SELECT count(*) FROM pg_stat_activity"))  # a transaction of the caller's
        with pytest.raises(errors.MigrationLocked, match=r"partitioning waits.*nightly report.*idle in transaction"):
            await conn.run_sync(lambda sync: partitioning.partition(sync, partitions=2, timeout=0.1))
        assert (await conn.execute(text("SELECT 1"))).scalar_one() == 1
    async with engine.connect() as conn:
        await conn.run_sync(lambda sync: partitioning.partition(sync, partitions=2))
        assert (await conn.exec_driver_sql("SHOW lock_timeout")).scalar_one() == "0"
    await engine.dispose()


async def test_a_callers_lock_timeout_is_as_it_was(empty_url: str) -> None:
    """Whether setup() or its transaction set it."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": empty_url})
    async with engine.connect() as conn:
        await conn.exec_driver_sql("SET lock_timeout = '7min'")
        await AsyncPostgresSaver(conn).setup()
        assert (await conn.exec_driver_sql("SHOW lock_timeout")).scalar_one() == "7min"
        await conn.commit()
        await conn.run_sync(migrations.downgrade)
        assert (await conn.exec_driver_sql("SHOW lock_timeout")).scalar_one() == "7min"
    await engine.dispose()
