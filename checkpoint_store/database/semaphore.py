"""Permits and locks for greenlets and threads: a fair semaphore with a deadline, a lock for tasks, locks of things."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy.util import await_only

from checkpoint_store.conninfo.fork import ProcessLock, in_children


class CheckoutTimeout(Exception):
    """Raised when a permit has not come in time."""


class FairSemaphore(AbstractContextManager[object]):
    """A semaphore with a deadline, for greenlets on an event loop: permits come in the order they are asked for.

    It works on several loops, one after the other. An `asyncio.Semaphore` does not, has no deadline, and costs five
    times as much: each permit takes a switch out of the greenlet and back.
    """

    def __init__(self, count: int, timeout: float | None = None) -> None:
        self._count = self._free = count
        self._timeout = timeout
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._coming = 0
        """The number of calls that have been given a permit and have not gone on yet."""
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def awaited(self) -> int:
        """The number of calls that are about to go on when the next permit is given back."""
        return self._coming + any(not permit.done() for permit in self._waiting)

    async def acquire(self, timeout: float | None = None) -> None:
        """Wait for a permit, for some seconds at most; raise `CheckoutTimeout` if none has come."""
        if self._acquire_now():
            return
        loop = asyncio.get_running_loop()
        timeout = self._timeout if timeout is None else timeout
        permit: asyncio.Future[None] = loop.create_future()
        self._waiting.append(permit)
        deadline = None if timeout is None else loop.call_later(timeout, _expire, permit, timeout)
        try:
            await permit
            self._coming -= 1
        except asyncio.CancelledError:
            if not permit.cancelled() and permit.exception() is None:
                self._coming -= 1
                self.release()  # it came at the same moment
            raise
        finally:
            if deadline is not None:
                deadline.cancel()

    def _acquire_now(self) -> bool:
        """Take a permit if one is free. Returns whether one was."""
        if (loop := asyncio.get_running_loop()) is not self._loop:
            # No permit of the loop before comes back, and no call that waited there goes on.
            self._loop, self._free, self._waiting, self._coming = loop, self._count, deque(), 0
        is_free = self._free > 0
        self._free -= is_free
        return is_free

    def release(self) -> None:
        """Give a permit back: to the call that has waited longest, if one waits."""
        while self._waiting:
            permit = self._waiting.popleft()
            if not permit.done():
                permit.set_result(None)
                self._coming += 1
                return
        self._free = min(self._free + 1, self._count)  # no more than there are, if one comes back from an ended loop

    def __enter__(self) -> None:
        if not self._acquire_now():  # as a rule one is free, and no switch is needed
            await_only(self.acquire())

    def __exit__(self, *_: object) -> None:
        self.release()


def _expire(permit: asyncio.Future[None], timeout: float) -> None:
    if not permit.done():
        permit.set_exception(CheckoutTimeout(f"waited for {timeout:g} s"))


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
