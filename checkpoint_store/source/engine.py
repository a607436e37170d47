"""An engine, the caller's or our own -> a connection of its pool for each operation."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Dialect, Pool, QueuePool, exc
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from checkpoint_store import migrations, operations
from checkpoint_store.bridge import Bridge
from checkpoint_store.changes import Change
from checkpoint_store.errors import NotSetUp
from checkpoint_store.executor import borrowed
from checkpoint_store.pipeline import AsyncPipeline
from checkpoint_store.shelf import Shelf
from checkpoint_store.source.base import Source, ordinarily, pause, shown
from checkpoint_store.source.failures import DEADLOCK, DEADLOCKS
from checkpoint_store.statements import Statements
from checkpoint_store.turns import Turns

T = TypeVar("T")

_turns: weakref.WeakKeyDictionary[Pool, Turns] = weakref.WeakKeyDictionary()
_shelves: weakref.WeakKeyDictionary[Dialect, dict[str | None, Shelf]] = weakref.WeakKeyDictionary()


class EngineSource(Source):
    """Connections borrowed from an engine.

    Args:
        engine: The caller's engine, or our own.
        sql: The statements that operations get.
        pipe: What lets concurrent changes share commits.
        shares_pages: See `Source`.
    """

    def __init__(
        self, engine: AsyncEngine, sql: Statements, pipe: AsyncPipeline | None, shares_pages: bool | None
    ) -> None:
        super().__init__(sql, Bridge.of(engine.dialect), _shelf_for(engine.dialect, sql), shares_pages)
        self._engine = engine
        self._pipe = pipe
        # A task that gives a connection back would take it again before those in the pool's queue have woken up. This
        # queue is fair, and shared by all savers on the pool.
        pool = engine.sync_engine.pool
        self._turns = _turns.get(pool) or _turns.setdefault(pool, _turns_for(pool))

    @property
    def where(self) -> str:
        """The engine's URL."""
        return shown(self._engine.url)

    async def _lend(self, function: Callable[..., T], *args: Any) -> T:
        # One greenlet from checkout to return: each switch in and out of one costs as much as a small statement.
        await self._turns.take()
        try:
            return await greenlet_spawn(self._borrow, function, *args)
        finally:
            self._turns.give_back()

    def _borrow(self, function: Callable[..., T], *args: Any) -> T:
        with borrowed(self._engine.sync_engine) as db:
            return function(db, *args)

    async def _lend_transaction(self, function: Callable[..., T], *args: Any) -> T:
        await self._turns.take()
        try:
            async with self._engine.connect() as conn:
                # The host's engine may be in AUTOCOMMIT.
                await conn.execution_options(isolation_level="READ COMMITTED")
                async with conn.begin():
                    return await conn.run_sync(ordinarily, function, *args)
        finally:
            self._turns.give_back()

    async def _store(self, change: Change) -> None:
        if self._pipe is None:
            await self._store_all([change])
        else:
            await self._pipe.submit(self._store_all, self.sql.tables.schema, change)

    async def _store_all(self, changes: Sequence[Change]) -> None:
        # Also when this saver has been closed meanwhile: it was open when the first call came in, and there may be
        # others' among them.
        await self._explained(self._lend, operations.store, self.sql, self.shelf, changes)

    async def _explained(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        # Whoever locks rows of several threads in another order may meet us halfway: the host, or the stock saver. The
        # server then chooses one whose work is undone, and all of ours can be done again.
        for _ in range(DEADLOCKS):
            try:
                return await super()._explained(function, *args)
            except exc.DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != DEADLOCK:
                    raise
        return await super()._explained(function, *args)

    async def _setup(self, timeout: float) -> None:
        try:
            if migrations.is_head(await self._perform(self._lend, operations.revisions)):
                return
        except NotSetUp:
            pass
        async with self._engine.connect() as conn:
            # The host's engine may be in AUTOCOMMIT; a migration has to be one transaction.
            await conn.execution_options(isolation_level="READ COMMITTED")
            await conn.run_sync(migrations.bring_to_head, self.sql, timeout, pause)

    async def _release(self) -> None:
        if self.owned and self._pipe is not None:
            await self._pipe.aclose()
        # On a loop of ours nobody else could close the connections; the engine opens new ones if it is used again.
        if self.owned or self.bridge.is_ours:
            await self._engine.dispose()


def _shelf_for(dialect: Dialect, sql: Statements) -> Shelf:
    """Return the shelf that all savers on an engine and schema share; an engine goes by its dialect, as in `Bridge`."""
    return _shelves.setdefault(dialect, {}).setdefault(sql.tables.schema, Shelf())


def _turns_for(pool: Pool) -> Turns:
    """Return a queue for a pool's connections; a pool without a limit lends very many."""
    overflow = getattr(pool, "_max_overflow", -1)
    if isinstance(pool, QueuePool) and overflow >= 0:
        return Turns(pool.size() + overflow, pool.timeout())
    return Turns(2**31, 0)
