"""A streaming standby takes the reads that may lag, and no run ever goes on from anything but the newest."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.conformance import validate
from langgraph.checkpoint.conformance.initializer import RegisteredCheckpointer
from langgraph.checkpoint.memory import InMemorySaver
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver
from checkpoint_store.database import replication_lag
from checkpoint_store.database.replication_lag import ReplicationLag
from checkpoint_store.errors import InvalidOption, UnusableConnection
from checkpoint_store.transfer import acopy_threads, copy_threads

GRAPH: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


def asynchronous(url: str) -> AsyncEngine:
    return create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))


def synchronous(url: str) -> Engine:
    return create_engine(make_url(url).set(drivername="postgresql+psycopg"))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the replica is, is asked whenever it matters."""
    monkeypatch.setattr(replication_lag, "ASK_SECONDS", 0)


class Process:
    """A saver on engines of its own, which knows nothing of what others write; and how often its replica was asked."""

    def __init__(self, pair: Any) -> None:
        self.primary, self.standby = asynchronous(pair.primary), asynchronous(pair.standby)
        self.reads = 0
        event.listen(self.standby.sync_engine, "before_cursor_execute", self._note)
        self.saver = AsyncPostgresSaver(self.primary, read_engine=self.standby, share_pages=True)

    def _note(self, *call: Any) -> None:
        self.reads += "checkpoints" in call[2]

    async def dispose(self) -> None:
        await self.primary.dispose()
        await self.standby.dispose()


@pytest.fixture
async def here(pair: Any) -> AsyncIterator[Process]:
    process = Process(pair)
    yield process
    await process.dispose()


@pytest.fixture
async def elsewhere(pair: Any) -> AsyncIterator[Process]:
    process = Process(pair)
    yield process
    await process.dispose()


async def step(saver: AsyncPostgresSaver, number: int, config: Any = GRAPH) -> Any:
    versions = {"n": f"{number + 1}", "text": f"{number + 1}"}
    values = {"n": number, "text": [f"{number} " + "x" * 3000] * 10}
    checkpoint: Any = {**empty_checkpoint(), "id": f"{number:06}", "channel_values": values}
    stored = await saver.aput(config, checkpoint | {"channel_versions": versions}, {"step": number}, versions)
    await saver.aput_writes(stored, [("n", number)], f"task-{number}")
    return stored


async def put(saver: Any, thread_id: str) -> None:
    config = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    await saver.aput(config, empty_checkpoint(), {}, {})


async def count(saver: AsyncPostgresSaver, thread_id: str) -> int:
    return len([found async for found in saver.alist({"configurable": {"thread_id": thread_id}})])


async def numbers(saver: AsyncPostgresSaver, **options: Any) -> list[int]:
    return [found.checkpoint["channel_values"]["n"] async for found in saver.alist(GRAPH, **options)]


async def test_what_this_process_wrote_it_reads_however_far_the_replica_is_behind(pair: Any, here: Process) -> None:
    """With the replay paused: by id, newest, history, delta channels."""
    pair.pause()
    first = await step(here.saver, 0)
    second = await step(here.saver, 1, first)

    assert await numbers(here.saver) == [1, 0]
    for config, number in ((GRAPH, 1), (first, 0), (second, 1)):
        found = await here.saver.aget_tuple(config)
        assert found is not None
        assert found.checkpoint["channel_values"]["n"] == number
        assert found.pending_writes == [(f"task-{number}", "n", number)]
    history = await here.saver.aget_delta_channel_history(config=second, channels=["n"])
    assert history["n"] == {"writes": [("task-0", "n", 0)], "seed": 0}
    assert pair.on_standby("SELECT count(*) FROM checkpoints") == 0


@pytest.mark.parametrize("pipeline", [False, True])
async def test_what_other_savers_on_the_engine_wrote_is_read_too(pair: Any, pipeline: bool) -> None:
    """Those without a replica note for those that have one; also what was written before there was any."""
    pair.pause()
    primary, standby = asynchronous(pair.primary), asynchronous(pair.standby)
    pipe = AsyncPipeline(primary) if pipeline else False
    writer = AsyncPostgresSaver(primary, pipe)
    await put(writer, "before")
    reader = AsyncPostgresSaver(primary, pipe, read_engine=standby)
    assert await count(reader, "before") == 1
    # Of those that share a commit, some by the one and some by the other.
    await asyncio.gather(*[put(reader if number % 3 else writer, f"t{number}") for number in range(30)])
    assert [await count(reader, f"t{number}") for number in range(30)] == [1] * 30
    await writer.acopy_thread("t0", "copy")
    assert await count(reader, "copy") == 1
    await primary.dispose()
    await standby.dispose()


@pytest.mark.parametrize("sync", [False, True])
async def test_threads_of_another_saver_are_copied_to_one_with_a_replica(pair: Any, sync: bool) -> None:
    """In a transaction of the primary's, and read from there."""
    pair.pause()
    other = InMemorySaver()
    await put(other, "t")
    if sync:
        engines = synchronous(pair.primary), synchronous(pair.standby)
        with closing(PostgresSaver(engines[0], read_engine=engines[1])) as saver:
            assert copy_threads(other, saver).checkpoints == 1
            assert len(list(saver.list(GRAPH))) == 1
        for engine in engines:
            engine.dispose()
        return
    process = Process(pair)
    assert (await acopy_threads(other, process.saver)).checkpoints == 1
    assert await count(process.saver, "t") == 1
    await process.dispose()


async def test_the_newest_is_the_newest_whoever_wrote_it(pair: Any, here: Process, elsewhere: Process) -> None:
    """Another process goes on from what was just written here, and finds it by id too; only lists lag."""
    first = await step(here.saver, 0)
    pair.catch_up()
    pair.pause()
    second = await step(here.saver, 1, first)
    await here.saver.aput_writes(first, [("late", 1)], "task-late")

    newest = await elsewhere.saver.aget_tuple(GRAPH)
    assert newest is not None
    assert newest.config == second
    assert (await elsewhere.saver.aget_tuple(second)) == newest
    # The replica has this one, but none that is newer: there may be writes that it lacks, and there are.
    found = await elsewhere.saver.aget_tuple(first)
    assert found is not None
    assert {task for task, *_ in found.pending_writes or ()} == {"task-0", "task-late"}
    history = await elsewhere.saver.aget_delta_channel_history(config=second, channels=["n"])
    assert history["n"]["seed"] == 0
    assert await numbers(elsewhere.saver) == [0]


async def test_what_is_settled_is_read_from_the_replica(pair: Any, here: Process) -> None:
    """Once it has caught up, all that may be: nothing of it is asked of the primary."""
    stored = [GRAPH]
    for number in range(4):
        stored.append(await step(here.saver, number, stored[-1]))
    asked: list[str] = []
    event.listen(here.primary.sync_engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
    pair.catch_up()
    await numbers(here.saver)  # has it noticed that the replica is there
    asked.clear()
    here.reads = 0

    assert await numbers(here.saver) == [3, 2, 1, 0]
    assert (await here.saver.aget(stored[1]) or {})["channel_values"]["n"] == 0
    assert (await here.saver.aget_delta_channel_history(config=stored[4], channels=["n"]))["n"]["seed"] == 2
    assert [thread.thread_id async for thread in here.saver.alist_threads()] == ["t"]
    assert (await here.saver.aget_thread_stats("t")).tables["checkpoints"].rows == 4
    assert here.reads >= 6
    assert asked == []

    await here.saver.aget(GRAPH)
    await here.saver.aget(stored[4])
    assert len(asked) == 2, "the newest, and what may still be worked on"


async def test_a_chat_reads_its_own_writes_while_the_replica_comes_and_goes(pair: Any, here: Process) -> None:
    """Whatever the lag, every answer is that of one server; and the replica has given many of them."""
    chance = random.Random(1)
    config = GRAPH
    for number in range(40):
        config = await step(here.saver, number, config)
        if number % 5 == 0:
            chance.choice([pair.pause, pair.resume])()
        earlier: Any = {"configurable": {**GRAPH["configurable"], "checkpoint_id": f"{chance.randint(0, number):06}"}}
        assert (await here.saver.aget_tuple(earlier)).config == earlier  # type: ignore[union-attr]
        assert (await here.saver.aget(GRAPH) or {})["channel_values"]["n"] == number
        assert await numbers(here.saver, limit=3) == list(range(number, max(number - 3, -1), -1))
        if number == 30:
            pair.resume()
            pair.catch_up()
    assert here.reads > 0


async def test_deleted_is_deleted(pair: Any, here: Process) -> None:
    """A thread that is gone does not come back from the replica; nor from a copy or a sweep."""
    await step(here.saver, 1, await step(here.saver, 0))
    pair.catch_up()
    pair.pause()
    await here.saver.adelete_thread("t")

    assert await numbers(here.saver) == []
    assert await here.saver.aget(GRAPH) is None
    assert pair.on_standby("SELECT count(*) FROM checkpoints") == 2


async def test_the_conformance_suite_passes_with_a_replica_that_stands_still(pair: Any, here: Process) -> None:
    """LangGraph's own suite, on a saver whose replica has nothing of what the suite stores."""
    pair.pause()

    async def saver() -> AsyncIterator[AsyncPostgresSaver]:
        yield here.saver

    report = await validate(RegisteredCheckpointer("replica", saver))

    detected = [result for name, result in report.results.items() if result.detected and name != "list"]
    assert len(detected) >= 4
    for result in detected:
        assert result.passed, "\n".join(result.failures)


async def test_without_the_replica_the_primary_answers(
    pair: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that can't be reached is left alone for a while, which is logged once."""
    engine, nowhere = asynchronous(pair.primary), create_async_engine("postgresql+asyncpg://localhost:1/none")
    saver = AsyncPostgresSaver(engine, read_engine=nowhere)
    other = AsyncPostgresSaver(asynchronous(pair.primary))
    stored = await step(other, 0)
    await step(other, 1, stored)

    assert await numbers(saver) == [1, 0]
    assert await numbers(saver) == [1, 0]
    assert len([record for record in caplog.records if "primary is asked instead" in record.message]) == 1
    for each in (engine, nowhere, other._backend._engine):  # type: ignore[attr-defined]
        await each.dispose()


@pytest.fixture(params=["sync engines", "async engines", "from a URL"])
def sync_saver(pair: Any, request: pytest.FixtureRequest) -> Iterator[tuple[PostgresSaver, list[str]]]:
    """A saver for sync code, and what its replica is asked."""
    seen: list[str] = []
    standby = synchronous(pair.standby) if request.param == "sync engines" else asynchronous(pair.standby)
    listened = standby if isinstance(standby, Engine) else standby.sync_engine
    event.listen(listened, "before_cursor_execute", lambda *call: seen.append(call[2]))
    if isinstance(standby, Engine):
        engine = synchronous(pair.primary)
        yield PostgresSaver(engine, read_engine=standby), seen
        engine.dispose()
        standby.dispose()
    elif request.param == "async engines":
        saver = PostgresSaver(asynchronous(pair.primary), read_engine=standby)
        yield saver, seen
        saver.close()
    else:
        with PostgresSaver.from_conn_string(pair.primary, read_engine=standby) as saver:
            yield saver, seen


def test_sync_savers_read_there_too(pair: Any, sync_saver: tuple[PostgresSaver, list[str]]) -> None:
    """The same from threads, on engines of either kind."""
    saver, seen = sync_saver
    checkpoint: Any = {**empty_checkpoint(), "channel_values": {"n": 1}, "channel_versions": {"n": "1"}}
    pair.pause()
    saver.put(GRAPH, checkpoint, {}, {"n": "1"})
    assert len(list(saver.list(GRAPH))) == 1
    pair.resume()
    pair.catch_up()
    list(saver.list(GRAPH))
    seen.clear()

    assert len(list(saver.list(GRAPH))) == 1
    assert len(seen) == 1


async def test_an_engine_that_does_not_fit_is_refused(url: str) -> None:
    """A replica is read as the primary is: by the same kind of engine, and never in a caller's transaction."""
    engine, sync = asynchronous(url), synchronous(url)
    for unfit in (sync, "postgresql://replica", 42):
        with pytest.raises(UnusableConnection, match=r"read_engine is .* AsyncEngine, as conn is"):
            AsyncPostgresSaver(engine, read_engine=unfit)  # type: ignore[arg-type]
    async with engine.connect() as conn:
        with pytest.raises(InvalidOption, match="read_engine can't be used with a connection"):
            AsyncPostgresSaver(conn, read_engine=engine)
    await engine.dispose()
    sync.dispose()


def test_what_is_not_known_to_be_there_is_not_looked_for_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of writes forgets nothing too early, and does not grow without end."""
    monkeypatch.setattr(replication_lag, "MOST_THREADS", 3)
    written = ReplicationLag()
    written.note(["a"])
    written.ask(lambda: 100, lambda: 99)
    written.note(["a", "b"])
    written.ask(lambda: 0, lambda: 100)  # the position taken before the second write
    assert [written.has(thread) for thread in "abc"] == [True, True, False]
    written.ask(lambda: 200, lambda: None)
    written.ask(lambda: 0, lambda: 300)
    assert [written.has(thread) for thread in "abc"] == [False, False, False]
    written.note(["a", "b", "c", "d"])
    assert written.has("never written")
    written.ask(lambda: 400, lambda: 400)
    assert not written.has("a")
    written.note(None)
    assert written.has("a")


def test_servers_are_not_asked_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far the replica is, is asked now and then, not with every read."""
    monkeypatch.setattr(replication_lag, "ASK_SECONDS", 1000)
    written, asked = ReplicationLag(), []
    written.note(["a"])
    for _ in range(5):
        written.ask(lambda: asked.append(1) or 100, lambda: 0)  # type: ignore[func-returns-value]
    assert len(asked) == 1
