"""A long chat on a delta channel, which stores what each turn adds: how long its last turns take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import START, StateGraph

from benchmarks.bench import Bench, undisturbed
from benchmarks.contenders import Ours, Saver, StockPool
from benchmarks.report import Result, Samples

LAST = 20
"""How many of the last turns are told."""


def extend(lines: list[str], writes: Sequence[list[str]]) -> list[str]:
    """Apply what was written."""
    return [*lines, *[line for write in writes for line in write]]


class State(TypedDict):
    """The state of the chat."""

    lines: Annotated[list[str], DeltaChannel(extend, list)]


def measure(bench: Bench) -> list[Result]:
    """Milliseconds per turn, one caller."""
    return asyncio.run(_measure(bench, bench.pick(quick=60, full=500)))


async def _measure(bench: Bench, turns: int) -> list[Result]:
    times: Samples = {}
    async with bench.savers("delta chat", [Ours(), StockPool()]) as savers:
        for contender, saver in savers.items():
            times[contender] = [(await _chat(saver, turns))[-LAST:]]
    return [Result(measure=f"delta chat, the last of {turns} turns", unit="ms", samples=times)]


async def _chat(saver: Saver, turns: int) -> list[float]:
    def answer(state: State) -> dict[str, Any]:
        return {"lines": [f"That was line {len(state['lines'])}. " + "word " * 40]}

    graph = StateGraph(State).add_node("answer", answer).add_edge(START, "answer").compile(checkpointer=saver)
    config: RunnableConfig = {"configurable": {"thread_id": "chat"}}
    times = []
    with undisturbed():
        for _ in range(turns):
            started = time.perf_counter()
            state = await graph.ainvoke({"lines": ["Hello"]}, config)
            times.append((time.perf_counter() - started) * 1e3)
    assert len(state["lines"]) == 2 * turns, len(state["lines"])
    return times
