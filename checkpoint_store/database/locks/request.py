"""A run's request for a thread's lock: waiting, held, or lost."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable

from sqlalchemy import Connection

from checkpoint_store.database.checkout import full_of_others
from checkpoint_store.errors import LockLost, ThreadLocked, Unavailable, short_repr
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements

SERVER_SECONDS = 1.0
"""The seconds that it may take to ask the server for a lock, however short the timeout: 0 is to try once."""


class GivenUp(Exception):
    """Raised in the wait for a lock that was given up."""


class LockRequest:
    """A lock that is waited for, held, or lost. Its timeout runs from here.

    Args:
        thread_id: The thread.
        timeout: How long to wait for it, in seconds; None for as long as it takes.
        check_open: Raises if the saver that wants it was closed.
        owner: The object that gives it back, and exists as long as it can.
    """

    def __init__(self, thread_id: str, timeout: float | None, check_open: Callable[[], object], owner: object) -> None:
        self.thread_id = thread_id
        self.timeout = timeout
        self.is_held = False
        self.is_lost = False
        self.sql: Statements
        """The statements of the saver that wants it."""
        self.open_connection: Callable[[], Connection]
        """Takes a connection out of the pool, for the session that is to hold it."""
        self.place: Callable[[Executor, Statements], Statements]
        """Returns the statements for the tables as they are, distributed or not; may ask on that connection."""
        self.number = 0
        """The number of the advisory lock."""
        self.transaction: object = None
        """The caller's transaction that holds it, if one does."""
        self.pid = os.getpid()
        self.given_up = threading.Event()
        """Set when it is no longer wanted."""
        self.failure: Exception | None = None
        """The error of the last attempt, if there is another one."""
        self.kept: Callable[[], int] = lambda: 0
        """Returns the size of the pool, if the application has all of its connections; otherwise 0."""
        self._check_open = check_open
        self._owner = weakref.ref(owner)
        self._began = time.monotonic()

    def check(self) -> None:
        """Raise `Closed` if the saver that wants it was closed, `GivenUp` if it was given up."""
        self._check_open()
        if self.given_up.is_set():
            raise GivenUp

    @property
    def is_forgotten(self) -> bool:
        """Whether it is held, or was lost, and its owner no longer exists: Ctrl-C kept it from giving the lock back."""
        return self.is_held and self._owner() is None

    @property
    def left(self) -> float | None:
        """The seconds left to wait for other runs; None for any number."""
        return None if self.timeout is None else max(0.0, self._began + self.timeout - time.monotonic())

    @property
    def server_left(self) -> float | None:
        """The seconds left to wait for the server, and for other requests that ask it something."""
        if self.timeout is None:
            return None
        return max(0.0, self._began + max(self.timeout, SERVER_SECONDS) - time.monotonic())

    def thread_locked(self) -> ThreadLocked:
        """Return the error for a lock that another run had for too long."""
        waited = f" for the {round(self.timeout, 3):g} s that this one has waited" if self.timeout else ""
        return ThreadLocked(
            f"thread {short_repr(self.thread_id, 200)}: another run {'has had' if waited else 'has'} the lock{waited}. "
            "Let it finish, or pass a longer timeout."
        )

    def unanswered(self) -> Unavailable:
        """Return the error for a server that could not be asked in time."""
        text = (
            f"thread {short_repr(self.thread_id, 200)}: the lock could not be asked for within "
            f"{max(self.timeout or 0, SERVER_SECONDS):g} s"
        )
        if kept := self.kept():
            way_out = "Take the lock before the session is opened, or on saver.bind(session)."
            return Unavailable(f"{text}: no connection became free. {full_of_others(kept)} {way_out}")
        return Unavailable(
            f"{text}: the server does not answer, or no connection of the pool has become free. Check that the server "
            "runs, or pass a longer timeout."
        )

    def lock_lost(self) -> LockLost:
        """Return the error for a lock that was not held to the end."""
        reason = "its session of the server's ended (a restart, a failover, a lost network)"
        if self.transaction is not None:
            reason = "the savepoint that it was taken in was rolled back. Take it before the savepoint"
        return LockLost(
            f"thread {short_repr(self.thread_id, 200)}: the lock was lost, because {reason}. Others may have written "
            "to the thread since. With refuse_forks=True neither could have written past the other."
        )
