"""Many callers: 1 to 256 runs at once on a pool of 10, each reads its thread once and then stores step after step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from benchmarks.bench import Bench, rotation, undisturbed
from benchmarks.contenders import Contender, Saver
from benchmarks.proof import compare
from benchmarks.report import Result, Samples, Series, Target
from benchmarks.workload import Chat, Step

TARGETED = 64
"""The number of runs that targets are for, and whose slowest call is told."""

TARGETS = {"ours": Target(at_least=2.0), "ours, plain": Target(at_least=4.0)}


@dataclass(frozen=True)
class Load:
    """So many runs at once, each of so many steps, in so many rounds."""

    runs: int
    steps: int
    rounds: int


def measure(bench: Bench) -> list[Result | Series]:
    """Steps per second over loopback."""
    loads = (
        [Load(1, 4, 2), Load(8, 2, 2), Load(64, 3, 2)]
        if bench.quick
        else [Load(1, 40, 8), Load(8, 16, 8), Load(64, 8, 14), Load(256, 3, 4)]
    )
    return asyncio.run(concurrent_runs(bench, "loopback", loads, targets=TARGETS))


async def concurrent_runs(
    bench: Bench,
    where: str,
    loads: Sequence[Load],
    *,
    targets: dict[str, Target],
    via: Callable[[str], str] | None = None,
) -> list[Result | Series]:
    """Steps per second of every contender, after one round of each load that doesn't count.

    For the load with targets, the longest that a call took as well.
    """
    rates: dict[Load, Samples] = {load: {} for load in loads}
    slowest: Samples = {}
    async with bench.savers(f"throughput {where}", via=via) as savers:
        for number in range(max(load.rounds for load in loads) + 1):
            for load in loads:
                for contender in rotation(list(savers), number) if number <= load.rounds else ():
                    rate, longest = await _turn(savers[contender], load, number)
                    if number:
                        rates[load].setdefault(contender, []).append([rate])
                        if load.runs == TARGETED:
                            slowest.setdefault(contender, []).append([longest * 1e3])
    results = [
        Result(
            measure=f"{load.runs} concurrent run{'s' if load.runs > 1 else ''}, {where}",
            unit="steps/s",
            samples=rates[load],
            higher_is_better=True,
            targets=targets if load.runs == TARGETED else {},
        )
        for load in loads
    ]
    points: dict[Contender, list[tuple[float, float]]] = {
        contender: [(float(load.runs), result.median(contender)) for load, result in zip(loads, results, strict=True)]
        for contender in savers
    }
    return [
        *results,
        Result(measure=f"{TARGETED} concurrent runs, {where}: slowest call", unit="ms", samples=slowest),
        Series(name=f"throughput: {where}", x="concurrent runs", unit="steps/s", points=points),
    ]


async def _turn(saver: Saver, load: Load, number: int) -> tuple[float, float]:
    chats = [Chat(f"round-{number}-of-{load.runs}-run-{run}") for run in range(load.runs)]
    planned = [chat.steps(load.steps) for chat in chats]
    with undisturbed():
        started = time.perf_counter()
        slowest = await asyncio.gather(*(_run(saver, chat, run) for chat, run in zip(chats, planned, strict=True)))
        seconds = time.perf_counter() - started
    for chat, run in zip(chats, planned, strict=True):
        compare(run[-1], await saver.aget_tuple(chat.config))
    return load.runs * load.steps / seconds, max(slowest)


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
