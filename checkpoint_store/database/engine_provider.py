"""A provider on an engine: a connection of its pool for each operation."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, NullPool, Pool, QueuePool, StaticPool

from checkpoint_store.conninfo.fork import in_children
from checkpoint_store.conninfo.transient_errors import transient_error_of
from checkpoint_store.database.checkout import Checkout, kept_by_others
from checkpoint_store.database.closing import State
from checkpoint_store.database.connection_queue import ConnectionQueue, TaskQueue, ThreadQueue
from checkpoint_store.database.error_translation import FOREIGN
from checkpoint_store.database.locks.request import LockRequest
from checkpoint_store.database.pool import detached, dispose, migrating
from checkpoint_store.database.provider import ConnectionProvider, pause_of
from checkpoint_store.database.retry import Retries
from checkpoint_store.database.semaphore import alone_with
from checkpoint_store.database.sqlalchemy_private import max_overflow
from checkpoint_store.errors import Closed, NotSetUp, WrongThread
from checkpoint_store.migrations.lock_timeout import LockTimeout
from checkpoint_store.migrations.runner import retry_conflicts, upgrade_to_head
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import probes
from checkpoint_store.storage.operation import Operation

T = TypeVar("T")
Slot = AbstractContextManager[object]
"""A block that has a place in the queue for a connection; may be entered by any number of calls."""

_providers: weakref.WeakSet[EngineProvider] = weakref.WeakSet()
_queues: weakref.WeakKeyDictionary[Pool, TaskQueue] = weakref.WeakKeyDictionary()
_parents_slots: list[Slot] = []
"""Those of the process this one was forked from: their connections must not be collected as garbage, and so closed."""


class EngineProvider(ConnectionProvider):
    """Runs operations on connections of an engine's pool, and leaves engine and pool as they were."""

    def __init__(self, engine: Engine, sql: Statements, retry_timeout: float, *, pooler: bool = False) -> None:
        super().__init__(engine, sql)
        self.pooler = pooler
        """Whether a pooler of transactions stands before the server."""
        self._take_slot(_slot_of(engine))
        self._retries = Retries(retry_timeout, engine.dialect, pause_of(engine.dialect), self.where)
        self._parents_pool: Pool | None = None
        _providers.add(self)

    @property
    def retries(self) -> int:
        """The number of retries."""
        return self._retries.count

    @property
    def is_parents(self) -> bool:
        """Whether the connections belong to the process this one was forked from."""
        return self._parents_pool is self.engine.pool

    def _take_slot(self, slot: Slot) -> None:
        self.slot = slot
        self.queue = slot if isinstance(slot, ConnectionQueue) else None
        """The queue that may have connections which are checked out already."""

    def own(self) -> None:
        """Let connections stay checked out from call to call: the engine is ours."""
        pool = self.engine.pool
        if isinstance(pool, QueuePool) and pool.size() and not max_overflow(pool):
            kind = TaskQueue if self.engine.dialect.is_async else ThreadQueue
            queue = kind(self.engine, pool.size(), pool.timeout())
            queue.keeps_all = True
            self._take_slot(queue)

    def close(self, state: State, *, is_disposed: bool = False) -> None:
        """Go on to a further state."""
        super().close(state, is_disposed=is_disposed)
        if (queue := self.queue) is not None:
            queue.keeps_all = False

    def dispose(self) -> None:
        """Close the connections of the pool; those in use are closed when they are given back."""
        self._give_back()
        dispose(self.engine)

    def kept_by_others(self) -> int:
        """Return how many connections the application itself has, if it has all of the pool, or else 0."""
        queue = self.queue
        return 0 if queue is not None and queue.keeps_all else kept_by_others(self.engine)

    @property
    def long_slot(self) -> Slot:
        """The slot of a call that makes others meanwhile, which may need a slot each."""
        has_overflow = max_overflow(self.engine.pool) != 0
        return nullcontext() if self.engine.dialect.is_async and has_overflow else self.slot

    def run(self, operation: Operation[..., T], *args: Any) -> T:
        """Run an operation on a connection of the pool, and again as long as it fails with a transient error."""
        sql = self._sql
        try:
            return self._run_once(operation, args)
        except Exception as error:
            if not sql.are_distributed and self._doubt_placement(error) and self.run(probes.are_distributed):
                return self.run(operation, *args)
            result: T = self._retry(error, None, self._run_once, operation, args)
            return result
        finally:
            if self.written.is_asked:
                self.written.note_call(operation, args)

    def _run_once(self, operation: Operation[..., T], args: tuple[Any, ...]) -> T:
        if self._parents_pool is self.engine.pool:
            raise WrongThread(
                "this saver's engine was used before the process forked; its connections belong to the parent. "
                "Call engine.dispose(close=False) in the child first, or make engine and saver there."
            )
        if self.state is State.CLOSED:
            self.check_open()
        observer = self.observer
        began = 0.0 if observer is None else time.perf_counter()
        try:
            with self.slot:
                if self.is_disposed:
                    self.check_connects()
                in_transaction, as_script = operation.in_transaction, operation.as_script
                with Checkout(
                    *(self.engine, self.queue),
                    in_transaction=in_transaction,
                    as_script=as_script,
                    pooler=self.pooler,
                ) as db:
                    if observer is not None:
                        observer.connected(time.perf_counter() - began)
                    elif not self.lock_session.lost:
                        sql = self._sql if self.is_placed else self.statements(operation, db)
                        return operation.function(db, sql, *args)
                    return self.perform(operation, db, args)
        finally:
            if self.is_disposed:
                self.dispose()

    def check_connects(self) -> None:
        """Raise if the engine was disposed of: the next connection would be opened in its next pool."""
        if self.state is State.CLOSED and self.is_disposed:
            raise Closed("this saver was closed before the call got a connection; nothing was carried out")

    def setup(self, timeout: float) -> None:
        """Migrate on a connection of the pool, unless the database is at head."""
        with suppress(NotSetUp):
            if self.run(probes.is_at_head):
                return
        pause = pause_of(self.engine.dialect)
        try:
            retry_conflicts(partial(self._migrate, pause), timeout, pause)
        except Exception as error:
            self._retry(error, None, retry_conflicts, partial(self._migrate, pause), timeout, pause)

    def _migrate(self, pause: Callable[[float], None], timeout: LockTimeout) -> None:
        with self.slot:
            self.check_connects()
            self._give_back()
            with migrating(self.engine) as conn:
                upgrade_to_head(conn, self.sql, timeout, pause)

    def take_lock(self, request: LockRequest) -> None:
        """Take a thread's lock until it is dropped; its time-out includes retries."""
        # Before as well: a connection that is being opened counts as checked out.
        kept = self.kept_by_others()
        request.kept = lambda: min(kept, self.kept_by_others())
        request.sql, request.open_connection = self.sql, self._detach
        request.place = lambda db, _: self.placed(db)
        try:
            self.lock_session.take(request)
        except Exception as error:
            self._retry(error, request.left, self.lock_session.take, request)

    def drop_lock(self, request: LockRequest) -> None:
        """Give a thread's lock back."""
        with self.translate_errors():
            self.lock_session.drop(request)

    def role(self) -> str | None:
        """Return the database role that our statements run as: on another connection, since an error may end one."""
        with suppress(Exception):
            return self._run_once(probes.role, ())
        return None

    def _give_back(self) -> None:
        """Give back the connections that are checked out, for a call that takes one from the pool itself."""
        if (queue := self.queue) is not None:
            queue.give_back()

    def _detach(self) -> Connection:
        with self.slot:
            self.check_connects()
            self._give_back()
            return detached(self.engine)

    def _retry(self, error: Exception, limit: float | None, function: Callable[..., T], *args: Any) -> T:
        """Retry a function after a transient error; raise any other error in our words.

        By now it has given back its connection, and its slot.
        """
        transient = transient_error_of(error) if isinstance(error, FOREIGN) else None
        if transient is None or not self._retries.seconds:
            self.raise_translated(error)
        # Once in any case: the connection may have lain in the pool for too long.
        seconds = self._retries.seconds if limit is None else min(limit, self._retries.seconds)
        try:
            return self._retries.repeat(transient, error, seconds, self._before_retry, function, *args)
        except Exception as last:
            self.raise_translated(last, seconds)

    def _before_retry(self, error: BaseException) -> None:
        if self.state is State.CLOSED:  # nothing would close the connections it opens
            raise Closed("this saver was closed while a call was retried; whether it was carried out is unknown")
        if (observer := self.observer) is not None:
            observer.retried(error)


def _leave_pools() -> None:
    """Leave the connections of all engines to the process this one was forked from."""
    for provider in _providers:
        pool = provider.engine.pool
        _parents_slots.append(provider.slot)
        provider._take_slot(_slot_of(provider.engine))
        is_unused = isinstance(pool, QueuePool) and not pool.checkedin() + pool.checkedout()
        if not is_unused and not isinstance(pool, NullPool):
            provider._parents_pool = pool


in_children(_leave_pools)


def _slot_of(engine: Engine) -> Slot:
    """Return the slot that all savers on an engine's pool share."""
    pool, dialect = engine.pool, engine.dialect
    if isinstance(pool, StaticPool):
        # By the dialect: a disposed engine gets another pool, and savers made then share the slot.
        return alone_with(dialect, is_async=dialect.is_async)
    # Without a limit of its own the pool never lets a call wait.
    if not dialect.is_async or not isinstance(pool, QueuePool) or not pool.size():
        return nullcontext()
    # A task that gives a connection back would take it again before those in the pool's queue have woken up: this queue
    # is fair. Threads need none. And it leaves the overflow to the host: those connections are closed when they are
    # given back, so each burst would open new ones.
    return _queues.get(pool) or _queues.setdefault(pool, TaskQueue(engine, pool.size(), pool.timeout()))
