"""Text that is safe for a terminal, and numbers, sizes, times and ids as text."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from checkpoint_store.storage.checkpoint_time import time_of

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
"""The units of sizes, in powers of a thousand."""

SHORT_ID = 18
"""The characters of a version 6 UUID that are its time; the rest is the same in most ids of a thread."""


def printable(text: str) -> str:
    """Escape what is not printable: stored text can't move the cursor, set a title, or pass for other text."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def short_id(checkpoint_id: str | None) -> str:
    """Return the start of a checkpoint's id that tells it from others, as commands accept it."""
    if checkpoint_id is None:
        return "-"
    return printable(checkpoint_id[:SHORT_ID] if time_of(checkpoint_id) else checkpoint_id)


_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def shortened(text: str, width: int) -> str:
    """Return a text that fills at most so many cells of a terminal, cut in the middle, and not in a UUID if it can."""
    from rich.cells import get_character_cell_size  # errors are printed without it

    cells = [0, *accumulate(map(get_character_cell_size, text))]
    if cells[-1] <= width:
        return text
    within = {place for uuid in _UUID.finditer(text) for place in range(uuid.start() + 1, uuid.end())}
    start, end = _cut(cells, width - 1, [place for place in range(len(cells)) if place not in within])
    if cells[start] + cells[-1] - cells[end] < width // 2:
        start, end = _cut(cells, width - 1, range(len(cells)))
    return f"{text[:start]}…{text[end:]}"


def _cut(cells: Sequence[int], width: int, places: Sequence[int]) -> tuple[int, int]:
    """Return the two of some places that keep most of a text outside them, and about as much before as after it."""
    found = []
    for start in places[: bisect_right(places, width, key=cells.__getitem__)]:
        before = cells[start]
        end = places[bisect_left(places, cells[-1] - width + before, key=cells.__getitem__)]
        after = cells[-1] - cells[end]
        found.append((before + after, -abs(before - after), start, end))
    return max(found)[2:]


def label(value: object, otherwise: str) -> str:
    """Return a step or a source as text, and another text in the place of what LangGraph does not store as one."""
    text = str(value) if isinstance(value, (int, str)) else ""
    return text if 0 < len(text) <= _LABEL else otherwise


_LABEL = 20
"""The characters of a label: one of a row that something else wrote must not fill the screen."""


def common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the number of items that two texts, lists or views of bytes have in common at their beginning."""
    same, most = 0, min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    # By halves, which are compared at once.
    while most - same > 1:
        middle = (same + most) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            most = middle
    return same


def age(time: datetime | None) -> str:
    """Return how long ago a time is, in the largest unit that fits."""
    if time is None:
        return "-"
    seconds = max(0, round((now() - time).total_seconds()))
    unit, length = next(((unit, length) for unit, length in _AGES if seconds >= length), _AGES[-1])
    return f"{seconds // length:,} {unit}"


_AGES = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def now() -> datetime:
    """Return the present, by this machine's clock."""
    return datetime.now(UTC)


def size(count: int) -> str:
    """Return a number of bytes in powers of a thousand."""
    amount = float(count)
    for unit in UNITS:
        if amount < 999.95 or unit == UNITS[-1]:
            break
        amount /= 1000
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def moment(time: datetime | None, *, precise: bool = False) -> str:
    """Return a time in UTC, to the second or to the millisecond."""
    return "-" if time is None else time.strftime("%Y-%m-%d %H:%M:%S.%f")[: -3 if precise else -7]


def counted(count: int, noun: str) -> str:
    """Return a number with its noun in the singular or the plural."""
    return f"{count:,} {noun}" + ("" if count == 1 else "es" if noun.endswith("x") else "s")
