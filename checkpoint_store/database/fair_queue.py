"""Fair queues: for the connections of a pool, and for things that only one task or thread at a time may use."""

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

    Args:
        count: How many permits there are.
        timeout: How long to wait for one, in seconds; None for as long as it takes.
    """

    def __init__(self, count: int, timeout: float | None) -> None:
        self._count = self._free = count
        self._timeout = timeout
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def acquire(self, timeout: float | None = None) -> None:
        """Wait for a permit.

        Args:
            timeout: How long at most, in seconds; by default as long as all do.

        Raises:
            CheckoutTimeout: If none has come in time.
        """
        if self._acquire_now():
            return
        loop = asyncio.get_running_loop()
        timeout = self._timeout if timeout is None else timeout
        permit: asyncio.Future[None] = loop.create_future()
        self._waiting.append(permit)
        deadline = None if timeout is None else loop.call_later(timeout, _expire, permit, timeout)
        try:
            await permit
        except asyncio.CancelledError:
            if not permit.cancelled() and permit.exception() is None:
                self.release()  # it came at the same moment
            raise
        finally:
            if deadline is not None:
                deadline.cancel()

    def _acquire_now(self) -> bool:
        """Take a permit if one is free, and return whether that was so."""
        if (loop := asyncio.get_running_loop()) is not self._loop:
            # No permit of the loop before comes back, and no call that waited there goes on.
            self._loop, self._free, self._waiting = loop, self._count, deque()
        is_free = self._free > 0
        self._free -= is_free
        return is_free

    def release(self) -> None:
        """Give a permit back: to the call that has waited longest, if one waits."""
        while self._waiting:
            permit = self._waiting.popleft()
            if not permit.done():
                permit.set_result(None)
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
        super().__init__(1, None)
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


_task_locks: weakref.WeakKeyDictionary[object, TaskLock] = weakref.WeakKeyDictionary()
_thread_locks: weakref.WeakKeyDictionary[object, threading.RLock] = weakref.WeakKeyDictionary()
_registry_lock = ProcessLock()

in_children(_thread_locks.clear)  # the threads that hold one are not there


def alone_with(thing: object, *, is_async: bool) -> AbstractContextManager[object]:
    """Return the lock of a thing that can be used by one at a time, such as a connection.

    Args:
        thing: The thing; the same object for all who share it.
        is_async: Whether they are in greenlets of one event loop; otherwise they are threads.
    """
    with _registry_lock.current:
        if is_async:
            return _task_locks.get(thing) or _task_locks.setdefault(thing, TaskLock())
        # Reentrant: SQLAlchemy has an error for a session's flush that calls a saver on that session.
        return _thread_locks.get(thing) or _thread_locks.setdefault(thing, threading.RLock())


def wait_for_others(thing: object) -> None:
    """Wait until a thing is free, after all calls that have asked to be `alone_with` it before."""
    with _registry_lock.current:
        lock: AbstractContextManager[object] | None = _task_locks.get(thing) or _thread_locks.get(thing)
    if lock is not None:
        with lock:
            pass
