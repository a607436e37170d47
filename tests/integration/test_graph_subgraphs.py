"""Graphs inside graphs: each keeps its checkpoints in a namespace of its own, under the same thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from operator import add
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, StateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command, interrupt

from checkpoint_store import PostgresSaver

THREAD = {"configurable": {"thread_id": "thread"}}


class Log(TypedDict):
    log: Annotated[list[str], add]


class Letter(TypedDict):
    log: Annotated[list[str], add]
    text: str


class Today(TypedDict):
    today: str


class Diary(TypedDict):
    today: str
    days: Annotated[int, add]


def approving(saver: BaseCheckpointSaver[str]) -> Pregel:
    """An editor's graph in a publisher's graph in a company's graph; the editor asks for approval."""
    editor = StateGraph(Letter)
    editor.add_node("write", lambda _: {"log": ["written"], "text": "Dear fox"})
    editor.add_node("approve", lambda state: {"log": [f"{state['text']}: {interrupt('approve?')}"]})
    editor.add_edge(START, "write")
    editor.add_edge("write", "approve")

    publisher = StateGraph(Log)
    publisher.add_node("editor", editor.compile())
    publisher.add_node("print", lambda _: {"log": ["printed"]})
    publisher.add_edge(START, "editor")
    publisher.add_edge("editor", "print")

    company = StateGraph(Log)
    company.add_node("publisher", publisher.compile())
    company.add_node("archive", lambda _: {"log": ["archived"]})
    company.add_edge(START, "publisher")
    company.add_edge("publisher", "archive")
    return company.compile(checkpointer=saver)


def remembering(saver: BaseCheckpointSaver[str]) -> Pregel:
    """A graph that calls a subgraph with a memory of its own: it counts the days."""
    diary = StateGraph(Diary)
    diary.add_node("note", lambda state: {"days": 1, "today": f"{state['today']} is day {state['days'] + 1}"})
    diary.add_edge(START, "note")

    company = StateGraph(Today)
    company.add_node("diary", diary.compile(checkpointer=True))
    company.add_edge(START, "diary")
    return company.compile(checkpointer=saver)


def names(namespace: str) -> list[str]:
    """The nodes of a namespace, without the ids of the tasks that ran them."""
    return [part.partition(":")[0] for part in namespace.split("|")]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_subgraph_waits_and_goes_on_inside_its_parents(agents: Callable[..., Any], durability: str) -> None:
    """A question asked two graphs down is seen at the top, and its answer finds the node that asked."""
    ours, model = agents(approving)

    for agent in (ours, model):
        asked = await agent.invoke({"log": []}, THREAD, durability=durability)
        assert [question.value for question in asked["__interrupt__"]] == ["approve?"]

        ended = await agent.invoke(Command(resume="yes"), THREAD, durability=durability)
        assert ended["log"] == ["written", "Dear fox: yes", "printed", "archived"]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_the_state_of_every_subgraph_is_there_to_look_at(agents: Callable[..., Any]) -> None:
    """`get_state(subgraphs=True)` opens each level, and each level's config leads to its own history."""
    ours, model = agents(approving)

    for agent in (ours, model):
        await agent.invoke({"log": []}, THREAD)
        company = await agent.state(THREAD, subgraphs=True)
        publisher = company.tasks[0].state
        editor = publisher.tasks[0].state
        assert (company.next, publisher.next, editor.next) == (("publisher",), ("editor",), ("approve",))
        assert (company.values, publisher.values, editor.values) == (
            {"log": []},
            {"log": []},
            {"log": ["written"], "text": "Dear fox"},
        )
        namespace = editor.config["configurable"]["checkpoint_ns"]
        assert names(namespace) == ["publisher", "editor"]
        history = await agent.history({"configurable": {"thread_id": "thread", "checkpoint_ns": namespace}})
        assert [snapshot.values for snapshot in history] == [editor.values, {"log": []}, {"log": []}]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_a_subgraph_that_waits_can_be_edited(agents: Callable[..., Any]) -> None:
    """An update in the subgraph's namespace is what its node finds when the answer comes."""
    ours, model = agents(approving)

    for agent in (ours, model):
        await agent.invoke({"log": []}, THREAD)
        company = await agent.state(THREAD, subgraphs=True)
        editor = company.tasks[0].state.tasks[0].state
        await agent.update(editor.config, {"text": "Dear badger"})
        ended = await agent.invoke(Command(resume="yes"), THREAD)
        assert ended["log"] == ["written", "Dear badger: yes", "printed", "archived"]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_checkpoints_of_a_subgraph_stay_out_of_its_parents_history(
    agents: Callable[..., Any], sync_saver: PostgresSaver
) -> None:
    """One thread, three namespaces: each lists its own checkpoints, and the thread lists them all."""
    ours, _ = agents(approving)
    await ours.invoke({"log": []}, THREAD)

    stored = await asyncio.to_thread(lambda: list(sync_saver.list(THREAD)))
    namespaces = {found.config["configurable"]["checkpoint_ns"] for found in stored}
    assert sorted(names(namespace) for namespace in namespaces) == [[""], ["publisher"], ["publisher", "editor"]]
    for namespace in namespaces:
        config = {"configurable": {"thread_id": "thread", "checkpoint_ns": namespace}}
        of_one = await asyncio.to_thread(lambda config=config: list(sync_saver.list(config)))
        assert of_one == [found for found in stored if found.config["configurable"]["checkpoint_ns"] == namespace]

    await asyncio.to_thread(sync_saver.delete_thread, "thread")
    assert await asyncio.to_thread(lambda: list(sync_saver.list(None))) == []


async def test_a_subgraph_with_a_memory_keeps_it_from_call_to_call(agents: Callable[..., Any]) -> None:
    """`checkpointer=True`: the namespace has no task id in it, and each call continues where the last one ended."""
    ours, model = agents(remembering)
    diary = {"configurable": {"thread_id": "thread", "checkpoint_ns": "diary"}}

    for agent in (ours, model):
        ended = [await agent.invoke({"today": day}, THREAD) for day in ("Monday", "Tuesday", "Wednesday")]
        assert [state["today"] for state in ended] == ["Monday is day 1", "Tuesday is day 2", "Wednesday is day 3"]
        assert (await agent.state(diary)).values == {"today": "Wednesday is day 3", "days": 3}

    assert await ours.story(diary) == await model.story(diary)
    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_subgraphs_side_by_side_keep_apart(agents: Callable[..., Any]) -> None:
    """Two subgraphs that wait in the same step each get their own answer."""

    def two_editors(saver: BaseCheckpointSaver[str]) -> Pregel:
        company = StateGraph(Log)
        for name in ("first", "second"):
            editor = StateGraph(Log)
            editor.add_node("ask", lambda _, name=name: {"log": [f"{name}: {interrupt(name)}"]})
            editor.add_edge(START, "ask")
            company.add_node(name, editor.compile())
            company.add_edge(START, name)
        return company.compile(checkpointer=saver)

    ours, model = agents(two_editors)

    for agent in (ours, model):
        asked = await agent.invoke({"log": []}, THREAD)
        answers = {question.id: f"answer to {question.value}" for question in asked["__interrupt__"]}
        ended = await agent.invoke(Command(resume=answers), THREAD)
        assert ended["log"] == ["first: answer to first", "second: answer to second"]

    assert await ours.story(THREAD) == await model.story(THREAD)
