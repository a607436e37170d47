"""Removals and copies on distributed tables: they remove, report and leave what they do on a single server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import asyncpg
import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from psycopg import sql
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver, ThreadSummary
from checkpoint_store.errors import Refused, ThreadExists, UnusableConnection
from checkpoint_store.expiry import Expiry
from checkpoint_store.serde import pages
from checkpoint_store.storage import delete_thread, deletion, sweep
from checkpoint_store.storage.sweep_report import SweepReport
from tests.citus.cluster import TABLES, Pair, pair_of, run
from tests.citus.test_plans import Tape, on_tables, plan_of, psycopg_engine, tape
from tests.integration.histories import Histories, unreachable
from tests.integration.test_removal_running import test_runs_come_to_the_same_end_whatever_is_removed_meanwhile

__all__ = ["psycopg_engine", "tape", "test_runs_come_to_the_same_end_whatever_is_removed_meanwhile"]

OLD = timedelta(days=53, minutes=17)
"""The random threads begin 60 days ago."""

EXPIRY = [
    Expiry.never({"run_id": "run-3"}),
    Expiry(idle=timedelta(days=1), filter={"step": 1}),
    Expiry(age=OLD, quiet=timedelta(seconds=1)),
]


def is_kept(thread: ThreadSummary) -> bool:
    return thread.checkpoints == 3


CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("copy_thread", ("t1", "copy"), {}),
    ("copy_thread", ("t2", "t3"), {"replace": True}),
    ("delete_for_runs", (["run-1", "run-2"],), {}),
    ("sweep", (), {"older_than": OLD, "keep_last": 2, "spare_active": True, "dry_run": True}),
    ("sweep", (), {"older_than": OLD, "keep_last": 2, "spare_active": True}),
    ("sweep", (), {"older_than": OLD, "keep_last": 3, "batch_size": 2}),
    ("execute", ("DELETE FROM checkpoints WHERE thread_id = 't4'",), {}),
    ("execute", ("DELETE FROM checkpoints WHERE thread_id = 't5' AND checkpoint_ns <> ''",), {}),
    ("execute", ("DELETE FROM checkpoint_blobs WHERE thread_id = 't6' AND type = 'pages'",), {}),
    ("prune", (["t5", "t6", "nothing", "t1"],), {"keep": 4}),
    ("sweep", (), {"keep_last": 3, "dry_run": True}),
    ("sweep", (), {"keep_last": 3}),
    ("delete_thread", ("t7",), {}),
    ("prune", (["t8"],), {}),
    ("prune", (["t9", "nothing", "copy"],), {"strategy": "delete"}),
    ("sweep", (), {"expiry": EXPIRY, "keep": is_kept, "dry_run": True}),
    ("sweep", (), {"expiry": EXPIRY, "keep": is_kept}),
    ("sweep", (), {"older_than": timedelta(), "dry_run": True}),
    ("sweep", (), {"older_than": timedelta(), "batch_size": 3}),
]
"""What is done to both, one after the other: methods and arguments, or SQL."""


@pytest.fixture(scope="module")
def empty_pair(cluster_url: str) -> Iterator[Pair]:
    """Two databases without rows."""
    with pair_of(cluster_url) as both:
        yield both


@pytest.fixture(params=["plain", "pages"])
def pair(request: pytest.FixtureRequest, empty_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Random threads, whose values are stored whole, or all that can be cut as pages."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 0)
    monkeypatch.setattr(deletion, "LOOK_THREADS", 4)
    for url in empty_pair:
        run(url, f"TRUNCATE {', '.join(TABLES)}")
    with PostgresSaver.from_conn_string(empty_pair.single, share_pages=request.param == "pages") as saver:
        made = Histories(saver, random.Random(request.param))
        made.grow(threads=10, steps=12)
    with psycopg.connect(empty_pair.single) as source:
        for number, thread_id in enumerate(sorted({key[0] for key in made.checkpoints})):
            for table in map(sql.Identifier, TABLES):
                renamed = sql.SQL("UPDATE {} SET thread_id = %s WHERE thread_id = %s").format(table)
                source.execute(renamed, [f"t{number}", thread_id])
    empty_pair.copy_rows()
    return empty_pair


def contents(url: str) -> dict[str, list[Any]]:
    """All rows, but for the epochs of threads."""
    with psycopg.connect(url) as conn:
        found = {name: conn.execute(f"SELECT * FROM {name} ORDER BY 1, 2, 3, 4, 5").fetchall() for name in TABLES[:-2]}
        found[TABLES[-2]] = conn.execute(f"SELECT * FROM {TABLES[-2]} ORDER BY 1, 2").fetchall()
        found[TABLES[-1]] = conn.execute(f"SELECT thread_id FROM {TABLES[-1]} ORDER BY 1").fetchall()
    return found


def rows_of(outcome: Any) -> Any:
    """What a call returns, without bytes: where tables are distributed, they are not those of compressed values."""
    return outcome[:-1] if isinstance(outcome, SweepReport) else outcome


def test_removals_and_copies_are_those_of_a_single_server(pair: Pair) -> None:
    """The same reports, dry or not, and the same rows are left; leftovers of others' SQL are found."""
    removed = 0
    with PostgresSaver.from_conn_string(pair.single) as one, PostgresSaver.from_conn_string(pair.distributed) as other:
        for method, args, options in CALLS:
            if method == "execute":
                for url in pair:
                    run(url, *args)
                continue
            expected, outcome = [getattr(saver, method)(*args, **options) for saver in (one, other)]
            assert rows_of(outcome) == rows_of(expected), (method, args, options)
            assert contents(pair.distributed) == contents(pair.single), (method, args, options)
            removed += bool(isinstance(outcome, SweepReport) and sum(outcome))
    assert removed > 5


async def test_async_removals_and_copies_are_those_of_a_single_server(pair: Pair) -> None:
    """The same again by the async saver."""
    async with (
        AsyncPostgresSaver.from_conn_string(pair.single) as one,
        AsyncPostgresSaver.from_conn_string(pair.distributed) as other,
    ):
        for method, args, options in CALLS:
            if method == "execute":
                for url in pair:
                    await asyncio.to_thread(run, url, *args)
                continue
            expected, outcome = [await getattr(saver, f"a{method}")(*args, **options) for saver in (one, other)]
            assert rows_of(outcome) == rows_of(expected), (method, args, options)
    assert contents(pair.distributed) == contents(pair.single)


def test_a_long_thread_is_deleted_in_parts(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """In transactions of few checkpoints, each of which is reported."""
    monkeypatch.setattr(sweep, "_BATCH_THREADS", 3)
    reports: list[SweepReport] = []
    with PostgresSaver.from_conn_string(pair.distributed) as saver:
        promised = saver.sweep(keep_last=1, dry_run=True)
        assert saver.sweep(keep_last=1, batch_size=1, on_progress=reports.append) == promised
    assert len(reports) > promised.threads
    assert unreachable(pair.distributed) == {}


REMOVALS: dict[str, Callable[[PostgresSaver], object]] = {
    "delete_thread": lambda saver: saver.delete_thread("one"),
    "prune": lambda saver: saver.prune(["one"]),
    "prune to nothing": lambda saver: saver.prune(["one"], strategy="delete"),
    "sweep": lambda saver: saver.sweep(keep_last=1, batch_size=1),
    "sweep, dry": lambda saver: saver.sweep(keep_last=1, dry_run=True),
}


@pytest.mark.parametrize("name", REMOVALS)
def test_a_removal_from_a_thread_is_one_task_a_statement(tape: Tape, citus_url: str, name: str) -> None:
    """So it sees and locks what it would on a single server: one snapshot has all of its parts."""
    for number in range(3, 8):
        tape.put(number, {"inline": number, "messages": [f"line {number}"] * 50}, parent=number - 1)
    tape.sent.clear()
    REMOVALS[name](tape.saver)

    sent = [(statement, binds) for statement, binds in on_tables(tape.sent) if "%(thread_id)s" in statement]
    assert len(sent) >= 4
    with psycopg.connect(citus_url, autocommit=True) as conn:
        for statement, binds in sent:
            tasks = [line.strip() for line in plan_of(conn, statement, binds) if "Task Count" in line]
            assert tasks == ["Task Count: 1"], statement


def checkpoint(number: int, **values: tuple[str, Any]) -> Any:
    """A checkpoint with values, each with its version."""
    made: Any = {**empty_checkpoint(), "id": f"{number:08}"}
    made["channel_values"] = {name: value for name, (_, value) in values.items()}
    made["channel_versions"] = {name: version for name, (version, _) in values.items()}
    return made


async def test_what_is_acknowledged_during_removals_is_there(
    engine: AsyncEngine, citus_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers count on values and pages that are there, of checkpoints that others remove at the same time."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 0)
    saver = AsyncPostgresSaver(engine, share_pages=True)
    elsewhere = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": citus_url})
    remover = AsyncPostgresSaver(elsewhere, share_pages=True)
    threads = [f"thread {number}" for number in range(4)]
    removed = 0

    async def write(thread_id: str) -> None:
        chance = random.Random(thread_id)
        lines = [chance.randbytes(40).hex() for _ in range(300)]
        config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        for step in range(40):
            lines = [*lines[chance.randrange(3) :], chance.randbytes(40).hex()]
            # The second is stored under its version again and again, as after a fork.
            values = {"lines": (f"{step}", lines), "kept": (f"{step // 8}", [step // 8] * 2000)}
            made = checkpoint(step, **values)
            config = await saver.aput(config, made, {"source": "loop"}, made["channel_versions"])
            await saver.aput_writes(config, [("lines", step)], "task")
            found = await saver.aget_tuple(config)
            assert found is not None, (thread_id, step)
            assert found.checkpoint["channel_values"] == made["channel_values"], (thread_id, step)
            assert found.pending_writes == [("task", "lines", step)]

    async def remove() -> None:
        nonlocal removed
        while not writing.done():
            for call in (remover.aprune(threads), remover.asweep(keep_last=1, batch_size=2)):
                removed += (await call).checkpoints
            await remover.adelete_thread("another")

    writing = asyncio.gather(*map(write, threads))
    await asyncio.gather(writing, remove())
    assert removed > 40
    await remover.aprune(threads)
    await elsewhere.dispose()
    assert unreachable(citus_url) == {}


async def test_a_thread_is_deleted_with_what_is_stored_meanwhile(engine: AsyncEngine, citus_url: str) -> None:
    """Nothing is left of a put that the deletion had to wait for, and a put that comes later is whole."""
    saver = AsyncPostgresSaver(engine, share_pages=True)
    lines = ["x" * 100] * 1000
    config: Any = {"configurable": {"thread_id": "one", "checkpoint_ns": ""}}

    async def put(step: int) -> None:
        made = checkpoint(step, lines=(f"{step}", [*lines, step]))
        await saver.aput(config, made, {}, made["channel_versions"])

    for _ in range(20):
        await asyncio.gather(put(1), saver.adelete_thread("one"), put(2))
        left = {one.checkpoint["id"]: one.checkpoint["channel_values"] async for one in saver.alist(config)}
        assert all(values == {"lines": [*lines, int(name)]} for name, values in left.items())
        assert unreachable(citus_url) == {}


async def test_removals_of_several_threads_are_in_a_callers_transaction(engine: AsyncEngine, citus_url: str) -> None:
    """It takes all of them back, or commits them on every node."""
    saver = AsyncPostgresSaver(engine)
    for thread_id in ("one", "two", "three", "four"):
        for step in (1, 2):
            config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
            await saver.aput(config, checkpoint(step, lines=(f"{step}", ["a line"])), {}, {"lines": f"{step}"})
    before = contents(citus_url)

    async def remove(conn: AsyncConnection) -> None:
        bound = AsyncPostgresSaver(conn)
        assert (await bound.aprune(["one", "two", "three"])).checkpoints == 3
        await bound.acopy_thread("one", "two", replace=True)
        await bound.adelete_thread("four")

    async with engine.connect() as conn:
        await remove(conn)
        await conn.rollback()
    assert contents(citus_url) == before
    async with engine.begin() as conn:
        await remove(conn)
    assert [row[0] for row in contents(citus_url)["checkpoints"]] == ["one", "three", "two"]


async def test_a_target_that_somebody_stores_to_meanwhile_is_refused(engine: AsyncEngine, citus_url: str) -> None:
    """Citus leaves out which rule a row breaks; it is told in our words, and the copy leaves nothing."""
    saver = AsyncPostgresSaver(engine)
    made = checkpoint(1, lines=("1", ["a line"]))
    await saver.aput({"configurable": {"thread_id": "one", "checkpoint_ns": ""}}, made, {}, {"lines": "1"})
    connection: asyncpg.Connection[Any] = await asyncpg.connect(citus_url)
    async with connection.transaction():
        await connection.execute(
            "INSERT INTO checkpoints SELECT 'target', checkpoint_ns, checkpoint_id, parent_checkpoint_id, type,"
            " checkpoint, metadata FROM checkpoints WHERE thread_id = 'one'"
        )
        copy = asyncio.create_task(saver.acopy_thread("one", "target"))
        await asyncio.sleep(0.5)
        assert not copy.done()

    with pytest.raises(ThreadExists, match="something was stored while it was to be made"):
        await copy
    assert await connection.fetchval("SELECT count(*) FROM checkpoint_blobs WHERE thread_id = 'target'") == 0
    await connection.close()


def test_what_takes_locks_is_refused_on_a_worker(citus_url: str) -> None:
    """Others would not notice its locks. All else works there."""
    with psycopg.connect(citus_url) as conn:
        row = conn.execute("SELECT nodename, nodeport FROM pg_dist_node WHERE groupid > 0").fetchone()
    if row is None:
        pytest.skip("the cluster has no worker")
    worker = make_url(citus_url).set(drivername="postgresql+psycopg", host=row[0], port=row[1])
    config: Any = {"configurable": {"thread_id": "one", "checkpoint_ns": ""}}
    engine = create_engine(worker)

    def lock(saver: PostgresSaver) -> None:
        with saver.thread_lock("one"):
            pass

    saver = PostgresSaver(engine)
    stored = saver.put(config, empty_checkpoint(), {}, {})
    assert saver.get_tuple(stored) is not None
    for call in (
        lock,
        lambda saver: saver.delete_thread("one"),
        lambda saver: saver.prune(["one"]),
        lambda saver: saver.copy_thread("one", "two"),
    ):
        with pytest.raises(UnusableConnection, match="on a worker of a Citus cluster"):
            call(saver)
        with engine.connect() as conn, pytest.raises(UnusableConnection, match="connects to the coordinator"):
            call(PostgresSaver(conn))
    with pytest.raises(UnusableConnection, match="refuse_forks can't work on a worker"):
        PostgresSaver(engine, refuse_forks=True).put(stored, empty_checkpoint(), {}, {})
    assert len(list(PostgresSaver(engine).list(config))) == 1
    engine.dispose()


async def test_a_removal_that_began_before_the_tables_were_distributed_changes_nothing(engine: AsyncEngine) -> None:
    """It has put threads together, whose rows may now be on several nodes."""
    saver = AsyncPostgresSaver(engine)
    await saver.aput({"configurable": {"thread_id": "a", "checkpoint_ns": ""}}, checkpoint(1), {}, {})
    with pytest.raises(Refused, match="make the call again"):
        await saver._backend.run(delete_thread.delete_threads, ["a", "b"])
    assert await saver.aget_tuple({"configurable": {"thread_id": "a", "checkpoint_ns": ""}}) is not None
