"""Pages of large msgpack values, which the values of a thread share, and the recipes that join them; no I/O.

A chat is stored again at every step though only its end is new. So its value is cut at points that its own bytes
decide: a part that stays the same is cut into the same pages, wherever it is.

A container is its header, then its elements, gathered into pages. A page ends after an element when a checksum of the
bytes before that point decides so (content-defined chunking). The last elements, too few for that, are small pages: so
a list that grows sends the new elements, and again those that have become a page. A large element is cut like a value
of its own; a large string, or bytes that are not msgpack at all, at points that the bytes decide. So a page does not
depend on the bytes after it, unless it is a container's last, and an earlier value's pages can be taken over by
comparing bytes.

A recipe has an entry of 17 bytes for each page, 255 and its digest, and for each few bytes that are in no page, their
number and the bytes, padded with zeros: headers, which change whenever a list grows, and parts too small for a page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from itertools import islice
from struct import Struct
from typing import NamedTuple
from zlib import crc32

import msgpack  # type: ignore[import-untyped]

PAGE_BYTES = 8192
"""The average size of a page."""

LARGE_BYTES = 16 * 1024
"""Smaller values are not cut."""

DIGEST_BYTES = 16
"""The size of a page's name, a BLAKE2b digest."""

ENTRY_BYTES = 17
"""The size of a recipe's entry."""

_ENTRY = Struct(f"B{DIGEST_BYTES}s")
_PAGE = 255

# A page has at least the minimum, and ends with the first element after the maximum: four times the average at most.
_MIN = PAGE_BYTES // 2
_MAX = 2 * PAGE_BYTES

# After the minimum, an element of n bytes ends its page with a chance of n in (n + this). Never with certainty: pages
# that all had, say, the first three elements would all be others once the first element is gone.
_CHANCE = PAGE_BYTES * 3 // 8

# The bytes of the checksum. The last 70 bytes of a message are the same in all messages; its id and text come before.
_SEEN = 256

# The size of the pages at a container's end, which the next value probably adds to.
_SMALL = 256

# Fewer bytes are stated inline: a row of the pages' table has some 60 bytes beside the page.
_GLUE = 64

# A container whose first 64 elements fit in 4 kB is cut like a string: to look at each takes longer than to hash them.
_TINY_ELEMENTS = 64
_TINY_BYTES = 4096

# Beyond, elements stay whole: to see where an element ends takes a walk through it, on every level again.
_DEEPEST = 8

# LangGraph's Ext codes have msgpack inside; 7 is a channel's snapshot. A smaller object has less to share than its
# parts would add to the recipe (langgraph/checkpoint/serde/jsonplus.py).
_SNAPSHOT = 7
_OBJECT_BYTES = 64 * 1024

# https://github.com/msgpack/msgpack/blob/master/spec.md: arrays and maps, then strings, bytes and Ext of any length.
_HEADER = re.compile(
    rb"(?s:(?P<container>[\x80-\x9f]|[\xdc\xde]..|[\xdd\xdf].{4})"
    rb"|[\xc4\xd9].|[\xc5\xda]..|[\xc6\xdb].{4}|(?:\xc7.|\xc8..|\xc9.{4})(?P<code>.))"
)

# The end of a page in bytes without a structure: this word, once each byte is taken for one of six letters. Both were
# chosen by trial, so that prose, code, JSON, base64, hex, numbers, Cyrillic and Chinese have it every 0.7 to 6 kB.
_LETTERS = bytes(byte * 73 % 257 % 6 for byte in range(256))
_WORD = b"\x01\x03\x00\x05"

# The bytes that msgpack is fed at once, unless an element has more; it makes a copy.
_WINDOW = 64 * 1024

# Instead of a level: the inside of a string.
_STRING = -1

# The bytes of a page that are looked up among the earlier ones, and those that must be left to make that worthwhile.
_START = 256
_WORTHWHILE = 64 * 1024

# The bytes of an entry, and its digest if it is a page. If a stretch of entries that begins with it does not depend on
# the bytes after it, also its level, its entries and its elements. A named tuple takes five times as long.
_Stretch = tuple[bytes, bytes | None, int | None, int, int]


class Cut(NamedTuple):
    """A value as it is stored: its recipe, and every page that the recipe names, by digest and in order of first use.

    The next `cut` can take over `stretches`; a Cut made without them is as good, but saves it no time.
    """

    recipe: bytes
    pages: dict[bytes, bytes]
    stretches: tuple[_Stretch, ...] = ()


def cut(value: bytes, before: Cut | None = None) -> Cut:
    """Cut a value into pages.

    Args:
        value: Any bytes; msgpack is cut between its elements.
        before: An earlier value's Cut. The result is the same without, but unchanged parts cost next to nothing.
    """
    knife = _Knife(value, before or Cut(b"", {}))
    knife.value(0, len(value), 0)
    return Cut(b"".join(knife.recipe), knife.pages, tuple(knife.stretches))


def is_large(kind: str, blob: bytes) -> bool:
    """Return whether a value is worth cutting; an encrypted one never is, since nothing of it stays the same."""
    return kind == "msgpack" and len(blob) >= LARGE_BYTES


def join(recipe: bytes, pages: Mapping[bytes, bytes]) -> bytes:
    """Return the value that was cut.

    Raises:
        ValueError: If this is not a recipe.
        KeyError: If a page is missing; the message has its digest.
    """
    parts = []
    for size, content in _entries(recipe):
        if size != _PAGE:
            parts.append(content[:size])
        elif (page := pages.get(content)) is not None:
            parts.append(page)
        else:
            raise KeyError(f"page {content.hex()} is missing: the recipe names it, but it is not among the pages")
    return b"".join(parts)


def digests(recipe: bytes) -> list[bytes]:
    """Return the digests of the pages that a recipe names, in order; twice of one that it names twice.

    Raises:
        ValueError: If this is not a recipe.
    """
    return [content for size, content in _entries(recipe) if size == _PAGE]


def _entries(recipe: bytes) -> list[tuple[int, bytes]]:
    if len(recipe) % ENTRY_BYTES:
        raise ValueError(f"a recipe of {len(recipe)} bytes is cut off: entries have {ENTRY_BYTES} bytes")
    entries = list(_ENTRY.iter_unpack(recipe))
    for place, (size, _) in enumerate(entries):
        if DIGEST_BYTES < size < _PAGE:
            raise ValueError(f"entry {place} of a recipe must begin with 0 to {DIGEST_BYTES}, or {_PAGE}, not {size}")
    return entries


class _Knife:
    """The cutting of one value: the recipe and pages so far, and the place in `before` to take over the rest from."""

    def __init__(self, value: bytes, before: Cut) -> None:
        self.recipe: list[bytes] = []
        self.pages: dict[bytes, bytes] = {}
        self.stretches: list[_Stretch] = []
        self._value = value
        self._before = before
        self._next = 0
        self._starts: dict[bytes, int] | None = None

    def value(self, begin: int, end: int, level: int) -> None:
        """Cut bytes that should be one msgpack value."""
        header = _HEADER.match(self._value, begin, end)
        if header is None or level > _DEEPEST:
            self._string(begin, end)
            return
        inside = header.end()
        self._inline(begin, inside)
        code = header["code"]
        if header["container"] and not self._is_tiny(inside, end):
            self._elements(inside, end, _count(header[0]), level)
        elif code and code[0] <= _SNAPSHOT and (code[0] == _SNAPSHOT or end - inside > _OBJECT_BYTES):
            self.value(inside, end, level + 1)
        else:
            self._string(inside, end)

    def _is_tiny(self, begin: int, end: int) -> bool:
        """Return whether a container's first elements are too small to look at one by one."""
        unpacker = msgpack.Unpacker(max_buffer_size=_TINY_BYTES)
        unpacker.feed(self._value[begin : min(end, begin + _TINY_BYTES)])
        try:
            for _ in range(_TINY_ELEMENTS):
                unpacker.skip()
        except (msgpack.UnpackException, ValueError):
            return False
        return True

    def _elements(self, place: int, end: int, left: int, level: int) -> None:
        """Cut a container's elements; bytes that turn out not to be msgpack are cut like a string."""
        value = self._value
        unpacker, window = None, _WINDOW
        while left:
            start, (place, left) = place, self._take_over(place, end, level, left)
            if place > start:
                unpacker, window = None, _WINDOW
            if unpacker is None:
                base, fed = place, min(end, place + window)
                unpacker = msgpack.Unpacker(max_buffer_size=window)
                unpacker.feed(memoryview(value)[base:fed])
                skip, tell, seen = unpacker.skip, unpacker.tell, base - _SEEN
            last = here = tell()
            least, most = here + _MIN, here + _MAX
            try:
                for count in range(1, left + 1):  # noqa: B007 - it is wanted afterwards
                    skip()
                    here = tell()
                    if here >= least and (
                        here >= most or crc32(value[seen + here : base + here]) % (_CHANCE + here - last) < here - last
                    ):
                        break
                    last = here
                else:
                    self._tail(place, base + here, left)
                    place = base + here
                    break
            except (msgpack.UnpackException, ValueError):
                if fed == end:
                    break
                unpacker, window = None, _WINDOW if place > base else window * 4
                continue
            if here - last > _MAX:
                first = len(self.stretches)
                self._remainder(place, base + last)
                self.value(base + last, base + here, level + 1)
                part, digest, *_ = self.stretches[first]
                self.stretches[first] = (part, digest, level, len(self.stretches) - first, count)
            else:
                self._page(place, base + here, level, count)
            place = base + here
            left -= count
        self._string(place, end)

    def _string(self, place: int, end: int) -> None:
        """Cut bytes that have no structure, or none that is known."""
        letters = None
        while end - place > _MIN:
            place, _ = self._take_over(place, end, _STRING, 0)
            if letters is None:
                base = place
                letters = self._value[place:end].translate(_LETTERS)
            found = letters.find(_WORD, place - base + _MIN, place - base + _MAX)
            stop = place + _MAX if found < 0 else base + found + len(_WORD)
            if stop > end:
                break
            self._page(place, stop, _STRING)
            place = stop
        self._remainder(place, end)

    def _tail(self, place: int, end: int, left: int) -> None:
        """Cut the last elements of a container, too few for a page, into small ones.

        So a list that grows sends each time the new elements, not all since its last page.
        """
        unpacker = msgpack.Unpacker(max_buffer_size=end - place)
        unpacker.feed(memoryview(self._value)[place:end])
        begin = place
        for _ in range(left):
            unpacker.skip()
            if (here := place + unpacker.tell()) - begin >= _SMALL:
                self._page(begin, here)
                begin = here
        self._remainder(begin, end)

    def _remainder(self, begin: int, end: int) -> None:
        """Add the bytes that end because something else begins."""
        if end - begin > _GLUE:
            self._page(begin, end)
        else:
            self._inline(begin, end)

    def _page(self, begin: int, end: int, level: int | None = None, elements: int = 0) -> None:
        page = self._value[begin:end]
        digest = blake2b(page, digest_size=DIGEST_BYTES).digest()
        self.recipe.append(b"\xff" + digest)
        # Equal pages are one object: those of ten million zeros would otherwise be kept as as many bytes.
        page = self.pages.setdefault(digest, page)
        self.stretches.append((page, digest, level, 1, elements))

    def _inline(self, begin: int, end: int) -> None:
        for place in range(begin, end, DIGEST_BYTES):
            part = self._value[place : min(end, place + DIGEST_BYTES)]
            self.recipe.append(_ENTRY.pack(len(part), part))
            self.stretches.append((part, None, None, 1, 0))

    def _take_over(self, place: int, end: int, level: int, left: int) -> tuple[int, int]:
        """Take over the stretches of `before` for this place. Returns their end, and the number of elements left."""
        if not self._before.stretches or (first := self._find(place, end, level)) is None:
            return place, left
        at, place, left = self._follow(first, place, end, level, left)
        if at > first:
            self.recipe.append(self._before.recipe[first * ENTRY_BYTES : at * ENTRY_BYTES])
            taken = self._before.stretches[first:at]
            theirs = {digest: part for part, digest, *_ in taken if digest}
            if not self.pages.keys().isdisjoint(theirs):
                theirs |= self.pages
                taken = tuple([(theirs[one[1]], *one[1:]) if one[1] else one for one in taken])
            self.stretches += taken
            self.pages.update(theirs)
            self._next = at
        return place, left

    def _find(self, place: int, end: int, level: int) -> int | None:
        """Return the entry of `before` that may be the one for this place."""
        stretches = self._before.stretches
        # After the last stretch there may be a page that has changed, and the header of a list that has grown.
        for at in range(self._next, min(self._next + 4, len(stretches))):
            if stretches[at][2] == level and self._value.startswith(stretches[at][0], place, end):
                return at
        if end - place < _WORTHWHILE:
            return None
        if self._starts is None:
            self._starts = _starts(stretches)
        return self._starts.get(self._value[place : place + _START])

    def _follow(self, at: int, place: int, end: int, level: int, left: int) -> tuple[int, int, int]:
        """Follow the stretches of `before` from an entry on. Returns the entry, place and elements left at the end."""
        is_there = self._value.startswith
        rest = islice(self._before.stretches, at, None)
        for part, _, its_level, entries, elements in rest:
            if its_level != level or elements > left or not is_there(part, place, end):
                break
            stop = place + len(part)
            if entries > 1:
                for inner in islice(rest, entries - 1):
                    if not is_there(inner[0], stop, end):
                        return at, place, left
                    stop += len(inner[0])
            place = stop
            left -= elements
            at += entries
        return at, place, left


def _starts(stretches: tuple[_Stretch, ...]) -> dict[bytes, int]:
    """Return the entry of each stretch, by the bytes it begins with."""
    starts = {}
    for at, (part, _, level, entries, _) in enumerate(stretches):
        if level is not None:
            # A header is too short to be told from others.
            start = part + stretches[at + 1][0][:_START] if entries > 1 else part
            starts[start[:_START]] = at
    return starts


def _count(header: bytes) -> int:
    """Return the number of elements in a container's header; a pair of a map is two."""
    count = int.from_bytes(header[1:], "big") if header[1:] else header[0] & 15
    return count * 2 if header[0] < 0x90 or header[0] in {0xDE, 0xDF} else count
