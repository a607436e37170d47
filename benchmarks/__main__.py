"""Run the benchmark: `python -m benchmarks [--quick] [--only MEASURE ...] [--repeat N]`."""

from __future__ import annotations

import argparse
import gc
import os
import pkgutil
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import measures, report, server, summary
from benchmarks.bench import Bench
from benchmarks.speed import speed

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the measures one after the other on one server, print the tables and write the JSON documents."""
    names = [module.name for module in pkgutil.iter_modules(measures.__path__)]
    names.sort(key="among_many".__eq__)  # the last: the server writes its million rows for minutes afterwards
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=sys.modules["benchmarks"].__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds: under two minutes")
    parser.add_argument("--only", nargs="+", choices=names, metavar="MEASURE", help=f"some of: {', '.join(names)}")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="whole runs, and a table of their medians")
    parser.add_argument("--json", type=Path, metavar="PATH", help="default: benchmarks/results/, for a whole run")
    parser.add_argument(
        "--server", metavar="URL", help="an idle server of yours, as one who may create databases; default: its own"
    )
    options = parser.parse_args(arguments)
    # A partial run must not pass for a whole one.
    target = options.json or (None if options.only else RESULTS / ("quick.json" if options.quick else "latest.json"))
    documents = []
    for number in range(options.repeat):
        documents.append(_run(options.only or names, options.quick, options.server))
        if target:
            target.parent.mkdir(parents=True, exist_ok=True)
            path = target.with_stem(f"{target.stem}-{number + 1}") if number else target
            path.write_text(report.written(documents[-1]))
    if options.repeat > 1:
        print(summary.table(documents))


def _run(names: Sequence[str], quick: bool, url: str | None) -> dict[str, Any]:
    """Run measures, print their tables, and return the document."""
    results: list[report.Result] = []
    series: list[report.Series] = []
    with server.running(url) as running:
        run = report.conditions(running.settings(), quick=quick)
        before = speed(running.url)
        for name in names:
            measure = import_module(f"{measures.__name__}.{name}").measure
            # Looking for garbage among the imported modules would take 60 ms before every turn.
            gc.collect()
            gc.freeze()
            os.sync()  # or commits would wait while the system still writes what the measure before has stored
            started = time.perf_counter()
            for one in measure(Bench(running, quick)):
                (series if isinstance(one, report.Series) else results).append(one)
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
        after = speed(running.url)
    run["speed"] = {name: [figure, after[name]] for name, figure in before.items()}
    print(report.markdown(results, run))
    return report.document(results, series, run)


if __name__ == "__main__":
    main()
