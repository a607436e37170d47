"""What a caller sets -> whether it is of the kind that it has to be, without asking it anything: it may be anything."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from numbers import Integral

from checkpoint_store.errors import CheckpointStoreError, InvalidOption, short_repr

_MOST_ROWS = 2**30
"""As good as any higher number, where statements count in 32 bits: of some things up to twice as many."""


def flag(value: object, name: str, refusal: type[CheckpointStoreError] = InvalidOption) -> bool:
    """Return what is True or False; text such as "false" would be true.

    Raises:
        CheckpointStoreError: A `refusal`, if it is neither.
    """
    if type(value) is not bool:
        raise refusal(f"{name} is {short_repr(value)}; it is True or False")
    return value


def choice(
    value: object, name: str, choices: Sequence[str], refusal: type[CheckpointStoreError] = InvalidOption
) -> str:
    """Return which of some texts it is.

    Raises:
        CheckpointStoreError: A `refusal`, if it is none.
    """
    if not issubclass(type(value), str) or (text := str.__str__(value)) not in choices:
        raise refusal(f"{name} is {short_repr(value)}; it is {' or '.join(map(repr, choices))}")
    return text


def as_int(value: object) -> int | None:
    """Return a whole number, Python's or such as NumPy's, as a plain one; None if it is none, and for True."""
    kind = type(value)
    if issubclass(kind, int):
        return int.__int__(value) if kind is not bool else None  # type: ignore[arg-type]
    try:
        return operator.index(value) if issubclass(kind, Integral) else None  # type: ignore[arg-type]
    except Exception:
        return None


def number(value: object, name: str, least: int, most: int | None = None) -> int:
    """Return a whole number.

    Raises:
        InvalidOption: If it is none, or out of range.
    """
    found = as_int(value)
    if found is None or found < least or (most is not None and found > most):
        wanted = f"a number, {least} or more" if most is None else f"a number from {least} to {most}"
        raise InvalidOption(f"{name} is {short_repr(value)}; it is {wanted}")
    return found


def positive(value: object, name: str) -> int:
    """Return a number of rows or checkpoints, 1 or more, that fits where statements count them.

    Raises:
        InvalidOption: If it is none.
    """
    return min(number(value, name, 1), _MOST_ROWS)


def seconds(value: object, name: str, wanted: str = "0 or more") -> float:
    """Return a time in seconds.

    Args:
        value: What may be one.
        name: How the message calls it.
        wanted: What the message says of it.

    Raises:
        InvalidOption: If it is none, or has no end.
    """
    found = float.__float__(value) if issubclass(type(value), float) else as_int(value)  # type: ignore[arg-type]
    # Compared before it becomes a float: a whole number may be too large for one.
    if found is None or not 0 <= found <= sys.float_info.max:
        raise InvalidOption(f"{name} is {short_repr(value)}; it is a time in seconds, {wanted}")
    return float(found)


def callback(value: object, name: str) -> None:
    """Raise unless it can be called, or is None.

    Raises:
        InvalidOption: If it can't.
    """
    if value is not None and not callable(value):
        raise InvalidOption(f"{name} is {short_repr(value)}; it is a function, or None")


def has_methods(value: object, *names: str) -> bool:
    """Tell whether it has all of some methods, and is no class of what has."""
    try:
        return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in names)
    except Exception:
        return False
