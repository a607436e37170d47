"""The threads that this process has written and a replica may lack, by positions in the write-ahead log."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Dialect

from checkpoint_store.storage.operation import Kind, Operation

MOST_THREADS = 10_000
"""The largest number of threads to remember; with more, all threads count as written for a while."""

ASK_SECONDS = 0.2
"""The shortest time between two questions to the servers for their positions."""


class ReplicationLag:
    """The threads that this process has written and the replica may lack; may be used from any thread.

    Writes are numbered. A position of the primary's log is taken after a number; once the replica has replayed the log
    up to that position, it has all writes up to that number.
    """

    is_asked = False
    """Whether there is a replica, so that `has` is called."""

    def __init__(self) -> None:
        self._threads: dict[str, int] = {}
        self._any = self._last = self._passed = 0
        self._sample: tuple[int, int] | None = None
        self._asked = float("-inf")
        self._lock = threading.Lock()

    def note(self, thread_ids: Iterable[str] | None) -> None:
        """Note that threads were written; None for any thread."""
        with self._lock:
            self._last += 1
            self._threads.update(dict.fromkeys(thread_ids or (), self._last))
            if thread_ids is None or len(self._threads) > MOST_THREADS:
                self._any = self._last
                self._threads.clear()

    def note_call(self, operation: Operation[..., Any], args: Sequence[Any]) -> None:
        """Note the threads that an operation may have written."""
        if operation.kind is Kind.STORE:
            self.note({change.thread_id for change in args[-1]})
        elif operation.kind not in (Kind.READ, Kind.PROBE):
            thread_id = operation.thread(args)
            self.note(None if thread_id is None else [thread_id])

    def has(self, thread_id: str) -> bool:
        """Return whether the replica may lack writes of a thread."""
        with self._lock:
            return max(self._any, self._threads.get(thread_id, 0)) > self._passed

    def ask(self, primary: Callable[[], int | None], replica: Callable[[], int | None]) -> None:
        """Ask the primary how long its log is, and the replica how far it has replayed it, unless asked just now."""
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


_replication_lags: weakref.WeakKeyDictionary[Dialect, ReplicationLag] = weakref.WeakKeyDictionary()


def replication_lag_of(dialect: Dialect) -> ReplicationLag:
    """Return the writes of all savers on an engine; its dialect stands for it, as in `EventLoop`."""
    return _replication_lags.get(dialect) or _replication_lags.setdefault(dialect, ReplicationLag())
