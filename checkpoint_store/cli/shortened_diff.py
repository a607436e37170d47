"""The lines of a diff, cut to what a person reads: long lines to the part that differs, and many to the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from checkpoint_store.cli.text import common
from checkpoint_store.cli.values import Limits

_BEFORE = 40
"""Characters that are kept of the beginning of a line, and before what differs."""

MAX_LINES = 120
"""Lines that are kept of those that were removed, or added, at one place."""


def shortened(lines: Sequence[str], limits: Limits) -> Iterator[str]:
    """Yield the lines of a unified diff, without its header, shortened."""
    groups = [(sign, list(group)) for sign, group in groupby(lines, key=lambda line: line[0])]
    for place, (sign, group) in enumerate(groups):
        others: list[str] = []
        if sign == "-" and place + 1 < len(groups) and groups[place + 1][0] == "+":
            others = groups[place + 1][1]
        elif sign == "+" and place and groups[place - 1][0] == "-":
            others = groups[place - 1][1]
        for line in group[:MAX_LINES]:
            yield _shortened(line, others[:MAX_LINES], limits.characters)
        if len(group) > MAX_LINES:
            yield f"{sign}  ... {len(group) - MAX_LINES:,} more lines (--full)"


def _shortened(line: str, others: Sequence[str], most: int) -> str:
    if len(line) <= most:
        return line
    same = max((common(line[1:], other[1:]) for other in others), default=0)
    begin = max(same - _BEFORE, 0)
    start = ""
    if begin > _BEFORE * 2:
        start = f"{line[:_BEFORE]}... {begin - _BEFORE:,} characters the same ..."
        line = line[begin:]
    rest = len(line) - most
    return start + (line if rest <= 0 else f"{line[:most]}... {rest:,} characters more (--full)")
