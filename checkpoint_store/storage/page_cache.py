"""What an engine's savers remember of the pages they have stored, so that they send only new ones; bounded.

A memory, not a promise: pages may have been deleted meanwhile, or a transaction rolled back. So it decides what is
sent, and no more: what is not sent is looked for by the statement that counts on it (see `storing.passed_threads`).
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Container, Iterable, Mapping

from checkpoint_store.serde import pages
from checkpoint_store.serde.pages import Cut

MOST_BYTES = 16 * 1024 * 1024
"""How much is kept for all savers, schemas and threads of an engine together: at least half of it may be last values,
which the next ones are compared with and which are read back from here, the rest names pages that are stored."""

# What CPython needs beside the bytes themselves, on 64 bits, rounded up: measured with tracemalloc.
_PLACE_BYTES = 1024
_DIGEST_BYTES = 160
_PAGE_BYTES = 256
_STRETCH_BYTES = 176

Place = tuple[str, str]
"""Namespace and channel."""

_Thread = tuple["str | None", str]
"""Schema and thread."""

_Key = tuple[_Thread, Place]


class _Pages:
    """What is remembered of one thread."""

    def __init__(self) -> None:
        self.stored: dict[bytes, int] = {}
        """The pages that were stored: of the last values of how many channels each is."""
        self.places: set[Place] = set()
        """The channels that these values are of."""
        self.cuts = 0
        """Of how many channels the last value is at hand."""


class Memory:
    """The memory of all savers on one engine; its methods may be called from any thread.

    A call takes time that goes by the value it is about, however much is remembered.
    """

    def __init__(self) -> None:
        self._threads: dict[_Thread, _Pages] = {}
        # Both in the order of their last use.
        self._digests: OrderedDict[_Key, tuple[bytes, ...]] = OrderedDict()
        self._cuts: OrderedDict[_Key, tuple[int, Cut]] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = self._cut_bytes = 0
        """How much is kept."""

    def stored(self, thread: _Thread) -> Container[bytes] | None:
        """Return the pages that a thread is known to have had, or None if none is."""
        with self._lock:
            found = self._threads.get(thread)
            return (found and found.stored) or None

    def remember(self, thread: _Thread, place: Place, digests: Iterable[bytes]) -> None:
        """Note the pages of a channel's value that was stored, instead of those of the one before."""
        new = tuple(digests)
        with self._lock:
            found = self._threads.setdefault(thread, _Pages())
            for digest in new:
                found.stored[digest] = found.stored.get(digest, 0) + 1
            if place in found.places:
                self._let_go(found, self._digests.pop((thread, place)))
            found.places.add(place)
            self._digests[thread, place] = new
            self.bytes += _size_of_digests(new)
            self._trim()

    def forget(self, thread: _Thread) -> None:
        """Forget what a thread is known to have had."""
        with self._lock:
            if (found := self._threads.get(thread)) is None:
                return
            for place in found.places:
                self.bytes -= _size_of_digests(self._digests.pop((thread, place)))
            # Another one, because a caller may hold the one before.
            found.stored, found.places = {}, set()
            self._drop_if_empty(thread, found)

    def cut(self, thread: _Thread, place: Place) -> Cut | None:
        """Return how the last value of a channel was cut."""
        with self._lock:
            if (kept := self._cuts.get((thread, place))) is None:
                return None
            self._cuts.move_to_end((thread, place))
            return kept[1]

    def has_cuts(self, thread: _Thread) -> bool:
        """Tell whether the last value of any of a thread's channels is at hand."""
        found = self._threads.get(thread)
        return found is not None and found.cuts > 0

    def keep(self, thread: _Thread, place: Place, cut: Cut) -> None:
        """Keep how a channel's value was cut, instead of the one before."""
        size = _size_of(cut)
        with self._lock:
            if (thread, place) in self._cuts:
                self._drop_cut((thread, place))
            if size > MOST_BYTES // 2:
                return
            self._threads.setdefault(thread, _Pages()).cuts += 1
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

    def _let_go(self, found: _Pages, digests: tuple[bytes, ...]) -> None:
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

    def _drop_if_empty(self, thread: _Thread, found: _Pages) -> None:
        if not found.places and not found.cuts:
            del self._threads[thread]


class PageCache:
    """What is remembered of the threads of one schema.

    Args:
        memory: Where it is kept; by default one of its own.
        schema: The schema.
    """

    def __init__(self, memory: Memory | None = None, schema: str | None = None) -> None:
        self.memory = memory or Memory()
        self._schema = schema

    def known(self, thread_id: str) -> Container[bytes] | None:
        """Return the pages that a thread is known to have had, or None if none is."""
        return self.memory.stored((self._schema, thread_id))

    def remember(self, thread_id: str, digests: Mapping[Place, Iterable[bytes]]) -> None:
        """Note the pages of values that were stored."""
        for place, of_value in digests.items():
            self.memory.remember((self._schema, thread_id), place, of_value)

    def forget(self, thread_id: str) -> None:
        """Forget a thread of which something remembered has turned out to be untrue."""
        self.memory.forget((self._schema, thread_id))

    def before(self, thread_id: str, place: Place) -> Cut | None:
        """Return how the last value of a channel was cut."""
        return self.memory.cut((self._schema, thread_id), place)

    def has_values(self, thread_id: str) -> bool:
        """Tell whether the last value of any of a thread's channels is at hand."""
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
        """Keep how a channel's value was cut, for the next one."""
        self.memory.keep((self._schema, thread_id), place, cut)


_memories: weakref.WeakKeyDictionary[object, Memory] = weakref.WeakKeyDictionary()


def page_memory_of(dialect: object) -> Memory:
    """Return the memory of an engine, which goes by its dialect: that is the same for its variants."""
    return _memories.get(dialect) or _memories.setdefault(dialect, Memory())


def _size_of_digests(digests: tuple[bytes, ...]) -> int:
    return _PLACE_BYTES + _DIGEST_BYTES * len(digests)


def _size_of(cut: Cut) -> int:
    """Return how much is kept with a Cut, in which equal pages are one object."""
    parts = len(cut.recipe) + sum(map(len, cut.pages.values()))
    return _PLACE_BYTES + parts + _PAGE_BYTES * len(cut.pages) + _STRETCH_BYTES * len(cut.stretches)
