"""Arguments and options as values: ages, sizes, JSON, numbers of which 0 stands for all, and ids of checkpoints."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

from checkpoint_store.cli.text import UNITS
from checkpoint_store.errors import InvalidConfig, InvalidOption
from checkpoint_store.serde.keys import plain_text


def age_of(text: str, option: str = "--older-than") -> timedelta:
    """Return the duration that a text such as `30d` or `1d12h` names, or raise `InvalidOption`."""
    parts = _AGE.fullmatch(text.strip())
    age = timedelta(**{unit: int(count or 0) for unit, count in parts.groupdict().items()}) if parts else None
    if not age:
        wanted = "more than zero" if parts and parts[0] else "a number with a unit: s, m, h, d or w"
        raise InvalidOption(f"{option} must be {wanted}, as in 30d or 1d12h, not {text!r}")
    return age


# Eight digits of every unit are within the bounds of a timedelta.
_AGE = re.compile(
    "".join(rf"(?:(?P<{unit}>\d{{1,8}}){unit[0]})?" for unit in ("weeks", "days", "hours", "minutes", "seconds"))
)


def bytes_of(wanted: str) -> int:
    """Return the number of bytes that a text such as `10MB` names, or raise `InvalidOption`."""
    parts = _SIZE.fullmatch(wanted.strip())
    if parts is None:
        raise InvalidOption(
            f"--larger-than must be a number with a unit: {', '.join(UNITS)}, as in 10MB, not {wanted!r}"
        )
    power = [unit.lower() for unit in UNITS].index((parts[2] or "B").lower())
    return int(float(parts[1]) * 1000.0**power)


_SIZE = re.compile(rf"(\d{{1,15}}(?:\.\d{{1,15}})?) ?({'|'.join(UNITS)})?", re.IGNORECASE)


def object_of(text: str, option: str) -> dict[str, Any]:
    """Return the JSON object that an option contains, or raise `InvalidOption`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        example = """'{"plan": "trial"}'"""
        raise InvalidOption(f"{option} must be a JSON object that the metadata contains, such as {example}")
    return value


_EVERYTHING = 2**31 - 1
"""The LIMIT of a statement that is to read everything."""


def most(limit: int) -> int:
    """Return the LIMIT of a statement for the number of an option, of which 0 stands for all."""
    return min(limit or _EVERYTHING, _EVERYTHING)


def checkpoint_named(text: str | None, name: str) -> str | None:
    """Return the id of a checkpoint, or how it begins, if there is one.

    Raises:
        InvalidConfig: If it is empty, as an unset variable of a shell is, or can't be one.
    """
    if text == "":
        raise InvalidConfig(f"{name} is empty; it must be the id of a checkpoint, or how it begins")
    return None if text is None else plain_text(text, name)
