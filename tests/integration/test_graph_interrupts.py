"""Runs that stop for a human and go on when the human has answered, an hour or a process later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from operator import add
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, StateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command, interrupt

from checkpoint_store import AsyncPostgresSaver

THREAD = {"configurable": {"thread_id": "thread"}}


class Log(TypedDict):
    log: Annotated[list[str], add]


def asking(saver: BaseCheckpointSaver[str]) -> Pregel:
    """Draft, ask twice in one node, publish."""

    def review(state: Log) -> dict[str, list[str]]:
        title = interrupt({"question": "title?", "draft": state["log"][-1]})
        author = interrupt("author?")
        return {"log": [f"{title} by {author}"]}

    graph = StateGraph(Log)
    graph.add_node("draft", lambda _: {"log": ["draft"]})
    graph.add_node("review", review)
    graph.add_node("publish", lambda _: {"log": ["published"]})
    graph.add_edge(START, "draft")
    graph.add_edge("draft", "review")
    graph.add_edge("review", "publish")
    return graph.compile(checkpointer=saver)


def branching(saver: BaseCheckpointSaver[str]) -> Pregel:
    """Ask in three branches at once."""

    def ask(branch: str) -> Callable[[Log], dict[str, list[str]]]:
        return lambda _: {"log": [f"{branch}: {interrupt(branch)}"]}

    graph = StateGraph(Log)
    for branch in ("left", "middle", "right"):
        graph.add_node(branch, ask(branch))
        graph.add_edge(START, branch)
    return graph.compile(checkpointer=saver)


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_run_waits_for_each_answer_in_turn(agents: Callable[..., Any], durability: str) -> None:
    """The question is in the stored state, and an answer given goes with the run to the next question."""
    ours, model = agents(asking)

    for agent in (ours, model):
        asked = await agent.invoke({"log": ["input"]}, THREAD, durability=durability)
        assert [question.value for question in asked["__interrupt__"]] == [{"question": "title?", "draft": "draft"}]
        waiting = await agent.state(THREAD)
        assert waiting.next == ("review",)
        assert waiting.interrupts[0].value == {"question": "title?", "draft": "draft"}

        asked = await agent.invoke(Command(resume="Foxes \U0001f98a"), THREAD, durability=durability)
        assert [question.value for question in asked["__interrupt__"]] == ["author?"]

        ended = await agent.invoke(Command(resume="Ada"), THREAD, durability=durability)
        assert ended["log"] == ["input", "draft", "Foxes \U0001f98a by Ada", "published"]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_the_answer_may_come_from_another_process(agents: Callable[..., Any], url: str) -> None:
    """A saver that never saw the run resumes it; the one that started it reads the end."""
    ours, _ = agents(asking)
    await ours.invoke({"log": ["input"]}, THREAD)

    async with AsyncPostgresSaver.from_conn_string(url) as elsewhere:
        await asking(elsewhere).ainvoke(Command(resume="Foxes"), THREAD)
    async with AsyncPostgresSaver.from_conn_string(url) as elsewhere:
        await asking(elsewhere).ainvoke(Command(resume="Ada"), THREAD)

    assert (await ours.state(THREAD)).values["log"] == ["input", "draft", "Foxes by Ada", "published"]


async def test_parallel_branches_ask_at_once_and_are_answered_by_id(agents: Callable[..., Any]) -> None:
    """Three questions are stored together; answering one leaves the two others waiting, and then they end in order."""
    ours, model = agents(branching)

    for agent in (ours, model):
        asked = await agent.invoke({"log": []}, THREAD)
        ids = {question.value: question.id for question in asked["__interrupt__"]}
        assert ids.keys() == {"left", "middle", "right"}

        asked = await agent.invoke(Command(resume={ids["middle"]: "2"}), THREAD)
        assert {question.value for question in asked["__interrupt__"]} == {"left", "right"}
        waiting = await agent.state(THREAD)
        assert [(task.name, task.result) for task in waiting.tasks] == [
            ("left", None),
            ("middle", {"log": ["middle: 2"]}),
            ("right", None),
        ]

        ended = await agent.invoke(Command(resume={ids["left"]: "1", ids["right"]: "3"}), THREAD)
        assert ended["log"] == ["left: 1", "middle: 2", "right: 3"]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_an_answer_may_bring_an_update_and_a_detour(agents: Callable[..., Any]) -> None:
    """`Command(resume=..., update=...)` and a node's `Command(goto=...)` land in the stored state."""

    def detouring(saver: BaseCheckpointSaver[str]) -> Pregel:
        def ask(_: Log) -> Command[Any]:
            return Command(update={"log": ["asked"]}, goto=interrupt("where to?"))

        graph = StateGraph(Log)
        graph.add_node("ask", ask, destinations=("here", "there"))
        graph.add_node("here", lambda _: {"log": ["here"]})
        graph.add_node("there", lambda _: {"log": ["there"]})
        graph.add_edge(START, "ask")
        return graph.compile(checkpointer=saver)

    ours, model = agents(detouring)

    for agent in (ours, model):
        await agent.invoke({"log": ["input"]}, THREAD)
        ended = await agent.invoke(Command(resume="there", update={"log": ["hurry"]}), THREAD)
        assert sorted(ended["log"]) == ["asked", "hurry", "input", "there"]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_an_answer_with_an_update_replaces_an_earlier_one(agents: Callable[..., Any]) -> None:
    """A run that crashes before it takes its answer goes on with that one, not with the one before it."""

    def asking_twice(saver: BaseCheckpointSaver[str]) -> Pregel:
        tries = count(1)

        def ask(_: Log) -> dict[str, list[str]]:
            number, answer = next(tries), interrupt("sure?")
            if number == 3:
                raise RuntimeError("crash")
            return {"log": [answer, interrupt("really sure?")]}

        graph = StateGraph(Log)
        graph.add_node("ask", ask)
        graph.add_edge(START, "ask")
        return graph.compile(checkpointer=saver)

    ours, model = agents(asking_twice)

    ends = []
    for agent in (ours, model):
        await agent.invoke({"log": ["input"]}, THREAD)
        asked = await agent.invoke(Command(resume="NO", update={"log": ["no"]}), THREAD)
        assert [question.value for question in asked["__interrupt__"]] == ["really sure?"]
        with pytest.raises(RuntimeError, match="crash"):
            await agent.invoke(Command(resume="YES", update={"log": ["yes"]}), THREAD)
        ends.append((await agent.invoke(None, THREAD))["log"])

    assert ends[0] == ends[1]
    assert ends[0][-2:] == ["NO", "YES"]
    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_a_run_stops_before_and_after_the_nodes_it_is_told(agents: Callable[..., Any]) -> None:
    """Static breakpoints: each `invoke(None)` goes to the next stop, and the state there is stored."""

    def stopping(saver: BaseCheckpointSaver[str]) -> Pregel:
        graph = StateGraph(Log)
        for name in ("one", "two", "three"):
            graph.add_node(name, lambda _, name=name: {"log": [name]})
        graph.add_edge(START, "one")
        graph.add_edge("one", "two")
        graph.add_edge("two", "three")
        return graph.compile(checkpointer=saver, interrupt_before=["two"], interrupt_after=["two"])

    ours, model = agents(stopping)

    for agent in (ours, model):
        stops = []
        for given in ({"log": []}, None, None):
            await agent.invoke(given, THREAD)
            state = await agent.state(THREAD)
            stops.append((state.next, state.values["log"]))
        assert stops == [(("two",), ["one"]), (("three",), ["one", "two"]), ((), ["one", "two", "three"])]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_a_human_edits_the_state_while_the_run_waits(agents: Callable[..., Any]) -> None:
    """An update to a waiting thread is a checkpoint of its own, which the answer continues from."""
    ours, model = agents(asking)

    for agent in (ours, model):
        await agent.invoke({"log": ["input"]}, THREAD)
        await agent.update(THREAD, {"log": ["edited"]}, as_node="draft")
        asked = await agent.invoke(None, THREAD)
        assert asked["__interrupt__"][0].value["draft"] == "edited"
        await agent.invoke(Command(resume="Foxes"), THREAD)
        ended = await agent.invoke(Command(resume="Ada"), THREAD)
        assert ended["log"] == ["input", "draft", "edited", "Foxes by Ada", "published"]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_many_threads_wait_and_are_answered_at_once(agents: Callable[..., Any]) -> None:
    """Answers given at the same time reach the threads they were given to."""
    ours, _ = agents(asking)
    configs = [{"configurable": {"thread_id": f"thread-{n}"}} for n in range(12)]

    await asyncio.gather(*(ours.invoke({"log": ["input"]}, config) for config in configs))
    await asyncio.gather(*(ours.invoke(Command(resume=f"title {n}"), config) for n, config in enumerate(configs)))
    ended = await asyncio.gather(
        *(ours.invoke(Command(resume=f"author {n}"), config) for n, config in enumerate(configs))
    )

    assert [state["log"][2] for state in ended] == [f"title {n} by author {n}" for n in range(12)]
