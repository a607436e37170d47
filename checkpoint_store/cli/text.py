"""Text that is safe for a terminal, and numbers, sizes, times and ids as text."""

from __future__ import annotations

from datetime import datetime

from checkpoint_store.storage.checkpoint_time import time_of

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")

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


def size(count: int) -> str:
    """Return a number of bytes in powers of a thousand."""
    amount = float(count)
    for unit in _UNITS:
        if amount < 999.95 or unit == _UNITS[-1]:
            break
        amount /= 1000
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def moment(time: datetime | None, *, precise: bool = False) -> str:
    """Return a time in UTC, to the second or to the millisecond."""
    return "-" if time is None else time.strftime("%Y-%m-%d %H:%M:%S.%f")[: -3 if precise else -7]


def counted(count: int, noun: str) -> str:
    """Return a number with its noun in the singular or the plural."""
    return f"{count:,} {noun}" + ("" if count == 1 else "es" if noun.endswith("x") else "s")
