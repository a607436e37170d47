"""A process that puts and puts: how much larger it is after 10,000 than after 1,000, to know a leak by."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.contenders import Ours
from benchmarks.report import Result, Target


def measure(bench: Bench) -> list[Result]:
    """Growth of the resident set, many threads and one, each in a process of its own."""
    puts, before = bench.pick(quick=900, full=10_000), bench.pick(quick=300, full=1_000)
    results = []
    for name, per_thread in (("many threads", 10), ("one thread", puts)):
        with ExitStack() as stack:
            url = bench.database(stack, f"resident {name}")
            command = [sys.executable, "-m", "benchmarks.resident", url, *map(str, (puts, before, per_thread))]
            grown = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        results.append(
            Result(
                measure=f"{puts:,} puts, {name}: memory since {before:,}",
                unit="MB",
                samples={Ours(): [[grown]]},
                targets={"ours": Target(at_most=10, of_ours=True)},
            )
        )
    return results
