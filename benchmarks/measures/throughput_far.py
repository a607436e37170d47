"""Many callers, far away: the same runs with a round trip of 2 ms to the server."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.measures.throughput import Load, concurrent_runs
from benchmarks.proxy import proxied
from benchmarks.report import Result, Series


def measure(bench: Bench) -> list[Result | Series]:
    """Steps per second behind a delaying proxy."""
    loads = (
        [Load(1, 4, 1), Load(8, 2, 1), Load(64, 1, 1)]
        if bench.quick
        else [Load(1, 8, 2), Load(8, 6, 2), Load(64, 3, 4), Load(256, 1, 1)]
    )
    with ExitStack() as proxies:
        return asyncio.run(
            concurrent_runs(
                bench,
                "2 ms away",
                loads,
                target=15,
                via=lambda url: proxies.enter_context(proxied(url, one_way=0.001)),
            )
        )
