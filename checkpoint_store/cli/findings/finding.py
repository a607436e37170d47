"""A finding, and a fact that could not be read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """The gravity of a finding."""

    OK = "ok"
    WARNING = "warning"
    """It works, but something is slow, unsafe, or about to fail."""
    FAILURE = "failure"
    """Savers do not work here, or not all of their calls."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    level: Level
    found: str
    """A sentence or two, without a stored value or a password."""
    way_out: tuple[str, ...] = ()
    """Lines to paste: SQL, commands, or parameters of a URL."""


@dataclass(frozen=True)
class Unknown:
    """A fact that could not be read, with the reason."""

    reason: str


def ok(check: str, found: str, *way_out: str) -> Finding:
    """Return a finding that needs no action; the lines to paste are for those who want more."""
    return Finding(check, Level.OK, found, way_out)


def warning(check: str, found: str, *way_out: str) -> Finding:
    """Return a finding that needs action some day."""
    return Finding(check, Level.WARNING, found, way_out)


def failure(check: str, found: str, *way_out: str) -> Finding:
    """Return a finding that needs action now."""
    return Finding(check, Level.FAILURE, found, way_out)


def listed(names: list[str], limit: int = 6) -> str:
    """Return names as a list in a sentence, at most some of them."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def duration(seconds: float) -> str:
    """Return a number of seconds in a unit that suits it."""
    if seconds < 1:
        return f"{seconds * 1000:.{0 if seconds > 0.01 else 1}f} ms"
    for unit, length in (("s", 120.0), ("min", 7200.0), ("h", 172_800.0)):
        if seconds < length:
            return f"{seconds / {'s': 1, 'min': 60, 'h': 3600}[unit]:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"
