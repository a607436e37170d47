"""A table of several runs, from their JSON documents: `python -m benchmarks.summary JSON ...`."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import short, short_ratio, speed_of

Document = Mapping[str, Any]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.summary", description=__doc__)
    parser.add_argument("json", type=Path, nargs="+", help="as `python -m benchmarks` writes it")
    print(table([json.loads(path.read_text()) for path in parser.parse_args().json]))


def table(documents: Sequence[Document]) -> str:
    """The figure that counts of each measure with a target, as Markdown: the runs' median, lowest and highest."""
    lines = [f"| | ours, median of {len(documents)} runs (lowest-highest) | to reach |", "|---|---|---|"]
    for result in documents[0]["results"]:
        for row in result["comparison"]:
            if row["target"]:
                name = result["measure"] + ("" if row["ours"] == "ours" else f" ({row['ours']})")
                figures = [figure for document in documents for figure in _figures(document, result["measure"], row)]
                lines.append(f"| {name} | {_spread(figures, result, row)} | {row['target'].removeprefix('ours ')} |")
    return "\n".join([*lines, "", *(f"- {document['date']}: {speed_of(document)}" for document in documents)])


def _figures(document: Document, measure: str, row: Mapping[str, Any]) -> list[float]:
    """What a run has for the same row: the ratio, or our figure where that counts."""
    return [
        result["contenders"][one["ours"]]["median"] if str(one["target"]).startswith("ours") else one["ratio"]
        for result in document["results"]
        if result["measure"] == measure
        for one in result["comparison"]
        # The stock saver's best mode need not be the same one in each run.
        if (one["ours"], one["role"]) == (row["ours"], row["role"])
    ]


def _spread(figures: Sequence[float], result: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    ours = row["target"].startswith("ours")
    median, lowest, highest = map(
        short if ours else short_ratio, (statistics.median(figures), min(figures), max(figures))
    )
    if ours:
        what = result["unit"]
    else:
        noun = "rate" if result["better"] == "higher" else {"MB": "size"}.get(result["unit"], "time")
        whose = f"its {noun}" if row["role"] == "stock" else f"the {noun} of {row['other']}"
        what = f"times {whose}" if result["better"] == "higher" else f"of {whose}"
    return f"{median} ({lowest}-{highest}) {what}".strip()


if __name__ == "__main__":
    main()
