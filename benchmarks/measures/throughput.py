"""Many callers: 64 runs at once on a pool of 10, each reads its thread once and then stores step after step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from benchmarks.bench import Bench, rotations, undisturbed
from benchmarks.contenders import Saver
from benchmarks.proof import compare
from benchmarks.report import Result, Samples, Target
from benchmarks.workload import Chat, Step

RUNS = 64


def measure(bench: Bench) -> list[Result]:
    """Steps per second over loopback."""
    rounds, steps = bench.pick(quick=3, full=20), bench.pick(quick=4, full=8)
    samples = asyncio.run(concurrent_runs(bench, "throughput", rounds=rounds, steps=steps))
    return [
        Result(
            measure=f"{RUNS} concurrent runs",
            unit="steps/s",
            samples=samples,
            higher_is_better=True,
            targets={"ours": Target(at_least=1.7)},
        )
    ]


async def concurrent_runs(
    bench: Bench, measure: str, *, rounds: int, steps: int, via: Callable[[str], str] | None = None
) -> Samples:
    """Steps per second of every contender, a sample per round, after one round that doesn't count."""
    async with bench.savers(measure, via=via) as savers:
        samples: Samples = {contender: [] for contender in savers}
        for number, turns in enumerate(rotations(list(savers), rounds + 1)):
            for contender in turns:
                rate = await _turn(savers[contender], number, steps)
                if number:
                    samples[contender].append([rate])
    return samples


async def _turn(saver: Saver, number: int, steps: int) -> float:
    chats = [Chat(f"round-{number}-run-{run}") for run in range(RUNS)]
    planned = [chat.steps(steps) for chat in chats]
    with undisturbed():
        started = time.perf_counter()
        await asyncio.gather(*(_run(saver, chat, run) for chat, run in zip(chats, planned, strict=True)))
        seconds = time.perf_counter() - started
    for chat, run in zip(chats, planned, strict=True):
        compare(run[-1], await saver.aget_tuple(chat.config))
    return RUNS * steps / seconds


async def _run(saver: Saver, chat: Chat, steps: list[Step]) -> None:
    await saver.aget_tuple(chat.config)
    for step in steps:
        await saver.aput(step.config, step.checkpoint, step.metadata, step.new_versions)
        await saver.aput_writes(step.stored, step.writes, step.task_id, step.task_path)
