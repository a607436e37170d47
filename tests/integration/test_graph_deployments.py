"""Deployments that take turns on a thread: one knows channels that the other does not, as in a rollback."""

from __future__ import annotations

from collections.abc import Callable
from operator import add
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, StateGraph
from langgraph.pregel import Pregel

from tests.integration.conftest import Agent

THREAD: Any = {"configurable": {"thread_id": "thread"}}


class Old(TypedDict):
    log: Annotated[list[str], add]
    turns: Annotated[int, add]


class New(Old):
    customer: str
    vip: bool
    note: str | None
    score: float
    orders: list[str]


def old(saver: BaseCheckpointSaver[str]) -> Pregel:
    graph = StateGraph(Old).add_node("talk", lambda _: {"log": ["old"], "turns": 1})
    return graph.add_edge(START, "talk").compile(checkpointer=saver)


def new(saver: BaseCheckpointSaver[str]) -> Pregel:
    """It sells something first, and has a node that the old one lacks."""
    graph = StateGraph(New)
    graph.add_node("sell", lambda state: {"orders": [*state.get("orders", []), "soup"], "score": 0.5})
    graph.add_node("talk", lambda _: {"log": ["new"], "turns": 1})
    graph.add_edge(START, "sell").add_edge("sell", "talk")
    return graph.compile(checkpointer=saver)


@pytest.mark.parametrize("turns", ["non", "onoon"])
async def test_a_deployment_keeps_what_it_does_not_know(agents: Callable[..., Any], turns: str) -> None:
    """Text, numbers, bools and None, which are inline, and lists, which are not; forks and updates keep them too."""
    stories = []
    for deployed in agents(new):
        deployments = {"n": deployed, "o": Agent(old(deployed.graph.checkpointer), blocking=deployed.blocking)}
        for number, turn in enumerate(turns):
            brought = {"customer": f"customer {number}", "vip": True, "note": None} if turn == "n" else {}
            ended = await deployments[turn].invoke({"log": [f"{number}"], "turns": 0, **brought}, THREAD)
            assert ended["turns"] == number + 1
        await deployments["o"].update(THREAD, {"log": ["edited"]}, as_node="talk")
        edited = await deployed.state(THREAD)
        assert edited.values["customer"] == f"customer {turns.rindex('n')}"
        assert (edited.values["vip"], edited.values["note"], edited.values["score"]) == (True, None, 0.5)
        assert edited.values["orders"] == ["soup"] * turns.count("n")

        history = await deployed.history(THREAD)
        earlier = next(snapshot.config for snapshot in history if "talk" in snapshot.next)
        await deployments["o"].invoke(None, earlier)
        stories.append([await each.story(THREAD) for each in deployments.values()])

    assert stories[0] == stories[1]
