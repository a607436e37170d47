"""A long chat on a delta channel, which stores what each turn adds: how long late turns take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import START, StateGraph

from benchmarks.bench import Bench, rotations, undisturbed
from benchmarks.contenders import Contender, Ours, Saver, StockConnection
from benchmarks.report import Result, Samples, Target

MEASURE = "delta chat"
SERVED = 10
"""Over how many turns the server's CPU time is told."""


def extend(lines: list[str], writes: Sequence[list[str]]) -> list[str]:
    """Apply what was written."""
    return [*lines, *[line for write in writes for line in write]]


class State(TypedDict):
    """The state of the chat."""

    lines: Annotated[list[str], DeltaChannel(extend, list)]


def measure(bench: Bench) -> list[Result]:
    """Milliseconds per turn of one caller, and how the server's part grows."""
    return asyncio.run(_measure(bench, bench.pick(quick=60, full=500)))


async def _measure(bench: Bench, turns: int) -> list[Result]:
    half, last = turns // 2, turns // 5
    # Between the first two of these turns, and between the last two, the server's CPU time is told.
    asked = (half - SERVED, half, turns - SERVED, turns)
    async with bench.savers(MEASURE, (Ours(), StockConnection())) as savers:
        graphs = {contender: _graph(saver) for contender, saver in savers.items()}
        times: Samples = {contender: [] for contender in savers}
        served: dict[Contender, list[float]] = {contender: [] for contender in savers}
        for number, order in enumerate(rotations(list(savers), turns), start=1):
            with undisturbed():
                for contender in order:
                    times[contender].append([await _turn(graphs[contender], number)])
            if number in asked:
                for contender, seconds in served.items():
                    seconds.append(bench.server.cpu_seconds(f"{MEASURE} {contender.name}"))
    at_half, at_end = (
        {one: (seconds[end] - seconds[end - 1]) / SERVED * 1e3 for one, seconds in served.items()} for end in (1, 3)
    )
    targets = {} if bench.quick else {"ours": Target(at_most=0.80)}
    flat = {} if bench.quick else {"ours": Target(at_most=1.10, of_ours=True)}
    return [
        Result(
            measure=f"delta chat, turns {turns - last} to {turns}",
            unit="ms",
            samples={contender: rounds[-last:] for contender, rounds in times.items()},
            targets=targets,
        ),
        Result(
            measure=f"delta chat, turn {turns}: CPU of the server",
            unit="ms",
            samples={contender: [[ms]] for contender, ms in at_end.items()},
        ),
        Result(
            measure=f"delta chat, turn {turns} against {half}: CPU of the server",
            unit="times",
            samples={contender: [[ms / at_half[contender]]] for contender, ms in at_end.items()},
            targets=flat,
        ),
    ]


def _graph(saver: Saver) -> Any:
    def answer(state: State) -> dict[str, Any]:
        return {"lines": [f"That was line {len(state['lines'])}. " + "word " * 40]}

    return StateGraph(State).add_node("answer", answer).add_edge(START, "answer").compile(checkpointer=saver)


async def _turn(graph: Any, number: int) -> float:
    config: RunnableConfig = {"configurable": {"thread_id": "chat"}}
    started = time.perf_counter()
    state = await graph.ainvoke({"lines": ["Hello"]}, config)
    ms = (time.perf_counter() - started) * 1e3
    assert len(state["lines"]) == 2 * number, len(state["lines"])
    return ms
