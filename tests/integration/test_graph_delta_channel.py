"""State that is stored as what each step adds: rebuilt from pending writes and snapshots, it is the state that ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import add
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command, Overwrite, interrupt

from checkpoint_store import PostgresSaver

THREAD = {"configurable": {"thread_id": "thread"}}


def extend(lines: list[Any], added: Sequence[list[Any]]) -> list[Any]:
    return [*lines, *(line for part in added for line in part)]


def merge(files: dict[str, Any], changed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: text for part in (files, *changed) for name, text in part.items()}


class Work(TypedDict):
    lines: Annotated[list[str], DeltaChannel(extend, list, snapshot_frequency=3)]
    files: Annotated[dict[str, Any], DeltaChannel(merge, dict, snapshot_frequency=2)]
    rare: Annotated[list[str], DeltaChannel(extend, list, snapshot_frequency=100)]
    left: int


def working(saver: BaseCheckpointSaver[str]) -> Pregel:
    """Two nodes at a time write to the same channels, until nothing is left to do."""

    def write(state: Work) -> dict[str, Any]:
        return {"lines": [f"write {state['left']}"], "files": {f"file {state['left'] % 3}": state["left"]}}

    def check(state: Work) -> dict[str, Any]:
        return {"lines": [f"check {state['left']} after {len(state['lines'])}"], "files": {"checked": state["left"]}}

    graph = StateGraph(Work)
    graph.add_node("write", write)
    graph.add_node("check", check)
    graph.add_node("count", lambda state: {"left": state["left"] - 1})
    for node in ("write", "check"):
        graph.add_edge(START, node)
        graph.add_edge(node, "count")
    graph.add_conditional_edges("count", lambda state: ["write", "check"] if state["left"] else END)
    return graph.compile(checkpointer=saver)


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_every_step_is_rebuilt_as_it_was(agents: Callable[..., Any], durability: str) -> None:
    """Channels with different snapshots, some steps behind: each step of the history has the model's values."""
    ours, model = agents(working)

    for agent in (ours, model):
        for turn in range(3):
            await agent.invoke({"lines": [f"turn {turn}"], "rare": ["x"], "left": 4}, THREAD, durability=durability)
        values = (await agent.state(THREAD)).values
        assert len(values["lines"]) == 3 * (1 + 2 * 4)
        assert values["files"] == {"file 0": 3, "file 1": 1, "file 2": 2, "checked": 1}
        assert values["rare"] == ["x", "x", "x"]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_most_steps_store_no_value_at_all(agents: Callable[..., Any], sync_saver: PostgresSaver) -> None:
    """The test above rebuilds something: the channel's value is missing from most of the stored checkpoints."""
    ours, _ = agents(working)

    await ours.invoke({"lines": ["turn"], "rare": ["x"], "left": 6}, THREAD)

    stored = list(sync_saver.list(THREAD))
    holding = [found for found in stored if "lines" in found.checkpoint["channel_values"]]
    assert len(stored) == 14
    assert 0 < len(holding) < len(stored) / 2
    assert not any("rare" in found.checkpoint["channel_values"] for found in stored)


async def test_forks_are_rebuilt_from_their_own_ancestors(agents: Callable[..., Any]) -> None:
    """What one branch wrote after the fork never shows in the other, in either order of making them."""
    ours, model = agents(working)

    for agent in (ours, model):
        await agent.invoke({"lines": ["start"], "left": 5}, THREAD)
        history = await agent.history(THREAD)
        for step in (3, 6, 1):
            origin = next(snapshot for snapshot in history if snapshot.metadata["step"] == step)
            fork = await agent.update(origin.config, {"lines": [f"fork at {step}"]}, as_node="count")
            ended = await agent.invoke(None, fork)
            assert ended["lines"][: len(origin.values["lines"]) + 1] == [*origin.values["lines"], f"fork at {step}"]
        assert await agent.state(history[0].config) == history[0]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_an_overwrite_ends_what_came_before(agents: Callable[..., Any]) -> None:
    """Replay starts at the last overwrite, whether a node or an update by hand made it."""

    def clearing(saver: BaseCheckpointSaver[str]) -> Pregel:
        graph = StateGraph(Work)
        graph.add_node("write", lambda state: {"lines": [f"line {len(state['lines'])}"]})
        graph.add_node("clear", lambda _: {"lines": Overwrite(["cleared"])})
        graph.add_edge(START, "write")
        graph.add_edge("write", "clear")
        return graph.compile(checkpointer=saver)

    ours, model = agents(clearing)

    for agent in (ours, model):
        await agent.invoke({"lines": ["one"]}, THREAD)
        await agent.invoke({"lines": ["two"]}, THREAD)
        await agent.update(THREAD, {"lines": ["by hand"]}, as_node="write")
        await agent.update(THREAD, {"lines": Overwrite(["fresh"])}, as_node="write")
        await agent.update(THREAD, {"lines": ["end"]}, as_node="clear")
        assert (await agent.state(THREAD)).values["lines"] == ["fresh", "end"]

    assert await ours.story(THREAD) == await model.story(THREAD)


@pytest.mark.parametrize("durability", ["sync", "exit"])
async def test_a_pending_write_counts_once(agents: Callable[..., Any], durability: str) -> None:
    """While a branch waits, the finished branch's write is pending: it is shown, and not added again by the answer."""

    def asking(saver: BaseCheckpointSaver[str]) -> Pregel:
        graph = StateGraph(Work)
        graph.add_node("note", lambda _: {"lines": ["noted"]})
        graph.add_node("ask", lambda _: {"lines": [f"answer {interrupt('?')}"]})
        graph.add_node("end", lambda state: {"lines": [f"{len(state['lines'])} lines"]})
        for node in ("note", "ask"):
            graph.add_edge(START, node)
            graph.add_edge(node, "end")
        return graph.compile(checkpointer=saver)

    ours, model = agents(asking)

    for agent in (ours, model):
        await agent.invoke({"lines": ["start"]}, THREAD, durability=durability)
        assert (await agent.state(THREAD)).values["lines"] == ["start", "noted"]
        ended = await agent.invoke(Command(resume="yes"), THREAD, durability=durability)
        assert sorted(ended["lines"]) == ["3 lines", "answer yes", "noted", "start"]
        assert (await agent.state(THREAD)).values == ended

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_a_thread_moves_to_delta_channels_and_back(agents: Callable[..., Any], sync_saver: PostgresSaver) -> None:
    """A channel that stored whole values becomes one that stores additions, and the other way round."""

    class Plain(TypedDict):
        messages: Annotated[list[AnyMessage], add]

    class Delta(TypedDict):
        messages: Annotated[list[AnyMessage], DeltaChannel(extend, list, snapshot_frequency=4)]

    def chat(schema: type[Any]) -> Callable[[BaseCheckpointSaver[str]], Pregel]:
        def compiled_on(saver: BaseCheckpointSaver[str]) -> Pregel:
            graph = StateGraph(schema)
            graph.add_node("answer", lambda state: {"messages": [AIMessage(f"{len(state['messages'])}", id="a")]})
            graph.add_edge(START, "answer")
            return graph.compile(checkpointer=saver)

        return compiled_on

    plain, delta = agents(chat(Plain)), agents(chat(Delta))
    # The same thread under both graphs: the model's two have to share a saver as ours do.
    delta[1].graph.checkpointer = plain[1].graph.checkpointer

    for before, after in zip(plain, delta, strict=True):
        for agent in (before, after, after, after, before):
            await agent.invoke({"messages": [HumanMessage("?", id="q")]}, THREAD)
        messages = (await after.state(THREAD)).values["messages"]
        assert [message.content for message in messages[1::2]] == ["1", "3", "5", "7", "9"]

    assert await delta[0].story(THREAD) == await delta[1].story(THREAD)
    assert await plain[0].story(THREAD) == await plain[1].story(THREAD)


async def test_a_subgraph_rebuilds_its_own_channels(agents: Callable[..., Any]) -> None:
    """The same channel name in two namespaces of one thread: neither sees the other's writes."""

    def nested(saver: BaseCheckpointSaver[str]) -> Pregel:
        inner = StateGraph(Work)
        inner.add_node("one", lambda _: {"files": {"inner": 1}})
        inner.add_node("two", lambda state: {"files": {"inner": state["files"]["inner"] + 1, "said": interrupt("?")}})
        inner.add_edge(START, "one")
        inner.add_edge("one", "two")

        class Outer(TypedDict):
            lines: Annotated[list[str], DeltaChannel(extend, list, snapshot_frequency=2)]
            files: Annotated[dict[str, Any], DeltaChannel(merge, dict, snapshot_frequency=5)]

        outer = StateGraph(Outer)
        outer.add_node("before", lambda _: {"lines": ["before"], "files": {"outer": 1}})
        outer.add_node("inner", inner.compile())
        outer.add_edge(START, "before")
        outer.add_edge("before", "inner")
        return outer.compile(checkpointer=saver)

    ours, model = agents(nested)

    for agent in (ours, model):
        await agent.invoke({"lines": ["start"]}, THREAD)
        waiting = (await agent.state(THREAD, subgraphs=True)).tasks[0].state
        assert waiting.values["files"] == {"outer": 1, "inner": 1}
        ended = await agent.invoke(Command(resume="!"), THREAD)
        assert ended["files"] == {"outer": 1, "inner": 2, "said": "!"}

    assert await ours.story(THREAD) == await model.story(THREAD)
