"""Lists, histories and sizes of distributed tables are those of a single server; shards read their own first rows."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint
from sqlalchemy.dialects.postgresql import psycopg as dialect
from typer.testing import CliRunner

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.cli.commands import app
from checkpoint_store.sql.compiled import Read, Statement
from checkpoint_store.sql.distribution import DistributedTables
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import checkpoint_list, read, thread_list, thread_stats
from checkpoint_store.storage.thread_list import ThreadSummary
from tests.citus.cluster import SHARDS, TABLES, Pair, pair_of, run

SQL = Statements(DistributedTables())


@pytest.fixture(scope="module")
def pair(cluster_url: str) -> Iterator[Pair]:
    """Two databases with the same rows."""
    with pair_of(cluster_url) as both:
        with PostgresSaver.from_conn_string(both.single, share_pages=True) as saver:
            store_threads(saver)
        with psycopg.connect(both.single) as source, source.cursor() as cursor:
            cursor.executemany(INSERT, crowd())
        both.copy_rows()
        for one in both:
            run(one, "ANALYZE")
        yield both


def store_threads(saver: PostgresSaver) -> None:
    """Store threads as LangGraph does: blobs, pages, subgraphs, forks, pending writes, interrupts."""
    for number in range(6):
        lines = [f"{line} " + "x" * 100 for line in range(400)]
        for step in range(6):
            for namespace in ("", "node:a|node:b") if number % 2 else ("",):
                name = f"{step:04}-{number % 3}"  # which other threads have too
                version = f"{step:08}"
                values = {"messages": [*lines, step], "bytes": b"x" * step, "inline": step}
                checkpoint: Any = {**empty_checkpoint(), "id": name, "channel_values": values}
                checkpoint["channel_versions"] = dict.fromkeys(values, version)
                parent = {"checkpoint_id": f"{step - 1:04}-{number % 3}"} if step else {}
                config: Any = {"configurable": {"thread_id": f"run/{number}", "checkpoint_ns": namespace, **parent}}
                metadata: Any = {"source": "loop", "step": step, "user": "abc"[number % 3], "run_id": f"run-{step}"}
                stored = saver.put(config, checkpoint, metadata, checkpoint["channel_versions"])
                saver.put_writes(stored, [("messages", [*lines, "written"]), ("inline", step)], "task")
                saver.put_writes(stored, [("__interrupt__", "?")], f"task {step}")


INSERT = """
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)
VALUES (%s, %s, %s, jsonb_build_object('v', 4, 'id', %s::text, 'channel_versions', '{}'::jsonb),
        jsonb_build_object('step', %s::int, 'user', %s::text, 'run_id', %s::text))
"""


def crowd() -> list[tuple[Any, ...]]:
    """Rows of threads of all sorts: long, short, with subgraphs, with nothing else, with ids that others have too."""
    chance = random.Random(16)
    names = [f"{chance.choice(['user/', 'job/', '', 'Ä', '🙂'])}{number}" for number in range(80)]
    rows = {}
    for number in range(1200):
        name = "endless" if chance.random() < 0.2 else chance.choice(names)
        is_rootless = name in names[:20]
        namespace = chance.choice([f"node:{number % 3}", "node:1|inner:2"] if is_rootless else ["", "", "", "node:1"])
        checkpoint_id = f"{(number - chance.choice([0, 0, 1, 2])) // 3:04}-{chance.choice('0a')}"
        key = (name, namespace, checkpoint_id)
        rows[key] = (*key, checkpoint_id, number, chance.choice("abc"), f"run-{number // 30}")
    return [*rows.values()]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every statement returns a few rows only, so that a list takes many."""
    monkeypatch.setattr(thread_list, "BATCH_THREADS", 7)
    monkeypatch.setattr(thread_list, "_FEWEST_STEPS", 2)
    monkeypatch.setattr(thread_list, "_STEPS_PER_THREAD", 1)
    monkeypatch.setattr(thread_list, "MAX_STEPS", 40)
    monkeypatch.setattr(thread_list, "_MOST_PASSED", 2)
    monkeypatch.setattr(checkpoint_list, "FIRST_ROWS", 5)
    monkeypatch.setattr(checkpoint_list, "BATCH_BYTES", 10_000)


BEFORE: Any = {"configurable": {"checkpoint_id": "0200"}}
THREAD_LISTS: list[dict[str, Any]] = [
    {"order": order, **prefix, **metadata, **count}
    for order, prefix, metadata, count in product(
        ("newest", "thread_id"),
        ({}, {"prefix": "job/"}, {"prefix": "nothing"}),
        ({}, {"filter": {"user": "b"}}, {"filter": {"user": "nobody"}}),
        ({}, {"count": True}),
    )
]
LISTS: list[dict[str, Any]] = [
    {"filter": metadata, "before": before, "limit": limit}
    for metadata, before, limit in product(
        (None, {"user": "a"}, {"step": 3}, {"run_id": "run-3"}, {"run_id": "run-3", "user": "b"}, {"user": "nobody"}),
        (None, BEFORE),
        (1, 10, None),
    )
]
CONFIGS: list[Any] = [
    None,
    *[{"configurable": {"thread_id": name}} for name in ("run/1", "endless", "nobody")],
    {"configurable": {"thread_id": "run/1", "checkpoint_ns": "node:a|node:b"}},
    {"configurable": {"thread_id": "run/1", "checkpoint_ns": "", "checkpoint_id": "0003-1"}},
]


def by_pages(saver: PostgresSaver, size: int, **options: Any) -> list[ThreadSummary]:
    """A list of threads page by page, each from the cursor of the one before."""
    found: list[ThreadSummary] = []
    while True:
        page = list(saver.list_threads(limit=size, cursor=found[-1].cursor if found else None, **options))
        found += page
        if len(page) < size:
            return found


@pytest.mark.usefixtures("impatient")
def test_threads_are_listed_as_on_a_single_server(pair: Pair) -> None:
    """The same threads in the same order, with the same cursors and metadata, whole and in pages of any size."""
    with PostgresSaver.from_conn_string(pair.single) as one, PostgresSaver.from_conn_string(pair.distributed) as other:
        assert len(list(one.list_threads())) > 80
        for options in THREAD_LISTS:
            expected = list(one.list_threads(**options))
            assert list(other.list_threads(**options)) == expected, options
            for size in (1, 5, 23):
                assert by_pages(other, size, **options) == expected, (options, size)


@pytest.mark.usefixtures("impatient")
async def test_async_lists_of_threads_are_the_same(pair: Pair) -> None:
    """In both orders, counted."""
    async with (
        AsyncPostgresSaver.from_conn_string(pair.single) as one,
        AsyncPostgresSaver.from_conn_string(pair.distributed) as other,
    ):
        for options in THREAD_LISTS:
            expected = [summary async for summary in one.alist_threads(**options)]
            assert [summary async for summary in other.alist_threads(**options)] == expected, options


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_checkpoints_are_listed_as_on_a_single_server(pair: Pair, config: Any) -> None:
    """Of all threads, of one and of a namespace, filtered by what many, few and none have, with values and writes."""
    with PostgresSaver.from_conn_string(pair.single) as one, PostgresSaver.from_conn_string(pair.distributed) as other:
        for options in LISTS:
            expected = list(one.list(config, **options))
            assert list(other.list(config, **options)) == expected, options


async def test_async_lists_of_checkpoints_are_the_same(pair: Pair) -> None:
    """Of all threads, in batches as they are."""
    async with (
        AsyncPostgresSaver.from_conn_string(pair.single) as one,
        AsyncPostgresSaver.from_conn_string(pair.distributed) as other,
    ):
        for options in LISTS:
            expected = [found async for found in one.alist(None, **options)]
            assert [found async for found in other.alist(None, **options)] == expected, options


def test_reads_of_a_thread_are_those_of_a_single_server(pair: Pair) -> None:
    """Checkpoints by key and the newest, delta channels, histories, inventories, ids by their beginning, sizes."""
    with PostgresSaver.from_conn_string(pair.single) as one, PostgresSaver.from_conn_string(pair.distributed) as other:
        for name, namespace in [("run/1", ""), ("run/1", "node:a|node:b"), ("endless", ""), ("nobody", "")]:
            sights = [sight(saver, name, namespace) for saver in (one, other)]
            assert sights[0] == sights[1]


def sight(saver: PostgresSaver, name: str, namespace: str) -> list[Any]:
    """What all calls that read one thread return."""
    run = saver._backend.run_blocking
    thread: Any = {"configurable": {"thread_id": name, "checkpoint_ns": namespace}}
    newest = saver.get_tuple(thread)
    found: list[Any] = [newest, saver.get_thread_stats(name)]
    found += [sorted(run(read.take_inventory, name), key=str), run(read.history, name, 7), run(read.history, name, 999)]
    if newest is not None:
        key = read.Key(name, namespace, newest.config["configurable"]["checkpoint_id"])
        found.append(saver.get_tuple(newest.config))
        found.append(saver.get_delta_channel_history(config=newest.config, channels=["messages", "bytes", "inline"]))
        for beginning in (key.checkpoint_id, str(key.checkpoint_id)[:-1]):
            found.append(run(read.find_checkpoint, key._replace(checkpoint_id=beginning)))
        oldest = key._replace(checkpoint_id="0000-0")
        found += [run(read.get_settled, saver._backend.page_cache, each) is None for each in (key, oldest)]
    return [
        tuple(each) if isinstance(each, Sequence) and not isinstance(each, CheckpointTuple) else each for each in found
    ]


def test_sizes_are_sums_over_the_shards(pair: Pair) -> None:
    """Threads, the largest first, have the same bytes; tables the same rows, and the bytes of their shards."""
    with PostgresSaver.from_conn_string(pair.single) as one, PostgresSaver.from_conn_string(pair.distributed) as other:
        largest = [saver._backend.run_blocking(thread_stats.largest_threads, 30) for saver in (one, other)]
        sizes = [saver._backend.run_blocking(thread_stats.table_sizes) for saver in (one, other)]
    assert [*map(tuple, largest[0])] == [*map(tuple, largest[1])]
    rows = [{name: count for name, count, _ in size} for size in sizes]
    assert rows[0] == rows[1]
    assert rows[1]["checkpoints"] > 1000
    with psycopg.connect(pair.distributed) as conn:
        known = conn.execute("SELECT table_name::text, sum(shard_size) FROM citus_shards GROUP BY 1").fetchall()
    shards = {name: size for name, size in known if name in TABLES}
    assert {name: size for name, _, size in sizes[1]} == shards


def test_a_checkpoint_that_is_deleted_meanwhile_does_not_end_a_list(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list goes on after the keys of a batch, of which some rows are gone."""
    with PostgresSaver.from_conn_string(pair.distributed) as saver:
        expected = [key_of(found) for found in saver.list(None)]
        fetch = checkpoint_list.read_checkpoints
        gone = set(sorted({name for name, *_ in expected})[::2])

        def less(db: Any, statement: Any, page_cache: Any, binds: Any) -> Any:
            return [] if binds["thread_id"] in gone else fetch(db, statement, page_cache, binds)

        monkeypatch.setattr(checkpoint_list, "read_checkpoints", less)
        left = [key for key in expected if key[0] not in gone]
        assert left
        assert [key_of(found) for found in saver.list(None)] == left


def key_of(found: CheckpointTuple) -> tuple[str, str, str]:
    names = found.config["configurable"]
    return names["thread_id"], names["checkpoint_ns"], names["checkpoint_id"]


FILL = """
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)
SELECT 'thread-' || i % {threads}, CASE WHEN i % 7 = 0 THEN 'node:' || i % 3 ELSE '' END, to_char(i, 'FM000000'),
       jsonb_build_object('v', 4, 'id', to_char(i, 'FM000000')), jsonb_build_object('step', i, 'user', i % 5)
FROM generate_series(1, 40000) i
"""

BINDS: dict[str, Any] = {
    "thread_id": "thread-1",
    "checkpoint_ns": "",
    "checkpoint_id": "000001",
    "checkpoint_nss": ["", ""],
    "channels": ["messages"],
    "limit": 10,
    "batch_size": 10,
    "wanted": 10,
    "filter": '{"user": 3}',
    "prefix": "thread-1",
    "before": "030000",
    "last_checkpoint_id": "030000",
    "last_thread_id": "thread-5",
    "last_checkpoint_ns": "",
    "until_checkpoint_id": "020000",
    "until_thread_id": "thread-5",
    "skipped": ["thread-7"],
    "steps": 320,
    "thread_ids": ["thread-1", "thread-2"],
    "checkpoint_ids": ["000001", "000002"],
}


@pytest.mark.parametrize("threads", [40, 1000])
def test_no_list_reads_more_of_a_shard_than_its_beginning(citus_url: str, threads: int) -> None:
    """LIMIT is part of each shard's task, which ends an index scan: among many checkpoints 10 rows cost no more."""
    options = [frozenset(each) for each in ((), ("filter",), ("after_row",), ("before", "filter", "after_row"))]
    walks = [frozenset(each) for each in ((), ("after",), ("filter",), ("after", "prefix", "filter"))]
    statements = {
        **{f"list of {sorted(each)}": SQL.newest_keys(each) for each in options},
        **{f"threads of {sorted(each)}": SQL.threads_with_root(each | {"newest"}) for each in walks},
        **{f"roots of {sorted(each)}": SQL.next_roots(each - {"filter"}) for each in walks},
        "threads until": SQL.threads_with_root(frozenset({"newest", "after", "until"})),
        **{f"filtered by id, {sorted(each)}": SQL.threads_with_root(each | {"thread_id"}) for each in walks},
    }
    if threads > SHARDS * BINDS["wanted"]:  # by id, all threads of a shard are all its rows
        statements |= {f"by id, {sorted(each)}": SQL.next_threads_by_id(each - {"filter"}) for each in walks}
    with psycopg.connect(citus_url, autocommit=True) as conn:
        conn.execute(FILL.format(threads=threads))
        conn.execute("VACUUM ANALYZE checkpoints")
        for name, statement in statements.items():
            plan = explain(conn, statement)
            tasks = [part.splitlines() for part in plan.split("->  Task\n")[1:] if "on checkpoints_" in part]
            assert tasks, (name, plan)
            for lines in tasks:
                assert lines[1].strip() == "->  Limit", (name, plan)
            assert "Seq Scan" not in plan, (name, plan)
            assert not re.search(r"->  Sort\n.*\n +->  (Index|Bitmap)", plan), (name, plan)


OF_ONE_THREAD = [
    "has_newer",
    "inventory",
    "summaries",
    "summaries_before",
    "summaries_at",
    "count_checkpoints_of",
    "count_checkpoints_before",
    "parents_of_newer",
    "ids_with_prefix",
    "ancestors",
    "thread_tables",
    "thread_channels",
]


@pytest.mark.parametrize("name", [*OF_ONE_THREAD, "checkpoints_at"])
def test_a_read_of_one_thread_is_one_task(citus_url: str, name: str) -> None:
    """Also those that no run needs: what the command line reads, and the rows of a list of all threads."""
    statement = getattr(SQL, name)
    with psycopg.connect(citus_url, autocommit=True) as conn:
        for form in statement if isinstance(statement, Read) else [statement]:
            plan = explain(conn, form)
            assert re.findall("Task Count: .*|.*Subplan.*", plan) == ["Task Count: 1"], plan


def test_rows_of_some_threads_are_asked_of_their_shards(citus_url: str) -> None:
    """Metadata and numbers of checkpoints, by index."""
    with psycopg.connect(citus_url, autocommit=True) as conn:
        for statement in (SQL.root_metadata, SQL.checkpoint_counts):
            plan = explain(conn, statement)
            assert int(re.findall(r"Task Count: (\d+)", plan)[0]) <= 2, plan


def explain(conn: psycopg.Connection[Any], statement: Statement) -> str:
    text, binds = statement.bound(dialect.dialect(), BINDS)
    return "\n".join(line for (line,) in conn.execute(f"EXPLAIN (COSTS OFF) {text}", binds))


COMMANDS = [
    ["threads", "--limit", "0", "--count"],
    ["threads", "--order", "thread_id", "--prefix", "user/", "--limit", "5"],
    ["threads", "--filter", '{"user": "b"}', "--json"],
    ["history", "run/1"],
    ["history", "endless", "--limit", "0", "--json"],
    ["show", "run/1"],
    ["show", "run/1", "0003", "--namespace", "node:a|node:b", "--full"],
    ["diff", "run/1", "0003", "0005"],
    ["stats", "run/1"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_print_the_same(pair: Pair, command: list[str]) -> None:
    """Those that read: threads, histories, checkpoints, differences, sizes."""
    printed = [CliRunner().invoke(app, [*command, "--url", url]) for url in pair]
    assert [result.exit_code for result in printed] == [0, 0], printed[1].output
    assert printed[0].stdout
    assert printed[0].stdout == printed[1].stdout


def test_the_sizes_of_all_tables_are_printed(pair: Pair) -> None:
    """With the same rows and the same largest threads."""
    single, distributed = [
        json.loads(CliRunner().invoke(app, ["stats", "--json", "--url", url]).stdout) for url in pair
    ]
    assert single["largest_threads"] == distributed["largest_threads"]
    for name, table in distributed["tables"].items():
        assert table["rows"] == single["tables"][name]["rows"]
        assert table["bytes_on_disk"] >= single["tables"][name]["bytes_on_disk"] > 0
