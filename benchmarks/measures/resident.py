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
    grown: dict[str, subprocess.Popen[str]] = {}
    with ExitStack() as stack:
        for name, per_thread in (("many threads", 10), ("one thread", puts)):
            url = bench.database(stack, f"resident {name}")
            command = [sys.executable, "-m", "benchmarks.resident", url, *map(str, (puts, before, per_thread))]
            # At the same time, because memory is counted and not time.
            grown[name] = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return [
            Result(
                measure=f"{puts:,} puts, {name}: memory since {before:,}",
                unit="MB",
                samples={Ours(): [[float(process.communicate()[0])]]},
                targets={"ours": Target(at_most=10, of_ours=True)},
            )
            for name, process in grown.items()
        ]
