"""Listing threads: the first page of very many against the first page of few, and with one thread in front of all."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack

from benchmarks.bench import Bench, undisturbed
from benchmarks.contenders import Ours, Saver
from benchmarks.filling import add_numbered
from benchmarks.report import Result, Target

PAGE = 20


def measure(bench: Bench) -> list[Result]:
    """Milliseconds for the first page, and how many times those for a page of few."""
    return asyncio.run(_measure(bench))


async def _measure(bench: Bench) -> list[Result]:
    many, few = bench.pick(quick=100_000, full=1_000_000), 1_000
    ours, rounds = Ours(), bench.pick(quick=5, full=20)
    shapes = {
        f"{few:,} checkpoints": ("'t-' || i / 10", few),
        f"{many:,} checkpoints, one thread after the other": ("'t-' || i / 10", many),
        f"{many:,} checkpoints, all threads at once": (f"'t-' || i % {many // 10}", many),
    }
    async with AsyncExitStack() as stack:
        savers: dict[str, Saver] = {}
        urls = []
        for number, (shape, (thread, last)) in enumerate(shapes.items()):
            urls.append(bench.database(stack, f"threads listed {number}"))
            savers[shape] = await stack.enter_async_context(ours.open(urls[-1]))
            add_numbered(urls[-1], thread, 1, last)
        times = await _rounds(savers, rounds)

        # What can happen, and does not have to be as fast: one thread has the newest checkpoints by far.
        add_numbered(urls[1], "'one'", many + 1, many + many // 10)
        few_shape, one_after_the_other, _ = shapes
        ahead = f"{many:,} checkpoints, and {many // 10:,} newer ones of one thread"
        again = await _rounds({few_shape: savers[few_shape], ahead: savers[one_after_the_other]}, rounds)

    results = [
        Result(measure=f"list_threads, first page: {shape}", unit="ms", samples={ours: samples})
        for shape, samples in {**times, ahead: again[ahead]}.items()
    ]
    for shape, few_samples in {**dict.fromkeys(list(shapes)[1:], times[few_shape]), ahead: again[few_shape]}.items():
        samples = again[ahead] if shape == ahead else times[shape]
        ratios = [[statistics.median(a) / statistics.median(b)] for a, b in zip(samples, few_samples, strict=True)]
        target = {} if shape == ahead else {"ours": Target(at_most=5, of_ours=True)}
        name = f"list_threads, first page against {few:,}: {shape}"
        results.append(Result(measure=name, unit="times", samples={ours: ratios}, targets=target))
    return results


async def _rounds(savers: dict[str, Saver], rounds: int) -> dict[str, list[list[float]]]:
    times: dict[str, list[list[float]]] = {shape: [] for shape in savers}
    for number in range(rounds + 1):
        for shape, saver in savers.items():
            samples = await _pages(saver)
            if number:
                times[shape].append(samples)
    return times


async def _pages(saver: Saver) -> list[float]:
    times = []
    with undisturbed():
        for _ in range(10):
            started = time.perf_counter()
            found = [one async for one in saver.alist_threads(limit=PAGE)]
            times.append((time.perf_counter() - started) * 1e3)
            assert len(found) == PAGE
    return times[2:]
