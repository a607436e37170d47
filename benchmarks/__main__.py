"""Run the benchmark: `python -m benchmarks [--quick] [--only MEASURE ...] [--json PATH]`."""

from __future__ import annotations

import argparse
import gc
import pkgutil
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks import measures, report, server
from benchmarks.bench import Bench

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the measures one after the other on one server, print the tables and write the JSON document."""
    names = [module.name for module in pkgutil.iter_modules(measures.__path__)]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=sys.modules["benchmarks"].__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds: under two minutes")
    parser.add_argument("--only", nargs="+", choices=names, metavar="MEASURE", help=f"some of: {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="PATH", help="default: benchmarks/results/, for a whole run")
    parser.add_argument(
        "--server", metavar="URL", help="an idle server of yours, as one who may create databases; default: its own"
    )
    options = parser.parse_args(arguments)
    # A partial run must not pass for a whole one.
    target = options.json or (None if options.only else RESULTS / ("quick.json" if options.quick else "latest.json"))

    results: list[report.Result] = []
    series: list[report.Series] = []
    with server.running(options.server) as running:
        run = report.conditions(running.settings(), quick=options.quick)
        commit_ms = [running.commit_ms()]
        for name in options.only or names:
            measure = import_module(f"{measures.__name__}.{name}").measure
            # Looking for garbage among the imported modules would take 60 ms before every turn.
            gc.collect()
            gc.freeze()
            started = time.perf_counter()
            for one in measure(Bench(running, options.quick)):
                (series if isinstance(one, report.Series) else results).append(one)
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
        run["commit_ms"] = [*commit_ms, running.commit_ms()]

    print(report.markdown(results, run))
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(report.written(report.document(results, series, run)))


if __name__ == "__main__":
    main()
