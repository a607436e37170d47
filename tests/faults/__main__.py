"""Fault injection under load, as a table: python -m tests.faults [--injections 2] [--json FILE]."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from tests.faults import matrix
from tests.faults.bed import has_standbys
from tests.faults.load import LOADS
from tests.faults.matrix import TRANSIENT_ERRORS, Cell, name_of

ROW = "{:<26} {:<11} {:>10} {:>7} {:>13} {:>5} {:>7} {:>8} {:>10}"


def main() -> int:
    """Run the matrix; the exit status is 1 if anything was lost or an error surfaced."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--injections", type=int, default=2, help="of each fault into each operation (default: 2)")
    parser.add_argument("--retry-timeout", type=float, default=10.0, help="of the savers, in seconds (default: 10)")
    parser.add_argument("--fault", action="append", help="only this one; may be repeated")
    parser.add_argument("--operation", action="append", choices=list(LOADS), help="only this one; may be repeated")
    parser.add_argument("--json", type=Path, help="where to write the figures to")
    options = parser.parse_args()
    chosen = [fault for fault in TRANSIENT_ERRORS if options.fault is None or name_of(fault) in options.fault]
    if not has_standbys():
        chosen.remove(matrix.failover)
        print("no failover: pg_basebackup is missing", file=sys.stderr)
    logging.getLogger("checkpoint_store").setLevel(logging.ERROR)

    print(
        ROW.format("fault", "operation", "injections", "tried", "acknowledged", "lost", "errors", "retries", "slowest")
    )
    cells = matrix.run(
        chosen,
        options.operation or tuple(LOADS),
        injections=options.injections,
        retry_timeout=options.retry_timeout,
        on_cell=_show,
    )
    _show(
        Cell(
            "all",
            "",
            *[sum(getattr(cell, name) for cell in cells) for name in ("injections", "tried", "acknowledged", "lost")],
            {"": sum(sum(cell.errors.values()) for cell in cells)},
            sum(cell.retries for cell in cells),
            max(cell.slowest for cell in cells),
        )
    )
    for cell in cells:
        for error, number in cell.errors.items():
            print(f"{cell.fault}, {cell.operation}: {number} x {error}")
    if options.json:
        options.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")
    return int(any(cell.lost or cell.errors for cell in cells))


def _show(cell: Cell) -> None:
    figures = (cell.injections, cell.tried, cell.acknowledged, cell.lost, sum(cell.errors.values()), cell.retries)
    print(ROW.format(cell.fault, cell.operation, *figures, f"{cell.slowest:.2f} s"), flush=True)


if __name__ == "__main__":
    sys.exit(main())
