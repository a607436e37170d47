"""What is stored, as a terminal may see it: it can't move the cursor, set a title, or pass for something else."""

from __future__ import annotations

from datetime import datetime

from checkpoint_store.storage.thread_list import time_of

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")

SHORT_ID = 18
"""How much of a version 6 UUID is its time; what follows is the same in most ids of a thread."""


def clean(text: str) -> str:
    """Return a text with everything escaped that is not printable: control characters, direction marks, surrogates."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def short(checkpoint_id: str | None) -> str:
    """Return as much of a checkpoint's id as tells it from others, as commands take it."""
    if checkpoint_id is None:
        return "-"
    return clean(checkpoint_id[:SHORT_ID] if time_of(checkpoint_id) else checkpoint_id)


def size(count: int) -> str:
    """Return a number of bytes for people."""
    amount = float(count)
    for unit in _UNITS:
        if amount < 999.95 or unit == _UNITS[-1]:
            break
        amount /= 1000
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def moment(time: datetime | None, *, precise: bool = False) -> str:
    """Return a time, in UTC, to the second or to the millisecond."""
    return "-" if time is None else time.strftime("%Y-%m-%d %H:%M:%S.%f")[: -3 if precise else -7]


def counted(count: int, noun: str) -> str:
    """Return a number of things."""
    return f"{count:,} {noun}" + ("" if count == 1 else "es" if noun.endswith("x") else "s")
