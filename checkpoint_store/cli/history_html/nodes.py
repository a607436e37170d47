"""Decoded values as JSON text that names each distinct part once.

A *node* is a part of a value: a long string, or a list, map or object. The text of a value is JSON: a scalar as it is,
`[7]` for node 7, or a list that begins with a tag:

    ["l", item ...]                              a list
    ["L", node, kept, item ...]                  a list: the first `kept` items of another, then more
    ["d", key, value, ...]                       a map with strings as keys
    ["m", key, value, ...]                       a map with other keys
    ["c", name, count, argument ..., key, value, ...]    an object, as the call that makes it
    ["b", size, start]                           bytes
    ["s", kind, size, reason, start]             bytes that were not looked into
    ["n", text]                                  a number that JSON has not, or not exactly
    ["t", start, count]                          a string without its last characters
    ["x", count]                                 items that were left out; 0 for levels

No name that comes from a row becomes the name of a member in JSON, so none can be `__proto__`. A node comes after those
that it names. Lists that share their beginning, such as a chat at each of its steps, share it here too.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]

from checkpoint_store.cli.safe_decode import Call, Mapping, Sealed, safe_decode
from checkpoint_store.cli.text import common
from checkpoint_store.cli.values import MAX_DEPTH

MAX_CHARACTERS = 64 * 1024
"""The characters of a string that are kept."""

MAX_ITEMS = 50_000
"""The items of a list or map that are kept."""

_INLINE = 40
"""The characters of JSON that are not worth a node of their own."""

_LONG = 16
"""The items of a list that are worth a look for those it shares with another."""

_EXACT = 2**53
"""JavaScript's integers are exact up to here."""


class Place(NamedTuple):
    """The place of a list: its channel, and the keys that lead to it within the value."""

    channel: tuple[str, ...]
    path: tuple[str, ...] = ()

    def at(self, key: object) -> Place:
        """Return the place of a part."""
        return Place(self.channel, (*self.path, key if isinstance(key, str) else ""))


@dataclass
class _Packed:
    """A msgpack list, with the place where each item ends, and the text of each."""

    blob: bytes = b""
    ends: list[int] = field(default_factory=list)
    items: list[str] = field(default_factory=list)


class Nodes:
    """The nodes of a document, each given away as soon as it is known.

    Args:
        emit: Gets the JSON text of each node, in the order of their numbers.
        full: Keep long strings and lists completely.
    """

    def __init__(self, emit: Callable[[str], None], *, full: bool = False) -> None:
        self._emit = emit
        self._characters, self._items = (2**31, 2**31) if full else (MAX_CHARACTERS, MAX_ITEMS)
        self._numbers: dict[bytes, int] = {}
        self._lists: dict[Place, tuple[int, list[str]]] = {}
        self._packed: dict[Place, _Packed] = {}

    def stored(self, place: Place, kind: str | None, blob: bytes | None) -> str:
        """Return the text of a stored value."""
        if kind != "msgpack" or blob is None or (start := _start_of_items(blob)) is None:
            return self.value(safe_decode(kind, blob), place)
        before = self._packed.get(place, _Packed())
        kept = min(bisect_right(before.ends, _common(before.blob, blob)), _count(blob))
        ends = before.ends[:kept]
        here = ends[-1] if ends else start
        try:
            ends += _ends(blob, here, _count(blob) - kept)
        except (msgpack.UnpackException, ValueError):
            return self.value(safe_decode(kind, blob), place)
        # A list of the new items alone, as msgpack has it: so decoding costs what is new.
        rest = safe_decode(kind, b"\xdd" + (len(ends) - kept).to_bytes(4, "big") + blob[here:])
        if not isinstance(rest, list):
            return self.value(safe_decode(kind, blob), place)
        items = before.items[:kept] + [self.value(item, place.at(""), 1) for item in rest]
        self._packed[place] = _Packed(blob, ends, items)
        return self._list(items, place)

    def value(self, value: Any, place: Place, depth: int = 0) -> str:
        """Return the text of a value that `safe_decode` has returned."""
        if value is None or isinstance(value, (bool, int, float)):
            return _number(value)
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, bytes):
            return f'["b",{len(value)},{_quoted(value[:16].hex(" "))}]'
        if isinstance(value, Sealed):
            described = (_quoted(value.kind), str(value.size), _quoted(value.reason), _quoted(value.start.hex(" ")))
            return self._node(f'["s",{",".join(described)}]')
        if depth > MAX_DEPTH:
            return '["x",0]'
        if isinstance(value, list):
            return self._list([self.value(item, place.at(""), depth + 1) for item in value], place)
        if isinstance(value, dict):
            return self._pairs('["d"', value.items(), len(value), place, depth)
        if isinstance(value, Mapping):
            return self._pairs('["m"', value.items, len(value.items), place, depth)
        if isinstance(value, Call):
            within = place.at(value.name)
            arguments = [self.value(item, within, depth + 1) for item in value.arguments]
            start = ",".join(['["c"', _quoted(value.name), str(len(arguments)), *arguments])
            return self._pairs(start, value.keywords, len(value.keywords), within, depth)
        return self._text(repr(value))

    def _text(self, text: str) -> str:
        left_out = len(text) - self._characters
        if left_out <= 0:
            return self._node(_quoted(text))
        return self._node(f'["t",{_quoted(text[: self._characters])},{left_out}]')

    def _pairs(self, start: str, pairs: Iterable[tuple[Any, Any]], count: int, place: Place, depth: int) -> str:
        kept = [pair for pair, _ in zip(pairs, range(self._items), strict=False)]
        parts = chain.from_iterable(
            (self.value(key, place, depth + 1), self.value(item, place.at(key), depth + 1)) for key, item in kept
        )
        rest = [f'["x",{count - len(kept)}]'] if count > len(kept) else []
        return self._node(",".join([start, *parts, *rest]) + "]")

    def _list(self, items: list[str], place: Place) -> str:
        if len(items) > self._items:
            items = [*items[: self._items], f'["x",{len(items) - self._items}]']
        if len(items) < _LONG:
            return self._node(",".join(['["l"', *items]) + "]")
        whole = ",".join(items)
        digest = _digest("L" + whole)
        if digest not in self._numbers:
            number, before = self._lists.get(place, (0, []))
            kept = common(before, items)
            start = ['["L"', str(number), str(kept)] if kept >= _LONG else ['["l"']
            self._add(digest, ",".join([*start, *items[kept if kept >= _LONG else 0 :]]) + "]")
        self._lists[place] = self._numbers[digest], items
        return f"[{self._numbers[digest]}]"

    def _node(self, text: str) -> str:
        if len(text) <= _INLINE:
            return text
        digest = _digest(text)
        if digest not in self._numbers:
            self._add(digest, text)
        return f"[{self._numbers[digest]}]"

    def _add(self, digest: bytes, text: str) -> None:
        self._numbers[digest] = len(self._numbers)
        self._emit(text)


def as_text(value: Any) -> str:
    """Return JSON in ASCII that can't end the element it stands in, nor begin one."""
    return _harmless(json.dumps(value, separators=(",", ":")))


def _harmless(text: str) -> str:
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _quoted(text: str) -> str:
    return _harmless(json.encoder.encode_basestring_ascii(text))


def _number(value: float | bool | None) -> str:
    """Return the text of a scalar; JavaScript would show another number in the place of some."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and abs(value) <= _EXACT:
        return str(value)
    if isinstance(value, float) and value - value == 0 and not value.is_integer():
        return repr(value)
    return f'["n","{value!r}"]'


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


# https://github.com/msgpack/msgpack/blob/master/spec.md: an array's header is one byte, or one with two or four more.
_HEADER_BYTES = {0xDC: 3, 0xDD: 5}


def _start_of_items(blob: bytes) -> int | None:
    """Return where the items of a msgpack list begin, or None if this is not one."""
    if not blob:
        return None
    size = 1 if 0x90 <= blob[0] <= 0x9F else _HEADER_BYTES.get(blob[0])
    return size if size is not None and len(blob) >= size else None


def _count(blob: bytes) -> int:
    """Return the number of items that a msgpack list says it has."""
    return blob[0] & 15 if blob[0] <= 0x9F else int.from_bytes(blob[1 : _HEADER_BYTES[blob[0]]], "big")


def _ends(blob: bytes, place: int, count: int) -> list[int]:
    """Return where each of some items ends."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(blob))
    unpacker.feed(memoryview(blob)[place:])
    ends = []
    for _ in range(count):
        unpacker.skip()
        ends.append(place + unpacker.tell())
    return ends


def _common(one: bytes, other: bytes) -> int:
    """Return how many bytes two values share from the first item on, wherever their headers end."""
    start, ours = _start_of_items(one), _start_of_items(other)
    if start is None or start != ours:
        return 0
    return start + common(memoryview(one)[start:], memoryview(other)[start:])
