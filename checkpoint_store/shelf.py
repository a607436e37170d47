"""What this process remembers of the pages it has stored, so that it sends only new ones; bounded.

A memory, not a promise: pages may have been deleted meanwhile, or a transaction rolled back. So it decides what is
sent, and no more: what is not sent is looked for by the statement that counts on it (see `storing.passed_threads`).
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from checkpoint_store import pages
from checkpoint_store.pages import Cut

MOST_DIGESTS = 65_536
"""How many digests are remembered for all threads together: some 6 MB, and 250 MB of pages."""

MOST_BYTES = 8 * 1024 * 1024
"""How many bytes of pages are kept for all threads together: to compare a channel's next value with, and to read its
last one without asking for what is here."""

Place = tuple[str, str]
"""Namespace and channel."""


@dataclass
class Known:
    """The pages of one thread that the database had."""

    digests: dict[Place, frozenset[bytes]] = field(default_factory=dict)
    """Those of each channel's last value: an older value's are not likely to be needed again."""

    def has(self, digest: bytes) -> bool:
        """Tell whether the database has a page."""
        return any(digest in some for some in self.digests.values())

    def __len__(self) -> int:
        return sum(map(len, self.digests.values()))


class Shelf:
    """The memory of all savers on one engine; its methods may be called from any thread."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._cuts: OrderedDict[tuple[str, Place], tuple[int, Cut]] = OrderedDict()
        self._places: Counter[str] = Counter()
        self._digests = self._bytes = 0
        self._lock = threading.Lock()

    def known(self, thread_id: str) -> Known | None:
        """Return what is remembered of a thread."""
        with self._lock:
            if (known := self._known.get(thread_id)) is not None:
                self._known.move_to_end(thread_id)
            return known

    def remember(self, thread_id: str, digests: Mapping[Place, Iterable[bytes]]) -> None:
        """Note the pages of values that were stored."""
        with self._lock:
            known = self._known.pop(thread_id, None) or Known()
            self._digests -= len(known)
            # Another one, because a reader may hold the one before.
            known = Known({**known.digests, **{place: frozenset(some) for place, some in digests.items()}})
            self._known[thread_id] = known
            self._digests += len(known)
            while self._digests > MOST_DIGESTS and len(self._known) > 1:
                _, oldest = self._known.popitem(last=False)
                self._digests -= len(oldest)

    def forget(self, thread_id: str) -> None:
        """Forget a thread of which something remembered has turned out to be untrue."""
        with self._lock:
            if (known := self._known.pop(thread_id, None)) is not None:
                self._digests -= len(known)

    def before(self, thread_id: str, place: Place) -> Cut | None:
        """Return how the last value of a channel was cut."""
        with self._lock:
            if (kept := self._cuts.get((thread_id, place))) is None:
                return None
            self._cuts.move_to_end((thread_id, place))
            return kept[1]

    def has_values(self, thread_id: str) -> bool:
        """Tell whether the last value of any of a thread's channels is at hand."""
        return thread_id in self._places

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
        size = sum(map(len, cut.pages.values()))
        with self._lock:
            if (kept := self._cuts.pop((thread_id, place), None)) is not None:
                self._let_go(thread_id, kept[0])
            if size > MOST_BYTES:
                return
            self._cuts[thread_id, place] = size, cut
            self._places[thread_id] += 1
            self._bytes += size
            while self._bytes > MOST_BYTES:
                (oldest_thread, _), (oldest, _) = self._cuts.popitem(last=False)
                self._let_go(oldest_thread, oldest)

    def _let_go(self, thread_id: str, size: int) -> None:
        self._bytes -= size
        self._places[thread_id] -= 1
        if not self._places[thread_id]:
            del self._places[thread_id]
