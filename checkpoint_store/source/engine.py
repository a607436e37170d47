"""An engine, the caller's or our own -> a connection of its pool for each operation."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Pool, QueuePool, StaticPool, exc

from checkpoint_store import migrations, operations
from checkpoint_store.errors import NotSetUp
from checkpoint_store.executor import borrowed, detached, migrating
from checkpoint_store.source.failures import DEADLOCK, DEADLOCKS
from checkpoint_store.source.keeper import Hold
from checkpoint_store.source.origin import Origin, pause_of
from checkpoint_store.statements import Statements
from checkpoint_store.turns import Turns, alone_with

T = TypeVar("T")

_turns: weakref.WeakKeyDictionary[Pool, Turns] = weakref.WeakKeyDictionary()


class EngineOrigin(Origin):
    """Borrows connections from an engine's pool, and leaves engine and pool as they were.

    Args:
        engine: A sync engine, or what an async one has inside.
        sql: The statements that operations get.
    """

    def __init__(self, engine: Engine, sql: Statements) -> None:
        super().__init__(engine, sql)
        self.turn = _turn_on(engine.pool, is_async=engine.dialect.is_async)
        """Waits for a connection of the pool, in a `with` block."""

    def lend(self, operation: Callable[..., T], *args: Any) -> T:
        """Lend a connection on which each statement commits itself."""
        return self._persist(False, operation, args)

    def lend_transaction(self, operation: Callable[..., T], *args: Any) -> T:
        """Lend a connection in a transaction."""
        return self._persist(True, operation, args)

    def setup(self, timeout: float) -> None:
        """Migrate on a connection of the pool, unless the database is at head."""
        try:
            if migrations.is_head(self.lend(operations.revisions)):
                return
        except NotSetUp:
            pass
        with self.told(), migrating(self.engine) as conn:
            migrations.bring_to_head(conn, self.sql, timeout, pause_of(self.engine.dialect))

    def take_lock(self, hold: Hold) -> None:
        """Take a thread's lock until it is dropped."""
        with self.told():
            self.keeper.take(self._detach, self.sql, hold)

    def drop_lock(self, hold: Hold) -> None:
        """Give a thread's lock back."""
        self.keeper.drop(self.sql, hold)

    def _detach(self) -> Connection:
        with self.turn():
            return detached(self.engine)

    def _persist(self, whole: bool, operation: Callable[..., T], args: tuple[Any, ...]) -> T:
        # Whoever locks rows of several threads in another order may meet us halfway: the host, or the stock saver. The
        # server then chooses one whose work is undone, and all of ours can be done again.
        for _ in range(DEADLOCKS):
            try:
                return self._borrow(whole, operation, args)
            except exc.DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != DEADLOCK:
                    raise
        return self._borrow(whole, operation, args)

    def _borrow(self, whole: bool, operation: Callable[..., T], args: tuple[Any, ...]) -> T:
        with self.told(), self.turn(), borrowed(self.engine, whole=whole) as db:
            return operation(db, self.sql, *args)


def _turn_on(pool: Pool, *, is_async: bool) -> Callable[[], AbstractContextManager[object]]:
    """Return what waits for a connection of a pool."""
    if isinstance(pool, StaticPool):
        return partial(alone_with, pool, is_async=is_async)
    overflow = getattr(pool, "_max_overflow", -1)
    if not is_async or not isinstance(pool, QueuePool) or overflow < 0:
        return nullcontext
    # A task that gives a connection back would take it again before those in the pool's queue have woken up. This
    # queue is fair, and shared by all savers on the pool. Threads have no such trouble.
    turns = Turns(pool.size() + overflow, pool.timeout())
    return (_turns.get(pool) or _turns.setdefault(pool, turns)).taken
