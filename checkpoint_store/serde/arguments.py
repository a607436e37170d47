"""Validation of options and arguments: each function returns the value in Python's own type, or raises our error."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, TypeGuard

from checkpoint_store.errors import CheckpointStoreError, InvalidOption, short_repr

_MAX_ROWS = 2**30
"""As good as any higher number: statements count in 32 bits, of some things up to twice as many."""


def flag(value: object, name: str, refusal: type[CheckpointStoreError] = InvalidOption) -> bool:
    """Return True or False as it is; text such as "false" would be true.

    Raises:
        CheckpointStoreError: A `refusal`, if it is neither.
    """
    if type(value) is not bool:
        raise refusal(f"{name} must be True or False, not {short_repr(value)}")
    return value


def choice(
    value: object, name: str, choices: Sequence[str], refusal: type[CheckpointStoreError] = InvalidOption
) -> str:
    """Return a text that is one of the choices.

    Raises:
        CheckpointStoreError: A `refusal`, if it is none of them.
    """
    if not isinstance(value, str) or (text := as_str(value)) not in choices:
        raise refusal(f"{name} must be {' or '.join(map(repr, choices))}, not {short_repr(value)}")
    return text


def as_str(value: str) -> str:
    """Return a string as a plain one: of a member of a `str` Enum the value, where `str()` returns its name."""
    return str.__str__(value)


def is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """Return whether a value is a dict, or another mapping; for a dict without the time that `isinstance` takes."""
    return type(value) is dict or isinstance(value, Mapping)


def as_int(value: object) -> int | None:
    """Return an integer, Python's or another library's such as NumPy's, as a plain one; None for all else, and True."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def number(value: object, name: str, minimum: int, maximum: int | None = None) -> int:
    """Return an integer within limits.

    Raises:
        InvalidOption: If it is not an integer, or out of range.
    """
    found = as_int(value)
    if found is None or found < minimum or (maximum is not None and found > maximum):
        wanted = f"a number, {minimum} or more" if maximum is None else f"a number from {minimum} to {maximum}"
        raise InvalidOption(f"{name} must be {wanted}, not {short_repr(value)}")
    return found


def positive(value: object, name: str) -> int:
    """Return a number of rows or checkpoints, 1 or more, small enough for statements to count.

    Raises:
        InvalidOption: If it is not such a number.
    """
    return min(number(value, name, 1), _MAX_ROWS)


def seconds(value: object, name: str, wanted: str = "0 or more") -> float:
    """Return a time in seconds.

    Args:
        value: The argument.
        name: Its name in messages.
        wanted: The range, as messages state it.

    Raises:
        InvalidOption: If it is not a number, is negative, or has no end.
    """
    found = value if isinstance(value, float) else as_int(value)
    # Compared before it becomes a float: an integer may be too large for one.
    if found is None or not 0 <= found <= sys.float_info.max:
        raise InvalidOption(f"{name} must be a time in seconds, {wanted}, not {short_repr(value)}")
    return float(found)


def callback(value: object, name: str) -> None:
    """Check that a value is a function, or None.

    Raises:
        InvalidOption: If it is neither.
    """
    if value is not None and not callable(value):
        raise InvalidOption(f"{name} must be a function, or None, not {short_repr(value)}")


def has_methods(value: object, *names: str) -> bool:
    """Return whether an object, which is not a class, has all of these methods."""
    try:
        return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in names)
    except Exception:
        return False
