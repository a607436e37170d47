"""What the contract asks for: operations, run on connections of one origin, from coroutines and from plain code."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from checkpoint_store.database.locks.request import LockRequest
from checkpoint_store.database.locks.scheduling import to_the_end
from checkpoint_store.database.provider import ConnectionProvider
from checkpoint_store.errors import Closed, Refused, WrongThread
from checkpoint_store.storage import checkpoints
from checkpoint_store.storage.operation import Operation
from checkpoint_store.storage.page_cache import PageCache
from checkpoint_store.storage.write_batch import Change

P = ParamSpec("P")
T = TypeVar("T")


ASK_SECONDS = 60.0
"""How often the database is asked whether the stock saver has set up tables since."""


@dataclass
class PageSharing:
    """Whether large values are stored as pages; savers share what one of them has found out."""

    wanted: bool | None
    """What the caller said; None for where the stock saver doesn't read."""
    pages: bool | None = None
    """What was found out; None as long as the database has not been asked."""
    _asked: float = -math.inf

    @property
    def decided(self) -> bool | None:
        """Whether values are stored so; None where the database has to be asked, now and then."""
        if self.wanted is not None:
            return self.wanted
        if time.monotonic() - self._asked < ASK_SECONDS:
            return self.pages
        if self.pages is not None:
            self._asked = time.monotonic()  # those who come meanwhile go by what is known
        return None

    def found(self, is_adopted: bool) -> bool:
        """Note what was found out, and tell whether values are stored so."""
        self.pages, self._asked = not is_adopted, time.monotonic()
        return self.pages


class Backend(ABC):
    """Runs operations on connections of one origin.

    Args:
        origin: Where the connections come from.
        page_cache: What is remembered of pages.
        sharing: Whether large values are stored as pages.
    """

    def __init__(self, provider: ConnectionProvider, page_cache: PageCache, page_sharing: PageSharing) -> None:
        self.provider = provider
        self.sql = provider.sql
        self.page_sharing = page_sharing
        """Whether large values are stored as pages."""
        self.page_cache = page_cache
        """What is remembered of pages."""
        self._closed = False

    async def run(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run an operation, from any coroutine."""
        self.check_open()
        result: T = await self._await(self._run, operation, *args)
        return result

    def run_blocking(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run an operation and wait for it, from a thread other than the loop's."""
        self.check_open()
        result: T = self._call(self._run, operation, *args)
        return result

    async def setup(self, timeout: float) -> None:
        """Bring the schema to head, from any coroutine."""
        self.check_open()
        await self._await(self.provider.setup, timeout)

    def setup_blocking(self, timeout: float) -> None:
        """Bring the schema to head and wait for it."""
        self.check_open()
        self._call(self.provider.setup, timeout)

    def check_open(self) -> None:
        """Raise if this source is closed."""
        if self._closed:
            raise Closed("this saver is closed. Make a new one, or use it inside its `with` block.")

    @abstractmethod
    async def store(self, change: Change) -> None:
        """Store a change, from any coroutine."""

    @abstractmethod
    def store_blocking(self, change: Change) -> None:
        """Store a change and wait for it."""

    @abstractmethod
    def check_sync(self) -> None:
        """Raise unless a sync call can be made from here."""

    @abstractmethod
    async def close(self) -> None:
        """Refuse further operations, and give back what is ours."""

    @abstractmethod
    def close_blocking(self) -> None:
        """Refuse further operations, and give back what is ours."""

    async def take_lock(self, request: LockRequest) -> None:
        """Take a thread's lock, from any coroutine."""
        self.check_open()
        await self._await(self.provider.take_lock, request)

    def take_lock_blocking(self, request: LockRequest) -> None:
        """Take a thread's lock."""
        self.check_open()
        self._call(self.provider.take_lock, request)

    async def drop_lock(self, request: LockRequest) -> None:
        """Give a thread's lock back, from any coroutine."""
        if request.is_lost:
            self.provider.lock_session.forget(request)  # and there may be no loop any more
        else:
            await to_the_end(self._await(self.provider.drop_lock, request))

    def drop_lock_blocking(self, request: LockRequest) -> None:
        """Give a thread's lock back."""
        if request.is_lost:
            self.provider.lock_session.forget(request)
        else:
            self._call(self.provider.drop_lock, request)

    async def leave_lock(self, request: LockRequest) -> None:
        """Give a lock up, whether it was wanted, held, or given back already."""
        request.given_up.set()
        with suppress(Closed, WrongThread):  # then its session has ended too
            await to_the_end(self._await(self.provider.drop_lock, request))

    @abstractmethod
    def leave_lock_blocking(self, request: LockRequest) -> None:
        """Give a lock up, whether it was wanted, held, or given back already, and wait for nothing but the server."""

    def _commit(self, changes: Sequence[Change]) -> None:
        """Store changes in one commit; with a look at what is there first, where one of them is to continue that."""
        if self.provider.lock_session.lost:
            self.provider.lock_session.check(self.sql, changes)  # here already: there may be no server
        continues = any(change.continues for change in changes)
        operation = checkpoints.store_continuing if continues else checkpoints.store
        # Raised here, once all else is committed.
        if refused := self.provider.run(operation, self.page_cache, changes):
            error = Refused(" ".join(refused.values()))
            error._by_thread = refused
            raise error

    @abstractmethod
    async def _await(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function of the origin's, from any coroutine."""

    @abstractmethod
    def _call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function of the origin's and wait for it."""

    def _run(self, operation: Operation[..., T], *args: Any) -> T:
        self.check_open()  # still: the call may have been on its way for a while
        return self.provider.run(operation, *args)
