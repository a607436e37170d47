"""Many callers, far away: the same runs with a round trip of 2 ms to the server."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.measures.throughput import Load, concurrent_runs
from benchmarks.proxy import proxied
from benchmarks.report import Result, Series, Target

TARGETS = {"ours, pipeline": Target(at_least=15)}


def measure(bench: Bench) -> list[Result | Series]:
    """Steps per second behind a delaying proxy."""
    loads = (
        [Load(1, 4, 1), Load(8, 2, 1), Load(64, 1, 1)]
        if bench.quick
        else [Load(1, 16, 5), Load(8, 8, 5), Load(64, 4, 6), Load(256, 1, 2)]
    )
    with ExitStack() as proxies:
        return asyncio.run(
            concurrent_runs(
                bench,
                "2 ms away",
                loads,
                targets=TARGETS,
                via=lambda url: proxies.enter_context(proxied(url, one_way=0.001)),
            )
        )
