"""Sync callers of LangGraph itself: `graph.invoke` of a small agent from one thread, and from 16 at once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph

from benchmarks.bench import Bench, in_turns, undisturbed
from benchmarks.contenders import Contender, Saver, in_place
from benchmarks.report import Result, Samples, Target

THREADS = 16


def measure(bench: Bench) -> list[Result]:
    """Milliseconds per turn from one thread, turns per second from many."""
    with bench.sync_savers("invoke") as savers, ThreadPoolExecutor(THREADS) as threads:
        graphs = {contender: _agent(saver) for contender, saver in savers.items()}

        async def turn(contender: Contender, number: int) -> tuple[list[float], float]:
            graph = graphs[contender]
            return _alone(graph, f"alone-{number}"), _crowded(graph, threads, f"crowd-{number}")

        turns = in_place(in_turns(graphs, bench.pick(quick=2, full=12), turn))
    alone: Samples = {contender: [times for times, _ in rounds] for contender, rounds in turns.items()}
    crowded: Samples = {contender: [[rate] for _, rate in rounds] for contender, rounds in turns.items()}
    return [
        Result(measure="invoke, 1 thread", unit="ms", samples=alone, targets={"ours": Target(at_most=0.95)}),
        Result(
            measure=f"invoke, {THREADS} threads",
            unit="turns/s",
            samples=crowded,
            higher_is_better=True,
            targets={"ours": Target(at_least=2.1)},
            stock="stock pool",
        ),
    ]


def _agent(saver: Saver) -> Any:
    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [("ai", f"That was message {len(state['messages'])}.")]}

    return StateGraph(MessagesState).add_node(answer).add_edge(START, "answer").compile(checkpointer=saver)


def _chat(graph: Any, thread_id: str, turns: int) -> list[float]:
    """Some turns of a chat, in milliseconds each; its last state is checked."""
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    times = []
    for _ in range(turns):
        started = time.perf_counter()
        state = graph.invoke({"messages": [("user", "Hello")]}, config)
        times.append((time.perf_counter() - started) * 1e3)
    assert len(state["messages"]) == 2 * turns, state
    return times


def _alone(graph: Any, thread_id: str, *, warm_up: int = 2, timed: int = 5) -> list[float]:
    with undisturbed():
        return _chat(graph, thread_id, warm_up + timed)[warm_up:]


def _crowded(graph: Any, threads: ThreadPoolExecutor, name: str, *, turns: int = 3) -> float:
    with undisturbed():
        started = time.perf_counter()
        list(threads.map(lambda n: _chat(graph, f"{name}-{n}", turns), range(THREADS)))
        return THREADS * turns / (time.perf_counter() - started)
