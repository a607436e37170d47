"""Whose turn it is: a fair queue in front of something that only so many can use at once."""

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
    """Raised when a turn has not come in time."""


class FairSemaphore(AbstractContextManager[object]):
    """Gives turns in the order they were asked for; for the coroutines of one event loop.

    A semaphore with a deadline. `asyncio.wait_for(semaphore.acquire(), ...)` is none: before Python 3.12 it loses the
    turn when it is cancelled just as that comes.

    Args:
        count: How many turns there are at a time.
        timeout: How long to wait for one, in seconds; None for as long as it takes.
    """

    def __init__(self, count: int, timeout: float | None) -> None:
        self._count = self._free = count
        self._timeout = timeout
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    def _settle(self) -> None:
        """Start afresh on another loop: who had a turn on the one before, or waited, does not come back."""
        if (loop := asyncio.get_running_loop()) is not self._loop:
            self._loop, self._free, self._waiting = loop, self._count, deque()

    async def take(self, timeout: float | None = None) -> None:
        """Wait for a turn; whoever got one gives it back.

        Args:
            timeout: How long at most, in seconds; by default as long as all do.

        Raises:
            CheckoutTimeout: If none has come in time.
        """
        self._settle()
        if self._free > 0:
            self._free -= 1
            return
        loop = asyncio.get_running_loop()
        timeout = self._timeout if timeout is None else timeout
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        deadline = None if timeout is None else loop.call_later(timeout, _expire, turn, timeout)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                self.give_back()  # it came at the same moment
            raise
        finally:
            if deadline is not None:
                deadline.cancel()

    def give_back(self) -> None:
        """Let the next one have its turn."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free = min(self._free + 1, self._count)  # no more than there are, should one come back from an ended loop

    def taken(self) -> AbstractContextManager[object]:
        """Return what has a turn for the length of a `with` block, in a greenlet of SQLAlchemy's."""
        return self

    def __enter__(self) -> None:
        self._settle()
        if self._free > 0:  # as a rule, and then without a switch out of the greenlet and back
            self._free -= 1
        else:
            await_only(self.take())

    def __exit__(self, *_: object) -> None:
        self.give_back()


def _expire(turn: asyncio.Future[None], timeout: float) -> None:
    if not turn.done():
        turn.set_exception(CheckoutTimeout(f"waited for {timeout:g} s"))


class OwnTurn(FairSemaphore):
    """One turn at a time, which the task that has it may take again, as a thread its lock."""

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
            self.give_back()


_turns: weakref.WeakKeyDictionary[object, OwnTurn] = weakref.WeakKeyDictionary()
_locks: weakref.WeakKeyDictionary[object, threading.RLock] = weakref.WeakKeyDictionary()
_registry_lock = ProcessLock()

in_children(_locks.clear)  # threads that hold one are not there


def alone_with(thing: object, *, is_async: bool) -> AbstractContextManager[object]:
    """Return what makes a block the only one that uses a thing, such as a connection, which can do one at a time.

    Args:
        thing: The same for all who share it.
        is_async: Whether they are in greenlets of one event loop; otherwise they are threads.
    """
    with _registry_lock.current:
        if is_async:
            return (_turns.get(thing) or _turns.setdefault(thing, OwnTurn())).taken()
        # One that a thread may take twice: where a session's flush calls us, SQLAlchemy has an error for it.
        return _locks.get(thing) or _locks.setdefault(thing, threading.RLock())


def wait_for_others(thing: object) -> None:
    """Wait until those who are `alone_with` a thing, and those who have asked before, are done with it."""
    with _registry_lock.current:
        turn: AbstractContextManager[object] | None = _turns.get(thing) or _locks.get(thing)
    if turn is not None:
        with turn:
            pass
