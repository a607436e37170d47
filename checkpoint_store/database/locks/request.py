"""A thread's lock, as one run has to do with it: wanted, held, or lost."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable

from checkpoint_store.database.pool import full_of_others
from checkpoint_store.errors import LockLost, ThreadLocked, Unavailable, short_repr

SERVER_SECONDS = 1.0
"""How long the server may take to let a lock be asked for, however short the time-out: 0 is to try once."""


class GivenUp(Exception):
    """Raised where a lock is waited for that nobody wants any more."""


class LockRequest:
    """A lock that is wanted, held, or was lost. Its time-out runs from here.

    Args:
        thread_id: Whose lock.
        timeout: How long to wait for it, in seconds; None for as long as it takes.
        check_open: Raises if whoever wants it was closed.
        owner: What gives it back, and exists as long as it can.
    """

    def __init__(self, thread_id: str, timeout: float | None, check_open: Callable[[], object], owner: object) -> None:
        self.thread_id = thread_id
        self.timeout = timeout
        self.is_held = False
        self.is_lost = False
        self.schema: str | None = None
        """How the saver calls the schema of its tables."""
        self.number = 0
        self.transaction: object = None
        """What holds it, where that is a transaction of the caller's."""
        self.pid = os.getpid()
        self.given_up = threading.Event()
        """Set when nobody wants it any more."""
        self.failure: Exception | None = None
        """What has kept it from being asked for the last time, if it is asked for again."""
        self.kept: Callable[[], int] = lambda: 0
        """How many connections, and so all of the pool, the application has, and no call of ours."""
        self._check_open = check_open
        self._owner = weakref.ref(owner)
        self._began = time.monotonic()

    def check(self) -> None:
        """Check that it is still wanted.

        Raises:
            Closed: If whoever wants it was closed.
            GivenUp: If it was given up.
        """
        self._check_open()
        if self.given_up.is_set():
            raise GivenUp

    @property
    def is_forgotten(self) -> bool:
        """Whether it is held, or was lost, and nobody is left to give it back: Ctrl-C has kept them from it."""
        return self.is_held and self._owner() is None

    @property
    def left(self) -> float | None:
        """How many seconds are left to wait for others; None for any number."""
        return None if self.timeout is None else max(0.0, self._began + self.timeout - time.monotonic())

    @property
    def patience(self) -> float | None:
        """How many seconds are left to wait for the server, and for those who are asking it something."""
        if self.timeout is None:
            return None
        return max(0.0, self._began + max(self.timeout, SERVER_SECONDS) - time.monotonic())

    def locked(self) -> ThreadLocked:
        """Return the error for a lock that others had for too long."""
        waited = f" for the {round(self.timeout, 3):g} s that this one has waited" if self.timeout else ""
        return ThreadLocked(
            f"thread {short_repr(self.thread_id, 200)}: another run {'has had' if waited else 'has'} the lock{waited}. "
            "Let it finish, or pass a longer timeout."
        )

    def silent(self) -> Unavailable:
        """Return the error for a server that could not be asked in time."""
        told = (
            f"thread {short_repr(self.thread_id, 200)}: the lock could not be asked for within "
            f"{max(self.timeout or 0, SERVER_SECONDS):g} s"
        )
        if kept := self.kept():
            way_out = "Take the lock before the session is opened, or on saver.bind(session)."
            return Unavailable(f"{told}: no connection became free. {full_of_others(kept)} {way_out}")
        return Unavailable(
            f"{told}: the server does not answer, or no connection of the pool has become free. Check that the server "
            "runs, or pass a longer timeout."
        )


def lost(request: LockRequest) -> LockLost:
    """Return the error for a lock that was not held to the end."""
    why = "its session of the server's ended (a restart, a failover, a lost network)"
    if request.transaction is not None:
        why = "the savepoint that it was taken in was rolled back. Take it before the savepoint"
    return LockLost(
        f"thread {short_repr(request.thread_id, 200)}: the lock was lost, because {why}. Others may have written to "
        "the thread since. With refuse_forks=True neither could have written past the other."
    )
