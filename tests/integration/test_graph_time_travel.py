"""Going back: history, forks from an old checkpoint, and states written by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from operator import add
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.pregel import Pregel
from langgraph.types import StateSnapshot, StateUpdate

from checkpoint_store import PostgresSaver

THREAD = {"configurable": {"thread_id": "thread"}}


class ThreadCursor(TypedDict):
    path: Annotated[list[str], add]
    direction: str


def walking(saver: BaseCheckpointSaver[str]) -> Pregel:
    """Four steps in the direction that the state says, whatever it was before."""
    graph = StateGraph(ThreadCursor)
    graph.add_node("step", lambda state: {"path": [state["direction"]]})
    graph.add_node("rest", lambda _: {"path": ["rest"]})
    graph.add_edge(START, "step")
    graph.add_conditional_edges("step", lambda state: "step" if len(state["path"]) < 4 else "rest")
    graph.add_edge("rest", END)
    return graph.compile(checkpointer=saver)


def at(history: list[StateSnapshot], step: int) -> StateSnapshot:
    """The newest snapshot of a step."""
    return next(snapshot for snapshot in history if snapshot.metadata["step"] == step)


async def test_every_step_can_be_read_again(agents: Callable[..., Any]) -> None:
    """Each snapshot's own config returns that snapshot, whatever came after it."""
    ours, model = agents(walking)

    for agent in (ours, model):
        await agent.invoke({"direction": "north"}, THREAD)
        history = await agent.history(THREAD)
        assert [len(snapshot.values.get("path", [])) for snapshot in history] == [5, 4, 3, 2, 1, 0, 0]
        assert [await agent.state(snapshot.config) for snapshot in history] == history

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_history_is_read_in_parts(agents: Callable[..., Any]) -> None:
    """`limit` and `before` cut the same history that the model's cuts make, and filters choose from it."""
    ours, model = agents(walking)
    parts = []

    for agent in (ours, model):
        await agent.invoke({"direction": "north"}, THREAD)
        first = await agent.history(THREAD, limit=3)
        second = await agent.history(THREAD, limit=3, before=first[-1].config)
        rest = await agent.history(THREAD, before=second[-1].config)
        assert first + second + rest == await agent.history(THREAD)
        loops = await agent.history(THREAD, filter={"source": "loop"}, before=first[0].config, limit=2)
        parts.append([[snapshot.values for snapshot in part] for part in (first, second, rest, loops)])

    assert parts[0] == parts[1]


async def test_a_run_from_an_old_checkpoint_forks(agents: Callable[..., Any]) -> None:
    """The new branch starts from the old state, the old branch stays readable, and the newest is the thread's state."""
    ours, model = agents(walking)

    for agent in (ours, model):
        await agent.invoke({"direction": "north"}, THREAD)
        original = await agent.history(THREAD)
        crossroads = at(original, 2)

        fork = await agent.update(crossroads.config, {"direction": "south"})
        ended = await agent.invoke(None, fork)
        assert ended["path"] == ["north", "north", "south", "south", "rest"]

        assert (await agent.state(THREAD)).values == ended
        assert (await agent.state(original[0].config)).values["path"] == ["north"] * 4 + ["rest"]
        children = [
            snapshot
            for snapshot in await agent.history(THREAD)
            if snapshot.parent_config and snapshot.parent_config == crossroads.config
        ]
        assert sorted(child.metadata["source"] for child in children) == ["loop", "update"]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_a_replayed_checkpoint_makes_a_branch_of_its_own(agents: Callable[..., Any]) -> None:
    """`invoke(None)` on an old config runs the rest again, twice over, and each time as a branch of the tree."""
    ours, model = agents(walking)

    for agent in (ours, model):
        await agent.invoke({"direction": "north"}, THREAD)
        crossroads = at(await agent.history(THREAD), 1)
        for _ in range(2):
            ended = await agent.invoke(None, crossroads.config)
            assert ended["path"] == ["north"] * 4 + ["rest"]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_new_input_on_an_old_checkpoint_forks_with_it(agents: Callable[..., Any]) -> None:
    """Input on an old config is applied to the old state."""
    ours, model = agents(walking)

    for agent in (ours, model):
        await agent.invoke({"direction": "north"}, THREAD)
        crossroads = at(await agent.history(THREAD), 1)
        ended = await agent.invoke({"direction": "east", "path": ["turn"]}, crossroads.config)
        assert ended["path"] == ["north", "turn", "east", "east", "rest"]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_a_state_is_written_by_hand(agents: Callable[..., Any]) -> None:
    """Updates on a new thread, as one node and as another: the graph goes on where that node would have left it."""
    ours, model = agents(walking)

    for agent in (ours, model):
        await agent.update(THREAD, {"direction": "west", "path": ["a", "b", "c"]}, as_node="__start__")
        assert (await agent.state(THREAD)).next == ("step",)
        await agent.update(THREAD, {"path": ["d"]}, as_node="step")
        assert (await agent.state(THREAD)).next == ("rest",)
        ended = await agent.invoke(None, THREAD)
        assert ended == {"direction": "west", "path": ["a", "b", "c", "d", "rest"]}
        await agent.update(THREAD, None, as_node=END)

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_many_supersteps_are_written_at_once(agents: Callable[..., Any]) -> None:
    """A bulk update leaves one checkpoint for each superstep, as if the nodes had run."""
    ours, model = agents(walking)
    supersteps = [
        [StateUpdate({"direction": "west"}, as_node="__start__")],
        [StateUpdate({"path": ["one"]}, as_node="step")],
        [StateUpdate({"path": ["two"]}, as_node="step"), StateUpdate({"path": ["three"]}, as_node="step")],
    ]

    for agent in (ours, model):
        await agent.bulk_update(THREAD, supersteps)
        assert (await agent.state(THREAD)).values == {"direction": "west", "path": ["one", "two", "three"]}
        ended = await agent.invoke(None, THREAD)
        assert ended["path"] == ["one", "two", "three", "west", "rest"]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_a_copy_of_a_checkpoint_runs_on_its_own(agents: Callable[..., Any]) -> None:
    """`update_state` as a copy makes a sibling with the same tasks; running it leaves the first one as it was."""
    ours, model = agents(walking)

    for agent in (ours, model):
        await agent.invoke({"direction": "north"}, THREAD)
        crossroads = at(await agent.history(THREAD), 2)
        copy = await agent.update(crossroads.config, None, as_node="__copy__")
        copied = await agent.state(copy)
        assert (copied.values, copied.next, copied.metadata["source"]) == (crossroads.values, ("step",), "fork")
        assert copied.parent_config == crossroads.parent_config

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_forks_made_at_once_are_all_kept(agents: Callable[..., Any], sync_saver: PostgresSaver) -> None:
    """Sixteen branches from one checkpoint, at the same time: each ends as it would have alone."""
    ours, _ = agents(walking)
    await ours.invoke({"direction": "north"}, THREAD)
    crossroads = at(await ours.history(THREAD), 1)

    ended = await asyncio.gather(
        *(ours.invoke({"direction": f"way {n}", "path": []}, crossroads.config) for n in range(16))
    )

    assert [state["path"] for state in ended] == [["north", *[f"way {n}"] * 3, "rest"] for n in range(16)]
    ends = [found for found in sync_saver.list(THREAD) if len(found.checkpoint["channel_values"].get("path", [])) == 5]
    assert len(ends) == 1 + 16
