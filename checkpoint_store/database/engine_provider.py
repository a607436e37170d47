"""An engine, the caller's or our own -> a connection of its pool for each operation."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Dialect, Engine, NullPool, Pool, QueuePool, StaticPool

from checkpoint_store.conninfo.fork import in_children
from checkpoint_store.conninfo.transient_errors import transient_error_of
from checkpoint_store.database.error_translation import FOREIGN
from checkpoint_store.database.fair_queue import FairSemaphore, alone_with
from checkpoint_store.database.locks.request import LockRequest
from checkpoint_store.database.pool import borrowed, detached, dispose, kept_by_others, migrating
from checkpoint_store.database.provider import ConnectionProvider, pause_of
from checkpoint_store.database.retry import Retries
from checkpoint_store.errors import Closed, NotSetUp, WrongThread
from checkpoint_store.migrations.lock_timeout import LockTimeout
from checkpoint_store.migrations.runner import retry_conflicts, upgrade_to_head
from checkpoint_store.migrations.version_check import is_head
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import probes
from checkpoint_store.storage.operation import Operation

T = TypeVar("T")

_origins: weakref.WeakSet[EngineProvider] = weakref.WeakSet()
_turns: weakref.WeakKeyDictionary[Pool, FairSemaphore] = weakref.WeakKeyDictionary()


class EngineProvider(ConnectionProvider):
    """Borrows connections from an engine's pool, and leaves engine and pool as they were.

    Args:
        engine: A sync engine, or what an async one has inside.
        sql: The statements that operations get.
        retry_timeout: For how long, in seconds, an operation is done again that failed by something that passes.
        pooler: Whether a pooler of transactions stands before the server.
    """

    def __init__(self, engine: Engine, sql: Statements, retry_timeout: float, *, pooler: bool = False) -> None:
        super().__init__(engine, sql)
        self.pooler = pooler
        """Whether a pooler of transactions stands before the server."""
        self._retries = Retries(retry_timeout, engine.dialect, pause_of(engine.dialect), self.where)
        self.turn = _turn_on(engine.pool, engine.dialect)
        """Waits for a connection of the pool, in a `with` block."""
        has_overflow = getattr(engine.pool, "_max_overflow", 0) != 0
        self.long_turn = nullcontext if engine.dialect.is_async and has_overflow else self.turn
        """The same, for who goes on to make other calls meanwhile, which may need a turn each."""
        self._parents_pool: Pool | None = None
        self._lends = self._keeps = True
        _origins.add(self)

    @property
    def retries(self) -> int:
        """How many times an operation was done again."""
        return self._retries.count

    def stop_trying(self, *, lends: bool = True) -> None:
        """Let what fails from now on not be done again: it would open connections that nobody closes."""
        self._retries.stop()
        self._lends = lends

    def keep_nothing(self) -> None:
        """Let no connection be left open by what is still to come: nobody else could close it."""
        self._keeps = False

    def check_lends(self) -> None:
        """Raise if this saver has closed its engine: the next connection would be opened in the engine's next pool."""
        if not self._lends:
            raise Closed("this saver was closed before the call got a connection; nothing was carried out")

    def run(self, operation: Operation[..., T], *args: Any) -> T:
        """Run an operation on a connection of the pool."""
        try:
            result: T = self._insist(self._borrow, operation, args)
        finally:
            if self.written.is_asked:
                self.written.note_call(operation, args)
        return result

    def setup(self, timeout: float) -> None:
        """Migrate on a connection of the pool, unless the database is at head."""
        self._insist(self._setup, timeout)

    def _setup(self, timeout: float) -> None:
        try:
            if is_head(self.run(probes.revisions)):
                return
        except NotSetUp:
            pass
        pause = pause_of(self.engine.dialect)
        retry_conflicts(partial(self._migrate, pause), timeout, pause)

    def _migrate(self, pause: Callable[[float], None], timeout: LockTimeout) -> None:
        with self.turn():
            self.check_lends()
            with migrating(self.engine) as conn:
                upgrade_to_head(conn, self.sql, timeout, pause)

    def take_lock(self, request: LockRequest) -> None:
        """Take a thread's lock until it is dropped; trying again is part of the wait for it."""
        # Before as well: a connection that is being opened counts as one that somebody has.
        kept = kept_by_others(self.engine)
        request.kept = lambda: min(kept, kept_by_others(self.engine))
        self._insist(self.lock_session.take, self._detach, self.sql, request, request=request)

    def drop_lock(self, request: LockRequest) -> None:
        """Give a thread's lock back."""
        with self.told():
            self.lock_session.drop(self.sql, request)

    def role(self) -> str | None:
        """Return the database role that our statements run as: on another connection, since an error may end one."""
        with suppress(Exception):
            return self._borrow(probes.role, ())
        return None

    def _detach(self) -> Connection:
        with self.turn():
            self.check_lends()
            return detached(self.engine)

    def _insist(self, function: Callable[..., T], *args: Any, request: LockRequest | None = None) -> T:
        """Call a function that borrows connections, and again if what keeps it from succeeding is likely to pass.

        Args:
            function: What to call.
            args: Its arguments.
            request: What it is for, if that has a time limit of its own.
        """
        try:
            return function(*args)
        except Exception as error:
            fault = transient_error_of(error) if isinstance(error, FOREIGN) else None
            if fault is None or not self._retries.seconds:
                self.tell(error)
            # Once in any case: it may have met a connection that had lain in the pool for too long.
            left = None if request is None else request.left
            seconds = self._retries.seconds if left is None else min(left, self._retries.seconds)
            # By now it has given back its connection, and its turn.
            with self.told(seconds):
                return self._retries.repeat(fault, error, function, *args, seconds=seconds)

    def _borrow(self, operation: Operation[..., T], args: tuple[Any, ...]) -> T:
        if self._parents_pool is self.engine.pool:
            raise WrongThread(
                "this saver's engine was used before the process forked; its connections belong to the parent. "
                "Call engine.dispose(close=False) in the child first, or make engine and saver there."
            )
        try:
            with self.turn():
                self.check_lends()
                with borrowed(self.engine, whole=operation.in_transaction, pooler=self.pooler) as db:
                    return self.perform(operation, db, args)
        finally:
            if not self._keeps:
                dispose(self.engine)


def _leave_pools() -> None:
    """Leave the connections that there are to the process this one was forked from."""
    for provider in _origins:
        pool = provider.engine.pool
        is_unused = isinstance(pool, QueuePool) and not pool.checkedin() + pool.checkedout()
        if not is_unused and not isinstance(pool, NullPool):
            provider._parents_pool = pool


in_children(_leave_pools)


def _turn_on(pool: Pool, dialect: Dialect) -> Callable[[], AbstractContextManager[object]]:
    """Return what waits for a connection of a pool."""
    if isinstance(pool, StaticPool):
        # Not with the pool: the engine gets another one when it is disposed of, and savers made then share that.
        return partial(alone_with, dialect, is_async=dialect.is_async)
    # Without a limit of its own the pool never makes anybody wait.
    if not dialect.is_async or not isinstance(pool, QueuePool) or not pool.size():
        return nullcontext
    # A task that gives a connection back would take it again before those in the pool's queue have woken up. This
    # queue is fair, and shared by all savers on the pool. Threads have no such trouble. And it leaves the overflow to
    # the host: those connections are closed when they are given back, so that each burst would open new ones.
    turns = FairSemaphore(pool.size(), pool.timeout())
    return (_turns.get(pool) or _turns.setdefault(pool, turns)).taken
