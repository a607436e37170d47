"""The queue of calls for the connections of a pool, and the connections that stay checked out from call to call."""

from __future__ import annotations

import threading
import weakref
from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from sqlalchemy import Engine, Pool, PoolProxiedConnection

from checkpoint_store.database.liveness import is_open
from checkpoint_store.database.semaphore import CheckoutTimeout, FairSemaphore
from checkpoint_store.database.sqlalchemy_private import has_rules, max_overflow


class Connected(NamedTuple):
    """A connection that is checked out."""

    pool: Pool
    pooled: PoolProxiedConnection
    driver: Any
    """The driver's connection in it."""


class ConnectionQueue(AbstractContextManager[object]):
    """Permits for the connections of a pool, in `with` blocks, and connections that stay checked out between them.

    Checkout, reset and return of a connection cost more than a small statement. On an engine of ours a connection stays
    checked out until the saver is closed. On a host's it does only where another call waits for it, which then has it
    at once. Each statement on it was a transaction of its own, so that there is nothing to reset.
    """

    def __init__(self, engine: Engine) -> None:
        self.keeps_all = False
        """Whether the engine is ours, and its connections stay checked out."""
        self._engine = weakref.ref(engine)
        self._kept: list[Connected] = []

    @property
    def kept(self) -> int:
        """The number of connections that are checked out and not in use."""
        return len(self._kept)

    def take(self, pool: Pool) -> Connected | None:
        """Take a connection of a pool that is checked out, if there is one; closed ones are given back."""
        while self._kept:
            try:
                kept = self._kept.pop()
            except IndexError:  # another thread was faster
                break
            if kept.pool is pool and is_open(kept.driver):
                return kept
            kept.pooled.invalidate()
            self._give_back(kept)
        return None

    def keep(self, connected: Connected) -> bool:
        """Keep a connection checked out for the next call. Returns whether it is kept."""
        is_wanted = self.keeps_all or (self._is_awaited(len(self._kept)) and _has_room(connected.pool))
        is_kept = is_wanted and not has_rules(connected.pool)
        if is_kept:
            self._kept.append(connected)
        return is_kept

    def give_back(self, left: int = 0) -> None:
        """Give the connections back to their pool, all but some of them."""
        while len(self._kept) > left:
            try:
                kept = self._kept.pop()
            except IndexError:
                break
            self._give_back(kept)

    def _give_back(self, kept: Connected) -> None:
        kept.pooled.close()
        engine = self._engine()
        if engine is not None and engine.pool is not kept.pool:
            kept.pool.dispose()  # the engine was disposed of meanwhile

    @abstractmethod
    def _is_awaited(self, kept: int) -> bool:
        """Return whether more calls wait for a connection than are kept for them."""


def _has_room(pool: Any) -> bool:
    """Return whether a pool could give out another connection: then nobody else waits for one of ours."""
    overflow = max_overflow(pool)
    return bool(overflow < 0 or pool.checkedout() < pool.size() + overflow)


class TaskQueue(ConnectionQueue, FairSemaphore):
    """The queue of an async engine."""

    def __init__(self, engine: Engine, count: int, timeout: float | None) -> None:
        ConnectionQueue.__init__(self, engine)
        FairSemaphore.__init__(self, count, timeout)

    def __enter__(self) -> None:
        try:
            FairSemaphore.__enter__(self)
        except BaseException:
            self._settle()
            raise

    def __exit__(self, *_: object) -> None:
        self.release()
        if self._kept and not self.keeps_all:
            self._settle()

    def _settle(self) -> None:
        """Give connections back that were kept for calls which do not come: cancelled ones."""
        if not self.keeps_all:
            self.give_back(self.awaited)

    def _is_awaited(self, kept: int) -> bool:
        return kept < self.awaited


class ThreadQueue(ConnectionQueue):
    """The queue of a sync engine of ours: a host's needs none, since threads wait fairly in its pool."""

    def __init__(self, engine: Engine, count: int, timeout: float | None) -> None:
        super().__init__(engine)
        self._permits = threading.BoundedSemaphore(count)
        self._timeout = timeout

    def __enter__(self) -> None:
        if not self._permits.acquire(timeout=self._timeout):
            raise CheckoutTimeout(f"waited for {self._timeout:g} s")

    def __exit__(self, *_: object) -> None:
        self._permits.release()

    def _is_awaited(self, kept: int) -> bool:  # noqa: ARG002
        return False
