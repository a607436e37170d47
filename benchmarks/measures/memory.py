"""A long list: what iterating over every checkpoint of a thread holds in memory at its peak."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

from benchmarks.bench import Bench
from benchmarks.contenders import Ours, Saver, StockConnection
from benchmarks.report import Result, Samples, Target
from benchmarks.workload import Chat, Step


class OursAlone(Ours):
    """On one connection: asyncpg keeps the last piece received on each, so a pool's would grow until all had a turn."""

    pool_size = 1


def measure(bench: Bench) -> list[Result]:
    """Peak memory of a long list, and how many times that of a shorter one."""
    return asyncio.run(_measure(bench))


async def _measure(bench: Bench) -> list[Result]:
    count, fewer = bench.pick(quick=1_000, full=3_000), bench.pick(quick=500, full=500)
    peaks: Samples = {}
    growth: Samples = {}
    async with bench.savers("memory", [OursAlone(), StockConnection()]) as savers:
        long, short = Chat("long", window=2), Chat("short", window=2)
        for chat, length in ((long, count), (short, fewer)):
            steps = chat.steps(length)
            for saver in savers.values():
                await _store(saver, steps)
        # Once is enough: what is allocated does not depend on the time of day.
        for contender, saver in savers.items():
            whole = await _peak_mb(saver, long, count)
            part = await _peak_mb(saver, short, fewer)
            peaks[contender] = [[whole]]
            growth[contender] = [[whole / part]]
    name = f"alist, {count:,} checkpoints"
    return [
        Result(measure=f"{name}: peak memory", unit="MB", samples=peaks),
        Result(
            measure=f"{name}: peak against {fewer:,}",
            unit="times",
            samples=growth,
            targets={"ours": Target(at_most=1.5, of_ours=True)},
        ),
    ]


async def _store(saver: Saver, steps: list[Step]) -> None:
    for first in range(0, len(steps), 100):
        await asyncio.gather(*[saver.aput(*step.put) for step in steps[first : first + 100]])


async def _peak_mb(saver: Saver, chat: Chat, count: int) -> float:
    # Sees Python's allocations only, so what psycopg's libpq holds of a result is not counted against the stock saver.
    gc.collect()
    tracemalloc.start()
    try:
        found = 0
        async for _ in saver.alist(chat.config):
            found += 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == count, found
    return peak / 1e6
