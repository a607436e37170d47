"""What somebody's own cleanup has left of threads is collected, and nothing that anybody needs."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import make_url
from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver
from checkpoint_store.sql.statements import statements_of
from tests.integration.test_needed_pages import WORDS, config_of, conn, put, read

__all__ = ["conn"]

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_pages", "checkpoint_threads")


async def rows_of(conn: asyncpg.Connection[Any], thread_id: str) -> dict[str, int]:
    """How many rows each table has of a thread."""
    counts = {
        name: await conn.fetchval(f"SELECT count(*) FROM {name} WHERE thread_id = $1", thread_id) for name in TABLES
    }
    return {name: count for name, count in counts.items() if count}


@pytest.fixture
async def saver(engine: AsyncEngine) -> AsyncPostgresSaver:
    """A saver with two threads that have pages, "gone" and "kept", and two that have none, "plain" and "kept plain"."""
    plain, saver = AsyncPostgresSaver(engine, share_pages=False), AsyncPostgresSaver(engine)
    for count in (200, 250):
        for thread_id in ("gone", "kept"):
            await put(saver, count, thread_id)
        for thread_id in ("plain", "kept plain"):
            await put(plain, count, thread_id)
    return saver


CLEANUPS = {
    "checkpoints": ["checkpoints"],
    "checkpoints and blobs": ["checkpoints", "checkpoint_blobs"],
    "all that the stock saver has": ["checkpoints", "checkpoint_blobs", "checkpoint_writes"],
    "threads too": ["checkpoints", "checkpoint_blobs", "checkpoint_threads"],
    "checkpoints and pages": ["checkpoints", "checkpoint_pages"],
}


@pytest.mark.parametrize("name", CLEANUPS)
async def test_a_sweep_collects_what_is_left_of_threads_without_checkpoints(
    saver: AsyncPostgresSaver, conn: asyncpg.Connection[Any], url: str, name: str
) -> None:
    """Whatever tables were cleaned by hand; a dry run counts the same, and other threads are left alone."""
    for table in CLEANUPS[name]:
        await conn.execute(f"DELETE FROM {table} WHERE thread_id IN ('gone', 'plain')")
    before = [await rows_of(conn, one) for one in ("kept", "kept plain")]

    counted = await saver.asweep(keep_last=100, dry_run=True)
    report = await saver.asweep(keep_last=100)

    assert counted == report
    assert [await rows_of(conn, one) for one in ("gone", "plain")] == [{}, {}]
    assert [await rows_of(conn, one) for one in ("kept", "kept plain")] == before
    assert not any(await saver.asweep(keep_last=100))
    assert await read(url, config_of("kept")) == await read(url, config_of("kept plain")) == WORDS[:250]


async def test_pages_go_whose_values_were_deleted_by_hand(
    saver: AsyncPostgresSaver, conn: asyncpg.Connection[Any]
) -> None:
    """Though the thread's checkpoints are there."""
    await conn.execute("DELETE FROM checkpoint_blobs WHERE thread_id = 'gone'")

    report = await saver.asweep(keep_last=100)

    assert report.pages > 0
    assert await rows_of(conn, "gone") == {"checkpoints": 2}


async def test_prune_collects_of_the_threads_that_it_names(
    saver: AsyncPostgresSaver, conn: asyncpg.Connection[Any], url: str
) -> None:
    """Also a few values of many."""
    await conn.execute("DELETE FROM checkpoints WHERE thread_id IN ('gone', 'plain')")
    await conn.execute(
        "DELETE FROM checkpoint_blobs b USING checkpoints c WHERE b.thread_id = 'kept' AND c.thread_id = 'kept'"
        " AND c.checkpoint_id = (SELECT min(checkpoint_id) FROM checkpoints WHERE thread_id = 'kept')"
        " AND b.version = c.checkpoint #>> '{channel_versions,messages}'"
    )

    await saver.aprune(["gone"])
    assert await rows_of(conn, "gone") == {}
    assert await rows_of(conn, "plain") == {"checkpoint_blobs": 2}
    pages = (await rows_of(conn, "kept"))["checkpoint_pages"]
    await saver.aprune(["kept"])
    assert (await rows_of(conn, "kept"))["checkpoint_pages"] < pages
    assert await read(url, config_of("kept")) == WORDS[:250]


async def test_what_is_being_stored_is_no_leftover(
    engine: AsyncEngine, saver: AsyncPostgresSaver, conn: asyncpg.Connection[Any], url: str
) -> None:
    """A first checkpoint that is about to be committed, one that follows on a cleanup, and writes that came first."""
    await conn.execute("DELETE FROM checkpoints WHERE thread_id = 'gone'")
    async with engine.connect() as host:
        bound = saver.bind(host)
        await put(bound, 300, "new")
        await saver.asweep(keep_last=100)
        await host.commit()
    again = await put(saver, 300, "gone")
    await saver.aput_writes(again, [("messages", "x")], "task")
    await saver.aput_writes(
        {"configurable": {**again["configurable"], "thread_id": "early"}}, [("messages", "x")], "task"
    )
    await saver.asweep(keep_last=100)

    assert await read(url, config_of("new")) == await read(url, again) == WORDS[:300]
    assert await rows_of(conn, "early") == {"checkpoint_writes": 1}


async def test_a_sweep_by_age_leaves_what_was_written_to_of_late(
    saver: AsyncPostgresSaver, conn: asyncpg.Connection[Any]
) -> None:
    """Of a thread without checkpoints only its writes have a date."""
    config = await put(saver, 300, "gone")
    await saver.aput_writes(config, [("messages", "x")], "task")
    await conn.execute("DELETE FROM checkpoints WHERE thread_id IN ('gone', 'plain')")

    await saver.asweep(older_than=timedelta(days=30))

    assert (await rows_of(conn, "gone")).keys() >= {"checkpoint_blobs", "checkpoint_pages", "checkpoint_writes"}
    assert await rows_of(conn, "plain") == {}


@pytest.mark.parametrize("analyzed", [False, True])
async def test_to_look_for_leftovers_is_a_walk_through_indexes(conn: asyncpg.Connection[Any], analyzed: bool) -> None:
    """In a database of 5,000 threads nothing is read as a whole, and a page of the walk is no dearer for the rest."""
    for name, rest in (
        ("checkpoints", "'', '1', NULL, NULL, '{}', '{}'"),
        ("checkpoint_blobs", "'', 'a', '1', 'pages', ''"),
        ("checkpoint_writes", "'', '1', 't', 0, 'a', 'msgpack', ''"),
        ("checkpoint_pages", "'\\x00', ''"),
        ("checkpoint_threads", "0"),
    ):
        await conn.execute(f"INSERT INTO {name} SELECT 'thread ' || i, {rest} FROM generate_series(1, 5000) i")
    if analyzed:
        await conn.execute("ANALYZE")
    statement, driver = statements_of(None).next_leftovers, dialect.dialect()
    sql, binds = statement.bound(driver, {"after": "", "limit": 1_000, "before": "0"})

    plan = json.loads(await conn.fetchval(f"EXPLAIN (FORMAT JSON) {sql}", *binds))

    nodes = [plan[0]["Plan"]]
    for node in nodes:
        nodes += node.get("Plans", ())
    kinds = {node["Node Type"] for node in nodes if node.get("Relation Name") in TABLES}
    assert kinds <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}, kinds
    assert not [node for node in nodes if "Hash" in node["Node Type"]]


@pytest.mark.parametrize("name", ["pg_restore", "psql", "pg_16389_sync_16385_7"])
async def test_nothing_is_collected_while_somebody_restores(
    saver: AsyncPostgresSaver, conn: asyncpg.Connection[Any], url: str, name: str
) -> None:
    """A backup comes table by table, values before the checkpoints that need them."""
    await conn.execute("DELETE FROM checkpoints WHERE thread_id IN ('gone', 'plain')")
    restoring = await asyncpg.connect(url, server_settings={"application_name": name})
    async with restoring.transaction():
        assert not any(await saver.asweep(keep_last=100))
        await saver.aprune(["gone"])
        assert await rows_of(conn, "gone") != {}

    await restoring.close()
    assert any(await saver.asweep(keep_last=100))
    assert await rows_of(conn, "gone") == {}


@pytest.mark.parametrize("tables", [TABLES[:1], TABLES[:3]], ids=["checkpoints", "the stock saver's"])
async def test_one_tenants_sweep_takes_nothing_of_anothers(
    saver: AsyncPostgresSaver, conn: asyncpg.Connection[Any], url: str, tables: tuple[str, ...]
) -> None:
    """Where policies hide checkpoints, but not all of what belongs to them."""
    role = f"tenant_{uuid.uuid4().hex}"
    await conn.execute(f'CREATE ROLE "{role}" LOGIN')
    try:
        await conn.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{role}"')
        for table in tables:
            await conn.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
            await conn.execute(f"CREATE POLICY own ON {table} USING (thread_id = 'gone')")
        tenant = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg", username=role))
        assert not any(await AsyncPostgresSaver(tenant).asweep(keep_last=100))
        await tenant.dispose()
        assert await read(url, config_of("kept")) == await read(url, config_of("kept plain")) == WORDS[:250]
    finally:
        await conn.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')
