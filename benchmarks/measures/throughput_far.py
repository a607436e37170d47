"""Many callers, far away: the same 64 runs with a round trip of 2 ms to the server."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.measures.throughput import RUNS, concurrent_runs
from benchmarks.proxy import proxied
from benchmarks.report import Result


def measure(bench: Bench) -> list[Result]:
    """Steps per second behind a delaying proxy."""
    rounds, steps = bench.pick(quick=1, full=10), bench.pick(quick=2, full=4)
    with ExitStack() as proxies:
        return asyncio.run(
            concurrent_runs(
                bench,
                f"{RUNS} concurrent runs, 2 ms away",
                rounds=rounds,
                steps=steps,
                via=lambda url: proxies.enter_context(proxied(url, one_way=0.001)),
            )
        )
