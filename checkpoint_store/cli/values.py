"""Inert values as text for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from checkpoint_store.cli.clean import clean, size
from checkpoint_store.cli.safe_decode import Call, Mapping, Sealed

DEEPEST = 40
"""How deep a value is shown."""

_FAMILIAR = ("langchain_core.", "langgraph.")
"""Whose names are shown without their modules: they are in every chat."""

_EMPTY: tuple[Any, ...] = (None, [], {}, "", False)
"""Arguments that go without saying."""


@dataclass(frozen=True)
class Limits:
    """How much of a value is shown."""

    items: int = 30
    """Of a list or map."""
    characters: int = 400
    """Of a string."""
    width: int = 100
    """Of a line, before it is broken up."""
    whole: bool = False
    """Whether arguments are shown that go without saying, and names with their modules."""


WHOLE = Limits(items=2**31, characters=2**31, whole=True)


def lines(value: Any, limits: Limits, name: str = "") -> list[str]:
    """Return a value as lines of text, each of them fit for a terminal.

    Args:
        value: What `inert` has returned.
        limits: How much of it.
        name: What stands in front of it.
    """
    return list(_lines(name, value, "", limits, 0))


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON can hold it; what JSON has no word for is a dict with one key that begins with `$`."""
    if depth > DEEPEST:
        return {"$cut": "nested too deeply"}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else {"$float": repr(value)}
    if isinstance(value, list):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {key: plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, bytes):
        return {"$bytes": {"size": len(value), "start": value[:16].hex()}}
    if isinstance(value, Sealed):
        return {"$sealed": {"type": value.kind, "size": value.size, "reason": value.reason}}
    if isinstance(value, Mapping):
        return {"$map": [[plain(part, depth + 1) for part in pair] for pair in value.items]}
    if isinstance(value, Call):
        call: dict[str, Any] = {"name": value.name}
        if value.arguments:
            call["args"] = [plain(item, depth + 1) for item in value.arguments]
        if value.keywords:
            call["kwargs"] = {_key(key): plain(item, depth + 1) for key, item in value.keywords}
        return {"$object": call}
    return {"$other": repr(value)}


def _lines(start: str, value: Any, end: str, limits: Limits, depth: int) -> Iterator[str]:
    """Yield a value and what stands around it: on one line if it fits, else with its parts on lines of their own."""
    opening, parts, closing = _parts(value, limits)
    if parts is None or depth >= DEEPEST:
        yield f"{start}{opening}{'...' if parts else ''}{closing}{end}"
        return
    flat = _flat(value, limits, depth, limits.width - len(start) - len(end))
    if flat is not None:
        yield f"{start}{flat}{end}"
        return
    yield f"{start}{opening}"
    for name, part in parts:
        for line in _lines(name, part, ",", limits, depth + 1):
            yield f"  {line}"
    yield f"{closing}{end}"


def _flat(value: Any, limits: Limits, depth: int, room: int) -> str | None:
    """Return a value on one line, or None if it is longer than that."""
    opening, parts, closing = _parts(value, limits)
    if parts is None:
        return opening if len(opening) <= room else None
    if depth >= DEEPEST:
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
    """Says how much is left out."""

    __slots__ = ()


def _parts(value: Any, limits: Limits) -> tuple[str, list[tuple[str, Any]] | None, str]:
    """Return how a container begins, its parts under their names, and how it ends; a scalar only begins."""
    if isinstance(value, list):
        return "[", _limited((("", item) for item in value), len(value), limits), "]"
    if isinstance(value, dict):
        return (
            "{",
            _limited(((f"{_text(key, limits)}: ", item) for key, item in value.items()), len(value), limits),
            "}",
        )
    if isinstance(value, Mapping):
        keys = ((f"{_flat(key, limits, DEEPEST - 2, 60) or '(a long key)'}: ", item) for key, item in value.items)
        return "{", _limited(keys, len(value.items), limits), "}"
    if isinstance(value, Call):
        name = value.name.removeprefix("builtins.")
        if not limits.whole and name.startswith(_FAMILIAR):
            name = name.rpartition(".")[2]
        keywords = [(key, item) for key, item in value.keywords if limits.whole or item not in _EMPTY]
        parts = [("", item) for item in value.arguments] + [(f"{clean(_key(key))}=", item) for key, item in keywords]
        return f"{clean(name)}(", _limited(iter(parts), len(parts), limits), ")"
    if isinstance(value, _More):
        return str(value), None, ""
    if isinstance(value, str):
        return _text(value, limits), None, ""
    if isinstance(value, bytes):
        return f"<{size(len(value))} of bytes: {_start(value)}>", None, ""
    if isinstance(value, Sealed):
        start = f": {_start(value.start)}" if value.start else ""
        return clean(f"<{value.kind or 'unknown'}, {size(value.size)}, {value.reason}{start}>"), None, ""
    return clean(repr(value)), None, ""


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
