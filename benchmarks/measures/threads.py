"""Sync callers: `put` from 16 threads at once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.bench import Bench, in_turns, undisturbed
from benchmarks.contenders import Contender, Saver, in_place
from benchmarks.report import Result
from benchmarks.workload import Chat, Step

THREADS = 16


def measure(bench: Bench) -> list[Result]:
    """Calls per second."""
    with bench.sync_savers("threads") as savers, ThreadPoolExecutor(THREADS) as threads:

        async def turn(contender: Contender, number: int) -> list[float]:
            return [_rate(savers[contender], threads, [Chat(f"crowd-{number}-{n}") for n in range(THREADS)])]

        samples = in_place(in_turns(savers, bench.pick(quick=3, full=10), turn))
    return [Result(measure=f"sync put, {THREADS} threads", unit="puts/s", samples=samples, higher_is_better=True)]


def _rate(saver: Saver, threads: ThreadPoolExecutor, chats: list[Chat], *, puts: int = 8) -> float:
    planned = [chat.steps(puts) for chat in chats]

    def run(steps: list[Step]) -> None:
        for step in steps:
            saver.put(*step.put)

    with undisturbed():
        started = time.perf_counter()
        list(threads.map(run, planned))
        seconds = time.perf_counter() - started
    for chat, steps in zip(chats, planned, strict=True):
        found = saver.get_tuple(chat.config)
        assert found is not None
        assert found.checkpoint == steps[-1].checkpoint
    return len(chats) * puts / seconds
