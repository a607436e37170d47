"""What all sources of connections have in common."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import URL, Connection
from sqlalchemy.util import await_only

from checkpoint_store.bridge import Bridge
from checkpoint_store.changes import Change
from checkpoint_store.errors import Closed
from checkpoint_store.executor import Executor, Ordinary
from checkpoint_store.shelf import Shelf
from checkpoint_store.source.failures import FOREIGN, explain
from checkpoint_store.statements import Statements

P = ParamSpec("P")
T = TypeVar("T")
Operation = Callable[Concatenate[Executor, Statements, P], T]


class Source(ABC):
    """Runs operations on connections of one origin.

    Args:
        sql: The statements that operations get.
        bridge: The loop that the connections live on.
        shelf: What is remembered of pages.
        shares_pages: Whether large values are stored as pages; None for where the stock saver has not set up tables.
    """

    def __init__(self, sql: Statements, bridge: Bridge, shelf: Shelf, shares_pages: bool | None) -> None:
        self.sql = sql
        self.bridge = bridge
        self.owned = False
        """Whether the engine is ours to dispose of, and its loop ours to end."""
        self.shares_pages = shares_pages
        """Whether large values are stored as pages; None as long as the database has not been asked."""
        self.shelf = shelf
        """What is remembered of pages."""
        self._closed = False

    async def run(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run an operation, from any coroutine."""
        self._check_open()
        result: T = await self.bridge.acall(self._perform, self._lend, operation, *args)
        return result

    def run_blocking(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run an operation and wait for it, from a thread other than the loop's."""
        self._check_open()
        result: T = self.bridge.call(self._perform, self._lend, operation, *args)
        return result

    async def transact(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run an operation of several statements in a transaction, from any coroutine."""
        self._check_open()
        result: T = await self.bridge.acall(self._perform, self._lend_transaction, operation, *args)
        return result

    def transact_blocking(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run an operation of several statements in a transaction and wait for it."""
        self._check_open()
        result: T = self.bridge.call(self._perform, self._lend_transaction, operation, *args)
        return result

    async def store(self, change: Change) -> None:
        """Store a change, from any coroutine."""
        self._check_open()
        await self.bridge.acall(self._store, change)

    def store_blocking(self, change: Change) -> None:
        """Store a change and wait for it."""
        self._check_open()
        self.bridge.call(self._store, change)

    def check_sync(self) -> None:
        """Raise unless a sync call can be made from here."""
        self._check_open()
        self.bridge.check_sync()

    async def setup(self, timeout: float) -> None:
        """Bring the schema to head, from any coroutine."""
        self._check_open()
        await self.bridge.acall(self._explained, self._setup, timeout)

    def setup_blocking(self, timeout: float) -> None:
        """Bring the schema to head and wait for it."""
        self._check_open()
        self.bridge.call(self._explained, self._setup, timeout)

    async def close(self) -> None:
        """Refuse further operations, and give back what is ours."""
        if not self._closed:
            self._closed = True
            await self.bridge.acall(self._release)

    def close_blocking(self) -> None:
        """Refuse further operations, and give back what is ours."""
        if not self._closed:
            self._closed = True
            self.bridge.call(self._release)
            if self.owned:
                self.bridge.stop()

    @property
    def retries(self) -> int:
        """How many times a call was made again; on a connection of the caller's none ever is."""
        return 0

    async def _perform(self, lend: Callable[..., Awaitable[T]], operation: Callable[..., T], *args: Any) -> T:
        return await self._explained(self._lend_if_open, lend, operation, self.sql, *args)

    async def _lend_if_open(self, lend: Callable[..., Awaitable[T]], *args: Any) -> T:
        self._check_open()
        return await lend(*args)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this saver is closed. Make a new one, or use it inside its `with` block.")

    async def _explained(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Await a coroutine function, and tell the driver's errors in our words."""
        try:
            return await function(*args)
        except FOREIGN as error:
            if (told := explain(error, self.where, self.sql.tables)) is None:
                raise
            raise told from error

    @abstractmethod
    async def _lend(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function with an executor and the arguments, in a greenlet."""

    @abstractmethod
    async def _lend_transaction(self, function: Callable[..., T], *args: Any) -> T:
        """The same, with an executor in a transaction, which is committed unless the function raises."""

    @abstractmethod
    async def _store(self, change: Change) -> None:
        """Store a change."""

    @abstractmethod
    async def _setup(self, timeout: float) -> None:
        """Bring the schema to head."""

    @abstractmethod
    async def _release(self) -> None:
        """Give back what is ours."""

    @property
    @abstractmethod
    def where(self) -> str:
        """How messages name the database; never with a password."""


def ordinarily(conn: Connection, function: Callable[..., T], *args: Any) -> T:
    """Call a function with an executor on a connection, and the arguments."""
    return function(Ordinary(conn), *args)


def shown(url: URL) -> str:
    """Return a URL without user, password and parameters, any of which may be secret."""
    return URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()


def pause(seconds: float) -> None:
    """Sleep in a greenlet, without holding up the loop."""
    await_only(asyncio.sleep(seconds))
