"""Listing threads: the first page of very many against the first page of few, and with one thread in front of all."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack

import psycopg

from benchmarks.bench import Bench, undisturbed
from benchmarks.contenders import Ours, Saver
from benchmarks.report import Result, Target

PAGE = 20

# Threads of ten checkpoints each, whose ids are version 6 UUIDs a millisecond apart; all threads are in use at once,
# or one after the other.
FILL = """
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)
SELECT {thread}, '',
       lpad(to_hex(t >> 28), 8, '0') || '-' || lpad(to_hex(t >> 12 & 65535), 4, '0') || '-6'
           || lpad(to_hex(t & 4095), 3, '0') || '-8000-' || lpad(to_hex(i), 12, '0'),
       jsonb_build_object('v', 4, 'channel_values', jsonb_build_object('n', i), 'channel_versions',
                          jsonb_build_object('n', lpad(i::text, 32, '0'), 'messages', lpad(i::text, 32, '0'))),
       jsonb_build_object('step', i % 10, 'source', 'loop', 'run_id', md5(i::text))
FROM generate_series({first}, {last}) AS i, LATERAL (SELECT 139900000000000000 + i::bigint * 10000 AS t) AS at
"""


def measure(bench: Bench) -> list[Result]:
    """Milliseconds for the first page, and how many times those for a page of few."""
    return asyncio.run(_measure(bench))


async def _measure(bench: Bench) -> list[Result]:
    many, few = bench.pick(quick=100_000, full=1_000_000), 1_000
    shapes = {
        f"{few:,} checkpoints": [("'t-' || i / 10", 1, few)],
        f"{many:,} checkpoints, one thread after the other": [("'t-' || i / 10", 1, many)],
        f"{many:,} checkpoints, all threads at once": [(f"'t-' || i % {many // 10}", 1, many)],
        f"{many:,} checkpoints, the newest tenth of one thread": [
            ("'t-' || i / 10", 1, many * 9 // 10),
            ("'one'", many * 9 // 10 + 1, many),
        ],
    }
    ours = Ours()
    times: dict[str, list[list[float]]] = {shape: [] for shape in shapes}
    async with AsyncExitStack() as stack:
        savers: dict[str, Saver] = {}
        for number, (shape, parts) in enumerate(shapes.items()):
            url = bench.database(stack, f"threads listed {number}")
            savers[shape] = await stack.enter_async_context(ours.open(url))
            with psycopg.connect(url, autocommit=True) as conn:
                for thread, first, last in parts:
                    conn.execute(FILL.format(thread=thread, first=first, last=last))
                conn.execute("VACUUM ANALYZE checkpoints")
        for number in range(bench.pick(quick=5, full=20) + 1):
            for shape, saver in savers.items():
                samples = await _pages(saver)
                if number:
                    times[shape].append(samples)
    few_times, *many_times = times.values()
    results = [
        Result(measure=f"list_threads, first page: {shape}", unit="ms", samples={ours: samples})
        for shape, samples in times.items()
    ]
    for shape, samples in zip(list(shapes)[1:], many_times, strict=True):
        ratios = [[statistics.median(a) / statistics.median(b)] for a, b in zip(samples, few_times, strict=True)]
        # A thread in front of all others is what can happen, and not what has to be as fast.
        target = {} if "one thread" in shape and "newest" in shape else {"ours": Target(at_most=5, of_ours=True)}
        name = f"list_threads, first page against {few:,}: {shape}"
        results.append(Result(measure=name, unit="times", samples={ours: ratios}, targets=target))
    return results


async def _pages(saver: Saver) -> list[float]:
    times = []
    with undisturbed():
        for _ in range(10):
            started = time.perf_counter()
            found = [one async for one in saver.alist_threads(limit=PAGE)]
            times.append((time.perf_counter() - started) * 1e3)
            assert len(found) == PAGE
    return times[2:]
