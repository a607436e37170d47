"""The expiry of whole threads: by which rules, never under a run, with functions of the caller's, and at intervals."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver, SweepReport, ThreadSummary
from checkpoint_store.errors import InvalidConfig, InvalidOption, Refused, WrongThread, WrongTransaction
from checkpoint_store.expiry import Expiry, Sweeper
from checkpoint_store.serde import pages
from checkpoint_store.storage import deletion, expiry
from checkpoint_store.storage.expiry import Expiration
from tests.integration.histories import id_at, unreachable

CHANCE = random.Random(13)
IDLE = [Expiry(idle=timedelta(days=30))]
NAMES = ("thread_id", "checkpoint_ns", "checkpoint_id")


def stored(
    thread_id: str,
    *days: float,
    metadata: dict[str, Any] | None = None,
    checkpoint_ns: str = "",
    ids: tuple[str, ...] = (),
) -> list[tuple[Any, ...]]:
    """The calls of `put` that store a thread with checkpoints of these ages, or with these ids."""
    made = ids or tuple(id_at(datetime.now(UTC) - timedelta(days=one), CHANCE) for one in days)
    calls = []
    parent: str | None = None
    for number, checkpoint_id in enumerate(made):
        config = dict(zip(NAMES, (thread_id, checkpoint_ns, parent), strict=True))
        checkpoint: Any = {**empty_checkpoint(), "v": 4, "id": checkpoint_id}
        checkpoint["channel_values"] = {"messages": [f"{thread_id} {one}" for one in range(200)], "turn": number}
        checkpoint["channel_versions"] = {"messages": "1", "turn": str(number + 1)}
        new = {"messages": "1", "turn": "1"} if number == 0 else {"turn": str(number + 1)}
        calls.append(({"configurable": config}, checkpoint, metadata or {}, new))
        parent = checkpoint_id
    return calls


async def store(saver: AsyncPostgresSaver, *args: Any, **options: Any) -> Any:
    """Store a thread, see `stored`. Returns the config of its newest checkpoint."""
    config: Any = None
    for call in stored(*args, **options):
        config = await saver.aput(*call)
    return config


async def threads_of(saver: AsyncPostgresSaver) -> set[str]:
    return {one.thread_id async for one in saver.alist_threads()}


@pytest.fixture(params=["plain", "pages"])
async def saver(request: pytest.FixtureRequest, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A saver that stores values whole, or all that can be cut as pages."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 0)
    return AsyncPostgresSaver(engine, share_pages=request.param == "pages")


async def test_a_thread_expires_as_a_whole_once_nothing_of_it_is_younger(
    saver: AsyncPostgresSaver, engine: AsyncEngine, url: str
) -> None:
    """Nothing is left of it in any table; one in use keeps even its oldest checkpoint."""
    newest = await store(saver, "idle", 90, 60, 31)
    await store(saver, "idle", 40, checkpoint_ns="hotel:1")
    await saver.aput_writes(newest, [("messages", "late")], "task")
    await store(saver, "in use", 90, 31, 29)
    await store(saver, "by a subgraph", 90, 31)
    await store(saver, "by a subgraph", 5, checkpoint_ns="hotel:1")

    expected = await saver.asweep(expiry=IDLE, dry_run=True)
    assert len(await threads_of(saver)) == 3
    report = await saver.asweep(expiry=IDLE)

    assert report == expected
    assert (report.threads, report.checkpoints, report.writes) == (1, 4, 1)
    assert await threads_of(saver) == {"in use", "by a subgraph"}
    assert len([one async for one in saver.alist({"configurable": {"thread_id": "in use"}})]) == 3
    assert unreachable(url) == {}
    conn = await asyncpg.connect(url)
    for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_pages", "checkpoint_threads"):
        assert await conn.fetchval(f"SELECT count(*) FROM {table} WHERE thread_id = 'idle'") == 0
    await conn.close()
    assert await saver.asweep(expiry=IDLE) == SweepReport()


async def test_a_hard_age_ends_threads_in_use_but_not_under_a_run(saver: AsyncPostgresSaver) -> None:
    """By the first checkpoint that is stored, once nothing was stored for `quiet`."""
    await store(saver, "old", 400, 2)
    await store(saver, "old and running", 400, 0.5 / 24)
    await store(saver, "young", 300, 200)

    await saver.asweep(expiry=[Expiry(age=timedelta(days=365))])
    assert await threads_of(saver) == {"old and running", "young"}
    await saver.asweep(expiry=[Expiry(age=timedelta(days=365), quiet=timedelta(minutes=10))])
    assert await threads_of(saver) == {"young"}
    await saver.asweep(expiry=[Expiry(idle=timedelta(days=365), age=timedelta(days=299))])
    assert await threads_of(saver) == set()


async def test_the_first_rule_that_matches_a_thread_decides(saver: AsyncPostgresSaver) -> None:
    """By the metadata of its newest root checkpoint; one that matches no rule stays."""
    await store(saver, "pinned trial", 90, metadata={"plan": "trial", "pinned": True})
    await store(saver, "trial", 8, metadata={"plan": "trial", "tags": ["a", "b"]})
    await store(saver, "fresh trial", 5, metadata={"plan": "trial"})
    await store(saver, "was trial", 90, metadata={"plan": "trial"})
    await store(saver, "was trial", 80, metadata={"plan": "paid"})
    await store(saver, "paid", 200, metadata={"plan": "paid"})
    await store(saver, "without a root", 200, checkpoint_ns="hotel")
    await store(saver, "other", 200)

    rules = [
        Expiry.never({"pinned": True}),
        Expiry(idle=timedelta(days=7), filter={"plan": "trial"}),
        Expiry(idle=timedelta(days=100), filter={"plan": "paid"}),
    ]
    await saver.asweep(expiry=rules)
    assert await threads_of(saver) == {"pinned trial", "fresh trial", "was trial", "without a root", "other"}
    await saver.asweep(expiry=[*rules, Expiry(idle=timedelta(days=150), filter={})])
    assert await threads_of(saver) == {"pinned trial", "fresh trial", "was trial"}


@pytest.mark.parametrize(
    "checkpoint_id",
    [
        "mine",
        "1f11620e-ca20-4271-8000-0000000003f1",
        "1f11620e-ca20-6271-7000-0000000003f1",
        "1f11620e-ca20-6271-8000-0000000003fg",
        "1F11620E-CA20-6271-8000-0000000003F1",
        "1f11620e-ca20-6271-8000-0000000003f1x",
        "1f11620e-ca20-6271-8-00-0000000003f1",
        "",
    ],
)
async def test_a_thread_with_an_id_without_a_time_never_expires(engine: AsyncEngine, checkpoint_id: str) -> None:
    """Whatever else it has; the same ids that a sweep by age finds no time in."""
    saver = AsyncPostgresSaver(engine)
    await store(saver, "t", 400, 300)
    await store(saver, "t", ids=(checkpoint_id or "0",), checkpoint_ns="other")

    for rules in (IDLE, [Expiry(age=timedelta(days=30))]):
        assert await saver.asweep(expiry=rules) == SweepReport()
    assert await threads_of(saver) == {"t"}


async def test_keep_and_the_hook_get_each_thread_that_has_expired(saver: AsyncPostgresSaver) -> None:
    """As `alist_threads` has them; while the hook is called its threads can be read, and no transaction is open."""
    for number in range(5):
        await store(saver, f"t{number}", 50 + number, 40 + number, metadata={"n": number})
    await store(saver, "in use", 50, 1)
    asked: list[ThreadSummary] = []
    hooked: list[list[str]] = []

    def keep(thread: ThreadSummary) -> bool:
        asked.append(thread)
        return thread.metadata["n"] == 3

    async def before_delete(threads: list[ThreadSummary]) -> None:
        hooked.append([one.thread_id for one in threads])
        for one in threads:
            found = await saver.aget_tuple({"configurable": {"thread_id": one.thread_id}})
            assert found is not None
            assert found.checkpoint["channel_values"]["turn"] == 1

    listed = {one.thread_id: one async for one in saver.alist_threads(order="thread_id", count=True)}
    dry = await saver.asweep(expiry=IDLE, keep=keep, before_delete=before_delete, dry_run=True)
    assert hooked == []
    assert asked == [listed[f"t{number}"] for number in range(5)]
    report = await saver.asweep(expiry=IDLE, keep=keep, before_delete=before_delete, batch_size=4)

    assert report == dry
    assert hooked == [["t0", "t1"], ["t2", "t4"]]
    assert await threads_of(saver) == {"t3", "in use"}


async def test_a_hook_that_raises_ends_the_sweep_and_its_threads_stay(saver: AsyncPostgresSaver) -> None:
    """Those before it are deleted; the next sweep calls it again, at least once for each thread."""
    for number in range(4):
        await store(saver, f"t{number}", 50)
    calls: list[str] = []

    def before_delete(threads: list[ThreadSummary]) -> None:
        calls.extend(one.thread_id for one in threads)
        if calls == ["t0", "t1"]:
            raise ConnectionError("the archive is away")

    with pytest.raises(ConnectionError, match="the archive is away"):
        await saver.asweep(expiry=IDLE, before_delete=before_delete, batch_size=1)
    assert await threads_of(saver) == {"t1", "t2", "t3"}
    await saver.asweep(expiry=IDLE, before_delete=before_delete, batch_size=1)
    assert calls == ["t0", "t1", "t1", "t2", "t3"]
    assert await threads_of(saver) == set()


@pytest.mark.parametrize("change", ["checkpoint", "subgraph", "writes", "metadata"])
async def test_a_thread_that_is_used_while_the_hook_is_called_stays(saver: AsyncPostgresSaver, change: str) -> None:
    """Whatever was stored in it; the other threads of the batch are deleted."""
    newest = await store(saver, "returned", 50, 40)
    await store(saver, "idle", 50)

    async def before_delete(threads: list[ThreadSummary]) -> None:
        if change == "writes":
            await saver.aput_writes(newest, [("messages", "resumed")], "task")
        elif change == "metadata":
            await store(saver, "returned", ids=(newest["configurable"]["checkpoint_id"],), metadata={"seen": True})
        else:
            await store(saver, "returned", 0, checkpoint_ns="" if change == "checkpoint" else "hotel:1")

    report = await saver.asweep(expiry=IDLE, before_delete=before_delete)

    assert report.threads == 1
    assert await threads_of(saver) == {"returned"}
    assert len([one async for one in saver.alist({"configurable": {"thread_id": "returned"}})]) >= 2


async def test_a_thread_whose_lock_a_run_holds_stays(saver: AsyncPostgresSaver) -> None:
    """Though nothing of it was stored for long: the run has just come back to it."""
    await store(saver, "locked", 50)
    await store(saver, "idle", 50)

    async with saver.thread_lock("locked"):
        assert (await saver.asweep(expiry=IDLE)).threads == 1
        assert await threads_of(saver) == {"locked"}
    assert (await saver.asweep(expiry=IDLE)).threads == 1


@pytest.mark.parametrize("rounds", [15, pytest.param(150, marks=pytest.mark.slow)])
async def test_runs_that_come_back_to_threads_lose_nothing(saver: AsyncPostgresSaver, url: str, rounds: int) -> None:
    """Two sweeps race runs that hold their thread's lock: each finds its thread as it was, or begins it anew."""
    elsewhere = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    sweepers = [saver, AsyncPostgresSaver(elsewhere)]
    lost = expired = 0

    async def run(name: str) -> None:
        nonlocal lost, expired
        async with saver.thread_lock(name):
            before = await saver.aget_tuple({"configurable": {"thread_id": name}})
            await asyncio.sleep(CHANCE.random() / 100)
            expired += before is None
            ids = (id_at(datetime.now(UTC), CHANCE),)
            await store(saver, name, ids=ids, metadata={"back": True})
            after = [one async for one in saver.alist({"configurable": {"thread_id": name}})]
            lost += len(after) != 1 + 2 * (before is not None)

    for _ in range(rounds):
        names = [f"t{number}" for number in range(8)]
        await asyncio.gather(*[store(saver, name, 50, 40) for name in names])
        sweeps = [one.asweep(expiry=IDLE, batch_size=4) for one in sweepers]
        await asyncio.gather(*sweeps, *[run(name) for name in names[::2]])
        assert await threads_of(saver) == {*names[::2]}
        assert lost == 0
        assert unreachable(url) == {}
        for name in names:
            await saver.adelete_thread(name)
    await elsewhere.dispose()


async def test_a_thread_stays_that_gets_a_checkpoint_after_the_last_look(
    engine: AsyncEngine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a run without a lock: the deletion has a number of checkpoints, and finds one more."""
    saver, delete = AsyncPostgresSaver(engine), deletion.delete_whole_threads
    await store(saver, "returned", 50, 40)
    await store(saver, "idle", 50, 40)
    looked, stored_it = threading.Event(), threading.Event()

    def delete_later(*args: Any) -> SweepReport:
        looked.set()
        assert stored_it.wait(20)
        return delete(*args)

    def sweep() -> SweepReport:
        with PostgresSaver.from_conn_string(url) as elsewhere:
            return elsewhere.sweep(expiry=IDLE)

    monkeypatch.setattr(deletion, "delete_whole_threads", delete_later)
    sweeping = asyncio.create_task(asyncio.to_thread(sweep))
    await asyncio.to_thread(looked.wait, 20)
    await store(saver, "returned", 0)
    stored_it.set()

    assert (await sweeping).threads == 1
    assert await threads_of(saver) == {"returned"}
    assert len([one async for one in saver.alist(None)]) == 3


async def test_in_a_transaction_of_the_callers_it_is_undone_with_it(
    saver: AsyncPostgresSaver, engine: AsyncEngine
) -> None:
    """As every removal; where none can hold its locks, the hook is not even called."""
    await store(saver, "t", 50)
    called: list[Any] = []
    async with engine.connect() as conn:
        within = saver.bind(conn)
        assert (await within.asweep(expiry=IDLE, before_delete=called.append)).threads == 1
        assert await threads_of(within) == set()
        await conn.rollback()
    assert await threads_of(saver) == {"t"}
    assert len(called) == 1
    async with engine.connect() as conn:
        autocommit = await conn.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(WrongTransaction, match="AUTOCOMMIT"):
            await saver.bind(autocommit).asweep(expiry=IDLE, before_delete=called.append)
    assert len(called) == 1


def test_the_sync_twin_takes_plain_functions(sync_saver: PostgresSaver) -> None:
    """And refuses a coroutine function, before anything is deleted."""
    for call in [*stored("a", 50), *stored("b", 50), *stored("c", 1)]:
        sync_saver.put(*call)
    hooked: list[str] = []

    async def never(threads: list[ThreadSummary]) -> None:
        raise AssertionError(threads)

    with pytest.raises(InvalidOption, match="must be plain functions for sweep"):
        sync_saver.sweep(expiry=IDLE, before_delete=never)
    assert len([*sync_saver.list_threads()]) == 3
    report = sync_saver.sweep(
        expiry=IDLE,
        keep=lambda thread: thread.thread_id == "b",
        before_delete=lambda threads: hooked.extend(one.thread_id for one in threads),
    )
    assert (report.threads, hooked) == (1, ["a"])


async def test_metadata_that_python_cant_hold_keeps_its_thread(
    saver: AsyncPostgresSaver, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It could not be shown to the hook; the other threads are deleted, and without a hook it is, too."""
    await store(saver, "deep", 50)
    await store(saver, "plain", 50)
    conn = await asyncpg.connect(url)
    deep = f"""{{"a": {"[" * 2000}{"]" * 2000}}}"""
    await conn.execute("UPDATE checkpoints SET metadata = $1 WHERE thread_id = 'deep'", deep)
    await conn.close()
    hooked: list[Any] = []

    assert (await saver.asweep(expiry=IDLE, before_delete=hooked.append)).threads == 1
    assert [[one.thread_id for one in batch] for batch in hooked] == [["plain"]]
    assert "keeps a thread that has expired: thread 'deep'" in caplog.text
    assert (await saver.asweep(expiry=IDLE)).threads == 1


REFUSED: dict[str, tuple[type[Exception], Callable[[AsyncPostgresSaver], Any]]] = {
    "needs idle or age": (InvalidOption, lambda _: Expiry()),
    "idle must be a timedelta, more than 0, not 30": (InvalidOption, lambda _: Expiry(idle=30)),  # type: ignore[arg-type]
    "age must be a timedelta, more than 0": (InvalidOption, lambda _: Expiry(age=timedelta(0))),
    "quiet must be a timedelta": (InvalidOption, lambda _: Expiry(age=timedelta(1), quiet=None)),  # type: ignore[arg-type]
    "filter must be a dict": (InvalidConfig, lambda _: Expiry(idle=timedelta(1), filter=["a"])),  # type: ignore[arg-type]
    "expiry must be a list of Expiry, at least one, not Expiry": (
        InvalidOption,
        lambda saver: saver.asweep(expiry=IDLE[0]),  # type: ignore[arg-type]
    ),
    r"at least one, not \[\]": (InvalidOption, lambda saver: saver.asweep(expiry=[])),
    "make a call of its own": (InvalidOption, lambda saver: saver.asweep(expiry=IDLE, keep_last=1)),
    "keep and before_delete need expiry": (
        InvalidOption,
        lambda saver: saver.asweep(keep_last=1, keep=lambda _: True),
    ),
    "before_delete must be a function": (
        InvalidOption,
        lambda saver: saver.asweep(expiry=IDLE, before_delete="archive"),  # type: ignore[arg-type]
    ),
    "needs older_than, keep_last or expiry": (InvalidOption, lambda saver: Sweeper(saver, timedelta(1))),
    "every must be a timedelta": (
        InvalidOption,
        lambda saver: Sweeper(saver, 60, expiry=IDLE),  # type: ignore[arg-type]
    ),
}


@pytest.mark.parametrize("message", REFUSED)
async def test_an_option_that_cant_be_used_is_refused(engine: AsyncEngine, message: str) -> None:
    """When it is passed."""
    kind, call = REFUSED[message]

    async def attempt() -> None:
        await call(AsyncPostgresSaver(engine))

    with pytest.raises(kind, match=message):
        await attempt()


async def test_where_citus_has_distributed_the_tables_a_transaction_is_about_one_thread(
    saver: AsyncPostgresSaver,
) -> None:
    """A batch of several is refused, and looks ask for one thread after the other."""
    asked: list[Any] = []

    class Distributed:
        are_distributed, checkpoints_name = True, "checkpoints"
        expired_threads = "expired_threads"

    class Recording:
        def fetch(self, statement: str, binds: dict[str, Any]) -> list[Any]:
            asked.append((statement, binds["thread_id"], binds["filters"]))
            return []

    found = expiry._expired_among(Recording(), Distributed(), Expiration.of(IDLE), ["a", "b"])  # type: ignore[arg-type]
    assert found == []
    assert asked == [("expired_threads", "a", [None]), ("expired_threads", "b", [None])]
    two = [expiry.ExpiredThread(name, None, None, 1, "1", "1", 0) for name in ("a", "b")]
    with pytest.raises(Refused, match="Citus has distributed the tables while"):
        expiry.delete_expired(Recording(), Distributed(), Expiration.of(IDLE), two)  # type: ignore[arg-type]


SOON = timedelta(milliseconds=50)


async def eventually(true: Callable[[], Any]) -> None:
    for _ in range(400):
        outcome = true()
        if await outcome if asyncio.iscoroutine(outcome) else outcome:
            return
        await asyncio.sleep(0.025)
    raise AssertionError("it did not come true")


async def test_a_sweeper_sweeps_again_and_again_until_the_block_ends(saver: AsyncPostgresSaver) -> None:
    """Several at once do no harm; after the block nothing is deleted any more."""
    async with Sweeper(saver, SOON, expiry=IDLE), Sweeper(saver, SOON, expiry=IDLE):
        for number in range(3):
            await store(saver, f"t{number}", 50)

            async def is_gone() -> bool:
                return await threads_of(saver) == set()

            await eventually(is_gone)
    await store(saver, "later", 50)
    await asyncio.sleep(0.3)
    assert await threads_of(saver) == {"later"}
    assert [task for task in asyncio.all_tasks() if "_sweep_awaiting" in repr(task)] == []


async def test_a_sweeper_logs_an_error_and_goes_on(saver: AsyncPostgresSaver, caplog: pytest.LogCaptureFixture) -> None:
    """Of the hook, or of the server; it says what it has swept."""
    await store(saver, "t", 50)
    failures = [ConnectionError("the archive is away")] * 2

    def before_delete(_: list[ThreadSummary]) -> None:
        if failures:
            raise failures.pop()

    caplog.set_level(logging.INFO, "checkpoint_store")
    async with Sweeper(saver, SOON, expiry=IDLE, before_delete=before_delete):
        await eventually(lambda: "swept 1 checkpoints of 1 threads" in caplog.text)
    assert caplog.text.count("a sweep failed; the next one does its work") == 2
    assert "the archive is away" in caplog.text


async def test_a_sweeper_goes_on_after_another_tasks_cancellation(
    saver: AsyncPostgresSaver, sync_saver: PostgresSaver, caplog: pytest.LogCaptureFixture
) -> None:
    """Which the hook has awaited; in a thread after SystemExit too, which ends a thread in silence."""
    await store(saver, "t", 50)
    failures = [True]

    async def before_delete(_: list[ThreadSummary]) -> None:
        if failures:
            failures.pop()
            other = asyncio.ensure_future(asyncio.sleep(10))
            other.cancel()
            await other

    async def is_gone() -> bool:
        return await threads_of(saver) == set()

    async with Sweeper(saver, SOON, expiry=IDLE, before_delete=before_delete):
        await eventually(is_gone)
    assert "a sweep failed" in caplog.text

    await store(saver, "t", 50)
    exits = [True]

    def exit_once(_: list[ThreadSummary]) -> None:
        if exits:
            exits.pop()
            raise SystemExit

    with Sweeper(sync_saver, SOON, expiry=IDLE, before_delete=exit_once):
        await eventually(is_gone)


async def test_a_sweeper_stops_between_two_batches(saver: AsyncPostgresSaver) -> None:
    """A hook that is under way is waited for; its threads stay, as those of later batches do."""
    for number in range(4):
        await store(saver, f"t{number}", 50)
    called, ended = asyncio.Event(), []

    async def before_delete(threads: list[ThreadSummary]) -> None:
        called.set()
        await asyncio.sleep(0.2)
        ended.append(threads[0].thread_id)

    async with Sweeper(saver, SOON, expiry=IDLE, before_delete=before_delete, batch_size=1):
        await called.wait()
    assert ended == ["t0"]
    assert await threads_of(saver) == {"t0", "t1", "t2", "t3"}


async def test_a_sweeper_does_not_wait_for_ever(saver: AsyncPostgresSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that hangs is cancelled; so is one when the block's own task is cancelled while it waits."""
    monkeypatch.setattr("checkpoint_store.expiry._GRACE_SECONDS", 0.2)
    await store(saver, "t", 50)
    called, ended = asyncio.Event(), []

    async def before_delete(_: list[ThreadSummary]) -> None:
        called.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def service() -> None:
        async with Sweeper(saver, SOON, expiry=IDLE, before_delete=before_delete):
            await called.wait()

    began = time.monotonic()
    await service()
    assert ended == [True]
    called.clear()
    monkeypatch.setattr("checkpoint_store.expiry._GRACE_SECONDS", 60)
    running = asyncio.create_task(service())
    await called.wait()
    await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(lambda: len(ended) == 2)
    assert time.monotonic() - began < 20
    assert await threads_of(saver) == {"t"}


async def test_a_sweeper_needs_a_saver_on_an_engine(engine: AsyncEngine) -> None:
    """A bound one would use the block's session at the same time as the block, and delete in its transaction."""
    async with engine.connect() as conn:
        for saver in (AsyncPostgresSaver(conn), AsyncPostgresSaver(engine).bind(conn), engine):
            with pytest.raises(InvalidOption, match="on an engine, not a bound one"):
                Sweeper(saver, SOON, expiry=IDLE)  # type: ignore[arg-type]


async def test_a_sweeper_of_sync_code_is_refused_on_the_savers_loop(engine: AsyncEngine) -> None:
    """Whose thread the end of the block would block; from another thread an async saver is as good."""
    saver = AsyncPostgresSaver(engine)
    await store(saver, "t", 50)
    with pytest.raises(WrongThread), Sweeper(saver, SOON, expiry=IDLE):
        pass

    def sweep() -> None:
        with Sweeper(saver, SOON, expiry=IDLE):
            while [*saver.list_threads()]:
                time.sleep(0.025)

    await asyncio.wait_for(asyncio.to_thread(sweep), 20)


def test_a_sweeper_of_sync_code_works_in_a_thread_and_stops(sync_saver: PostgresSaver) -> None:
    """Promptly, however long the interval is."""
    for call in stored("t", 50):
        sync_saver.put(*call)
    with Sweeper(sync_saver, SOON, expiry=IDLE):
        for _ in range(400):
            if not [*sync_saver.list_threads()]:
                break
            time.sleep(0.025)
        else:
            raise AssertionError("it was not swept")
    began = time.monotonic()
    with Sweeper(sync_saver, timedelta(days=365), expiry=IDLE):
        pass
    seldom = Sweeper(sync_saver, timedelta.max, expiry=IDLE)._waits()
    assert [next(seldom), next(seldom)][1] <= threading.TIMEOUT_MAX
    assert time.monotonic() - began < 5
