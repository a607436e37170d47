"""Decoded values as lines of text, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from checkpoint_store.cli.safe_decode import Call, Mapping, Sealed
from checkpoint_store.cli.text import printable, size

MAX_DEPTH = 40
"""The levels of a value that are shown."""

_INDENT = "  "

_FAMILIAR = ("langchain_core.", "langgraph.")
"""Packages whose classes are shown without their modules: they are in every chat."""

_EMPTY: tuple[Any, ...] = (None, [], {}, "", False)
"""Arguments that are left out."""


@dataclass(frozen=True)
class Limits:
    """The limits of what is shown of a value."""

    items: int = 30
    """Items of a list or map."""
    characters: int = 400
    """Characters of a string."""
    width: int = 100
    """Characters of a line, before it is broken up."""
    brief: bool = True
    """Empty arguments are left out, and the modules of familiar classes."""


COMPLETE = Limits(items=2**31, characters=2**31)
UNLIMITED = Limits(items=2**31, characters=2**31, brief=False)


def lines(value: Any, limits: Limits, name: str = "", *, broken: bool = False) -> list[str]:
    """Return a value that `safe_decode` has returned, after its name, as lines of text that are safe for a terminal.

    With `broken` its parts have lines of their own even if it fits on one.
    """
    return list(_lines(name, value, "", limits, 0, broken=broken))


def as_json(value: Any, depth: int = 0) -> Any:
    """Return a value for JSON; other kinds than JSON's become a dict with one key that begins with `$`."""
    if depth > MAX_DEPTH:
        return {"$cut": "nested too deeply"}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else {"$float": repr(value)}
    if isinstance(value, list):
        return [as_json(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {key: as_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, bytes):
        return {"$bytes": {"size": len(value), "start": value[:16].hex()}}
    if isinstance(value, Sealed):
        return {"$sealed": {"type": value.kind, "size": value.size, "reason": value.reason}}
    if isinstance(value, Mapping):
        return {"$map": [[as_json(part, depth + 1) for part in pair] for pair in value.items]}
    if isinstance(value, Call):
        call: dict[str, Any] = {"name": value.name}
        if value.arguments:
            call["args"] = [as_json(item, depth + 1) for item in value.arguments]
        if value.keywords:
            call["kwargs"] = {_key(key): as_json(item, depth + 1) for key, item in value.keywords}
        return {"$object": call}
    return {"$other": repr(value)}


def _lines(start: str, value: Any, end: str, limits: Limits, depth: int, *, broken: bool = False) -> Iterator[str]:
    """Yield a value between two texts: on one line if it fits, else with its parts on lines of their own."""
    opening, parts, closing = _parts(value, limits)
    if parts is None or depth >= MAX_DEPTH:
        yield f"{start}{opening}{'...' if parts else ''}{closing}{end}"
        return
    flat = None if broken else _flat(value, limits, depth, limits.width - len(_INDENT) * depth - len(start) - len(end))
    if flat is not None:
        yield f"{start}{flat}{end}"
        return
    yield f"{start}{opening}"
    for name, part in parts:
        for line in _lines(name, part, ",", limits, depth + 1):
            yield f"{_INDENT}{line}"
    yield f"{closing}{end}"


def _flat(value: Any, limits: Limits, depth: int, room: int) -> str | None:
    """Return a value on one line, or None if there is no room for it."""
    opening, parts, closing = _parts(value, limits)
    if parts is None:
        return opening if len(opening) <= room else None
    if depth >= MAX_DEPTH:
        return f"{opening}...{closing}"
    pieces: list[str] = []
    room -= len(opening) + len(closing)
    for name, part in parts:
        piece = _flat(part, limits, depth + 1, room - len(name))
        if piece is None:
            return None
        pieces.append(name + piece)
        room -= len(pieces[-1]) + 2
        if room < -2:
            return None
    return f"{opening}{', '.join(pieces)}{closing}"


class _More(str):
    """The number of items that are left out."""

    __slots__ = ()


def _parts(value: Any, limits: Limits) -> tuple[str, list[tuple[str, Any]] | None, str]:
    """Return a container's opening, its parts with their names, and its closing; of a scalar only the opening."""
    if isinstance(value, list):
        return "[", _limited((("", item) for item in value), len(value), limits), "]"
    if isinstance(value, dict):
        named = ((f"{_text(key, limits)}: ", item) for key, item in value.items())
        return "{", _limited(named, len(value), limits), "}"
    if isinstance(value, Mapping):
        keys = ((f"{_flat(key, limits, MAX_DEPTH - 2, 60) or '(a long key)'}: ", item) for key, item in value.items)
        return "{", _limited(keys, len(value.items), limits), "}"
    if isinstance(value, Call):
        name = value.name.removeprefix("builtins.")
        if limits.brief and name.startswith(_FAMILIAR):
            name = name.rpartition(".")[2]
        keywords = [(key, item) for key, item in value.keywords if not limits.brief or item not in _EMPTY]
        parts = [("", item) for item in value.arguments]
        parts += [(f"{printable(_key(key))}=", item) for key, item in keywords]
        return f"{printable(name)}(", _limited(iter(parts), len(parts), limits), ")"
    if isinstance(value, _More):
        return str(value), None, ""
    if isinstance(value, str):
        return _text(value, limits), None, ""
    if isinstance(value, bytes):
        return f"<{size(len(value))} of bytes: {_start(value)}>", None, ""
    if isinstance(value, Sealed):
        start = f": {_start(value.start)}" if value.start else ""
        return printable(f"<{value.kind or 'unknown'}, {size(value.size)}, {value.reason}{start}>"), None, ""
    return printable(repr(value)), None, ""


def _limited(parts: Iterable[tuple[str, Any]], count: int, limits: Limits) -> list[tuple[str, Any]]:
    shown = [part for _, part in zip(range(limits.items), parts, strict=False)]
    return shown if count <= limits.items else [*shown, ("", _More(f"... {count - limits.items:,} more"))]


def _text(value: str, limits: Limits) -> str:
    if len(value) <= limits.characters:
        return repr(value)
    return f"{value[: limits.characters]!r}... {len(value) - limits.characters:,} characters more"


def _start(content: bytes) -> str:
    return content[:16].hex(" ") + (" ..." if len(content) > 16 else "")


def _key(key: object) -> str:
    return key if isinstance(key, str) else repr(key)
