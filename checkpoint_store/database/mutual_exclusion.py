"""Mutual exclusion: things that one task or thread at a time may use, such as a connection."""

from __future__ import annotations

import asyncio
import threading
import weakref
from contextlib import AbstractContextManager
from typing import Any

from checkpoint_store.conninfo.fork import ProcessLock, in_children
from checkpoint_store.database.checkout import FairSemaphore


class TaskLock(FairSemaphore):
    """A lock for tasks, which its holder may take again, as a thread may its `threading.RLock`."""

    def __init__(self) -> None:
        super().__init__(1)
        self._owner: asyncio.Task[Any] | None = None
        self._depth = 0

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if self._owner is None or self._owner is not task:
            super().__enter__()
            self._owner, self._depth = task, 0
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth <= 0:
            self._owner = None
            self.release()


_locks: weakref.WeakKeyDictionary[object, TaskLock | threading.RLock] = weakref.WeakKeyDictionary()
_registry_lock = ProcessLock()

in_children(_locks.clear)  # the threads that hold one are not there


def alone_with(thing: object, *, is_async: bool) -> AbstractContextManager[object]:
    """Return the lock of a thing that one greenlet, if `is_async`, or one thread at a time may use."""
    with _registry_lock.current:
        # Reentrant: SQLAlchemy has an error for a session's flush that calls a saver on that session.
        return _locks.get(thing) or _locks.setdefault(thing, TaskLock() if is_async else threading.RLock())


def wait_for_others(thing: object) -> None:
    """Wait until a thing is free, after all calls that have asked to be `alone_with` it before."""
    with _registry_lock.current:
        lock = _locks.get(thing)
    if lock is not None:
        with lock:
            pass
