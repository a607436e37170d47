"""Many callers: 64 runs at once on a pool of 10, each reads its thread once and then stores step after step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from benchmarks.bench import Bench, rotations, undisturbed
from benchmarks.contenders import Saver
from benchmarks.proof import compare
from benchmarks.report import Result, Samples, Target
from benchmarks.workload import Chat, Step

RUNS = 64


def measure(bench: Bench) -> list[Result]:
    """Steps per second over loopback."""
    rounds, steps = bench.pick(quick=3, full=20), bench.pick(quick=4, full=8)
    return asyncio.run(
        concurrent_runs(
            bench,
            f"{RUNS} concurrent runs",
            rounds=rounds,
            steps=steps,
            targets={"ours": Target(at_least=1.7)},
        )
    )


async def concurrent_runs(
    bench: Bench,
    name: str,
    *,
    rounds: int,
    steps: int,
    targets: dict[str, Target] | None = None,
    via: Callable[[str], str] | None = None,
) -> list[Result]:
    """Steps per second of every contender and the longest that a call took, after one round that doesn't count."""
    async with bench.savers(name, via=via) as savers:
        rates: Samples = {contender: [] for contender in savers}
        slowest: Samples = {contender: [] for contender in savers}
        for number, turns in enumerate(rotations(list(savers), rounds + 1)):
            for contender in turns:
                rate, longest = await _turn(savers[contender], number, steps)
                if number:
                    rates[contender].append([rate])
                    slowest[contender].append([longest * 1e3])
    return [
        Result(measure=name, unit="steps/s", samples=rates, higher_is_better=True, targets=targets or {}),
        Result(measure=f"{name}: slowest call", unit="ms", samples=slowest),
    ]


async def _turn(saver: Saver, number: int, steps: int) -> tuple[float, float]:
    chats = [Chat(f"round-{number}-run-{run}") for run in range(RUNS)]
    planned = [chat.steps(steps) for chat in chats]
    with undisturbed():
        started = time.perf_counter()
        slowest = await asyncio.gather(*(_run(saver, chat, run) for chat, run in zip(chats, planned, strict=True)))
        seconds = time.perf_counter() - started
    for chat, run in zip(chats, planned, strict=True):
        compare(run[-1], await saver.aget_tuple(chat.config))
    return RUNS * steps / seconds, max(slowest)


async def _run(saver: Saver, chat: Chat, steps: list[Step]) -> float:
    slowest = await _seconds(saver.aget_tuple(chat.config))
    for step in steps:
        put = saver.aput(step.config, step.checkpoint, step.metadata, step.new_versions)
        slowest = max(slowest, await _seconds(put))
        writes = saver.aput_writes(step.stored, step.writes, step.task_id, step.task_path)
        slowest = max(slowest, await _seconds(writes))
    return slowest


async def _seconds(call: Awaitable[object]) -> float:
    started = time.perf_counter()
    await call
    return time.perf_counter() - started
