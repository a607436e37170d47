"""An engine, the caller's or our own -> a connection of its pool for each operation."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Dialect, Pool, QueuePool
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from checkpoint_store import migrations, operations
from checkpoint_store.bridge import Bridge
from checkpoint_store.changes import Change
from checkpoint_store.errors import NotSetUp
from checkpoint_store.executor import borrowed, transaction
from checkpoint_store.faults import fault_of
from checkpoint_store.pipeline import AsyncPipeline
from checkpoint_store.shelf import Shelf
from checkpoint_store.source.base import Source, pause, shown
from checkpoint_store.source.failures import FOREIGN, explain
from checkpoint_store.source.retrying import RETRY_SECONDS, Retries
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
        retry_timeout: For how long, in seconds, a call is made again that failed by something that passes.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        sql: Statements,
        pipe: AsyncPipeline | None,
        shares_pages: bool | None,
        retry_timeout: float = RETRY_SECONDS,
    ) -> None:
        super().__init__(sql, Bridge.of(engine.dialect), _shelf_for(engine.dialect, sql), shares_pages)
        self._engine = engine
        self._pipe = pipe
        self._retries = Retries(retry_timeout, engine.dialect, self.where)
        # A task that gives a connection back would take it again before those in the pool's queue have woken up. This
        # queue is fair, and shared by all savers on the pool.
        pool = engine.sync_engine.pool
        self._turns = _turns.get(pool) or _turns.setdefault(pool, _turns_for(pool))

    @property
    def retries(self) -> int:
        """How many times a call was made again."""
        return self._retries.count

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
            return await greenlet_spawn(self._transact, function, *args)
        finally:
            self._turns.give_back()

    def _transact(self, function: Callable[..., T], *args: Any) -> T:
        with transaction(self._engine.sync_engine) as db:
            return function(db, *args)

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
        try:
            return await function(*args)
        except FOREIGN as error:
            last, tried, fault = error, 0.0, fault_of(error)
            if fault and self._retries.seconds:
                try:
                    return await self._retries.repeat(fault, error, function, *args)
                except FOREIGN as another:
                    last, tried = another, self._retries.seconds
            if (told := explain(last, self.where, self.sql.tables, tried)) is None:
                raise last from last.__cause__
            raise told from last

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
