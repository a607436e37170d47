"""Threads are listed newest first or by id, page by page, whoever owns most of the checkpoints; and measured."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from langgraph.checkpoint.base.id import uuid6
from sqlalchemy import create_engine
from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.errors import InvalidConfig
from checkpoint_store.serde import pages
from checkpoint_store.sql.statements import statements_of
from checkpoint_store.storage import thread_list
from checkpoint_store.storage.checkpoint_time import time_of
from checkpoint_store.storage.thread_list import ThreadSummary

Rows = list[tuple[str, str, str, dict[str, Any]]]


@pytest.fixture
async def conn(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection to store rows with, many at a time."""
    conn = await asyncpg.connect(url)
    yield conn
    await conn.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every statement looks at a few rows only, so that lists of some threads take many."""
    monkeypatch.setattr(thread_list, "BATCH_THREADS", 3)
    monkeypatch.setattr(thread_list, "_FEWEST_STEPS", 2)
    monkeypatch.setattr(thread_list, "_STEPS_PER_THREAD", 1)
    monkeypatch.setattr(thread_list, "MAX_STEPS", 40)
    monkeypatch.setattr(thread_list, "_MOST_PASSED", 2)


async def store(conn: asyncpg.Connection[Any], rows: Rows) -> None:
    await conn.executemany(
        "INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)"
        """ VALUES ($1, $2, $3, '{"v": 4}', $4)""",
        [(*row[:3], json.dumps(row[3])) for row in rows],
    )


def model(rows: Rows, order: str) -> list[tuple[str, str | None, dict[str, Any], int]]:
    """What a list of all threads has to be: id, newest root checkpoint, its metadata, number of checkpoints."""
    newest: dict[str, tuple[str, dict[str, Any]]] = {}
    counts: dict[str, int] = defaultdict(int)
    for thread_id, namespace, checkpoint_id, metadata in rows:
        counts[thread_id] += 1
        if not namespace and checkpoint_id > newest.get(thread_id, ("",))[0]:
            newest[thread_id] = (checkpoint_id, metadata)
    by_id = [(name, *newest.get(name, (None, {})), counts[name]) for name in sorted(counts)]
    if order == "thread_id":
        return by_id
    rooted = sorted((one for one in by_id if one[1]), key=lambda one: (one[1], one[0]), reverse=True)
    return [*rooted, *(one for one in by_id if not one[1])]


def told(summaries: list[ThreadSummary]) -> list[tuple[str, str | None, dict[str, Any], int | None]]:
    return [(one.thread_id, one.checkpoint_id, one.metadata, one.checkpoints) for one in summaries]


def uuid_at(microsecond: int) -> str:
    """A version 6 UUID so many microseconds after the beginning of 2026."""
    ticks = (int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 10**6 + microsecond) * 10 + 0x01B21DD213814000
    text = f"{ticks:015x}"
    return f"{text[:8]}-{text[8:12]}-6{text[12:]}-8000-000000000000"


def crowd(seed: int) -> Rows:
    """Threads of all sorts: long, short, idle, busy, with subgraphs, with nothing else, with ids of every kind."""
    chance = random.Random(seed)
    kinds = [uuid_at, lambda n: f"{n:09}", lambda n: f"01J{n:010}", lambda n: f"{n:05}-é🙂"]
    kind = chance.choice([*kinds, lambda n: kinds[n % 4](n)])
    names = [chance.choice(["user/", "job/", "", "Ä"]) + f"{n}" for n in range(chance.randrange(1, 30))]
    hogs = names[: chance.randrange(4)]
    rows = {}
    for n in range(chance.randrange(1, 600)):
        name = chance.choice(hogs) if hogs and chance.random() < chance.choice([0.1, 0.95]) else chance.choice(names)
        namespace = chance.choice(["", "", "", f"node:{n}", "node:1|inner:2"])
        # Copies of threads have the ids of their originals.
        checkpoint_id = kind(n - chance.choice([0, 0, 0, 1, 2]))
        rows[name, namespace, checkpoint_id] = {"step": n, "user": chance.choice("abc")}
    for n in range(chance.choice([0, 300])):
        rows["endless", "", kind(10_000 + n)] = {}
    return [(*key, metadata) for key, metadata in rows.items()]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("seed", [*range(8), *[pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 80)]])
async def test_a_list_has_every_thread_once_and_in_order(
    conn: asyncpg.Connection[Any], saver: AsyncPostgresSaver, seed: int
) -> None:
    """Whole, filtered, and page after page of any size, each page from the cursor of the last thread before."""
    rows, chance = crowd(seed), random.Random(seed)
    await store(conn, rows)

    for order in ("newest", "thread_id"):
        expected = model(rows, order)
        assert told([one async for one in saver.alist_threads(order=order, count=True)]) == expected
        of_user = [one for one in expected if one[2].get("user") == "b"]
        assert (
            told([one async for one in saver.alist_threads(order=order, filter={"user": "b"}, count=True)]) == of_user
        )
        of_jobs = [one for one in expected if one[0].startswith("job/")]
        assert told([one async for one in saver.alist_threads(order=order, prefix="job/", count=True)]) == of_jobs

        found: list[ThreadSummary] = []
        while len(found) < len(expected):
            size, cursor = chance.randrange(1, 6), found[-1].cursor if found else None
            page = [one async for one in saver.alist_threads(limit=size, cursor=cursor, order=order, count=True)]
            assert len(page) == min(size, len(expected) - len(found))
            found += page
        assert told(found) == expected
        assert [one async for one in saver.alist_threads(cursor=found[-1].cursor, order=order)] == []


async def test_both_apis_tell_the_same(
    conn: asyncpg.Connection[Any], saver: AsyncPostgresSaver, sync_saver: PostgresSaver
) -> None:
    """With one checkpoint or none, with a count or without."""
    assert [one async for one in saver.alist_threads()] == list(sync_saver.list_threads()) == []
    await store(conn, [("a", "", uuid_at(0), {"step": 1}), ("b", "", uuid_at(1_500_000), {}), ("c", "x:1", "9", {})])

    listed = [one async for one in saver.alist_threads()]

    assert listed == list(sync_saver.list_threads())
    assert [one.updated_at for one in listed] == [
        datetime(2026, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC),
        datetime(2026, 1, 1, tzinfo=UTC),
        None,
    ]
    assert [(one.checkpoint_id, one.metadata, one.checkpoints) for one in listed][1:] == [
        (uuid_at(0), {"step": 1}, None),
        (None, {}, None),
    ]
    assert [one.thread_id for one in sync_saver.list_threads(limit=1, count=True)] == ["b"]
    assert list(sync_saver.list_threads(limit=0)) == []


@pytest.mark.usefixtures("impatient")
async def test_no_connection_is_held_and_a_thread_that_moves_up_is_not_listed_twice(
    conn: asyncpg.Connection[Any], url: str
) -> None:
    """On a pool of one connection every thread can be deleted, or used, while the list goes on."""
    await store(conn, [(f"t{n:02}", "", uuid_at(n), {}) for n in range(30)])
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}, pool_size=1, max_overflow=0)
    saver, listed = AsyncPostgresSaver(engine), []

    async for one in saver.alist_threads():
        listed.append(one.thread_id)
        if one.thread_id == "t20":
            await store(conn, [("t20", "", uuid_at(99), {}), ("t10", "", uuid_at(98), {})])
        await saver.adelete_thread(one.thread_id)

    assert listed == [f"t{n:02}" for n in range(29, -1, -1) if n != 10]
    assert [one.thread_id async for one in saver.alist_threads()] == ["t10"]
    await engine.dispose()


@pytest.mark.parametrize(
    "arguments",
    [
        {"limit": -1},
        {"limit": True},
        {"limit": 1.5},
        {"order": "oldest"},
        {"cursor": "garbage"},
        {"cursor": "W10"},
        {"cursor": ""},
        {"cursor": 3},
        {"cursor": "WyJuZXdlc3QiLG51bGwsInQiXQ"},
        {"cursor": "[" * 100_000},
        {"filter": {"a": {1, 2}}},
        {"filter": {"a": "\ud800"}},
        {"prefix": "a\0"},
    ],
)
async def test_what_can_not_be_listed_is_refused_at_once(saver: AsyncPostgresSaver, arguments: Any) -> None:
    """Before a statement is sent, and before anybody iterates."""
    with pytest.raises(InvalidConfig):
        saver.alist_threads(**arguments)


async def test_a_cursor_belongs_to_its_order(conn: asyncpg.Connection[Any], saver: AsyncPostgresSaver) -> None:
    """Going on in another order would leave out threads without a word."""
    await store(conn, [("a", "", "1", {})])
    (one,) = [one async for one in saver.alist_threads()]

    with pytest.raises(InvalidConfig, match="another order"):
        saver.alist_threads(order="thread_id", cursor=one.cursor)


def test_the_time_is_that_of_the_id() -> None:
    """Of LangGraph's ids, to the microsecond; other ids have none."""
    assert time_of(uuid_at(7)) == datetime(2026, 1, 1, 0, 0, 0, 7, tzinfo=UTC)
    made = time_of(str(uuid6()))
    assert made is not None
    assert abs(made - datetime.now(UTC)) < timedelta(minutes=1)
    for other in (
        "",
        "000005",
        "1f0c4a3e-0000-4000-8000-000000000000",
        "x" * 36,
        "\ud800",
        "1f0c4a3e-0000-6",
    ):
        assert time_of(other) is None


FILL = """
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)
SELECT 'thread-' || i / 10, '', to_char(i, 'FM000000'), '{}', jsonb_build_object('step', i)
FROM generate_series(1, 20000) i;
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)
SELECT 'thread-' || i / 10, 'node:' || i, to_char(i, 'FM000000'), '{}', '{}' FROM generate_series(1, 20000, 2) i;
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)
SELECT 'hog', '', to_char(i, 'FM000000'), '{}', '{}' FROM generate_series(20001, {end}) i;
"""


@pytest.fixture(params=[20_000, 40_000], ids=["many threads", "one with the newest half"])
async def filled(conn: asyncpg.Connection[Any], request: pytest.FixtureRequest) -> asyncpg.Connection[Any]:
    """A database with 20,000 root checkpoints in 2,000 threads, and perhaps as many newer ones in one thread."""
    await conn.execute(FILL.replace("{end}", str(request.param)))
    await conn.execute("VACUUM ANALYZE checkpoints")
    return conn


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize(
    "conditions",
    [{"newest"}, {"newest", "after"}, {"newest", "after", "count", "filter", "prefix"}, {"thread_id"},
     {"thread_id", "after", "count"}, {"rootless", "after"}],
    ids=lambda conditions: " ".join(sorted(conditions)),
)  # fmt: skip
async def test_a_page_does_not_scan_the_table(filled: asyncpg.Connection[Any], conditions: set[str], mode: str) -> None:
    """EXPLAIN ANALYZE: some hundred rows are fetched for a page of 20 threads; whose they are is no matter."""
    statement = statements_of(None).list_threads(frozenset(conditions))
    binds = {"last_checkpoint_id": "015000", "last_thread_id": "thread-1500", "skipped": ["hog"], "prefix": "thread"}
    binds.update(filter='{"step": 12009}', steps=320, wanted=20)
    sql, values = statement.bound(dialect.dialect(), binds)
    literals = ", ".join(_literal(value) for value in values)
    await filled.execute(f"SET plan_cache_mode = {mode}")
    await filled.execute(f"PREPARE under_test AS {sql}")
    explained = await filled.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE under_test({literals})")
    nodes: list[dict[str, Any]] = []
    _collect(json.loads(explained)[0]["Plan"], nodes)

    scans = [node for node in nodes if "Relation Name" in node]
    assert nodes[0]["Total Cost"] < 100_000
    assert scans
    assert {node["Node Type"] for node in scans} <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in scans) < 1500
    if "newest" in conditions:
        assert [node["Node Type"] for node in scans if node.get("Index Name") == "checkpoint_store_latest_idx"] == [
            "Index Only Scan"
        ]


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return "ARRAY[" + ", ".join(map(_literal, value)) + "]::text[]"
    return str(value) if isinstance(value, int) else f"'{value}'"


def _collect(node: dict[str, Any], into: list[dict[str, Any]]) -> None:
    into.append(node)
    for child in node.get("Plans", []):
        _collect(child, into)


async def test_a_thread_with_the_newest_half_is_passed_over(
    filled: asyncpg.Connection[Any], engine: AsyncEngine
) -> None:
    """A page takes two statements at most, and is right, though one thread has 20,000 checkpoints in front."""
    saver = AsyncPostgresSaver(engine)
    asked = []
    run = saver._backend.run

    async def counted(*arguments: Any) -> Any:
        asked.append(arguments)
        return await run(*arguments)

    saver._backend.run = counted  # type: ignore[method-assign]
    page = [one.thread_id async for one in saver.alist_threads(limit=20)]

    hogs = await filled.fetchval("SELECT count(*) FROM checkpoints WHERE thread_id = 'hog'")
    assert page == [*(["hog"] if hogs else []), *[f"thread-{n}" for n in range(2000, 1970, -1)]][:20]
    assert len(asked) == (2 if hogs else 1)


async def test_a_thread_tells_what_it_occupies(
    engine: AsyncEngine, conn: asyncpg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and bytes by table, the largest channel first; a page that ten values share counts once."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 1000)
    saver = AsyncPostgresSaver(engine, share_pages=True)
    assert (await saver.aget_thread_stats("t")).bytes == 0
    value = [f"{n}: {random.Random(n).random()}" for n in range(2000)]
    for n in range(10):
        config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": f"node:{n}|inner:{n}" if n % 2 else ""}}
        values = {"messages": [*value, n], "title": f"title {n}", "draft": ["short"]}
        versions = {"messages": f"{n}", "title": f"{n}", "draft": f"{n}"}
        checkpoint: Any = {"v": 4, "id": f"{n}", "ts": "", "channel_values": values, "channel_versions": versions}
        stored = await saver.aput(config, {**checkpoint, "versions_seen": {}}, {}, versions)
        await saver.aput_writes(stored, [("messages", "late"), ("draft", "x" * 500)], f"task {n}")

    stats = await saver.aget_thread_stats("t")

    for table, column in (("blobs", "blob"), ("pages", "page"), ("writes", "blob")):
        rows, size = await conn.fetchrow(f"SELECT count(*), sum(pg_column_size({column})) FROM checkpoint_{table}") or (
            0,
            0,
        )
        assert stats.tables[f"checkpoint_{table}"].rows == rows
        assert size < stats.tables[f"checkpoint_{table}"].bytes < size + 200 * rows
    assert stats.checkpoints == stats.tables["checkpoints"].rows == 10
    assert stats.bytes == sum(table.bytes for table in stats.tables.values())
    assert list(stats.channels) == sorted(stats.channels, key=lambda one: -one.bytes)
    found = {(one.graph, one.channel): one for one in stats.channels}
    assert found.keys() == {(g, c) for g in ("", "node|inner") for c in ("messages", "title", "draft")}
    assert {(one.values, one.writes) for one in stats.channels if one.channel != "title"} == {(5, 5)}
    assert {(one.values, one.writes) for one in stats.channels if one.channel == "title"} == {(5, 0)}
    once = await conn.fetchval(
        "SELECT (SELECT sum(pg_column_size(page)) FROM checkpoint_pages)"
        " + (SELECT sum(pg_column_size(blob)) FROM checkpoint_blobs WHERE channel = 'messages')"
        " + (SELECT sum(pg_column_size(blob)) FROM checkpoint_writes WHERE channel = 'messages')"
    )
    assert found["", "messages"].bytes + found["node|inner", "messages"].bytes == once
    assert stats.channels[0] == found["", "messages"]
    assert await conn.fetchval("SELECT count(*) FROM checkpoint_blobs WHERE type = 'pages'") == 10


async def test_both_apis_count_the_same(saver: AsyncPostgresSaver, sync_saver: PostgresSaver) -> None:
    """And refuse the same."""
    assert await saver.aget_thread_stats("t") == sync_saver.get_thread_stats("t")
    with pytest.raises(InvalidConfig):
        await saver.aget_thread_stats("")
    with pytest.raises(InvalidConfig):
        sync_saver.get_thread_stats(5)  # type: ignore[arg-type]


async def test_every_driver_lists_and_measures(
    url: str, conn: asyncpg.Connection[Any], saver: AsyncPostgresSaver
) -> None:
    """A sync engine of psycopg's and an async one: the same threads, the same sizes, the same copies."""
    await store(conn, [(f"t{n % 7}", "" if n % 3 else "x:1", uuid_at(n), {"n": n}) for n in range(50)])
    expected = [one async for one in saver.alist_threads(count=True, prefix="t", filter={})]
    address = "postgresql+psycopg://" + url.partition("://")[2]
    blocking, waiting = create_engine(address), create_async_engine(address)
    sync, other = PostgresSaver(blocking), AsyncPostgresSaver(waiting)

    assert await asyncio.to_thread(lambda: list(sync.list_threads(count=True, prefix="t"))) == expected
    assert [one async for one in other.alist_threads(count=True, prefix="t")] == expected
    assert await asyncio.to_thread(sync.get_thread_stats, "t1") == await other.aget_thread_stats("t1")
    assert await asyncio.to_thread(sync.get_thread_stats, "t1") == await saver.aget_thread_stats("t1")
    await asyncio.to_thread(sync.copy_thread, "t1", "copy of t1")
    await other.acopy_thread("t2", "copy of t1", replace=True)
    assert (await saver.aget_thread_stats("copy of t1")).checkpoints == 7
    blocking.dispose()
    await waiting.dispose()
