"""What the contract asks for: operations, run on connections of one origin, from coroutines and from plain code."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from checkpoint_store import operations
from checkpoint_store.changes import Change
from checkpoint_store.errors import Closed, Refused, WrongThread
from checkpoint_store.executor import Executor
from checkpoint_store.shelf import Shelf
from checkpoint_store.source.hold import Hold
from checkpoint_store.source.origin import Origin
from checkpoint_store.source.worlds import to_the_end
from checkpoint_store.statements import Statements

P = ParamSpec("P")
T = TypeVar("T")
Operation = Callable[Concatenate[Executor, Statements, P], T]


ASK_SECONDS = 60.0
"""How often the database is asked whether the stock saver has set up tables since."""


@dataclass
class Sharing:
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


class Source(ABC):
    """Runs operations on connections of one origin.

    Args:
        origin: Where the connections come from.
        shelf: What is remembered of pages.
        sharing: Whether large values are stored as pages.
    """

    def __init__(self, origin: Origin, shelf: Shelf, sharing: Sharing) -> None:
        self.origin = origin
        self.sql = origin.sql
        self.sharing = sharing
        """Whether large values are stored as pages."""
        self.shelf = shelf
        """What is remembered of pages."""
        self._closed = False

    async def run(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run an operation, from any coroutine."""
        self.check_open()
        result: T = await self._await(self._lend, operation, *args)
        return result

    def run_blocking(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run an operation and wait for it, from a thread other than the loop's."""
        self.check_open()
        result: T = self._call(self._lend, operation, *args)
        return result

    async def transact(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run an operation of several statements in a transaction, from any coroutine."""
        self.check_open()
        result: T = await self._await(self._lend_transaction, operation, *args)
        return result

    def transact_blocking(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run an operation of several statements in a transaction and wait for it."""
        self.check_open()
        result: T = self._call(self._lend_transaction, operation, *args)
        return result

    async def setup(self, timeout: float) -> None:
        """Bring the schema to head, from any coroutine."""
        self.check_open()
        await self._await(self.origin.setup, timeout)

    def setup_blocking(self, timeout: float) -> None:
        """Bring the schema to head and wait for it."""
        self.check_open()
        self._call(self.origin.setup, timeout)

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

    async def take_lock(self, hold: Hold) -> None:
        """Take a thread's lock, from any coroutine."""
        self.check_open()
        await self._await(self.origin.take_lock, hold)

    def take_lock_blocking(self, hold: Hold) -> None:
        """Take a thread's lock."""
        self.check_open()
        self._call(self.origin.take_lock, hold)

    async def drop_lock(self, hold: Hold) -> None:
        """Give a thread's lock back, from any coroutine."""
        if hold.is_lost:
            self.origin.keeper.forget(hold)  # and there may be no loop any more
        else:
            await to_the_end(self._await(self.origin.drop_lock, hold))

    def drop_lock_blocking(self, hold: Hold) -> None:
        """Give a thread's lock back."""
        if hold.is_lost:
            self.origin.keeper.forget(hold)
        else:
            self._call(self.origin.drop_lock, hold)

    async def leave_lock(self, hold: Hold) -> None:
        """Give a lock up, whether it was wanted, held, or given back already."""
        hold.given_up.set()
        with suppress(Closed, WrongThread):  # then its session has ended too
            await to_the_end(self._await(self.origin.drop_lock, hold))

    @abstractmethod
    def leave_lock_blocking(self, hold: Hold) -> None:
        """Give a lock up, whether it was wanted, held, or given back already, and wait for nothing but the server."""

    def _commit(self, changes: Sequence[Change]) -> None:
        """Store changes in one commit; with a look at what is there first, where one of them is to continue that."""
        if self.origin.keeper.lost:
            self.origin.keeper.check(self.sql, changes)  # here already: there may be no server
        lend, operation = self.origin.lend, operations.store
        if any(change.continues for change in changes):
            lend, operation = self.origin.lend_transaction, operations.store_continuing
        # Raised here, once all else is committed.
        if refused := lend(operation, self.shelf, changes):
            error = Refused(" ".join(refused.values()))
            error._by_thread = refused
            raise error

    @abstractmethod
    async def _await(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function of the origin's, from any coroutine."""

    @abstractmethod
    def _call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function of the origin's and wait for it."""

    def _lend(self, operation: Callable[..., T], *args: Any) -> T:
        self.check_open()  # still: the call may have been on its way for a while
        return self.origin.lend(operation, *args)

    def _lend_transaction(self, operation: Callable[..., T], *args: Any) -> T:
        self.check_open()
        return self.origin.lend_transaction(operation, *args)
