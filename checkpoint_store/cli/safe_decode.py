"""Decoding of stored bytes into plain data: nothing is imported, nothing is constructed, whatever a row contains.

A serializer makes objects by importing modules and calling names that the stored bytes contain. To show a value that is
wrong: the code may not be installed here, and anyone who can write to the database chooses what is called. Here a value
of LangGraph's msgpack or JSON is decoded into lists, dicts and scalars, with a `Call` in the place of each object, and
a `Sealed` in the place of what only its serializer can read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack  # type: ignore[import-untyped]

MAX_NESTED = 32
"""The levels of objects within objects that are decoded; deeper ones stay sealed."""

# LangGraph's Ext codes (langgraph/checkpoint/serde/jsonplus.py).
_ONE_ARGUMENT, _ARGUMENTS, _KEYWORDS, _METHOD, _PYDANTIC_1, _PYDANTIC_2, _ARRAY, _SNAPSHOT = range(8)


@dataclass(frozen=True)
class Call:
    """An object, as the call that its serializer would make for it."""

    name: str
    """Module and name, such as `langchain_core.messages.human.HumanMessage`."""
    arguments: Sequence[Any] = ()
    keywords: Sequence[tuple[Any, Any]] = ()


@dataclass(frozen=True)
class Mapping:
    """A map that is not a dict: its keys are not strings, or not all different."""

    items: Sequence[tuple[Any, Any]]


@dataclass(frozen=True)
class Sealed:
    """Bytes that were not looked into."""

    kind: str
    """The serializer's name for their format."""
    size: int
    reason: str
    start: bytes = b""
    """Their first bytes, if those may be shown."""


def safe_decode(kind: str | None, blob: bytes | None) -> Any:
    """Decode stored bytes, of a format by the serializer's name, into plain data; None stands for no stored value.

    The result is None, a bool, a number, a string, bytes, or a list or dict of such values, with a `Call`, `Mapping` or
    `Sealed` for anything else.
    """
    kind = kind or ""
    if blob is None:
        return Sealed(kind, 0, "a page of it is missing" if kind == "msgpack" else "no value")
    if kind == "null":
        return None
    if kind in ("bytes", "bytearray"):
        return bytes(blob)
    if "+" in kind:
        inner, _, cipher = kind.partition("+")
        return Sealed(inner, len(blob), f"encrypted ({cipher})")
    try:
        if kind == "msgpack":
            return _msgpack(blob, 0)
        if kind == "json":
            return json.loads(blob, object_pairs_hook=_constructor)
    except _UNREADABLE as error:
        return Sealed(kind, len(blob), f"damaged: {type(error).__name__}", blob[:16])
    return Sealed(kind, len(blob), "not loaded", blob[:16])


_UNREADABLE = (ValueError, TypeError, RecursionError, OverflowError, MemoryError, msgpack.UnpackException)


def _msgpack(blob: bytes, depth: int) -> Any:
    def extension(code: int, inside: bytes) -> Any:
        if depth < MAX_NESTED:
            try:
                return _object(code, _msgpack(inside, depth + 1), inside)
            except _UNREADABLE:
                pass
        return Sealed(f"Ext {code}", len(inside), "not loaded", inside[:16])

    return msgpack.unpackb(
        blob,
        ext_hook=extension,
        # Keys may be anything, and hostile ones equal.
        object_pairs_hook=_map,
        strict_map_key=False,
        unicode_errors="backslashreplace",
    )


def _object(code: int, parts: Any, inside: bytes) -> Any:
    """Return the call that LangGraph makes for an extension's content."""
    if code == _SNAPSHOT:
        return Call("langgraph._DeltaSnapshot", [parts])
    if code == _ARRAY:
        kind, shape, order, content = parts
        described = [("dtype", kind), ("shape", shape), ("order", order), ("bytes", len(content))]
        return Call("numpy.ndarray", [], described)
    if code > _SNAPSHOT:
        return Sealed(f"Ext {code}", len(inside), "not loaded", inside[:16])
    module, name, content, *more = parts
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a module and a name must be strings")
    full = f"{module}.{name}"
    if code == _METHOD:
        method, *_ = more  # a row that was written by hand may lack it
        return Call(f"{full}.{method}", [content])
    if code == _ARGUMENTS and isinstance(content, list):
        return Call(full, content)
    if code in (_KEYWORDS, _PYDANTIC_1, _PYDANTIC_2) and isinstance(content, (dict, Mapping)):
        return Call(full, [], list(content.items() if isinstance(content, dict) else content.items))
    return Call(full, [content])


def _map(pairs: list[tuple[Any, Any]]) -> Any:
    if all(type(key) is str for key, _ in pairs) and len(found := dict(pairs)) == len(pairs):
        return found
    return Mapping(pairs)


def _constructor(pairs: list[tuple[str, Any]]) -> Any:
    """Return a JSON object, or the call that LangChain and LangGraph make for one with `lc`, `type` and `id`."""
    found = _map(pairs)
    if not isinstance(found, dict) or "lc" not in found or found.get("type") != "constructor":
        return found
    names, arguments, keywords = found.get("id"), found.get("args") or [], found.get("kwargs") or {}
    if not isinstance(names, list) or not isinstance(arguments, list) or not isinstance(keywords, dict):
        return found
    return Call(".".join(map(str, names)), arguments, list(keywords.items()))
