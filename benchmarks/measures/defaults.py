"""As it comes: 64 runs of a graph at once on a saver from a URL, no option set, beside the stock saver's pool."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph

from benchmarks.bench import Bench, rotations, undisturbed
from benchmarks.contenders import OursByDefault, Saver, StockPool
from benchmarks.report import Result, Samples

RUNS = 64


def measure(bench: Bench) -> list[Result]:
    """Turns per second; a turn reads the thread, runs two nodes and stores four times."""
    return asyncio.run(_measure(bench, turns=bench.pick(quick=2, full=5), rounds=bench.pick(quick=2, full=8)))


async def _measure(bench: Bench, turns: int, rounds: int) -> list[Result]:
    rates: Samples = {}
    async with bench.savers("defaults", [OursByDefault(), StockPool()]) as savers:
        graphs = {contender: _agent(saver) for contender, saver in savers.items()}
        for number, order in enumerate(rotations(list(savers), rounds + 1)):
            for contender in order:
                rate = await _crowd(graphs[contender], f"{number}", turns)
                if number:  # the first doesn't count
                    rates.setdefault(contender, []).append([rate])
    return [
        Result(measure=f"{RUNS} runs, as they come", unit="turns/s", samples=rates, higher_is_better=True),
    ]


def _agent(saver: Saver) -> Any:
    def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [("ai", f"Let me see, about message {len(state['messages'])}. " + "word " * 40)]}

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [("ai", f"That was message {len(state['messages'])}.")]}

    graph = StateGraph(MessagesState).add_node(think).add_node(answer)
    return graph.add_edge(START, "think").add_edge("think", "answer").compile(checkpointer=saver)


async def _crowd(graph: Any, name: str, turns: int) -> float:
    async def chat(number: int) -> None:
        config: RunnableConfig = {"configurable": {"thread_id": f"{name}-{number}"}}
        for _ in range(turns):
            state = await graph.ainvoke({"messages": [("user", "Hello")]}, config)
        assert len(state["messages"]) == 3 * turns, state

    with undisturbed():
        started = time.perf_counter()
        await asyncio.gather(*map(chat, range(RUNS)))
        return RUNS * turns / (time.perf_counter() - started)
