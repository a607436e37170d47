"""Tables that are partitioned by thread: made so in place, at head all the same, one partition for each statement."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.conformance import validate
from langgraph.checkpoint.conformance.initializer import RegisteredCheckpointer
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, migrations, partitioning, schema
from checkpoint_store.errors import InvalidOption, MigrationError, NotSetUp
from checkpoint_store.serde import pages

REPOSITORY = Path(__file__).parents[2]
PARTITIONS = 8
TABLES = {table.name for table in schema.tables.all} - {"checkpoint_threads"}
GRAPH: Any = {"configurable": {"thread_id": "thread-3", "checkpoint_ns": ""}}


@pytest.fixture
async def partitioned(engine: AsyncEngine) -> AsyncEngine:
    async with engine.begin() as conn:
        await conn.run_sync(partitioning.partition, partitions=PARTITIONS)
    return engine


def alembic(*arguments: str, url: str) -> str:
    environment = {**os.environ, "CHECKPOINT_STORE_URL": url}
    command = [sys.executable, "-m", "alembic", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True).stdout


async def chat(saver: AsyncPostgresSaver, thread_id: str, turns: int) -> Any:
    """A thread with values inline, plain and paged, and pending writes of both kinds."""
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    for turn in range(turns):
        versions = {"messages": f"{turn}", "files": f"{turn}", "n": f"{turn}"}
        values = {"messages": [f"{thread_id} {turn}"], "files": ["x" * 2000 + str(turn)] * 20, "n": turn}
        checkpoint: Any = {**empty_checkpoint(), "id": f"{turn:06}"}
        config = await saver.aput(
            config, checkpoint | {"channel_values": values, "channel_versions": versions}, {"step": turn}, versions
        )
        await saver.aput_writes(config, [("messages", [turn])], "task")
        await saver.aput_writes(config, [("__error__", "none")], "task")
    return config


async def everything(saver: AsyncPostgresSaver) -> list[Any]:
    return [found async for found in saver.alist(None)]


async def definitions(url: str) -> Any:
    """What the catalogs have of the five tables: columns, how they are stored, keys and indexes; and the options."""
    conn = await asyncpg.connect(url)
    try:
        columns = await conn.fetch(
            "SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull, attstorage,"
            " to_jsonb(a) ->> 'attcompression', pg_get_expr(adbin, adrelid)"
            " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND attnum > 0"
            " LEFT JOIN pg_attrdef ON adrelid = c.oid AND adnum = attnum"
            " WHERE relname = ANY ($1) AND relkind IN ('r', 'p') ORDER BY 1, attnum",
            sorted(TABLES),
        )
        indexes = await conn.fetch(
            "SELECT i.relname, replace(pg_get_indexdef(i.oid), ' ON ONLY ', ' ON ') FROM pg_index"
            " JOIN pg_class i ON i.oid = indexrelid JOIN pg_class t ON t.oid = indrelid"
            " WHERE t.relname = ANY ($1) ORDER BY 1",
            sorted(TABLES),
        )
        options = await conn.fetch(
            "SELECT DISTINCT regexp_replace(relname, '_p\\d+$', ''), reloptions FROM pg_class"
            " WHERE relname ~ '^checkpoint' AND reloptions IS NOT NULL AND relkind = 'r'"
        )
        compressed = await conn.fetch(
            "SELECT DISTINCT regexp_replace(relname, '_p\\d+$', ''), attname, attstorage,"
            " to_jsonb(a) ->> 'attcompression' FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND attnum > 0"
            " WHERE relname ~ '^checkpoint' AND relkind = 'r' AND relname <> 'checkpoint_store_version' ORDER BY 1, 2"
        )
        return [[tuple(row) for row in rows] for rows in (columns, indexes, options, compressed)]
    finally:
        await conn.close()


async def test_what_is_stored_is_there_again(url: str, engine: AsyncEngine) -> None:
    """Rows move along, every column, key, index and storage parameter is what it was, and all partitions are used."""
    saver = AsyncPostgresSaver(engine, share_pages=True)
    await asyncio.gather(*[chat(saver, f"thread-{number}", 2) for number in range(30)])
    before, stored = await definitions(url), await everything(saver)

    async with engine.begin() as conn:
        await conn.run_sync(partitioning.partition, partitions=PARTITIONS)

    assert await definitions(url) == before
    assert await everything(saver) == stored
    async with engine.connect() as conn:
        for table in TABLES:
            used = await conn.execute(text(f"SELECT count(DISTINCT tableoid) FROM {table}"))
            assert used.scalar_one() > PARTITIONS / 2
            kinds = await conn.execute(text(f"SELECT relkind FROM pg_class WHERE oid = '{table}'::regclass"))
            assert kinds.scalar_one() == b"p"


@pytest.mark.parametrize("name", [None, "Ag'ents\""])
async def test_the_sql_for_a_person_does_the_same(empty_url: str, make_database: Any, name: str | None) -> None:
    """Printed and run by hand, in a schema of any name too."""
    by_hand, by_code = empty_url, make_database()
    for each in (by_hand, by_code):
        async with AsyncPostgresSaver.from_conn_string(each, schema=name) as saver:
            await saver.setup()
    with psycopg.connect(by_hand, autocommit=True) as conn:
        conn.execute(partitioning.sql(name, partitions=3))
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": by_code})
    async with engine.connect() as connection:
        await connection.run_sync(partitioning.partition, name, partitions=3)
    await engine.dispose()

    assert await definitions(by_hand) == await definitions(by_code)
    async with AsyncPostgresSaver.from_conn_string(by_hand, schema=name, share_pages=True) as saver:
        await chat(saver, "thread-3", 1)
        assert len(await everything(saver)) == 1


async def test_setup_and_alembic_take_it_for_head(url: str, partitioned: AsyncEngine) -> None:
    """Nothing is left to migrate, autogenerate sees no difference, and migrations go down and up through it.

    A revision that builds indexes online elsewhere finds another way here.
    """
    saver = AsyncPostgresSaver(partitioned, share_pages=True)
    await chat(saver, "thread-3", 2)
    await saver.setup()
    async with partitioned.connect() as conn:
        await conn.run_sync(migrations.check)
    before = await definitions(url)

    assert "No new upgrade operations detected" in alembic("check", url=url)
    async with partitioned.connect() as conn:
        await conn.run_sync(migrations.downgrade, revision="cs02_pages")
        await conn.run_sync(migrations.upgrade)
    assert await definitions(url) == before
    async with partitioned.connect() as conn:
        await conn.run_sync(migrations.downgrade)
        left = await conn.execute(text("SELECT relname FROM pg_class WHERE relname ~ '^checkpoint.*_p\\d+$'"))
        assert left.all() == []


def test_a_hosts_autogenerate_leaves_partitions_alone(url: str, partitioned: AsyncEngine) -> None:
    """The filter for a host's env.py knows them by their names and keys."""
    import sqlalchemy as sa

    host = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
    reflected = sa.MetaData()
    reflected.reflect(host)
    host.dispose()

    assert "checkpoints_p0" in reflected.tables
    left = [name for name, table in reflected.tables.items() if migrations.not_ours(table, name, "table", True, None)]
    assert left == []


async def test_it_is_done_once_and_only_at_head(empty_url: str, partitioned: AsyncEngine) -> None:
    """Otherwise it says why not, and nothing has changed."""
    async with partitioned.connect() as conn:
        with pytest.raises(MigrationError, match=r"failed and was rolled back: .*partitioned already"):
            await conn.run_sync(partitioning.partition)
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": empty_url})
    async with engine.connect() as conn:
        with pytest.raises(NotSetUp):
            await conn.run_sync(partitioning.partition)
        for number in (0, 1, 5000, "8"):
            with pytest.raises(InvalidOption, match="a number from 2 to 1024"):
                await conn.run_sync(partitioning.partition, partitions=number)
    await engine.dispose()


async def test_the_conformance_suite_passes_whole(partitioned: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """LangGraph's own suite, with pages made of everything."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 0)

    async def saver() -> AsyncIterator[AsyncPostgresSaver]:
        yield AsyncPostgresSaver(partitioned, share_pages=True)

    report = await validate(RegisteredCheckpointer("partitioned", saver))

    detected = [result for result in report.results.values() if result.detected]
    assert len(detected) >= 5
    for result in detected:
        assert result.passed, "\n".join(result.failures)
        assert not result.tests_skipped


async def put_plain(saver: AsyncPostgresSaver) -> None:
    checkpoint: Any = {**empty_checkpoint(), "channel_values": {"a": [1]}, "channel_versions": {"a": "9"}}
    await saver.aput(GRAPH, checkpoint, {}, {"a": "9"})


async def put_paged(saver: AsyncPostgresSaver) -> None:
    values = {"files": [str(number) + "x" * 3000 for number in range(60)]}
    checkpoint: Any = {**empty_checkpoint(), "channel_values": values, "channel_versions": {"files": "9"}}
    await saver.aput(GRAPH, checkpoint, {}, {"files": "9"})


async def put_writes(saver: AsyncPostgresSaver) -> None:
    await saver.aput_writes(named(1), [("a", 1)], "task")


async def replace_writes(saver: AsyncPostgresSaver) -> None:
    await saver.aput_writes(named(1), [("__error__", "e")], "task")


async def get_newest(saver: AsyncPostgresSaver) -> None:
    assert await saver.aget_tuple(GRAPH) is not None


async def get_by_id(saver: AsyncPostgresSaver) -> None:
    assert await saver.aget_tuple(named(1)) is not None


async def list_namespace(saver: AsyncPostgresSaver) -> None:
    assert [found async for found in saver.alist(GRAPH, before=named(2), filter={"step": 1})]


async def list_thread(saver: AsyncPostgresSaver) -> None:
    assert [found async for found in saver.alist({"configurable": {"thread_id": "thread-3"}})]


async def delta_history(saver: AsyncPostgresSaver) -> None:
    await saver.aget_delta_channel_history(config=named(2), channels=["messages", "files"])


async def delete_thread(saver: AsyncPostgresSaver) -> None:
    await saver.adelete_thread("thread-3")


HOT = [
    put_plain,
    put_paged,
    put_writes,
    replace_writes,
    get_newest,
    get_by_id,
    list_namespace,
    list_thread,
    delta_history,
]


def named(turn: int) -> Any:
    return {"configurable": {**GRAPH["configurable"], "checkpoint_id": f"{turn:06}"}}


def partitions_of(node: dict[str, Any]) -> set[str]:
    """The partitions that a plan reads or writes, as far as it was executed."""
    found = set()
    name = re.search(r"_p(\d+)$", node.get("Relation Name", ""))
    if name and node.get("Actual Loops"):
        found.add(name[1])
    return found.union(*map(partitions_of, node.get("Plans", [])))


async def counts(conn: AsyncConnection) -> Counter[str]:
    """How often this session has read or written each partition, as far as the server has not reported it yet."""
    counted = await conn.execute(
        text(
            "SELECT relname, coalesce(seq_scan, 0) + coalesce(idx_scan, 0) + n_tup_ins + n_tup_upd + n_tup_del"
            " FROM pg_stat_xact_all_tables WHERE relname ~ '^checkpoint.*_p\\d+$'"
        )
    )
    counts: Counter[str] = Counter()
    for name, count in counted:
        counts[name.rpartition("_p")[2]] += count
    return counts


# Removal is of many threads at once: only a plan made for their ids knows where they are.
@pytest.mark.parametrize(
    ("operation", "mode"),
    [*product(HOT, ["force_custom_plan", "force_generic_plan"]), (delete_thread, "force_custom_plan")],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_every_statement_keeps_to_one_partition(partitioned: AsyncEngine, operation: Any, mode: str) -> None:
    """The server counts one partition of each table for a call, and EXPLAIN ANALYZE of its parts shows no other."""
    saver = AsyncPostgresSaver(partitioned, share_pages=True)
    await asyncio.gather(*[chat(saver, f"thread-{number}", 3) for number in range(1, 5)])
    async with partitioned.connect() as conn:
        await conn.execute(text("ANALYZE"))
        await conn.execute(text(f"SET plan_cache_mode = {mode}"))
        await conn.commit()
        sent: list[tuple[str, Any]] = []
        event.listen(partitioned.sync_engine, "before_cursor_execute", lambda *call: sent.append(call[2:4]))
        before = await counts(conn)
        sent.clear()
        await operation(AsyncPostgresSaver(conn, share_pages=True))
        calls = sent[:]
        (touched,) = await counts(conn) - before
        await conn.rollback()

        found = set()
        for statement, parameters in calls:
            explain = "EXPLAIN (ANALYZE, TIMING off, FORMAT JSON) " + statement
            plan = (await conn.exec_driver_sql(explain, parameters)).scalar_one()
            plan = json.loads(plan) if isinstance(plan, str) else plan
            found |= partitions_of(plan[0]["Plan"])
        await conn.rollback()
    assert found <= {touched}
    assert found or operation in {put_plain, put_writes, replace_writes}, "plans that only insert name no partition"


@pytest.mark.parametrize(
    "guard",
    [
        "ALTER TABLE checkpoints ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON checkpoint_writes USING (true)",
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$;"
        "CREATE TRIGGER audit AFTER INSERT ON checkpoint_blobs FOR EACH ROW EXECUTE FUNCTION audit()",
    ],
    ids=["row-level security", "policy", "trigger"],
)
async def test_policies_and_triggers_are_not_lost_in_silence(engine: AsyncEngine, guard: str) -> None:
    """The tables are new ones, which have none: so tables that have some are refused."""
    async with engine.connect() as conn:
        for statement in guard.split(";CREATE"):
            await conn.exec_driver_sql(statement if statement.startswith(("CREATE", "ALTER")) else f"CREATE{statement}")
        await conn.commit()
        with pytest.raises(MigrationError, match=r"policies, triggers or rules on checkpoint\w* would be lost"):
            await conn.run_sync(partitioning.partition)
