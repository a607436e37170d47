"""What this process has written and a replica may not have yet: told by positions in the write-ahead log."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Dialect

from checkpoint_store.storage.operation import Kind, Operation

MOST_THREADS = 10_000
"""How many threads are remembered as written; when there are more, all threads count as such for a while."""

ASK_SECONDS = 0.2
"""How often the servers are asked how far they are, at most."""


class ReplicationLag:
    """Which threads this process has written that the replica may not have yet; may be used from any thread.

    Writes are numbered. Once the primary's log has a position that was taken after a number, and the replica is beyond
    it, all writes up to that number are there.
    """

    is_asked = False
    """Whether there is a replica, so that anybody will ask."""

    def __init__(self) -> None:
        self._threads: dict[str, int] = {}
        self._everything = self._last = self._passed = 0
        self._sample: tuple[int, int] | None = None
        self._asked = float("-inf")
        self._lock = threading.Lock()

    def note(self, thread_ids: Iterable[str] | None) -> None:
        """Note that threads were written; with None, any of them may have been."""
        with self._lock:
            self._last += 1
            self._threads.update(dict.fromkeys(thread_ids or (), self._last))
            if thread_ids is None or len(self._threads) > MOST_THREADS:
                self._everything = self._last
                self._threads.clear()

    def note_call(self, operation: Operation[..., Any], args: Sequence[Any]) -> None:
        """Note the threads that an operation may have written."""
        if operation.kind is Kind.STORE:
            self.note({change.thread_id for change in args[-1]})
        elif operation.kind is not Kind.READ:
            thread_id = operation.thread(args)
            self.note(None if thread_id is None else [thread_id])

    def has(self, thread_id: str) -> bool:
        """Tell whether a thread is among them."""
        with self._lock:
            return max(self._everything, self._threads.get(thread_id, 0)) > self._passed

    def ask(self, primary: Callable[[], int | None], replica: Callable[[], int | None]) -> None:
        """Find out how far the replica is, unless that was done just now.

        Args:
            primary: Tells where the primary's log ends, as a number of bytes.
            replica: Tells what of it the replica has replayed; None if it can't tell.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._asked < ASK_SECONDS:
                return
            self._asked, sample, last = now, self._sample, self._last
        if sample is None:
            if (position := primary()) is None:
                return
            sample = (last, position)
        replayed = replica()
        with self._lock:
            if replayed is None or replayed < sample[1]:
                self._sample = sample
                return
            self._sample, self._passed = None, max(self._passed, sample[0])
            self._threads = {thread_id: number for thread_id, number in self._threads.items() if number > self._passed}


_unreplicated: weakref.WeakKeyDictionary[Dialect, ReplicationLag] = weakref.WeakKeyDictionary()


def replication_lag_of(dialect: Dialect) -> ReplicationLag:
    """Return what all savers on an engine have written; an engine goes by its dialect, as in `EventLoop`."""
    return _unreplicated.get(dialect) or _unreplicated.setdefault(dialect, ReplicationLag())
