"""Threads copied from other savers: as they were, each as a whole or not at all, however often it is begun again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from operator import add
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver as AsyncStockSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command, Send, interrupt
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.errors import InvalidConfig, InvalidOption, NotSetUp, TransferError, WrongThread
from checkpoint_store.transfer import TransferReport, acopy_threads, copy_threads

Saver = BaseCheckpointSaver[Any]
MakeDatabase = Callable[[], str]

THREAD: Any = {"configurable": {"thread_id": "t"}}


# --- savers to copy from ---


@asynccontextmanager
async def in_memory(_: Path, __: MakeDatabase) -> AsyncIterator[Saver]:
    yield InMemorySaver()


@asynccontextmanager
async def sqlite(folder: Path, _: MakeDatabase) -> AsyncIterator[Saver]:
    with SqliteSaver.from_conn_string(str(folder / f"{uuid.uuid4()}.sqlite")) as saver:
        yield saver


@asynccontextmanager
async def async_sqlite(folder: Path, _: MakeDatabase) -> AsyncIterator[Saver]:
    async with AsyncSqliteSaver.from_conn_string(str(folder / f"{uuid.uuid4()}.sqlite")) as saver:
        yield saver


@asynccontextmanager
async def stock(_: Path, make_database: MakeDatabase) -> AsyncIterator[Saver]:
    with StockSaver.from_conn_string(make_database()) as saver:
        saver.setup()
        yield saver


@asynccontextmanager
async def async_stock(_: Path, make_database: MakeDatabase) -> AsyncIterator[Saver]:
    async with AsyncStockSaver.from_conn_string(make_database()) as saver:
        await saver.setup()
        yield saver


@asynccontextmanager
async def ours(_: Path, make_database: MakeDatabase) -> AsyncIterator[Saver]:
    async with AsyncPostgresSaver.from_conn_string(make_database(), schema="elsewhere") as saver:
        await saver.setup()
        yield saver


SOURCES = [in_memory, sqlite, async_sqlite, stock, async_stock, ours]


def pairs(*fast: tuple[Any, str]) -> list[Any]:
    """All pairs of a source and a twin; those that are not named are slow."""
    return [
        pytest.param((source, twin), id=f"{source.__name__}-{twin}", marks=[] if (source, twin) in fast else SLOW)
        for source in SOURCES
        for twin in ("sync", "async")
    ]


SLOW = [pytest.mark.slow]
few = pytest.mark.parametrize(
    "pair", pairs((in_memory, "sync"), (async_sqlite, "async"), (stock, "sync")), indirect=True
)
twins = pytest.mark.parametrize(
    "pair", [(in_memory, "sync"), (in_memory, "async")], ids=["sync", "async"], indirect=True
)


@pytest.fixture(
    params=pairs(
        (in_memory, "async"),
        (sqlite, "sync"),
        (sqlite, "async"),
        (async_sqlite, "async"),
        (stock, "sync"),
        (async_stock, "async"),
        (ours, "sync"),
    )
)
def pair(request: pytest.FixtureRequest) -> Any:
    """What to copy from, and by which of the twins."""
    return request.param


@pytest.fixture
async def source(pair: Any, tmp_path: Path, make_database: MakeDatabase) -> AsyncIterator[Saver]:
    """A saver to copy from; its sync methods work from threads other than the loop's."""
    async with pair[0](tmp_path, make_database) as saver:
        yield saver


@pytest.fixture
def copied(pair: Any, saver: AsyncPostgresSaver, sync_saver: PostgresSaver) -> Callable[..., Any]:
    """Copies into the database under test."""

    async def copied(source: Saver, *args: Any, **options: Any) -> TransferReport:
        if pair[1] == "async":
            return await acopy_threads(source, saver, *args, **options)
        return await asyncio.to_thread(copy_threads, source, sync_saver, *args, **options)

    return copied


# --- what they hold ---


def listed(saver: Saver, thread_id: str | None = None) -> list[Any]:
    """All checkpoints with all that belongs to them, in one order, in a form that tells types apart."""
    found = list(saver.list({"configurable": {"thread_id": thread_id}} if thread_id else None))
    # SQLite keeps values by checkpoint; where they are kept by version, all checkpoints that name one have it.
    snapshots = {
        (place(one), channel, version): one.checkpoint["channel_values"][channel]
        for one in found
        for channel, version in one.checkpoint["channel_versions"].items()
        if isinstance(one.checkpoint["channel_values"].get(channel), _DeltaSnapshot)
    }
    for one in found:
        for channel, version in one.checkpoint["channel_versions"].items():
            if (place(one), channel, version) in snapshots:
                one.checkpoint["channel_values"].setdefault(channel, snapshots[place(one), channel, version])
    return sorted(map(told, found), key=lambda found: found[:3])


def place(found: CheckpointTuple) -> tuple[str, str]:
    return str(found.config["configurable"]["thread_id"]), found.config["configurable"]["checkpoint_ns"]


def told(found: CheckpointTuple) -> tuple[Any, ...]:
    named = found.config["configurable"]
    parent = (found.parent_config or {"configurable": {}})["configurable"].get("checkpoint_id")
    return (
        str(named["thread_id"]),
        named["checkpoint_ns"],
        named["checkpoint_id"],
        parent,
        exactly(found.checkpoint),
        exactly(found.metadata),
        exactly([tuple(write) for write in found.pending_writes or []]),
    )


def exactly(value: Any) -> Any:
    """A value with all its types told: 1, 1.0 and True differ in it; dicts and sets have no order."""
    if isinstance(value, dict):
        return dict, frozenset((exactly(key), exactly(item)) for key, item in value.items())
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(exactly, value))
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(exactly, value))
    return type(value), repr(value) if not hasattr(value, "__dict__") else exactly(vars(value))


def extend(lines: list[Any], added: Any) -> list[Any]:
    return [*lines, *(line for part in added for line in part)]


class Trip(MessagesState):
    log: Annotated[list[Any], add]
    lines: Annotated[list[str], DeltaChannel(extend, list, snapshot_frequency=100)]
    often: Annotated[list[str], DeltaChannel(extend, list, snapshot_frequency=2)]


def travelling(saver: Saver) -> Pregel:
    """Branches that end at different times, a person who is asked in the first of them, in a subgraph; sends."""

    def ask(state: Trip) -> Any:
        answer = interrupt({"text": "which seat?", "so far": len(state["log"])})
        return {"log": [answer], "lines": [f"seat {answer}"], "often": [f"seat {answer}"]}

    inner = StateGraph(Trip)
    inner.add_node("look", lambda _: {"log": [("looked", b"\x00")], "lines": ["looked"], "often": ["looked"]})
    inner.add_node("ask", ask)
    inner.add_edge(START, "look")
    inner.add_edge("look", "ask")

    graph = StateGraph(Trip)
    graph.add_node("a_flight", inner.compile())
    graph.add_node("b_choice", lambda _: {"lines": [f"paid {interrupt('how?')}"], "messages": [AIMessage("paid")]})
    graph.add_node("c_hotel", lambda _: {"log": [{"room": 7}], "lines": ["a room"], "often": ["a room"]})
    graph.add_node("each", lambda sent: {"log": [sent], "lines": [f"sent {sent}"]})
    graph.add_node("done", lambda state: {"messages": [AIMessage(f"{len(state['lines'])} lines")], "often": ["done"]})
    for node in ("a_flight", "b_choice", "c_hotel"):
        graph.add_edge(START, node)
    graph.add_edge(["a_flight", "b_choice", "c_hotel"], "done")
    graph.add_conditional_edges("done", lambda _: [Send("each", n) for n in range(3)], ["each"])
    return graph.compile(checkpointer=saver)


def answer_all(graph: Pregel, config: Any) -> Any:
    """Answer what is asked, whichever is asked first."""
    asked = graph.get_state(config).interrupts
    return graph.invoke(Command(resume={question.id: f"the answer to {question.value}" for question in asked}), config)


def travel(saver: Saver, thread_id: str, trips: int = 2) -> Any:
    """Trips to their ends, then one whose questions are open; with a fork in the thread's history."""
    graph, config = travelling(saver), {"configurable": {"thread_id": thread_id}}
    for trip in range(trips):
        graph.invoke({"messages": [HumanMessage(f"trip {trip}")], "log": [trip], "lines": [], "often": []}, config)
        answer_all(graph, config)
    earlier = next(found for found in graph.get_state_history(config) if "done" in found.next)
    graph.update_state(earlier.config, {"log": ["another branch"]}, as_node="c_hotel")
    graph.invoke({"messages": [HumanMessage("and one more")], "log": ["more"]}, config)
    return graph


# --- whole threads ---


async def test_a_thread_arrives_as_it_was(source: Saver, sync_saver: PostgresSaver, copied: Any) -> None:
    """Every saver's every checkpoint: namespaces, forks, parents, values, metadata, writes in their order, types."""
    await asyncio.to_thread(travel, source, "t")
    before = await asyncio.to_thread(listed, source)
    seen: list[TransferReport] = []

    report = await copied(source, on_progress=seen.append)

    after = await asyncio.to_thread(listed, sync_saver)
    assert after == before
    assert len({namespace for _, namespace, *_ in after}) > 1
    writes = sum(len(writes[1]) for *_, writes in before)
    assert report == TransferReport(threads=1, checkpoints=len(before), writes=writes)
    assert seen == [report]
    assert await asyncio.to_thread(listed, source) == before


@few
async def test_a_graph_goes_on_after_the_move(source: Saver, sync_saver: PostgresSaver, copied: Any) -> None:
    """In the middle of a step, half of it done: it asks the same, and comes to the same end as where it began."""
    await asyncio.to_thread(travel, source, "t")
    await copied(source)
    graphs = travelling(source), travelling(sync_saver)

    async def both(method: str, *args: Any, **options: Any) -> list[Any]:
        return [await asyncio.to_thread(getattr(graph, method), *args, **options) for graph in graphs]

    here, there = await both("get_state", THREAD, subgraphs=True)
    assert here.interrupts == there.interrupts != ()
    assert [task.state and task.state.values for task in here.tasks] == [
        task.state and task.state.values for task in there.tasks
    ]
    assert exactly(here.values) == exactly(there.values)
    for _ in range(2):
        ends = [await asyncio.to_thread(answer_all, graph, THREAD) for graph in graphs]
        rebuilt = [state.values for state in await both("get_state", THREAD)]
        assert [without_ids(values) for values in (*ends, *rebuilt)] == [without_ids(ends[0])] * 4
        await both("invoke", {"messages": [HumanMessage("again")], "lines": ["x"]}, THREAD)


def without_ids(values: Any) -> Any:
    """A state but for the ids of messages, which no two runs share."""
    return exactly({**values, "messages": [(type(message), message.content) for message in values["messages"]]})


async def test_paged_values_arrive_whole(engine: AsyncEngine, make_database: MakeDatabase) -> None:
    """Between two databases that share pages: values stay what they are, and the copy has pages of its own."""
    async with ours(Path(), make_database) as source:
        lines = [str(uuid.uuid4()) * 10 for _ in range(300)]
        for count in (100, 200, 300):
            await put(source, "t", {"lines": lines[:count], "count": count})
        target = AsyncPostgresSaver(engine)

        await acopy_threads(source, target)

        found = [found.checkpoint["channel_values"] async for found in target.alist(THREAD)]
        assert found == [{"lines": lines[:count], "count": count} for count in (300, 200, 100)]
        async with engine.connect() as conn:
            sizes = await conn.exec_driver_sql("SELECT count(*), sum(length(page)) FROM checkpoint_pages")
            pages, size = sizes.one()
        assert pages > 10
        assert size < 1.3 * sum(map(len, lines))


async def test_a_source_with_a_pool_of_one_connection_is_enough(
    make_database: MakeDatabase, saver: AsyncPostgresSaver
) -> None:
    """The stock saver holds its connection while it is listed; nothing else is asked of its pool meanwhile."""
    url = make_database()
    options = {"autocommit": True, "row_factory": dict_row, "prepare_threshold": 0}
    async with AsyncConnectionPool(url, min_size=1, max_size=1, kwargs=options, open=False) as pool:
        source = AsyncStockSaver(pool)
        await source.setup()
        await asyncio.to_thread(travel, source, "t", 1)

        await acopy_threads(source, saver)

        assert await asyncio.to_thread(listed, source) == await asyncio.to_thread(listed, saver)


def test_ours_reads_a_database_of_the_stock_saver_that_was_never_migrated(
    make_database: MakeDatabase, sync_saver: PostgresSaver
) -> None:
    """With no right but SELECT; so it is copied page by page, where the stock saver reads whole lists into memory."""
    url, role = make_database(), f"reader_{uuid.uuid4().hex}"
    read_only = {"connect_args": {"server_settings": {"role": role}}}
    with StockSaver.from_conn_string(url) as old, PostgresSaver.from_conn_string(url, **read_only) as reader:
        old.setup()
        travel(old, "t")
        old.conn.execute(f"CREATE ROLE {role}")
        old.conn.execute(f"GRANT SELECT ON checkpoints, checkpoint_blobs, checkpoint_writes TO {role}")
        try:
            copy_threads(reader, sync_saver)
        finally:
            old.conn.execute(f"DROP OWNED BY {role}")
            old.conn.execute(f"DROP ROLE {role}")

        assert listed(sync_saver) == listed(old)


# --- anything a saver can hold ---

values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
    | st.binary(max_size=8)
    | st.uuids()
    | st.datetimes()
    | st.builds(HumanMessage, st.text("ab"), id=st.text("ab"))
    | st.builds(ToolMessage, st.text("ab"), tool_call_id=st.text("ab")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=6,
).filter(lambda value: repr(value) not in {"-0.0", "inf", "-inf"})  # those the stock saver changes or refuses
channels = st.sampled_from(["messages", "files", "count", "branch:to:a"])
paths = st.sampled_from(["", "~__pregel_pull, a", "~__pregel_pull, b", "~__pregel_push, 1, a", "~~0000000001"])
tasks = st.tuples(
    st.uuids().map(str),
    paths,
    st.lists(
        st.lists(st.tuples(channels | st.sampled_from([*WRITES_IDX_MAP]), values), min_size=1, max_size=3), max_size=2
    ),
)


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The calls that store a thread: chains and forks in up to three namespaces, versions of any kind, writes."""
    made: list[dict[str, Any]] = []
    to_version = draw(st.sampled_from([str, int, lambda number: f"{number:032}.{number:016}"]))
    for number in range(draw(st.integers(1, 6))):
        namespace = draw(st.sampled_from(["", "sub:1", "sub:1|inner:2"]))
        parent = draw(st.sampled_from([None, *[step for step in made if step["namespace"] == namespace]]))
        before: Any = parent["checkpoint"] if parent else {"channel_values": {}, "channel_versions": {}}
        new = draw(st.dictionaries(channels, values | values.map(_DeltaSnapshot) | st.none(), max_size=3))
        versions = {channel: to_version(10 * number + place) for place, channel in enumerate(new)}
        held = {channel: value for channel, value in {**before["channel_values"], **new}.items() if value is not None}
        checkpoint = {
            **empty_checkpoint(),
            "v": 4,
            "id": str(uuid6()),
            "channel_values": held,
            "channel_versions": {**before["channel_versions"], **versions},
            "versions_seen": {"node": versions},
        }
        made.append(
            {
                "namespace": namespace,
                "parent": parent["checkpoint"]["id"] if parent else draw(st.sampled_from([None, "0 unknown"])),
                "checkpoint": checkpoint,
                "metadata": {"source": "loop", "step": number, "parents": {"": str(number)}},
                "new_versions": versions,
                "tasks": draw(st.lists(tasks, max_size=3, unique_by=lambda task: task[0])),
            }
        )
    return made


def store(saver: Saver, thread_id: str, history: list[dict[str, Any]]) -> None:
    for step in history:
        named = {"thread_id": thread_id, "checkpoint_ns": step["namespace"], "checkpoint_id": step["parent"]}
        config: Any = {"configurable": {name: value for name, value in named.items() if value is not None}}
        stored = saver.put(config, step["checkpoint"], step["metadata"], step["new_versions"])
        for task_id, path, calls in step["tasks"]:
            for writes in calls:
                saver.put_writes(stored, writes, task_id, path)


@pytest.mark.parametrize("examples", [12, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "pair", [(in_memory, ""), (sqlite, ""), (stock, "")], ids=lambda pair: pair[0].__name__, indirect=True
)
async def test_whatever_a_saver_holds_arrives(source: Saver, sync_saver: PostgresSaver, examples: int) -> None:
    """Generated threads, each stored in the source and copied: both savers list the same, and rebuild the same."""
    checkpoints = 0

    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
    )
    @given(histories())
    def check(history: list[dict[str, Any]]) -> None:
        nonlocal checkpoints
        thread_id = str(uuid.uuid4())
        store(source, thread_id, history)

        report = copy_threads(source, sync_saver, [thread_id])

        before = listed(source, thread_id)
        assert listed(sync_saver, thread_id) == before
        for thread, namespace, checkpoint_id, *_ in before:
            at: Any = {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}
            rebuilt = [
                saver.get_delta_channel_history(config={"configurable": at}, channels=["messages", "files"])
                for saver in (source, sync_saver)
            ]
            assert exactly(rebuilt[0]) == exactly(rebuilt[1])
        assert (report.threads, report.checkpoints) == (1, len(history))
        assert report.writes == sum(len(writes[1]) for *_, writes in before)
        checkpoints += len(history)

    await asyncio.to_thread(check)
    assert checkpoints > examples


# --- what is done, and what is left to do ---


async def put(saver: Saver, thread_id: str, held: dict[str, Any], parent: Any = None) -> Any:
    """Store a checkpoint."""
    checkpoint: Any = {
        **empty_checkpoint(),
        "id": str(uuid6()),
        "channel_values": held,
        "channel_versions": {channel: f"1.{uuid.uuid4()}" for channel in held},
    }
    config = parent or {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    return await saver.aput(config, checkpoint, {}, checkpoint["channel_versions"])


@few
async def test_a_second_pass_finds_everything_there(source: Saver, sync_saver: PostgresSaver, copied: Any) -> None:
    """Called again it skips what it has copied, counted to the last write, and changes nothing."""
    await asyncio.to_thread(travel, source, "one")
    await asyncio.to_thread(travel, source, "two", 1)
    first = await copied(source)
    after = await asyncio.to_thread(listed, sync_saver)

    second = await copied(source)

    assert second == TransferReport(
        skipped_threads=2, skipped_checkpoints=first.checkpoints, skipped_writes=first.writes
    )
    assert first.threads == 2
    assert await asyncio.to_thread(listed, sync_saver) == after


@few
async def test_a_second_pass_brings_what_came_since(source: Saver, sync_saver: PostgresSaver, copied: Any) -> None:
    """Copied while it is in use, and once more when that has ended: the thread that went on is as it is then."""
    graphs = [await asyncio.to_thread(travel, source, thread_id, 1) for thread_id in ("goes on", "rests")]
    first = await copied(source)
    await asyncio.to_thread(answer_all, graphs[0], {"configurable": {"thread_id": "goes on"}})
    before = await asyncio.to_thread(listed, source)

    second = await copied(source)

    assert await asyncio.to_thread(listed, sync_saver) == before
    assert (second.threads, second.skipped_threads) == (1, 1)
    assert second.skipped_checkpoints == first.checkpoints
    assert second.checkpoints == len(before) - first.checkpoints > 0
    assert second.writes + second.skipped_writes == sum(len(writes[1]) for *_, writes in before)


@few
async def test_a_thread_that_went_on_in_the_target_is_left_alone(
    source: Saver, sync_saver: PostgresSaver, copied: Any
) -> None:
    """After the switch, a copy that is started by mistake takes nothing back."""
    await asyncio.to_thread(travel, source, "t", 1)
    await copied(source)
    await asyncio.to_thread(answer_all, travelling(sync_saver), THREAD)
    after = await asyncio.to_thread(listed, sync_saver)

    report = await copied(source)

    assert (report.threads, report.checkpoints, report.writes, report.skipped_threads) == (0, 0, 0, 1)
    assert await asyncio.to_thread(listed, sync_saver) == after


@few
async def test_a_thread_that_went_on_in_both_is_refused(source: Saver, sync_saver: PostgresSaver, copied: Any) -> None:
    """Neither branch is thrown away without a word."""
    await asyncio.to_thread(travel, source, "t", 1)
    await copied(source)
    for saver in (source, sync_saver):
        await asyncio.to_thread(answer_all, travelling(saver), THREAD)
    after = await asyncio.to_thread(listed, sync_saver)

    with pytest.raises(TransferError, match="'t' has gone on in the source and in the target"):
        await copied(source)

    assert await asyncio.to_thread(listed, sync_saver) == after
    await asyncio.to_thread(sync_saver.delete_thread, "t")
    await copied(source)
    assert await asyncio.to_thread(listed, sync_saver) == await asyncio.to_thread(listed, source)


def asking_thrice(saver: Saver) -> Pregel:
    """One node that asks three questions: answers and questions replace one another in the same places."""
    graph = StateGraph(Trip)
    graph.add_node("ask", lambda _: {"log": [interrupt("first?"), interrupt("second?"), interrupt("third?")]})
    graph.add_edge(START, "ask")
    return graph.compile(checkpointer=saver)


async def test_a_target_that_goes_on_while_the_source_is_read_keeps_what_it_got(
    saver: AsyncPostgresSaver, engine: AsyncEngine
) -> None:
    """What a run has been told is stored is not deleted by a copy that saw the thread before."""

    class Slow(InMemorySaver):
        async def alist(self, *args: Any, **kwargs: Any) -> AsyncIterator[CheckpointTuple]:
            async for found in super().alist(*args, **kwargs):
                yield found
            if goes_on:
                goes_on.clear()
                acknowledged.append(await AsyncPostgresSaver(engine).aput(first, empty_checkpoint(), {}, {}))

    source, goes_on = Slow(), list[bool]()
    acknowledged: list[RunnableConfig] = []
    named: RunnableConfig = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    first = source.put(named, empty_checkpoint(), {}, {})
    await acopy_threads(source, saver)
    source.put(first, empty_checkpoint(), {}, {})
    goes_on.append(True)

    with pytest.raises(TransferError, match="'t' has gone on in the target while the source was read"):
        await acopy_threads(source, saver, ["t"])

    assert await saver.aget_tuple(acknowledged[0]) is not None
    assert len([found async for found in saver.alist(named)]) == 2


async def test_on_the_event_loop_the_other_form_is_named(saver: AsyncPostgresSaver) -> None:
    """Where the sync one would wait for itself."""
    with pytest.raises(WrongThread, match=r"`await acopy_threads\(\)`"):
        copy_threads(InMemorySaver(), saver, ["t"])


@pytest.mark.parametrize("ahead", ["source", "target"])
def test_an_answer_that_replaced_another_is_noticed(sync_saver: PostgresSaver, ahead: str) -> None:
    """Where as many writes are on both sides, they are looked at: which side is newer can't be told by counting."""
    source = InMemorySaver()
    asking_thrice(source).invoke({"log": []}, THREAD)
    asking_thrice(source).invoke(Command(resume=1), THREAD)
    copy_threads(source, sync_saver)
    assert copy_threads(source, sync_saver).skipped_threads == 1
    asking_thrice(source if ahead == "source" else sync_saver).invoke(Command(resume=2), THREAD)
    after = listed(sync_saver)

    with pytest.raises(TransferError, match="another interrupt, answer or error"):
        copy_threads(source, sync_saver)

    assert listed(sync_saver) == after


def test_errors_are_copied_once_and_found_again(sync_saver: PostgresSaver) -> None:
    """A run that failed: its error is a write that the next pass compares, and finds the same."""

    def fail(_: Trip) -> Any:
        raise ValueError("no \U0001f98a")

    source = InMemorySaver()
    graph = StateGraph(Trip).add_node("fail", fail).add_edge(START, "fail")
    with pytest.raises(ValueError, match="no"):
        graph.compile(checkpointer=source).invoke({"log": []}, THREAD)
    assert copy_threads(source, sync_saver).writes > 0

    assert copy_threads(source, sync_saver).skipped_threads == 1

    (task,) = graph.compile(checkpointer=sync_saver).get_state(THREAD).tasks
    assert "no \U0001f98a" in str(task.error)


@few
async def test_only_the_threads_that_are_named(source: Saver, sync_saver: PostgresSaver, copied: Any) -> None:
    """In their order; what else the source has stays there."""
    for thread_id in ("one", "two", "three"):
        await put_in(source, thread_id)
    reports: list[TransferReport] = []

    await copied(source, ["three", "one", "three"], on_progress=reports.append)

    assert {found.config["configurable"]["thread_id"] for found in sync_saver.list(None)} == {"one", "three"}
    assert [report.threads for report in reports] == [1, 2]


async def put_in(source: Saver, thread_id: str) -> None:
    history = {"namespace": "", "parent": None, "metadata": {}, "tasks": [("task", "", [[("c", thread_id)]])]}
    checkpoint = {**empty_checkpoint(), "id": str(uuid6()), "channel_values": {"c": [thread_id]}}
    checkpoint["channel_versions"] = {"c": "1"}
    step = {**history, "checkpoint": checkpoint, "new_versions": {"c": "1"}}
    await asyncio.to_thread(store, source, thread_id, [step])


async def test_a_thread_with_a_number_for_an_id_gets_that_as_text(saver: AsyncPostgresSaver) -> None:
    """The in-memory saver takes anything for an id; a graph asks a database for the text."""
    source = InMemorySaver()
    await put_in(source, 42)  # type: ignore[arg-type]

    await acopy_threads(source, saver)

    assert await saver.aget({"configurable": {"thread_id": "42"}}) is not None


# --- what goes wrong ---


def bad(channel_value: Any, thread_id: str = "bad") -> InMemorySaver:
    """A saver with three threads, one of which the target can't hold."""
    source = InMemorySaver(serde=JsonPlusSerializer(pickle_fallback=True))
    for name in ("first", thread_id, "last"):
        for step in range(3):
            value = channel_value if (name, step) == (thread_id, 1) else step
            checkpoint: Any = {**empty_checkpoint(), "id": f"{name} {step}", "channel_values": {"c": [value]}}
            checkpoint["channel_versions"] = {"c": str(step)}
            config: Any = {"configurable": {"thread_id": name, "checkpoint_ns": ""}}
            source.put(config, checkpoint, {}, {"c": str(step)})
    return source


@twins
async def test_what_cannot_be_stored_is_named_and_leaves_nothing(sync_saver: PostgresSaver, copied: Any) -> None:
    """The error has thread and checkpoint; what was copied of the thread before is gone, other threads stay."""
    with pytest.raises(TransferError, match=r"thread 'bad'.* checkpoint 'bad 1' can't be stored.*channel 'c'"):
        await copied(bad(1j))

    assert {found.config["configurable"]["thread_id"] for found in sync_saver.list(None)} == {"first"}


@twins
async def test_a_thread_that_fails_can_be_left_out(sync_saver: PostgresSaver, copied: Any) -> None:
    """`on_error` hears of it, the others are copied, and the report counts it."""
    failed: list[tuple[str, str]] = []

    report = await copied(bad(1j), on_error=lambda thread_id, error: failed.append((thread_id, str(error))))

    assert [thread_id for thread_id, _ in failed] == ["bad"]
    assert (report.threads, report.failed_threads) == (2, 1)
    assert {found.config["configurable"]["thread_id"] for found in sync_saver.list(None)} == {"first", "last"}


async def test_without_tables_not_every_thread_is_tried(empty_url: str) -> None:
    """What can't work for any thread is raised at once, in its own words, whatever `on_error` is."""
    async with AsyncPostgresSaver.from_conn_string(empty_url) as target:
        with pytest.raises(NotSetUp, match="setup"):
            await acopy_threads(bad(1), target, on_error=lambda *_: pytest.fail("asked"))


async def test_a_source_that_breaks_in_the_middle_leaves_nothing(tmp_path: Path, sync_saver: PostgresSaver) -> None:
    """A row that can't be decoded: the error says after which checkpoint, nothing of the thread is stored."""
    with SqliteSaver.from_conn_string(str(tmp_path / "old.sqlite")) as source:
        travel(source, "t", 1)
        _, *_, oldest = [found.checkpoint["id"] for found in source.list(THREAD)]
        source.conn.execute("UPDATE checkpoints SET checkpoint = x'c1' WHERE checkpoint_id = ?", (oldest,))

        with pytest.raises(TransferError, match=r"SqliteSaver can't list thread 't', after checkpoint '1f.*ValueError"):
            copy_threads(source, sync_saver, ["t"])

        assert list(sync_saver.list(None)) == []
        assert len(list(source.list(THREAD, limit=1))) == 1, "the source was left open"


@twins
async def test_a_thread_that_does_not_exist_is_an_error(source: Saver, copied: Any) -> None:
    """A typing mistake in an id does not pass for a copy."""
    await put_in(source, "thread")

    with pytest.raises(TransferError, match="thread 'tread': the source lists 0 checkpoints"):
        await copied(source, ["tread"])


class RootOnly(InMemorySaver):
    """A saver that, asked for a thread, lists its root graph only."""

    def list(self, config: Any, **criteria: Any) -> Iterator[CheckpointTuple]:
        return super().list(config and {"configurable": {"checkpoint_ns": "", **config["configurable"]}}, **criteria)


def test_a_source_that_hides_namespaces_is_found_out(sync_saver: PostgresSaver) -> None:
    """Subgraphs are not lost because a saver takes no namespace for the root's."""
    source = RootOnly()
    travel(source, "t")

    with pytest.raises(TransferError, match="does the source list all namespaces"):
        copy_threads(source, sync_saver)

    assert list(sync_saver.list(None)) == []


class Repeating(InMemorySaver):
    """A saver that has kept two errors of one task."""

    def list(self, config: Any, **criteria: Any) -> Iterator[CheckpointTuple]:
        for found in super().list(config, **criteria):
            yield found._replace(pending_writes=[("task", "__error__", "one"), ("task", "__error__", "two")])


def test_what_cannot_all_be_stored_is_counted(sync_saver: PostgresSaver) -> None:
    """The counts are compared before the commit: what doesn't add up is not there."""
    source = Repeating()
    source.put({"configurable": {"thread_id": "t", "checkpoint_ns": ""}}, empty_checkpoint(), {}, {})

    with pytest.raises(
        TransferError, match=r"read 1 checkpoints and 2 writes, but stored 1 checkpoints and 1 writes; .* task 'task'"
    ):
        copy_threads(source, sync_saver)

    assert list(sync_saver.list(None)) == []


async def test_wrong_arguments_are_told_apart(saver: AsyncPostgresSaver) -> None:
    """One id instead of a list of ids; source and target mixed up."""
    with pytest.raises(InvalidConfig, match="a list of thread ids"):
        await acopy_threads(InMemorySaver(), saver, "t")
    with pytest.raises(
        InvalidOption,
        match=r"target must be an AsyncPostgresSaver .*, not a langgraph\.checkpoint\.memory\.InMemorySaver",
    ):
        await acopy_threads(saver, InMemorySaver())  # type: ignore[arg-type]


# --- other people's savers ---


class Foreign(BaseCheckpointSaver[Any]):
    """A saver of which nothing is known but the contract."""

    def __init__(self, inner: InMemorySaver) -> None:
        super().__init__()
        self.inner = inner


class OnlySync(Foreign):
    def list(self, config: Any, **criteria: Any) -> Iterator[CheckpointTuple]:
        return self.inner.list(config, **criteria)


class OnlyAsync(Foreign):
    async def alist(self, config: Any, **criteria: Any) -> AsyncIterator[CheckpointTuple]:
        async for found in self.inner.alist(config, **criteria):
            await asyncio.sleep(0)
            yield found


@twins
@pytest.mark.parametrize("kind", [OnlySync, OnlyAsync])
async def test_half_a_saver_is_enough(sync_saver: PostgresSaver, copied: Any, kind: Any) -> None:
    """Sync or async, whichever it has; writes keep their order though nobody knows the paths of their tasks."""
    source = InMemorySaver()
    await asyncio.to_thread(travel, source, "t")

    await copied(kind(source))

    assert await asyncio.to_thread(listed, sync_saver) == listed(source)


async def test_a_saver_that_cannot_list_is_told_so(saver: AsyncPostgresSaver) -> None:
    """Rather than that there is nothing to copy."""
    with pytest.raises(TransferError, match=r"Foreign can't list all threads: .* neither list nor alist"):
        await acopy_threads(Foreign(InMemorySaver()), saver)


# --- ends of all kinds ---


async def test_a_cancelled_copy_leaves_nothing_half(engine: AsyncEngine, saver: AsyncPostgresSaver) -> None:
    """Cancelled inside a thread: that thread is not there, and the connection is back in the pool."""
    inside = asyncio.Event()

    class Stuck(InMemorySaver):
        async def alist(self, config: Any, **criteria: Any) -> AsyncIterator[CheckpointTuple]:
            async for found in super().alist(config, **criteria):
                yield found
            if config and config["configurable"]["thread_id"] == "second":
                inside.set()
                await asyncio.Event().wait()

    source = Stuck()
    for thread_id in ("first", "second"):
        await put_in(source, thread_id)

    copying = asyncio.create_task(acopy_threads(source, saver, ["first", "second"]))
    await inside.wait()
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying

    assert [found.config["configurable"]["thread_id"] async for found in saver.alist(None)] == ["first"]
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("twin", ["sync", "async"])
async def test_from_one_schema_to_another_on_one_engine(url: str, twin: str) -> None:
    """Source and target share a pool, and in sync code an event loop: neither waits for the other for good."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}, pool_size=2, max_overflow=0)
    kind: Any = PostgresSaver if twin == "sync" else AsyncPostgresSaver
    source, target = kind(engine), kind(engine, schema="elsewhere")
    if twin == "sync":
        await asyncio.to_thread(target.setup)
        await asyncio.to_thread(travel, source, "t")
        await asyncio.to_thread(copy_threads, source, target)
    else:
        await target.setup()
        await asyncio.to_thread(travel, source, "t")
        await acopy_threads(source, target)

    assert await asyncio.to_thread(listed, target) == await asyncio.to_thread(listed, source) != []
    for saver in (source, target):
        await saver.aclose()
    await engine.dispose()


@pytest.mark.parametrize("kind", ["sync psycopg", "async psycopg", "asyncpg driven from threads", "pipeline"])
async def test_it_writes_to_a_saver_on_any_engine(url: str, kind: str) -> None:
    """The transaction of a thread is held on whatever the target is made of, and given back."""
    source = InMemorySaver()
    travel(source, "t")
    psycopg_url = make_url(url).set(drivername="postgresql+psycopg")
    if kind == "sync psycopg":
        engine: Any = create_engine(psycopg_url, pool_size=1, max_overflow=0)
        await asyncio.to_thread(copy_threads, source, PostgresSaver(engine))
        await acopy_threads(source, PostgresSaver(engine))
        assert engine.pool.checkedout() == 0
        engine.dispose()
    elif kind == "async psycopg":
        engine = create_async_engine(psycopg_url, pool_size=1, max_overflow=0)
        await acopy_threads(source, AsyncPostgresSaver(engine))
        assert engine.pool.checkedout() == 0
        await engine.dispose()
    elif kind == "pipeline":
        async with AsyncPostgresSaver.from_conn_string(url, pipeline=True) as target:
            await acopy_threads(source, target)
    else:
        async with AsyncPostgresSaver.from_conn_string(url, pool_size=1, max_overflow=0) as target:
            await asyncio.to_thread(copy_threads, source, target)

    with PostgresSaver.from_conn_string(url) as reader:
        assert await asyncio.to_thread(listed, reader) == listed(source)


async def test_in_a_transaction_of_the_callers_it_goes_with_that(engine: AsyncEngine) -> None:
    """Into a saver on a connection: rolled back, nothing is there; committed, everything."""
    source = InMemorySaver()
    await put_in(source, "t")

    async with engine.connect() as conn:
        await acopy_threads(source, AsyncPostgresSaver(conn))
        await conn.rollback()
        assert await AsyncPostgresSaver(conn).aget(THREAD) is None
    async with engine.begin() as conn:
        await acopy_threads(source, AsyncPostgresSaver(conn))
    assert await AsyncPostgresSaver(engine).aget(THREAD) is not None


@pytest.mark.parametrize("pair", [(async_sqlite, "async")], ids=["async_sqlite"], indirect=True)
async def test_two_copies_at_once_make_one(source: Saver, url: str, saver: AsyncPostgresSaver) -> None:
    """Two people start the same copy: both end, and everything is there once."""
    for thread_id in ("one", "two", "three"):
        await put_in(source, thread_id)
    before = await asyncio.to_thread(listed, source)
    other = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})

    await asyncio.gather(acopy_threads(source, saver), acopy_threads(source, AsyncPostgresSaver(other)))

    await other.dispose()
    assert await asyncio.to_thread(listed, saver) == before


def test_memory_does_not_grow_with_the_thread(sync_saver: PostgresSaver) -> None:
    """A thread of 30 MB passes through a few MB: one checkpoint is in memory at a time."""

    class Long(OnlySync):
        def list(self, *_: Any, **__: Any) -> Iterator[CheckpointTuple]:
            for step in range(60, 0, -1):
                checkpoint: Any = {**empty_checkpoint(), "id": f"{step:04}"}
                checkpoint.update(channel_values={"c": os.urandom(500_000)}, channel_versions={"c": step})
                yield CheckpointTuple({"configurable": {"thread_id": "t", "checkpoint_ns": ""}}, checkpoint, {})

    tracemalloc.start()
    copy_threads(Long(InMemorySaver()), sync_saver, ["t"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 10_000_000
    assert sum(1 for _ in sync_saver.list(THREAD)) == 60


COPY = """
import sys
from langgraph.checkpoint.sqlite import SqliteSaver
from checkpoint_store import PostgresSaver
from checkpoint_store.transfer import copy_threads

file, url, thread_id, place = sys.argv[1:]

class Halting(SqliteSaver):
    def list(self, config, **criteria):
        for number, found in enumerate(super().list(config, **criteria)):
            yield found
            if config and (config["configurable"]["thread_id"], str(number)) == (thread_id, place):
                print("half", flush=True)
                sys.stdin.read()

with Halting.from_conn_string(file) as source, PostgresSaver.from_conn_string(url) as target:
    print(copy_threads(source, target).threads, flush=True)
"""


@contextmanager
def copying(file: Path, url: str, thread_id: str, place: int) -> Iterator[subprocess.Popen[str]]:
    """A process that copies, and halts when it has copied so much of a thread."""
    command = [sys.executable, "-c", COPY, str(file), url, thread_id, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_copy_goes_on_where_it_was(tmp_path: Path, url: str, sync_saver: PostgresSaver, kills: int) -> None:
    """`kill -9` at random places within threads: each thread is whole or absent every time, and there in the end."""
    chance, file = random.Random(kills), tmp_path / "old.sqlite"
    with SqliteSaver.from_conn_string(str(file)) as source:
        threads = [f"thread {number}" for number in range(6)]
        for thread_id in threads:
            travel(source, thread_id, trips=1)
        before = {thread_id: listed(source, thread_id) for thread_id in threads}
        order = list(dict.fromkeys(found.config["configurable"]["thread_id"] for found in source.list(None)))

    for number in range(kills):
        thread_id = order[number * len(order) // kills]
        with copying(file, url, thread_id, chance.randrange(len(before[thread_id]))) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "half\n"
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        whole = order[: order.index(thread_id)]
        assert {name: listed(sync_saver, name) for name in threads} == {
            name: before[name] if name in whole else [] for name in threads
        }

    with copying(file, url, "", 0) as process:
        output, _ = process.communicate()
        assert (process.returncode, output) == (0, f"{len(order) - len(whole)}\n")
    assert {name: listed(sync_saver, name) for name in threads} == before
