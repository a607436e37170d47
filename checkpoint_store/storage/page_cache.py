"""The cache of the pages that an engine's savers have stored, so that they send only new ones; bounded.

It is not to be relied on: pages may have been deleted meanwhile, or a transaction rolled back. So it decides which
pages are sent, and no more: the statement that needs the others looks for them itself (see `sql.write.store`).
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Container, Iterable, Mapping

from checkpoint_store.serde import pages
from checkpoint_store.serde.pages import Cut

MOST_BYTES = 16 * 1024 * 1024
"""The bound for all savers, schemas and threads of an engine together: at least half of it may be last values, which
the next ones are compared with and which are read back from here, the rest are digests of stored pages."""

# The overhead in CPython beside the bytes themselves, on 64 bits, rounded up: measured with tracemalloc.
_PLACE_BYTES = 1024
_DIGEST_BYTES = 160
_PAGE_BYTES = 256
_STRETCH_BYTES = 176

Place = tuple[str, str]
"""Namespace and channel."""

_Thread = tuple["str | None", str]
"""Schema and thread."""

_Key = tuple[_Thread, Place]


class _ThreadPages:
    """The cached pages of one thread."""

    def __init__(self) -> None:
        self.stored: dict[bytes, int] = {}
        """The digests of stored pages, with the number of channels that have each in their last value."""
        self.places: set[Place] = set()
        """The channels that these values are of."""
        self.cuts = 0
        """The number of channels with a cached last value."""


class PageMemory:
    """The pages of all savers on one engine; its methods may be called from any thread.

    The time of a call depends on the value it is about, not on how much is cached.
    """

    def __init__(self) -> None:
        self._threads: dict[_Thread, _ThreadPages] = {}
        # Both in the order of their last use.
        self._digests: OrderedDict[_Key, tuple[bytes, ...]] = OrderedDict()
        self._cuts: OrderedDict[_Key, tuple[int, Cut]] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = self._cut_bytes = 0
        """The bytes that are held."""

    def stored(self, thread: _Thread) -> Container[bytes] | None:
        """Return the digests of a thread's stored pages, None if there are none."""
        with self._lock:
            found = self._threads.get(thread)
            return (found and found.stored) or None

    def remember(self, thread: _Thread, place: Place, digests: Iterable[bytes]) -> None:
        """Keep the digests of a channel's stored value, instead of those of the one before."""
        new = tuple(digests)
        with self._lock:
            found = self._threads.setdefault(thread, _ThreadPages())
            for digest in new:
                found.stored[digest] = found.stored.get(digest, 0) + 1
            if place in found.places:
                self._let_go(found, self._digests.pop((thread, place)))
            found.places.add(place)
            self._digests[thread, place] = new
            self.bytes += _size_of_digests(new)
            self._trim()

    def forget(self, thread: _Thread) -> None:
        """Drop the digests of a thread."""
        with self._lock:
            if (found := self._threads.get(thread)) is None:
                return
            for place in found.places:
                self.bytes -= _size_of_digests(self._digests.pop((thread, place)))
            # Another one, because a caller may hold the one before.
            found.stored, found.places = {}, set()
            self._drop_if_empty(thread, found)

    def cut(self, thread: _Thread, place: Place) -> Cut | None:
        """Return the cut of a channel's last value."""
        with self._lock:
            if (kept := self._cuts.get((thread, place))) is None:
                return None
            self._cuts.move_to_end((thread, place))
            return kept[1]

    def has_cuts(self, thread: _Thread) -> bool:
        """Return whether the last value of any of a thread's channels is cached."""
        found = self._threads.get(thread)
        return found is not None and found.cuts > 0

    def keep(self, thread: _Thread, place: Place, cut: Cut) -> None:
        """Keep the cut of a channel's value, instead of the one before."""
        size = _size_of(cut)
        with self._lock:
            if (thread, place) in self._cuts:
                self._drop_cut((thread, place))
            if size > MOST_BYTES // 2:
                return
            self._threads.setdefault(thread, _ThreadPages()).cuts += 1
            self._cuts[thread, place] = size, cut
            self._cut_bytes += size
            self.bytes += size
            self._trim()

    def _trim(self) -> None:
        while self.bytes > MOST_BYTES:
            if self._cut_bytes > MOST_BYTES // 2 or not self._digests:
                self._drop_cut(next(iter(self._cuts)))
                continue
            (thread, place), digests = self._digests.popitem(last=False)
            found = self._threads[thread]
            found.places.remove(place)
            self._let_go(found, digests)
            self._drop_if_empty(thread, found)

    def _let_go(self, found: _ThreadPages, digests: tuple[bytes, ...]) -> None:
        self.bytes -= _size_of_digests(digests)
        for digest in digests:
            if (left := found.stored[digest] - 1) > 0:
                found.stored[digest] = left
            else:
                del found.stored[digest]

    def _drop_cut(self, key: _Key) -> None:
        size, _ = self._cuts.pop(key)
        self._cut_bytes -= size
        self.bytes -= size
        found = self._threads[key[0]]
        found.cuts -= 1
        self._drop_if_empty(key[0], found)

    def _drop_if_empty(self, thread: _Thread, found: _ThreadPages) -> None:
        if not found.places and not found.cuts:
            del self._threads[thread]


class PageCache:
    """The cache for the threads of one schema.

    Args:
        memory: The memory that it is a part of; by default one of its own.
        schema: The schema.
    """

    def __init__(self, memory: PageMemory | None = None, schema: str | None = None) -> None:
        self.memory = memory or PageMemory()
        self._schema = schema

    def known(self, thread_id: str) -> Container[bytes] | None:
        """Return the digests of a thread's stored pages, None if there are none."""
        return self.memory.stored((self._schema, thread_id))

    def remember(self, thread_id: str, digests: Mapping[Place, Iterable[bytes]]) -> None:
        """Keep the digests of stored values."""
        for place, of_value in digests.items():
            self.memory.remember((self._schema, thread_id), place, of_value)

    def forget(self, thread_id: str) -> None:
        """Drop the digests of a thread that has turned out to lack one of them."""
        self.memory.forget((self._schema, thread_id))

    def before(self, thread_id: str, place: Place) -> Cut | None:
        """Return the cut of a channel's last value."""
        return self.memory.cut((self._schema, thread_id), place)

    def has_values(self, thread_id: str) -> bool:
        """Return whether the last value of any of a thread's channels is cached."""
        return self.memory.has_cuts((self._schema, thread_id))

    def value(self, thread_id: str, place: Place, recipe: bytes) -> bytes | None:
        """Return the value that a recipe makes, if all its pages are among those of the channel's last value."""
        cut = self.before(thread_id, place)
        if cut is None:
            return None
        if cut.recipe == recipe:
            return b"".join(part for part, *_ in cut.stretches)
        try:
            return pages.join(recipe, cut.pages)
        except (KeyError, ValueError):
            return None

    def keep(self, thread_id: str, place: Place, cut: Cut) -> None:
        """Keep the cut of a channel's value, for the next one."""
        self.memory.keep((self._schema, thread_id), place, cut)


_memories: weakref.WeakKeyDictionary[object, PageMemory] = weakref.WeakKeyDictionary()


def page_memory_of(dialect: object) -> PageMemory:
    """Return the memory of an engine, found by its dialect, which its execution_options() variants share."""
    return _memories.get(dialect) or _memories.setdefault(dialect, PageMemory())


def _size_of_digests(digests: tuple[bytes, ...]) -> int:
    return _PLACE_BYTES + _DIGEST_BYTES * len(digests)


def _size_of(cut: Cut) -> int:
    """Return the bytes held by a cut, in which equal pages are one object."""
    parts = len(cut.recipe) + sum(map(len, cut.pages.values()))
    return _PLACE_BYTES + parts + _PAGE_BYTES * len(cut.pages) + _STRETCH_BYTES * len(cut.stretches)
