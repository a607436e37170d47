"""One caller: how long each operation takes, with 20 messages of 200 characters in the state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

from benchmarks.bench import Bench, rotations, undisturbed
from benchmarks.contenders import ASYNC, Floor, FloorSaver, Saver
from benchmarks.report import Result, Samples, Target
from benchmarks.workload import Chat

TARGETS = {
    "aput": 0.85,
    "aput_writes, 3 writes": 0.85,
    "aget_tuple, latest": 0.85,
    "aget_tuple, by id": 0.85,
    "alist, 5 checkpoints": 0.6,
}
FLOOR_TARGETS = {"aput": {"ours": Target(at_most=1.5)}}
"""Against bare asyncpg, for what it has of its own."""


def measure(bench: Bench) -> list[Result]:
    """Time each operation alone, in the order a run makes them."""
    return asyncio.run(_measure(bench))


async def _measure(bench: Bench) -> list[Result]:
    samples: dict[str, Samples] = {name: {} for name in TARGETS}
    async with bench.savers("latency", [*ASYNC, Floor()]) as savers:
        for turns in rotations(list(savers), bench.pick(quick=8, full=80)):
            chat_id = f"chat-{time.monotonic_ns()}"
            for contender in turns:
                for name, times in (await _turn(savers[contender], Chat(chat_id))).items():
                    if contender.role != "reference" or name in FLOOR_TARGETS:
                        samples[name].setdefault(contender, []).append(times)
    return [
        Result(
            measure=name,
            unit="ms",
            samples=samples[name],
            targets={"ours": Target(at_most=ratio)},
            reference_targets=FLOOR_TARGETS.get(name, {}),
        )
        for name, ratio in TARGETS.items()
    ]


async def _turn(saver: Saver, chat: Chat, *, warm_up: int = 6, timed: int = 10) -> dict[str, list[float]]:
    """A stretch of calls on a new thread; the first ones warm up what another contender's turn has cooled down."""
    times: dict[str, list[float]] = {name: [] for name in TARGETS}
    steps = chat.steps(warm_up + timed)
    if isinstance(saver, FloorSaver):
        for step in steps:
            saver.prepare(step.config, step.checkpoint, step.metadata, step.new_versions)
    with undisturbed():
        for number, step in enumerate(steps):
            calls = (
                saver.aput(step.config, step.checkpoint, step.metadata, step.new_versions),
                saver.aput_writes(step.stored, step.writes, step.task_id, step.task_path),
                saver.aget_tuple(chat.config),
                saver.aget_tuple(step.stored),
                _newest(saver, chat, min(number + 1, 5)),
            )
            taken = [await _ms(call) for call in calls]
            if number >= warm_up:
                for name, ms in zip(times, taken, strict=True):
                    times[name].append(ms)
    return times


async def _newest(saver: Saver, chat: Chat, count: int) -> None:
    found = [one async for one in saver.alist(chat.config, limit=5)]
    assert len(found) == count, found


async def _ms(call: Awaitable[object]) -> float:
    started = time.perf_counter()
    await call
    return (time.perf_counter() - started) * 1e3
