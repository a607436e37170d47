"""Sync callers: `put` from one thread, and from 16 threads at once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.bench import Bench, rotations, undisturbed
from benchmarks.contenders import Saver
from benchmarks.report import Result, Samples, Target
from benchmarks.workload import Chat, Step

THREADS = 16


def measure(bench: Bench) -> list[Result]:
    """Milliseconds per call from one thread, calls per second from many."""
    with bench.sync_savers("threads") as savers, ThreadPoolExecutor(THREADS) as threads:
        alone: Samples = {contender: [] for contender in savers}
        crowded: Samples = {contender: [] for contender in savers}
        for number, turns in enumerate(rotations(list(savers), bench.pick(quick=5, full=40) + 1)):
            for contender in turns:
                times = _alone(savers[contender], Chat(f"alone-{number}"))
                rate = _crowded(savers[contender], threads, [Chat(f"crowd-{number}-{n}") for n in range(THREADS)])
                if number:
                    alone[contender].append(times)
                    crowded[contender].append([rate])
    return [
        Result(measure="put, 1 thread", unit="ms", samples=alone, targets={"ours": Target(at_most=1.2)}),
        Result(measure=f"put, {THREADS} threads", unit="puts/s", samples=crowded, higher_is_better=True),
    ]


def _alone(saver: Saver, chat: Chat, *, warm_up: int = 5, timed: int = 10) -> list[float]:
    times = []
    with undisturbed():
        for step in chat.steps(warm_up + timed):
            started = time.perf_counter()
            saver.put(step.config, step.checkpoint, step.metadata, step.new_versions)
            times.append((time.perf_counter() - started) * 1e3)
    return times[warm_up:]


def _crowded(saver: Saver, threads: ThreadPoolExecutor, chats: list[Chat], *, puts: int = 8) -> float:
    planned = [chat.steps(puts) for chat in chats]

    def run(steps: list[Step]) -> None:
        for step in steps:
            saver.put(step.config, step.checkpoint, step.metadata, step.new_versions)

    with undisturbed():
        started = time.perf_counter()
        list(threads.map(run, planned))
        seconds = time.perf_counter() - started
    for chat, steps in zip(chats, planned, strict=True):
        found = saver.get_tuple(chat.config)
        assert found is not None
        assert found.checkpoint == steps[-1].checkpoint
    return len(chats) * puts / seconds
