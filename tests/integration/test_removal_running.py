"""Checkpoints are removed while graphs run on them: nothing is lost, and little comes back, which is documented."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from operator import add
from typing import Annotated, Any, TypedDict

import asyncpg
import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command, Send, interrupt
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver
from checkpoint_store.serde import pages
from tests.integration.histories import unreachable


def extend(lines: list[str], added: Sequence[list[str]]) -> list[str]:
    return [*lines, *(line for part in added for line in part)]


class State(TypedDict):
    lines: Annotated[list[str], DeltaChannel(extend, list, snapshot_frequency=4)]
    notes: Annotated[list[str], add]
    title: str
    left: int


class Inner(TypedDict):
    notes: Annotated[list[str], add]
    left: int


def working(saver: BaseCheckpointSaver[str]) -> Pregel:
    """Steps in turn, a subgraph that is interrupted, one that remembers, and tasks that are sent out."""

    async def think(state: Inner) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"notes": [f"thought {state['left']}"]}

    async def ask(state: Inner) -> dict[str, Any]:
        answer = interrupt("more?") if state["left"] == 2 else "nobody asked"
        return {"notes": [f"answer {answer}"]}

    inner = StateGraph(Inner).add_node(think).add_node(ask)
    inner.add_edge(START, "think").add_edge("think", "ask").add_edge("ask", END)
    memory = StateGraph(Inner).add_node("remember", think).add_edge(START, "remember").compile(checkpointer=True)

    async def work(state: State) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"lines": [f"work {state['left']} of {state['title']}"], "left": state["left"] - 1}

    async def part(number: int) -> dict[str, Any]:
        return {"lines": [f"part {number}"], "notes": ["x" * 500 + str(number)]}

    graph = StateGraph(State)
    graph.add_node("work", work)
    graph.add_node("part", part)
    graph.add_node("inner", inner.compile())
    graph.add_node("memory", memory)
    graph.add_edge(START, "work")
    graph.add_conditional_edges("work", lambda _: [Send("part", number) for number in range(2)])
    graph.add_edge("part", "inner")
    graph.add_edge("inner", "memory")
    graph.add_conditional_edges("memory", lambda state: "work" if state["left"] > 0 else END)
    return graph.compile(checkpointer=saver)


async def run(graph: Pregel, thread_id: str, durability: Any) -> list[Any]:
    """Three runs on one thread, each resumed where it is interrupted. Returns the states that it was in then."""
    thread: Any = {"configurable": {"thread_id": thread_id}}
    states = []
    for turn in range(2):
        call: Any = {"lines": [f"turn {turn}"], "title": f"turn {turn}", "left": 3}
        while True:
            result = await graph.ainvoke(call, thread, durability=durability)
            states.append((await graph.aget_state(thread)).values)
            if "__interrupt__" not in result:
                break
            call = Command(resume=f"yes in turn {turn}")
    return states


async def test_the_graph_runs_without_anybody_removing(engine: AsyncEngine, url: str) -> None:
    """The graph of the tests below is interrupted, remembers, and leaves subgraphs' checkpoints."""
    expected = await run(working(InMemorySaver()), "t", "sync")
    saver = AsyncPostgresSaver(engine, share_pages=False)

    assert await run(working(saver), "t", "sync") == expected
    graphs = {one.config["configurable"]["checkpoint_ns"].split(":")[0] async for one in saver.alist(None)}
    assert graphs == {"", "inner", "memory"}
    assert len(expected) == 4


Removal = Callable[[AsyncPostgresSaver], Awaitable[Any]]

REMOVALS: dict[str, Removal] = {
    "prune": lambda saver: saver.aprune(["t", "other"]),
    "prune to 3": lambda saver: saver.aprune(["t"], keep=3),
    "sweep": lambda saver: saver.asweep(keep_last=1, batch_size=3),
    "sweep to 2": lambda saver: saver.asweep(keep_last=2),
    "delete another": lambda saver: saver.adelete_thread("other"),
    "delete a run": lambda saver: saver.adelete_for_runs(["other"]),
}


@pytest.mark.parametrize("rounds", [4, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("setting", ["plain", "pipeline and pages"])
async def test_runs_come_to_the_same_end_whatever_is_removed_meanwhile(
    engine: AsyncEngine, url: str, monkeypatch: pytest.MonkeyPatch, setting: str, rounds: int
) -> None:
    """Another process prunes and sweeps all the time: no run loses a write, none resumes wrongly."""
    if setting != "plain":
        monkeypatch.setattr(pages, "LARGE_BYTES", 0)
    saver = AsyncPostgresSaver(
        engine, None if setting == "plain" else AsyncPipeline(engine), share_pages=setting != "plain"
    )
    elsewhere = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    remover = AsyncPostgresSaver(elsewhere, share_pages=False)
    expected = await run(working(InMemorySaver()), "t", "sync")
    chance = random.Random(rounds)
    removed = 0

    async def remove() -> None:
        nonlocal removed
        while not running.done():
            report = await REMOVALS[chance.choice(list(REMOVALS))](remover)
            removed += report.checkpoints if report else 0
            await asyncio.sleep(chance.random() * 0.01)

    for number in range(rounds):
        durability = ("sync", "async", "exit")[number % 3]
        running = asyncio.ensure_future(run(working(saver), "t", durability))
        other = asyncio.ensure_future(run(working(saver), "other", "sync"))
        await asyncio.gather(remove(), running)
        assert running.result() == expected, (number, durability)
        await asyncio.wait([other])

        # What a run stores in the background may come after the removal of what it belongs to.
        late = unreachable(url)
        assert late.keys() <= {"writes"}
        assert await count_writes_of_removed_checkpoints_only(url)
        assert [one async for one in saver.alist({"configurable": {"thread_id": "t"}})]
        await saver.adelete_thread("t")
        await saver.adelete_thread("other")
        assert unreachable(url) == {}
        assert [one async for one in saver.alist(None)] == []
    assert removed > 10 * rounds
    await elsewhere.dispose()


async def count_writes_of_removed_checkpoints_only(url: str) -> bool:
    """Whether all writes that belong to no checkpoint are older than the newest of their graph."""
    conn = await asyncpg.connect(url)
    try:
        return not await conn.fetchval(
            """
            SELECT count(*) FROM checkpoint_writes w WHERE w.checkpoint_id > (
                SELECT max(checkpoint_id) FROM checkpoints c
                WHERE (c.thread_id, c.checkpoint_ns) = (w.thread_id, w.checkpoint_ns))
            """
        )
    finally:
        await conn.close()
