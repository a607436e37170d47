"""EXPLAIN: reading looks rows up by primary key, on tables of 10,000 rows, with generic and with custom plans."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from hashlib import sha224
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store.schema import tables
from checkpoint_store.sql.compiled import Statement
from checkpoint_store.sql.executor import ConnectionExecutor
from checkpoint_store.sql.script import planned_for
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.write_batch import Put, merged, parts_of

SQL = Statements(tables)
NAMED = {"thread_id": "thread-3", "checkpoint_ns": ""}
PAGE = {**NAMED, "batch_size": 20}

# From here on a server with LLVM compiles a plan first, which takes longer than any of these reads.
JIT_ABOVE_COST = 100_000

FILL = """
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
SELECT 'thread-' || i % {threads}, '', to_char(i, 'FM000000'), to_char(i - {threads}, 'FM000000'),
       jsonb_build_object('v', 4, 'id', to_char(i, 'FM000000'), 'channel_values', jsonb_build_object('n', i),
                          'channel_versions', jsonb_build_object('n', i::text, 'messages', i::text)),
       jsonb_build_object('step', i, 'source', 'loop')
FROM generate_series(1, 10000) i;
INSERT INTO checkpoint_blobs
SELECT 'thread-' || i % {threads}, '', 'messages', i::text, 'msgpack', repeat('x', 300)::bytea
FROM generate_series(1, 10000) i;
INSERT INTO checkpoint_blobs
SELECT 'thread-' || i % {threads}, '', 'files', i::text, 'pages', '\\xff'::bytea || sha224(i::text::bytea)
FROM generate_series(1, 10000) i;
INSERT INTO checkpoint_pages
SELECT 'thread-' || i % {threads}, sha224(i::text::bytea), repeat('x', 300)::bytea
FROM generate_series(1, 10000) i;
INSERT INTO checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, type, blob)
SELECT 'thread-' || i % {threads}, to_char(i, 'FM000000'), 'task', 0, 'messages', 'msgpack', repeat('x', 300)::bytea
FROM generate_series(1, 10000) i;
"""


@pytest.fixture(params=[1, 50, 2000])
async def filled(url: str, request: pytest.FixtureRequest) -> AsyncIterator[AsyncEngine]:
    """A database with 10,000 checkpoints, blobs and writes, in few long threads or many short ones."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}, isolation_level="AUTOCOMMIT")
    async with engine.connect() as conn:
        for statement in FILL.format(threads=request.param).split(";")[:-1]:
            await conn.execute(text(statement))
        await conn.execute(text("ANALYZE"))
    yield engine
    await engine.dispose()


def explain(
    conn: Connection, statement: Statement, binds: dict[str, Any], mode: str, options: str = ""
) -> list[dict[str, Any]]:
    """The nodes of a prepared statement's plan, as the server makes it for our driver."""
    sql, values = statement.bound(dialect.dialect(), binds)
    conn.exec_driver_sql(f"SET plan_cache_mode = {mode}")
    conn.exec_driver_sql(f"PREPARE under_test AS {sql}")
    arguments = f"({', '.join(map(_literal, values))})" if values else ""
    plan = conn.exec_driver_sql(f"EXPLAIN ({options}FORMAT JSON) EXECUTE under_test{arguments}").scalar_one()
    conn.exec_driver_sql("DEALLOCATE under_test")
    nodes: list[dict[str, Any]] = []
    _collect((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"], nodes)
    return nodes


async def version_of(engine: AsyncEngine) -> int:
    async with engine.connect() as conn:
        return int((await conn.execute(text("SHOW server_version_num"))).scalar_one()) // 10_000


def _literal(value: Any) -> str:
    if isinstance(value, list):
        if not value:
            return "'{}'"
        kind = {int: "int", bytes: "bytea"}.get(type(value[0]), "text")
        return "ARRAY[" + ", ".join(map(_literal, value)) + f"]::{kind}[]"
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'"
    return str(value) if isinstance(value, int) else "NULL" if value is None else f"'{value}'"


def _collect(node: dict[str, Any], into: list[dict[str, Any]]) -> None:
    into.append(node)
    for child in node.get("Plans", []):
        _collect(child, into)


STATEMENTS: dict[str, tuple[Statement, dict[str, Any]]] = {
    "get newest": (SQL.get_newest.joined, NAMED),
    "get by id": (SQL.get_checkpoint.joined, {**NAMED, "checkpoint_id": "005000"}),
    "first page": (SQL.list_checkpoints(frozenset(NAMED)).joined, PAGE),
    "next page": (
        SQL.list_checkpoints(frozenset({*NAMED, "after_row"})).joined,
        {**PAGE, "last_checkpoint_id": "005000"},
    ),
    "page before": (SQL.list_checkpoints(frozenset({*NAMED, "before"})).joined, {**PAGE, "before": "005000"}),
    "page by id": (
        SQL.list_checkpoints(frozenset({*NAMED, "checkpoint_id"})).joined,
        {**PAGE, "checkpoint_id": "005000"},
    ),
    "page of a thread": (
        SQL.list_checkpoints(frozenset({"thread_id"})).joined,
        {"thread_id": "thread-3", "batch_size": 20},
    ),
    "delta history": (SQL.ancestors, {**NAMED, "checkpoint_id": "005000", "channels": ["messages"]}),
}
LAST = {"last_checkpoint_id": "005000", "last_thread_id": "thread-0", "last_checkpoint_ns": ""}
OF_ALL: dict[str, tuple[frozenset[str], dict[str, Any]]] = {
    "first": (frozenset(), {}),
    "before": (frozenset({"before"}), {"before": "005000"}),
    "next": (frozenset({"after_row"}), LAST),
    "among the newest": (frozenset({"filter", "among_newest"}), {"filter": '{"source": "loop"}'}),
    "next among the newest": (
        frozenset({"filter", "among_newest", "before", "after_row"}),
        {"filter": '{"source": "loop"}', "before": "006000", **LAST},
    ),
}
NEW = {
    **NAMED,
    "checkpoint_id": "000002",
    "parent_checkpoint_id": None,
    "checkpoint": "{}",
    "metadata": "{}",
    "kept": None,
    "channels": ["messages"],
    "versions": ["new"],
    "types": ["msgpack"],
    "blobs": [b"value"],
}
PLAIN = {
    "get newest, plain": (SQL.get_newest.plain, NAMED),
    "first page, plain": (SQL.list_checkpoints(frozenset(NAMED)).plain, PAGE),
}


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("name", [*STATEMENTS, *PLAIN])
async def test_reading_never_scans_a_table(filled: AsyncEngine, name: str, mode: str) -> None:
    """Every table is reached through its primary key, whatever the plan cache does, and no plan is worth compiling."""
    statement, binds = {**STATEMENTS, **PLAIN}[name]
    async with filled.connect() as conn:
        nodes = await conn.run_sync(explain, statement, binds, mode)

    assert nodes[0]["Total Cost"] < JIT_ABOVE_COST
    # Before version 14 the server shows an EXISTS both ways, by index and by hash, and decides when it comes to it.
    unused = {"Seq Scan"} if await version_of(filled) < 14 else set()
    scans = [node for node in nodes if "Relation Name" in node]
    scans = [node for node in scans if "Subplan Name" not in node or node["Node Type"] not in unused]
    found = {node["Relation Name"] for node in scans}
    assert found >= {"checkpoints", "checkpoint_blobs", "checkpoint_writes"}
    assert ("checkpoint_pages" in found) == (name in STATEMENTS)
    for node in scans:
        assert node["Node Type"] in {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}, node
        assert node.get("Index Name", "").endswith("_pkey") or node["Node Type"] == "Bitmap Heap Scan"


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("filled", [1, 50], indirect=True)
async def test_a_page_sorts_nothing_within_a_namespace(filled: AsyncEngine, mode: str) -> None:
    """The index has the order already: a page of a long thread costs its own rows and no more."""
    async with filled.connect() as conn:
        nodes = await conn.run_sync(explain, *STATEMENTS["next page"], mode)

    pages = [node for node in nodes if node.get("Relation Name") == "checkpoints"]
    assert [node["Node Type"] for node in pages] == ["Index Scan"]
    assert pages[0]["Scan Direction"] == "Backward"


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("threads", [1, 2000])
@pytest.mark.parametrize("subgraphs", ["no", "some", "only"])
async def test_a_list_of_all_threads_reads_its_own_rows_by_two_indexes(
    url: str, threads: int, analyzed: bool, mode: str, subgraphs: str
) -> None:
    """Root graphs and subgraphs are merged as they come, newest first; nothing else of the 10,000 is looked at."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}, isolation_level="AUTOCOMMIT")
    async with engine.connect() as conn:
        for table in tables.all:
            await conn.execute(text(f"ALTER TABLE {table.name} SET (autovacuum_enabled = off)"))
        for statement in FILL.format(threads=threads).split(";")[:-1]:
            await conn.execute(text(statement))
        share = {"no": "false", "some": "checkpoint_id::int % 10 = 7", "only": "true"}[subgraphs]
        await conn.execute(text(f"UPDATE checkpoints SET checkpoint_ns = 'node:' || checkpoint_id WHERE {share}"))
        await conn.execute(text("VACUUM" + " ANALYZE" * analyzed))
        for name, (conditions, binds) in OF_ALL.items():
            statement = SQL.list_checkpoints(conditions)
            ids = [row[2] for row in await conn.run_sync(fetch, statement.plain, {**binds, "batch_size": 10})]
            assert ids == [f"{number:06}" for number in range(int(ids[0]), int(ids[0]) - 10, -1)], name
            assert ids[0] == ("010000" if not binds.keys() - {"filter"} else "004999"), name
            nodes = await conn.run_sync(explain, statement.plain, {**binds, "batch_size": 10}, mode, "ANALYZE, ")
            scans = [node for node in nodes if node.get("Relation Name") == "checkpoints"]
            indexes = {"checkpoint_store_latest_idx", "checkpoint_store_subgraphs_idx"}
            assert {node.get("Index Name") for node in scans} == indexes, name
            assert sum(map(rows_of, scans)) < 150, name
            assert nodes[0]["Total Cost"] < JIT_ABOVE_COST, name
    await engine.dispose()


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_a_run_of_all_threads_is_listed_by_its_index(filled: AsyncEngine, mode: str) -> None:
    """A filter that names a run looks at that run's checkpoints alone."""
    run = "UPDATE checkpoints SET metadata = metadata || jsonb_build_object('run_id', 'run-' || checkpoint_id)"
    binds = {"filter": '{"run_id": "run-007777"}', "run_id": "run-007777", "batch_size": 10}
    async with filled.connect() as conn:
        await conn.execute(text(run))
        await conn.execute(text("VACUUM ANALYZE checkpoints"))
        statement = SQL.list_checkpoints(frozenset({"filter", "run_id"})).plain
        assert [row[2] for row in await conn.run_sync(fetch, statement, binds)] == ["007777"]
        nodes = await conn.run_sync(explain, statement, binds, mode)

    indexes = {node["Index Name"] for node in nodes if "Index Name" in node and node.get("Relation Name") != ""}
    assert "checkpoint_store_run_idx" in indexes
    assert not [node for node in nodes if node["Node Type"] == "Seq Scan"]


# starts_with() is sought in an index since PostgreSQL 15; before 18 with the collations C and POSIX alone, not C.UTF-8.
IS_SOUGHT = """
    SELECT version >= 150000 AND datcollate IN ('C', 'POSIX') OR version >= 180000 AND 'Z' < 'a' AND '-b' < 'a'
    FROM pg_database, CAST(current_setting('server_version_num') AS int) AS version
    WHERE datname = current_database()
"""


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("filled", [1], indirect=True)
async def test_the_beginning_of_an_id_is_sought_in_the_index(filled: AsyncEngine, mode: str) -> None:
    """Where the server can: of 10,000 checkpoints only those that begin so are read."""
    binds = {"thread_id": "thread-0", "checkpoint_ns": "", "prefix": "00123"}
    statement = planned_for(SQL.ids_with_prefix, binds)
    async with filled.connect() as conn:
        is_sought = (await conn.execute(text(IS_SOUGHT))).scalar_one()
        assert [row[0] for row in await conn.run_sync(fetch, statement, {})] == ["001239", "001238"]
        nodes = await conn.run_sync(explain, statement, {}, mode, "ANALYZE, ")

    read = sum(rows_of(node) for node in nodes if "Relation Name" in node)
    assert read <= 2 or not is_sought


TO_DELETE = {
    "namespace_thread_ids": ["thread-3"],
    "namespace_checkpoint_nss": [""],
    "namespace_firsts": [1],
    "namespace_lasts": [2],
    "checkpoint_ids": ["000003", "002003"],
}
EXPIRING = {"filters": ['{"step": 1}', "{}"], "idles": ["1", "2"], "ages": ["1", "2"], "quiets": ["1", "2"]}
PLACES = {"after_channel": "", "after_version": "", "upto_channel": "messages", "upto_version": "9"}
REMOVING: dict[str, tuple[Statement, dict[str, Any]]] = {
    "threads of runs": (SQL.threads_of_runs, {"run_ids": ["run-7"]}),
    "candidates": (SQL.candidates, {"thread_ids": ["thread-3"], "run_ids": ["run-7"]}),
    "expired threads": (SQL.expired_threads, {"thread_ids": ["thread-3", "thread-4"], **EXPIRING}),
    "delete checkpoints": (SQL.delete_checkpoints, TO_DELETE),
    "parents": (SQL.parents, TO_DELETE),
    "children": (SQL.children, TO_DELETE),
    "lock blobs": (SQL.lock_blobs, TO_DELETE),
    "delete blobs": (SQL.delete_blobs, TO_DELETE),
    "lock some blobs": (SQL.lock_blob_range, {**NAMED, **PLACES}),
    "delete some blobs": (SQL.delete_blob_range, {**NAMED, **PLACES}),
    "next blob": (SQL.next_blob, {**NAMED, "after_channel": "", "after_version": "", "limit": 10}),
}


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("filled", [2000], indirect=True)
async def test_removing_a_run_or_from_a_short_thread_never_scans_a_table(filled: AsyncEngine, mode: str) -> None:
    """A run's checkpoints are found by its index, and what goes by primary keys, however many others there are."""
    run = "UPDATE checkpoints SET metadata = metadata || jsonb_build_object('run_id', 'run-' || checkpoint_id)"
    async with filled.connect() as conn:
        await conn.execute(text(run))
        await conn.execute(text("VACUUM ANALYZE checkpoints"))
        plans = {name: await conn.run_sync(explain, *of, mode) for name, of in REMOVING.items()}

    for name, nodes in plans.items():
        assert nodes[0]["Total Cost"] < JIT_ABOVE_COST, name
        scans = [node for node in nodes if "Scan" in node["Node Type"] and "Relation Name" in node]
        assert scans, name
        assert not [node for node in scans if node["Node Type"] == "Seq Scan"], name
    indexes = {node["Index Name"] for node in plans["threads of runs"] if "Index Name" in node}
    assert indexes == {"checkpoint_store_run_idx"}


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("filled", [1], indirect=True)
@pytest.mark.parametrize("rule", [{"idles": ["000500"]}, {"filters": ['{"step": 0}']}])
async def test_a_thread_in_use_is_known_by_one_row_not_to_have_expired(
    filled: AsyncEngine, mode: str, rule: dict[str, list[str]]
) -> None:
    """So is one that no rule matches; the other 9,999 checkpoints are not read."""
    no_rule: dict[str, list[str | None]] = {"filters": [None], "idles": ["1"], "ages": [None], "quiets": ["0"]}
    binds = {"thread_ids": ["thread-0"], **no_rule, **rule}
    async with filled.connect() as conn:
        nodes = await conn.run_sync(explain, SQL.expired_threads, binds, mode, "ANALYZE, ")

    assert sum(rows_of(node) for node in nodes if "Relation Name" in node) == 1


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("analyzed", [False, True])
async def test_the_pages_that_a_put_needs_are_looked_up_by_key(url: str, analyzed: bool, mode: str) -> None:
    """Those that it does not send, a few of the 10,000 of its thread; not even a plan for 5,000 would read all."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}, isolation_level="AUTOCOMMIT")
    async with engine.connect() as conn:
        for table in tables.all:
            await conn.execute(text(f"ALTER TABLE {table.name} SET (autovacuum_enabled = off)"))
        for statement in FILL.format(threads=1).split(";")[:-1]:
            await conn.execute(text(statement))
        if analyzed:
            await conn.execute(text("ANALYZE"))
        for count in (60, 5_000):
            digests = [sha224(str(number).encode()).digest() for number in range(1, count + 1)]
            put = Put(
                {
                    "thread_id": "thread-0",
                    "checkpoint_ns": "",
                    "checkpoint_id": "1",
                    "parent_checkpoint_id": None,
                    "checkpoint": "{}",
                    "metadata": "{}",
                    "kept": None,
                    "channels": ["messages"],
                    "versions": ["1"],
                    "types": ["pages"],
                    "blobs": [b""],
                },
                pages=dict.fromkeys([*digests, b"new"], b"page"),
            )
            binds = merged([put], {"thread-0": set(digests)})
            assert len(binds["needed_digests"]) == count
            nodes = await conn.run_sync(explain, SQL.store(parts_of(binds)), binds, mode)
            scans = [
                node
                for node in nodes
                if node.get("Relation Name") == "checkpoint_pages" and "Scan" in node["Node Type"]
            ]
            assert {node["Node Type"] for node in scans} <= {"Index Only Scan", "Index Scan", "Bitmap Heap Scan"}
            [condition] = [node["Index Cond"] for node in nodes if node.get("Index Name") == "checkpoint_pages_pkey"]
            assert "digest = ANY" in condition
            assert not [node for node in scans if "Filter" in node]
            assert nodes[0]["Total Cost"] < JIT_ABOVE_COST
    await engine.dispose()


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_walk_costs_its_distance_and_not_the_thread(url: str, analyzed: bool, mode: str) -> None:
    """Fifty ancestors are looked up by key, each with its writes and values, in a thread of 500 or of 10,000."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}, isolation_level="AUTOCOMMIT")
    counts: list[tuple[int, int]] = []
    async with engine.connect() as conn:
        for table in tables.all:
            await conn.execute(text(f"ALTER TABLE {table.name} SET (autovacuum_enabled = off)"))
        for length in (500, 10_000):
            for table in tables.all:
                await conn.execute(text(f"TRUNCATE {table.name}"))
            fill = FILL.format(threads=1).replace("10000", str(length))
            fill = fill.replace("'messages', i::text)", "'messages', i::text, 'files', i::text)")
            for statement in fill.split(";")[:-1]:
                await conn.execute(text(statement))
            # Of both channels there is a snapshot before, one 40 steps away and one 50, and there are others behind.
            for channel, distance in (("messages", 40), ("files", 50)):
                between = f"version::int > {length // 2 - distance} AND version::int <= {length // 2}"
                await conn.execute(text(f"DELETE FROM checkpoint_blobs WHERE channel = '{channel}' AND {between}"))
            await conn.execute(text("VACUUM" + " ANALYZE" * analyzed))
            named = {"thread_id": "thread-0", "checkpoint_ns": "", "checkpoint_id": f"{length // 2 + 1:06}"}
            binds = {**named, "channels": ["messages", "files"]}
            assert len(await conn.run_sync(fetch, SQL.ancestors, binds)) == 51
            nodes = await conn.run_sync(explain, SQL.ancestors, binds, mode, "ANALYZE, BUFFERS, ")
            scans = [node for node in nodes if "Relation Name" in node]
            assert {node["Node Type"] for node in scans} <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}
            assert nodes[0]["Total Cost"] < JIT_ABOVE_COST
            counts.append((sum(map(rows_of, scans)), nodes[0]["Shared Hit Blocks"] + nodes[0]["Shared Read Blocks"]))
    await engine.dispose()

    [(few_rows, few_blocks), (many_rows, many_blocks)] = counts
    assert few_rows == many_rows < 500
    # An index of 20 times as many rows may be a level higher.
    assert many_blocks < few_blocks * 1.6 < 1_600


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("analyzed", [False, True])
async def test_what_is_not_stored_is_found_by_key(url: str, analyzed: bool, mode: str) -> None:
    """A removal that asks of twenty checkpoints what they have no value for reads no more in a thread of 10,000."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}, isolation_level="AUTOCOMMIT")
    node = {"thread_ids": ["thread-0"] * 20, "checkpoint_nss": [""] * 20}
    binds = {"node_checkpoint_ids": [f"{number:06}" for number in range(5_000, 5_020)]}
    async with engine.connect() as conn:
        for table in tables.all:
            await conn.execute(text(f"ALTER TABLE {table.name} SET (autovacuum_enabled = off)"))
        for statement in FILL.format(threads=1).split(";")[:-1]:
            await conn.execute(text(statement))
        await conn.execute(text("DELETE FROM checkpoint_blobs WHERE channel = 'messages' AND version = '5007'"))
        await conn.execute(text("VACUUM" + " ANALYZE" * analyzed))
        binds |= {f"node_{name}": values for name, values in node.items()}
        bare = {row[2]: row[4] for row in await conn.run_sync(fetch, SQL.channels_without_value, binds)}
        nodes = await conn.run_sync(explain, SQL.channels_without_value, binds, mode, "ANALYZE, BUFFERS, ")
    await engine.dispose()

    assert len(bare) == 20
    assert {name: channels for name, channels in bare.items() if channels} == {"005007": ["messages"]}
    scans = [node for node in nodes if "Relation Name" in node]
    assert sum(map(rows_of, scans)) <= 100
    assert nodes[0]["Shared Hit Blocks"] + nodes[0]["Shared Read Blocks"] < 500


def fetch(conn: Connection, statement: Statement, binds: dict[str, Any]) -> Any:
    return ConnectionExecutor(conn).fetch(statement, binds)


def rows_of(scan: dict[str, Any]) -> int:
    """How many rows a scan has read, in all its loops: those that it returned, and those that it left out."""
    read = [scan["Actual Rows"], *[scan.get(f"Rows Removed by {what}", 0) for what in ("Filter", "Index Recheck")]]
    return round(sum(read) * scan["Actual Loops"])


@pytest.mark.slow
@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_call_reads_as_much_among_a_million_checkpoints_as_among_a_thousand(url: str, analyzed: bool) -> None:
    """Get, put, and lists of a thread and of all, in blocks; the server's choice of plans makes no difference."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}, isolation_level="AUTOCOMMIT")
    blocks: dict[int, dict[str, int]] = {}
    async with engine.connect() as conn:
        for table in tables.all:
            await conn.execute(text(f"ALTER TABLE {table.name} SET (autovacuum_enabled = off)"))
        for length in (1_000, 1_000_000):
            for table in tables.all:
                await conn.execute(text(f"TRUNCATE {table.name}"))
            fill = FILL.replace("10000", str(length)).replace("FM000000", "FM00000000")
            for statement in fill.format(threads=length // 20).split(";")[:-1]:
                await conn.execute(text(statement))
            is_nested = "checkpoint_id::int % 10 = 7"
            await conn.execute(
                text(f"UPDATE checkpoints SET checkpoint_ns = 'node:' || checkpoint_id WHERE {is_nested}")
            )
            await conn.execute(text("VACUUM" + " ANALYZE" * analyzed))
            last = {"last_checkpoint_id": f"{length // 2:08}", "last_thread_id": "thread-0", "last_checkpoint_ns": ""}
            called = {
                "get newest": (SQL.get_newest.plain, NAMED),
                "get by id": (SQL.get_checkpoint.plain, {**NAMED, "checkpoint_id": f"{length // 20 + 3:08}"}),
                "list of a thread": STATEMENTS["page of a thread"],
                "list of all": (SQL.list_checkpoints(frozenset()).plain, {"batch_size": 10}),
                "next of all": (SQL.list_checkpoints(frozenset({"after_row"})).plain, {**last, "batch_size": 10}),
                "put": (SQL.put_checkpoint, NEW),
            }
            blocks[length] = {}
            for mode in ("force_custom_plan", "force_generic_plan"):
                for name, of in called.items():
                    await conn.run_sync(explain, *of, mode, "ANALYZE, ")
                    nodes = await conn.run_sync(explain, *of, mode, "ANALYZE, BUFFERS, ")
                    blocks[length][f"{name}, {mode}"] = nodes[0]["Shared Hit Blocks"] + nodes[0]["Shared Read Blocks"]
    await engine.dispose()

    # An index of a thousand times as many rows is a level or two higher.
    assert {name for name, many in blocks[1_000_000].items() if many > 2 * blocks[1_000][name] + 10} == set()
