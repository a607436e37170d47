"""Many callers: 1 to 256 runs at once, each reads its thread once and then stores step after step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.bench import Bench, in_turns, undisturbed
from benchmarks.contenders import STOCK, Contender, Ours, OursPlain, Saver
from benchmarks.proof import compare
from benchmarks.report import Result, Samples, Series, Target
from benchmarks.workload import Chat, Step

TARGETED = 64
"""The number of runs that targets are for, and whose slowest call is told."""


@dataclass(frozen=True)
class Load:
    """So many runs at once, each of so many steps, in so many rounds."""

    runs: int
    steps: int
    rounds: int


def measure(bench: Bench) -> list[Result | Series]:
    """Steps per second over loopback."""
    loads = (
        [Load(1, 4, 1), Load(8, 2, 1), Load(64, 2, 1)]
        if bench.quick
        else [Load(1, 30, 4), Load(8, 12, 4), Load(64, 6, 6), Load(256, 2, 1)]
    )
    return asyncio.run(concurrent_runs(bench, "loopback", loads, target=6))


async def concurrent_runs(
    bench: Bench,
    where: str,
    loads: Sequence[Load],
    *,
    target: float,
    via: Callable[[str], str] | None = None,
) -> list[Result | Series]:
    """Steps per second of every contender, and the longest that a call took under the load with a target."""
    results = []
    points: dict[Contender, list[tuple[float, float]]] = {}
    async with bench.savers(f"throughput {where}", (Ours(), OursPlain(), *STOCK), via=via) as savers:
        for load in loads:
            turns = await in_turns(savers, load.rounds, partial(_turn, savers, load), uncounted=not bench.quick)
            rates: Samples = {contender: [[rate] for rate, _ in rounds] for contender, rounds in turns.items()}
            name = f"{load.runs} concurrent run{'s' if load.runs > 1 else ''}, {where}"
            targets = {"ours": Target(at_least=target)} if load.runs == TARGETED else {}
            result = Result(measure=name, unit="steps/s", samples=rates, higher_is_better=True, targets=targets)
            results.append(result)
            for contender in rates:
                points.setdefault(contender, []).append((float(load.runs), result.median(contender)))
            if load.runs == TARGETED:
                longest: Samples = {contender: [[ms] for _, ms in rounds] for contender, rounds in turns.items()}
                results.append(Result(measure=f"{name}: slowest call", unit="ms", samples=longest))
    return [*results, Series(name=f"throughput: {where}", x="concurrent runs", unit="steps/s", points=points)]


async def _turn(
    savers: Mapping[Contender, Saver], load: Load, contender: Contender, number: int
) -> tuple[float, float]:
    saver = savers[contender]
    chats = [Chat(f"round-{number}-of-{load.runs}-run-{run}") for run in range(load.runs)]
    planned = [chat.steps(load.steps) for chat in chats]
    with undisturbed():
        started = time.perf_counter()
        slowest = await asyncio.gather(*(_run(saver, chat, run) for chat, run in zip(chats, planned, strict=True)))
        seconds = time.perf_counter() - started
    for chat, run in zip(chats, planned, strict=True):
        compare(run[-1], await saver.aget_tuple(chat.config))
    return load.runs * load.steps / seconds, max(slowest) * 1e3


async def _run(saver: Saver, chat: Chat, steps: list[Step]) -> float:
    slowest = await _seconds(saver.aget_tuple(chat.config))
    for step in steps:
        put = saver.aput(*step.put)
        slowest = max(slowest, await _seconds(put))
        writes = saver.aput_writes(*step.put_writes)
        slowest = max(slowest, await _seconds(writes))
    return slowest


async def _seconds(call: Awaitable[object]) -> float:
    started = time.perf_counter()
    await call
    return time.perf_counter() - started
