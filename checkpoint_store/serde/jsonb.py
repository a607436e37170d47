"""Conversion between Python values and the JSON text that JSONB returns unchanged.

JSONB is not JSON as Python knows it: it has no NUL and no lone surrogates in strings, no NaN and no infinities, and it
keeps numbers as `numeric`, so that `1e16` comes back as the integer 10000000000000000 and `-0.0` without its sign
(https://www.postgresql.org/docs/current/datatype-json.html). A value that can be written so that it comes back equal
and of the same type is written so; any other is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import orjson

from checkpoint_store.errors import InvalidConfig, UnreadableValue, UnstorableValue, safe_str, short_repr
from checkpoint_store.serde.arguments import as_str

# Past 64 bits orjson reads an integer as a float; where JSONB's text may hold such a number, Python's parser reads it.
# Three patterns that begin with one character each: a single one with alternatives takes ten times as long.
_LONG_FIRST, _LONG_IN_ARRAY, _LONG_MEMBER = (re.compile(rf"{start}-?\d{{19}}") for start in ("", r"\[", " "))

# Python refuses to write integers of more than 4,300 digits, long before `numeric` ends.
_HUGE = 10**4000

MAX_BYTES = 255 * 1024 * 1024
"""The largest size of JSON text: JSONB ends at 256 MiB, for the elements of a container and for a string."""

# What of these JSONB would not return, orjson refuses, but for NUL.
_SCALARS = frozenset({str, int, bool, type(None)})

_SUBCLASSES = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


class _NotJson(Exception):
    """Raised for a part of a value that is not JSON, on its way up to the value that it is a part of."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.path = ""


def holds(value: object) -> bool:
    """Return whether JSONB returns this scalar equal and of the same type."""
    kind = type(value)
    if kind is str:
        return is_text(value)  # type: ignore[arg-type]
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


def document(value: Any, name: str, location: object = None) -> Any:
    """Return a nested value as `encode` takes it: containers rebuilt, NUL taken out of strings as LangGraph does.

    Args:
        value: The value, such as a checkpoint's metadata or a metadata filter.
        name: Its name in messages, such as `metadata`.
        location: The beginning of messages.

    Raises:
        UnstorableValue: If any part of it is not JSON; the message has the path to that part.
    """
    try:
        return _rebuilt(value)
    except _NotJson as error:
        path = _named(name + error.path, location)
        brief = path if len(path) <= 800 else f"{path[:600]}...{path[-100:]}"
        raise UnstorableValue(f"{brief} {error.reason}") from None


def _rebuilt(value: Any) -> Any:
    kind = type(value)
    if (
        (kind is str and value.isascii() and "\x00" not in value)
        or (kind is int and -(2**63) <= value < 2**63)
        or value is None
        or kind is bool
    ):
        return value
    if isinstance(value, dict):
        # A host's code may be changing it in another thread, so a copy is gone through, made in one go.
        items = list(value.items())
        for key, _ in items:
            if not isinstance(key, str):
                raise _NotJson(f"has the key {short_repr(key)} ({type(key).__name__}); JSON keys must be strings")
        return {_rebuilt(key): _part(item, key) for key, item in items}
    if isinstance(value, (list, tuple)):
        return [_part(item, place) for place, item in enumerate(list(value))]
    if isinstance(value, str):
        text = as_str(value).replace("\x00", "")
        if is_text(text):
            return text
        raise _NotJson("is a string with a lone surrogate, which PostgreSQL can't hold")
    if isinstance(value, (int, float)):
        number = int(value) if isinstance(value, int) else float(value)
        if number == 0:
            return abs(number)
        if holds(number):
            return scalar(number)
        what = "not finite" if isinstance(number, float) else "of more than 4,000 digits"
        raise _NotJson(f"is {what}; JSON has no such number. Store it as a string, or leave it out.")
    raise _NotJson(f"is a {kind.__qualname__}; it must be JSON: a string, number, bool, None, list or dict")


def _plain_text(value: Any) -> str | None:
    """Return the JSON text of a value whose `document` would only be a copy, None for any other."""
    try:
        text = encode(_copy(value))
    except (RecursionError, TypeError):
        return None
    return None if _may_have_nul(text) else text


def _copy(value: Any) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is dict:
        return {key: item if type(item) in _SCALARS else _copy(item) for key, item in value.copy().items()}
    if kind is list:
        return [item if type(item) in _SCALARS else _copy(item) for item in value.copy()]
    raise TypeError


def _part(value: Any, key: object) -> Any:
    """Rebuild a part of a container; if it is not JSON its key or position becomes the path."""
    try:
        return _rebuilt(value)
    except _NotJson as error:
        error.path = f"[{short_repr(key)}]{error.path}"
        raise


def text_of(value: Any, name: str, location: object = None) -> str:
    """Return a nested value as JSON text.

    Args:
        value: The value, as for `document`.
        name: Its name in messages.
        location: The beginning of messages.

    Raises:
        UnstorableValue: If any part of it is not JSON, or it is nested too deeply, or too long for JSONB.
    """
    try:
        text = _plain_text(value) or encode(document(value, name, location))
    except (RecursionError, TypeError):
        raise UnstorableValue(f"{_named(name, location)} is nested too deeply, or contains itself") from None
    if len(text) > MAX_BYTES:
        raise UnstorableValue(f"{_named(name, location)} has {len(text):,} bytes as JSON; JSONB holds {MAX_BYTES:,}")
    return text


def checkpoint_text(checkpoint: Mapping[str, Any], inline: dict[str, Any], location: object) -> str:
    """Return a checkpoint as JSON text, with these channel values in it.

    Raises:
        UnstorableValue: If a part of it is not JSON, or a name can't be text of PostgreSQL's, or it is too long.
    """
    try:
        if float in map(type, checkpoint["channel_versions"].values()):
            raise TypeError("JSONB would change some floats, and the blobs of their channels were not found again")
        text = encode({**checkpoint, "channel_values": inline})
    except TypeError:
        # Rare enough to look at every part only now: it names the one that is no JSON, or makes JSON of it.
        rest = {name: part for name, part in checkpoint.items() if name != "channel_values"}
        text = text_of(rest, "checkpoint", location)
        try:
            text = f'{text[:-1]},"channel_values":{encode(inline)}}}'
        except TypeError:
            raise UnstorableValue(f"{location}: a channel has a name that PostgreSQL's text can't hold") from None
    if len(text) > MAX_BYTES:
        raise UnstorableValue(f"{location}: the checkpoint has {len(text):,} bytes as JSON; JSONB holds less")
    if _may_have_nul(text) and "\\u0000" in text.replace("\\\\", ""):
        raise UnstorableValue(f"{location}: a name in the checkpoint contains NUL, which PostgreSQL can't hold")
    return text


def _may_have_nul(text: str) -> bool:
    # First for what is rare: versions are full of zeros, between which the search for more than one character crawls.
    return "\\" in text and "\\u0000" in text


def encode(prepared: Any) -> str:
    """Return JSON text of a value from `document` or `scalar`, or of plain dicts, lists, strings and numbers.

    Raises:
        TypeError: If a part is not JSON, or a string has a lone surrogate.
    """
    return orjson.dumps(prepared, option=_SUBCLASSES).decode()


def filter_text(metadata: object) -> str | None:
    """Return the JSON text of a metadata filter, or None for an empty one.

    Raises:
        InvalidConfig: If it is not a dict, or a part of it is not JSON.
    """
    if metadata is not None and not isinstance(metadata, dict):
        kind = type(metadata).__qualname__
        raise InvalidConfig(f"filter must be a dict that the metadata must contain, or None, not a {kind}")
    try:
        return text_of(metadata, "filter") if metadata else None
    except UnstorableValue as error:
        raise InvalidConfig(str(error)) from None


def decode(text: str) -> Any:
    """Return the value of JSON text that PostgreSQL wrote; integers of any size stay integers.

    Raises:
        ValueError: If another writer has stored an integer of more digits than Python reads, or deeper nesting.
        RecursionError: The same.
    """
    has_long = _LONG_MEMBER.search(text) or _LONG_IN_ARRAY.search(text) or _LONG_FIRST.match(text)
    return json.loads(text) if has_long else orjson.loads(text)


def stored(text: str | None, name: str, location: object) -> Any:
    """Return the value of JSON text from a row, which messages name as for `document`.

    Raises:
        UnreadableValue: If Python can't hold it.
    """
    try:
        return decode(text or "")
    except (ValueError, RecursionError) as error:
        why = f"{type(error).__name__}: {safe_str(error)}"
        raise UnreadableValue(f"{_named(name, location)} is JSON that Python can't hold ({why})") from error


def stored_object(text: str, name: str, location: object) -> dict[str, Any]:
    """Return the JSON object from a row, as `stored`.

    Raises:
        UnreadableValue: If it is something else.
    """
    if type(members := stored(text, name, location)) is not dict:
        kind = type(members).__name__
        raise UnreadableValue(f"{_named(name, location)} must be a JSON object, not a {kind}")
    return members


def _named(name: str, location: object) -> str:
    return name if location is None else f"{location}: {name}"


def is_text(value: str) -> bool:
    """Return whether PostgreSQL's text can hold a string (https://www.postgresql.org/docs/current/datatype-character.html)."""
    if "\x00" in value:
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
