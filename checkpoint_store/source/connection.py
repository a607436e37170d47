"""A connection of the caller's -> operations in the caller's transaction, one at a time."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, cast

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from checkpoint_store import migrations, operations
from checkpoint_store.bridge import Bridge
from checkpoint_store.changes import Change
from checkpoint_store.shelf import Shelf
from checkpoint_store.source.base import Source, ordinarily, pause, shown
from checkpoint_store.statements import Statements

T = TypeVar("T")

_locks: weakref.WeakKeyDictionary[Connection, asyncio.Lock] = weakref.WeakKeyDictionary()


class ConnectionSource(Source):
    """The caller's connection, in the caller's transaction.

    Args:
        connection: An open connection.
        sql: The statements that operations get.
        shares_pages: See `Source`.
    """

    def __init__(self, connection: AsyncConnection, sql: Statements, shares_pages: bool | None) -> None:
        super().__init__(sql, Bridge(), Shelf(), shares_pages)
        self._connection = connection
        # Shared by all savers on this connection: it can do one thing at a time.
        self._lock = _locks.setdefault(cast("Connection", connection.sync_connection), asyncio.Lock())

    @property
    def where(self) -> str:
        """The URL of the connection's engine."""
        return shown(self._connection.engine.url)

    async def _lend(self, function: Callable[..., T], *args: Any) -> T:
        async with self._lock:
            return await self._connection.run_sync(ordinarily, function, *args)

    async def _lend_transaction(self, function: Callable[..., T], *args: Any) -> T:
        return await self._lend(function, *args)  # the caller's

    async def _store(self, change: Change) -> None:
        # No shelf: what the caller rolls back must not be remembered.
        await self._perform(self._lend, operations.store, None, [change])

    async def _setup(self, timeout: float) -> None:
        async with self._lock:
            await self._connection.run_sync(self._setup_within, timeout)

    def _setup_within(self, conn: Connection, timeout: float) -> None:
        # The first statement on a connection begins the caller's transaction, here as everywhere in SQLAlchemy.
        if not conn.in_transaction() and not getattr(conn.connection.dbapi_connection, "autocommit", False):
            conn.begin()
        migrations.bring_to_head(conn, self.sql, timeout, pause)

    async def _release(self) -> None:
        pass  # the connection is the caller's
