"""Real graphs, start to finish: what a run stores is what LangGraph's in-memory saver would have kept."""

from __future__ import annotations

import asyncio
import enum
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from operator import add
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.pregel import Pregel
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver

THREAD = {"configurable": {"thread_id": "thread"}}


class Count(TypedDict):
    steps: Annotated[list[str], add]
    left: int


def countdown(saver: BaseCheckpointSaver[str]) -> Pregel:
    """Count down to zero, one step a turn, and note each turn."""

    def turn(state: Count) -> dict[str, Any]:
        return {"steps": [f"{state['left']} left"], "left": state["left"] - 1}

    graph = StateGraph(Count)
    graph.add_node("turn", turn)
    graph.add_edge(START, "turn")
    graph.add_conditional_edges("turn", lambda state: "turn" if state["left"] else END)
    return graph.compile(checkpointer=saver)


def chat(saver: BaseCheckpointSaver[str]) -> Pregel:
    """A scripted model that calls a tool once for every question."""

    def model(state: MessagesState) -> dict[str, list[AnyMessage]]:
        last = state["messages"][-1]
        if isinstance(last, ToolMessage):
            return {"messages": [AIMessage(f"it is {last.content}", id=f"answer-{len(state['messages'])}")]}
        call = {"name": "look_up", "args": {"question": last.content, "deep": {"n": 1.5}}, "id": "call"}
        return {"messages": [AIMessage("", tool_calls=[call], id=f"call-{len(state['messages'])}")]}

    def tool(state: MessagesState) -> dict[str, list[AnyMessage]]:
        found = ToolMessage("42", tool_call_id="call", artifact={"rows": (1, 2)}, id=f"tool-{len(state['messages'])}")
        return {"messages": [found]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", model)
    graph.add_node("tool", tool)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", lambda state: "tool" if state["messages"][-1].tool_calls else END)
    graph.add_edge("tool", "model")
    return graph.compile(checkpointer=saver)


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_run_leaves_the_history_the_model_leaves(agents: Callable[..., Any], durability: str) -> None:
    """Whatever the durability: the same steps, sources, values and parents, and the same checkpoints left out."""
    ours, model = agents(countdown)

    for agent in (ours, model):
        ended = await agent.invoke({"left": 3}, THREAD, durability=durability)
        assert ended == {"steps": ["3 left", "2 left", "1 left"], "left": 0}

    story = await ours.story(THREAD)
    assert story == await model.story(THREAD)
    assert len(story) == (1 if durability == "exit" else 5)


async def test_a_run_streams_what_the_model_streams(agents: Callable[..., Any]) -> None:
    """The saver neither swallows nor reorders a chunk, in any of the modes that show state."""
    ours, model = agents(countdown)
    modes = ["values", "updates"]

    streamed = await ours.stream({"left": 3}, THREAD, stream_mode=modes)

    assert streamed == await model.stream({"left": 3}, THREAD, stream_mode=modes)
    assert [chunk for mode, chunk in streamed if mode == "values"][-1]["left"] == 0


async def test_a_conversation_goes_on_where_it_stopped(agents: Callable[..., Any]) -> None:
    """A second question finds the messages of the first, with their ids, tool calls and artifacts."""
    ours, model = agents(chat)

    for agent in (ours, model):
        await agent.invoke({"messages": [HumanMessage("what is it?", id="q1")]}, THREAD)
        ended = await agent.invoke({"messages": [HumanMessage("and \U0001f98a?", id="q2")]}, THREAD)
        assert [message.type for message in ended["messages"]] == ["human", "ai", "tool", "ai"] * 2

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_a_thread_outlives_the_saver_that_wrote_it(url: str, sync_saver: PostgresSaver) -> None:
    """What one saver stored, another one on the same database reads and continues."""
    async with AsyncPostgresSaver.from_conn_string(url) as first:
        await chat(first).ainvoke({"messages": [HumanMessage("what is it?", id="q1")]}, THREAD)

    remembered = await asyncio.to_thread(chat(sync_saver).get_state, THREAD)
    assert [message.id for message in remembered.values["messages"]] == ["q1", "call-1", "tool-2", "answer-3"]

    async with AsyncPostgresSaver.from_conn_string(url) as second:
        ended = await chat(second).ainvoke({"messages": [HumanMessage("and now?", id="q2")]}, THREAD)
    assert len(ended["messages"]) == 8


async def test_threads_do_not_see_each_other(agents: Callable[..., Any]) -> None:
    """Thirty-two runs at once on one saver: each thread holds its own run and nothing else."""
    ours, _ = agents(countdown)
    configs = [{"configurable": {"thread_id": f"thread-{n}"}} for n in range(32)]

    ended = await asyncio.gather(*(ours.invoke({"left": 1 + n % 4}, config) for n, config in enumerate(configs)))

    assert [len(state["steps"]) for state in ended] == [1 + n % 4 for n in range(32)]
    lengths = [len(await ours.history(config)) for config in configs]
    assert lengths == [3 + n % 4 for n in range(32)]


async def test_durability_says_when_a_step_is_in_the_database(
    agents: Callable[..., Any], sync_saver: PostgresSaver
) -> None:
    """With `sync` every earlier step is stored before the next one starts; with `exit` nothing is until the end."""
    stored: list[int] = []

    def watching(saver: BaseCheckpointSaver[str]) -> Pregel:
        def turn(state: Count) -> dict[str, Any]:
            stored.append(len(list(sync_saver.list(config))))
            return {"left": state["left"] - 1}

        graph = StateGraph(Count)
        graph.add_node("turn", turn)
        graph.add_edge(START, "turn")
        graph.add_conditional_edges("turn", lambda state: "turn" if state["left"] else END)
        return graph.compile(checkpointer=saver)

    ours, _ = agents(watching)

    for durability in ("sync", "exit"):
        config = {"configurable": {"thread_id": durability}}
        await ours.invoke({"left": 3}, config, durability=durability)

    assert stored == [2, 3, 4, 0, 0, 0]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_run_that_failed_goes_on_from_its_last_step(agents: Callable[..., Any], durability: str) -> None:
    """A node that raises costs its own step only: the next run continues from the state before it."""
    broken = True
    ran: list[str] = []

    def fragile(saver: BaseCheckpointSaver[str]) -> Pregel:
        def first(state: Count) -> dict[str, Any]:
            ran.append("first")
            return {"steps": ["first"]}

        def second(state: Count) -> dict[str, Any]:
            ran.append("second")
            if broken:
                msg = "the disk is full"
                raise OSError(msg)
            return {"steps": ["second"]}

        graph = StateGraph(Count)
        graph.add_node("first", first)
        graph.add_node("second", second)
        graph.add_edge(START, "first")
        graph.add_edge("first", "second")
        return graph.compile(checkpointer=saver)

    ours, model = agents(fragile)

    for agent in (ours, model):
        ran.clear()
        broken = True
        with pytest.raises(OSError, match="the disk is full"):
            await agent.invoke({"steps": ["input"], "left": 1}, THREAD, durability=durability)
        stopped = await agent.state(THREAD)
        assert stopped.next == ("second",)
        assert "the disk is full" in stopped.tasks[0].error

        broken = False
        ended = await agent.invoke(None, THREAD, durability=durability)
        assert ended["steps"] == ["input", "first", "second"]
        assert ran == ["first", "second", "second"]

    assert await ours.story(THREAD) == await model.story(THREAD)


class Colour(str, enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    SMALL = 1


@dataclass
class Point:
    x: int
    y: float


class Order(BaseModel):
    item: str
    price: float
    tags: list[str] = []


class Anything(TypedDict):
    value: Any


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**63),
        2**64 - 1,
        -0.0,
        1e16,
        5e-324,
        "",
        "naïve \U0001f98a",
        "nul\x00inside",
        float("inf"),
        b"\x00\xff",
        bytearray(b"raw"),
        [1, [2, {"three": None}]],
        {"nested": {"list": [1.5, "two", None, True]}},
        {1: "int key", 2.5: "float key"},
        {"one"},
        frozenset({1}),
        datetime(2024, 2, 29, 12, 30, 1, 5, tzinfo=UTC),
        date(2024, 2, 29),
        timedelta(days=1, microseconds=1),
        Decimal("1.10"),
        uuid.UUID(int=1),
        Colour.RED,
        Size.SMALL,
        Point(1, 2.5),
        Order(item="book", price=9.99, tags=["a"]),
        HumanMessage("hello", id="1", additional_kwargs={"k": 1}),
    ],
    ids=repr,
)
async def test_a_state_value_comes_back_equal_and_of_its_type(saver: AsyncPostgresSaver, value: Any) -> None:
    """Whatever a node can return, the next run reads: same value, same type, sign of zero included."""
    graph = StateGraph(Anything)
    graph.add_node("produce", lambda _: {"value": value})
    graph.add_edge(START, "produce")
    agent = graph.compile(checkpointer=saver)

    await agent.ainvoke({}, THREAD)

    back = (await agent.aget_state(THREAD)).values["value"]
    assert (back, type(back), repr(back)) == (value, type(value), repr(value))


async def test_what_a_config_says_about_a_run_is_found_again(agents: Callable[..., Any]) -> None:
    """Metadata and configurable keys of a run are stored with its checkpoints, and history filters by them."""
    ours, model = agents(countdown)

    for agent in (ours, model):
        for user, left in (("ada", 1), ("bob", 2)):
            config = {"metadata": {"user": user, "trial": True}, "configurable": {"thread_id": "thread", "region": 7}}
            await agent.invoke({"left": left}, config)
        of_bob = await agent.history(THREAD, filter={"user": "bob", "trial": True, "region": 7})
        assert [snapshot.metadata["step"] for snapshot in of_bob] == [5, 4, 3, 2]
        inputs = await agent.history(THREAD, filter={"source": "input"}, limit=1)
        assert [snapshot.metadata["user"] for snapshot in inputs] == ["bob"]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_a_deleted_thread_starts_over(agents: Callable[..., Any], sync_saver: PostgresSaver) -> None:
    """Nothing of a deleted thread is left to read, and a run on its id begins at the beginning."""
    ours, _ = agents(countdown)
    await ours.invoke({"left": 2}, THREAD)

    await asyncio.to_thread(sync_saver.delete_thread, "thread")

    assert await ours.history(THREAD) == []
    assert (await ours.state(THREAD)).values == {}
    assert await ours.invoke({"left": 1}, THREAD) == {"steps": ["1 left"], "left": 0}


async def test_a_run_that_is_cancelled_goes_on_later(saver: AsyncPostgresSaver) -> None:
    """A request that times out in the middle of a step costs that step; no connection is lost, no step runs twice."""
    entered = asyncio.Event()
    ran: list[str] = []

    async def slow(_: Count) -> dict[str, Any]:
        ran.append("slow")
        if not entered.is_set():
            entered.set()
            await asyncio.Event().wait()
        return {"steps": ["slow"]}

    def quick(_: Count) -> dict[str, Any]:
        ran.append("quick")
        return {"steps": ["quick"]}

    graph = StateGraph(Count)
    graph.add_node("quick", quick)
    graph.add_node("slow", slow)
    graph.add_edge(START, "quick")
    graph.add_edge("quick", "slow")
    agent = graph.compile(checkpointer=saver)

    run = asyncio.create_task(agent.ainvoke({"left": 1}, THREAD, durability="sync"))
    await entered.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert (await agent.aget_state(THREAD)).next == ("slow",)
    assert (await agent.ainvoke(None, THREAD))["steps"] == ["quick", "slow"]
    assert ran == ["quick", "slow", "slow"]


async def test_a_stream_that_is_left_early_goes_on_later(saver: AsyncPostgresSaver) -> None:
    """A reader that goes away after two steps leaves a thread that another one reads to its end."""
    agent = countdown(saver)
    chunks = agent.astream({"left": 5}, THREAD, stream_mode="updates", durability="sync")
    async for chunk in chunks:
        if chunk["turn"]["left"] == 3:
            break
    await chunks.aclose()

    left = (await agent.aget_state(THREAD)).values["left"]
    ended = await agent.ainvoke(None, THREAD)

    assert 0 < left <= 3
    assert ended == {"steps": [f"{n} left" for n in (5, 4, 3, 2, 1)], "left": 0}


async def test_an_encrypted_thread_shows_nothing_in_the_database(engine: AsyncEngine, url: str) -> None:
    """With an encrypting serializer a run's values are nowhere in clear, not even scalars, and the graph runs on."""
    saver = AsyncPostgresSaver(engine, serde=EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef"))
    agent = countdown(saver)

    ended = await agent.ainvoke({"steps": ["top secret"], "left": 77_000_077}, THREAD, interrupt_after=["turn"])

    assert ended["steps"] == ["top secret", "77000077 left"]
    assert (await agent.aget_state(THREAD)).values == ended
    with psycopg.connect(url) as conn:
        tables = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
        rows = [str(row).encode() for table in tables for row in conn.execute(f"SELECT * FROM {table}")]
    assert rows
    assert not any(told in row for row in rows for told in (b"secret", b"77000077", b"77000076"))


async def test_a_type_that_langgraph_allows_is_revived(engine: AsyncEngine) -> None:
    """LangGraph, when it is strict, compiles graphs on a copy of the saver that may revive the graph's own types."""
    saver = AsyncPostgresSaver(engine, serde=JsonPlusSerializer(allowed_msgpack_modules=None))
    allowing = saver.with_allowlist([(Point.__module__, "Point")])
    graph = StateGraph(Anything)
    graph.add_node("produce", lambda _: {"value": [Point(1, 2.5)]})
    graph.add_edge(START, "produce")

    await graph.compile(checkpointer=allowing).ainvoke({}, THREAD)

    assert (await allowing.aget(THREAD))["channel_values"]["value"] == [Point(1, 2.5)]
    assert (await saver.aget(THREAD))["channel_values"]["value"] == [{"x": 1, "y": 2.5}]
