"""One caller, async and sync: how long each operation takes, with 20 messages of 200 characters in the state."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping

from benchmarks.bench import Bench, in_turns, undisturbed
from benchmarks.calls import newest, of_sync
from benchmarks.contenders import STOCK, AnySaver, Contender, Floor, FloorSaver, Ours, OursOnHostEngine
from benchmarks.report import Result, Samples, Target
from benchmarks.workload import Chat

TARGETS = {
    "aput": 0.72,
    "aput_writes, 3 writes": 0.70,
    "aget_tuple, latest": 0.60,
    "aget_tuple, by id": 0.60,
    "alist, 5 checkpoints": 0.45,
}
SYNC_TARGETS = dict(zip(TARGETS, (0.90, 1.0, 0.90, 0.90, 0.80), strict=True))
FLOOR_TARGETS = {"aput": {"ours": Target(at_most=1.5)}}
"""Against bare asyncpg, for what it has of its own."""

Figures = dict[str, list[float]]


def measure(bench: Bench) -> list[Result]:
    """Time each operation alone, in the order a run makes them."""
    rounds = bench.pick(quick=4, full=20)

    async def work(_: str, savers: Mapping[Contender, AnySaver]) -> dict[Contender, list[Figures]]:
        return await in_turns(savers, rounds, lambda one, number: _turn(savers[one], Chat(f"chat-{number}")))

    contenders = (Ours(), OursOnHostEngine(), *STOCK, Floor())
    results = []
    for kind, turns in bench.both_kinds("latency", contenders, work).items():
        sync = kind != "latency"
        for name, ratio in (SYNC_TARGETS if sync else TARGETS).items():
            floor = {} if sync else FLOOR_TARGETS.get(name, {})
            samples: Samples = {
                contender: [figures[name] for figures in rounds]
                for contender, rounds in turns.items()
                if contender.role != "reference" or floor
            }
            results.append(
                Result(
                    measure=of_sync(name) if sync else name,
                    unit="ms",
                    samples=samples,
                    targets={"ours": Target(at_most=ratio)},
                    reference_targets=floor,
                )
            )
    return results


async def _turn(saver: AnySaver, chat: Chat, *, warm_up: int = 6, timed: int = 10) -> Figures:
    """A stretch of calls on a new thread; the first ones warm up what another contender's turn has cooled down."""
    times: Figures = {name: [] for name in TARGETS}
    steps = chat.steps(warm_up + timed)
    if isinstance(saver, FloorSaver):
        for step in steps:
            saver.prepare(*step.put)
    with undisturbed():
        for number, step in enumerate(steps):
            calls = (
                saver.aput(*step.put),
                saver.aput_writes(*step.put_writes),
                saver.aget_tuple(chat.config),
                saver.aget_tuple(step.stored),
                newest(saver, chat, min(number + 1, 5)),
            )
            taken = [await _ms(call) for call in calls]
            if number >= warm_up:
                for name, ms in zip(times, taken, strict=True):
                    times[name].append(ms)
    return times


async def _ms(call: Awaitable[object]) -> float:
    started = time.perf_counter()
    await call
    return (time.perf_counter() - started) * 1e3
