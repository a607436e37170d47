"""A Python value <-> JSON text that JSONB returns unchanged.

JSONB is not JSON as Python knows it: it has no NUL and no lone surrogates in strings, no NaN and no infinities, and it
keeps numbers as `numeric`, so that `1e16` comes back as the integer 10000000000000000 and `-0.0` without its sign
(https://www.postgresql.org/docs/current/datatype-json.html). What can be written so that it comes back equal and of the
same type is written so; the rest is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any

import orjson

from checkpoint_store.errors import InvalidConfig, UnstorableValue, short_repr

# Past 64 bits orjson reads an integer as a float; where JSONB's text may hold such a number, Python's parser reads it.
# Three patterns that begin with one character each: a single one with alternatives takes ten times as long.
_LONG_FIRST, _LONG_IN_ARRAY, _LONG_MEMBER = (re.compile(rf"{start}-?\d{{19}}") for start in ("", r"\[", " "))

# Python refuses to write integers of more than 4,300 digits, long before `numeric` ends.
_HUGE = 10**4000

MOST_BYTES = 255 * 1024 * 1024
"""How long JSON text may be: what JSONB makes of it ends at 256 MiB, in all elements of a container and in a string."""

_SUBCLASSES = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def holds(value: object) -> bool:
    """Tell whether JSONB returns this scalar equal and of the same type."""
    kind = type(value)
    if kind is str:
        return _is_text(value)  # type: ignore[arg-type]
    if kind is float:
        return math.isfinite(value) and (value != 0 or math.copysign(1, value) > 0)  # type: ignore[arg-type]
    return value is None or kind is bool or (kind is int and -_HUGE < value < _HUGE)  # type: ignore[operator]


def scalar(value: Any) -> Any:
    """Return a scalar that `holds`, as `encode` takes it: numbers in the one notation that JSONB leaves alone."""
    if type(value) is float and "e" in (text := repr(value)):
        plain = format(Decimal(text), "f")
        return orjson.Fragment(plain if "." in plain else plain + ".0")
    if type(value) is int and not -(2**63) <= value < 2**63:
        return orjson.Fragment(str(value))
    return value


def document(value: Any, path: str) -> Any:
    """Return a nested value as `encode` takes it: containers rebuilt, NUL taken out of strings as LangGraph does.

    Args:
        value: What is to be stored, such as a checkpoint's metadata or a metadata filter.
        path: How messages name it, such as `metadata`.

    Raises:
        UnstorableValue: If any part of it is not JSON; the message has the path to that part.
    """
    kind = type(value)
    if value is None or kind is bool or (kind is str and value.isascii() and "\x00" not in value):
        return value
    # A host's code may be changing containers in another thread, so they are gone through in copies, made in one go.
    if kind is dict:
        items = list(value.items())
        if all(type(key) is str for key, _ in items):
            return {document(key, path): document(item, f"{path}[{key!r}]") for key, item in items}
    # What subclasses say of themselves is of no concern: their own methods are passed by, and so is __class__.
    if issubclass(kind, str):
        text = str.__str__(value).replace("\x00", "")
        if _is_text(text):
            return text
        raise UnstorableValue(f"{_brief(path)} is a string with a lone surrogate, which PostgreSQL can't hold")
    if issubclass(kind, (int, float)):
        number = int.__int__(value) if issubclass(kind, int) else float.__float__(value)
        if number == 0:
            return abs(number)
        if holds(number):
            return scalar(number)
        what = "not finite" if isinstance(number, float) else "of more than 4,000 digits"
        raise UnstorableValue(
            f"{_brief(path)} is {what}; JSON has no such number. Store it as a string, or leave it out."
        )
    if issubclass(kind, dict):
        items = list(dict.items(value))
        for key, _ in items:
            if not issubclass(type(key), str):
                raise UnstorableValue(
                    f"{_brief(path)} has the key {short_repr(key)} ({type(key).__name__}); JSON keys are strings"
                )
        return {document(key, path): document(item, f"{path}[{short_repr(key)}]") for key, item in items}
    if issubclass(kind, (list, tuple)):
        parts = list(list.__iter__(value) if issubclass(kind, list) else tuple.__iter__(value))
        return [document(item, f"{path}[{place}]") for place, item in enumerate(parts)]
    raise UnstorableValue(
        f"{_brief(path)} is a {kind.__qualname__}; it has to be JSON: a string, number, bool, None, list or dict"
    )


def text_of(value: Any, path: str) -> str:
    """Return a nested value as JSON text.

    Args:
        value: What is to be stored, as for `document`.
        path: How messages name it.

    Raises:
        UnstorableValue: If any part of it is not JSON, or it is nested too deeply, or too long for JSONB.
    """
    try:
        text = encode(document(value, path))
    except (RecursionError, TypeError):
        raise UnstorableValue(f"{_brief(path)} is nested too deeply, or contains itself") from None
    if len(text) > MOST_BYTES:
        raise UnstorableValue(f"{_brief(path)} has {len(text):,} bytes as JSON; JSONB holds {MOST_BYTES:,}")
    return text


def encode(prepared: Any) -> str:
    """Return JSON text of what `document` or `scalar` has prepared, or of plain dicts, lists, strings and numbers.

    Raises:
        TypeError: If a part is not JSON, or a string has a lone surrogate.
    """
    return orjson.dumps(prepared, option=_SUBCLASSES).decode()


def filter_text(metadata: dict[str, Any] | None) -> str | None:
    """Return JSON text of what metadata must contain, or None for anything.

    Raises:
        InvalidConfig: If it is no dict, or a part of it is not JSON.
    """
    if metadata is not None and not issubclass(type(metadata), dict):
        raise InvalidConfig(
            f"filter must be a dict of what the metadata must contain, or None, not a {type(metadata).__qualname__}"
        )
    try:
        return text_of(metadata, "filter") if metadata is not None and dict.__len__(metadata) else None
    except UnstorableValue as error:
        raise InvalidConfig(str(error)) from None


def decode(text: str) -> Any:
    """Return the value of JSON text that PostgreSQL wrote; integers of any size stay integers.

    Raises:
        ValueError: If somebody else has stored an integer of more digits than Python reads, or deeper nesting.
        RecursionError: The same.
    """
    has_long = _LONG_MEMBER.search(text) or _LONG_IN_ARRAY.search(text) or _LONG_FIRST.match(text)
    return json.loads(text) if has_long else orjson.loads(text)


def _is_text(value: str) -> bool:
    """Tell whether PostgreSQL's text can hold a string (https://www.postgresql.org/docs/current/datatype-character.html)."""
    if "\x00" in value:
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _brief(path: str) -> str:
    """Return a path as messages have it: where it begins and where it ends."""
    return path if len(path) <= 400 else f"{path[:200]}...{path[-100:]}"
