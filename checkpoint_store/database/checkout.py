"""The checkout of a connection: the fair queue of a pool, the lock of a shared connection, its use by one operation."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any

from sqlalchemy import Connection, Engine, PoolProxiedConnection, QueuePool, exc
from sqlalchemy.util import await_only

from checkpoint_store.conninfo.driver_errors import without_values
from checkpoint_store.conninfo.fork import ProcessLock, in_children
from checkpoint_store.conninfo.transient_errors import ends_all_connections, ends_connections
from checkpoint_store.database.direct_executor import AsyncpgExecutor
from checkpoint_store.database.liveness import check_loop, left_by_loop, nothing_late, take_open
from checkpoint_store.database.pool import check_is_for_pooler, is_begun, is_for_pooler, isolate
from checkpoint_store.database.sqlalchemy_private import invalidate_all, is_watched, max_overflow
from checkpoint_store.sql.executor import ConnectionExecutor, Executor, is_in_transaction


class CheckoutTimeout(Exception):
    """Raised when a permit has not come in time."""


class FairSemaphore(AbstractContextManager[object]):
    """A semaphore with a deadline, for greenlets on an event loop: permits come in the order they are asked for.

    It works on several loops, one after the other. An `asyncio.Semaphore` does not, has no deadline, and costs five
    times as much: each permit takes a switch out of the greenlet and back.
    """

    def __init__(self, count: int, timeout: float | None = None) -> None:
        self._count = self._free = count
        self._timeout = timeout
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def acquire(self, timeout: float | None = None) -> None:
        """Wait for a permit, for some seconds at most; raise `CheckoutTimeout` if none has come."""
        if self._acquire_now():
            return
        loop = asyncio.get_running_loop()
        timeout = self._timeout if timeout is None else timeout
        permit: asyncio.Future[None] = loop.create_future()
        self._waiting.append(permit)
        deadline = None if timeout is None else loop.call_later(timeout, _expire, permit, timeout)
        try:
            await permit
        except asyncio.CancelledError:
            if not permit.cancelled() and permit.exception() is None:
                self.release()  # it came at the same moment
            raise
        finally:
            if deadline is not None:
                deadline.cancel()

    def _acquire_now(self) -> bool:
        """Take a permit if one is free. Returns whether one was."""
        if (loop := asyncio.get_running_loop()) is not self._loop:
            # No permit of the loop before comes back, and no call that waited there goes on.
            self._loop, self._free, self._waiting = loop, self._count, deque()
        is_free = self._free > 0
        self._free -= is_free
        return is_free

    def release(self) -> None:
        """Give a permit back: to the call that has waited longest, if one waits."""
        while self._waiting:
            permit = self._waiting.popleft()
            if not permit.done():
                permit.set_result(None)
                return
        self._free = min(self._free + 1, self._count)  # no more than there are, if one comes back from an ended loop

    def __enter__(self) -> None:
        if not self._acquire_now():  # as a rule one is free, and no switch is needed
            await_only(self.acquire())

    def __exit__(self, *_: object) -> None:
        self.release()


def _expire(permit: asyncio.Future[None], timeout: float) -> None:
    if not permit.done():
        permit.set_exception(CheckoutTimeout(f"waited for {timeout:g} s"))


class TaskLock(FairSemaphore):
    """A lock for tasks, which its holder may take again, as a thread may its `threading.RLock`."""

    def __init__(self) -> None:
        super().__init__(1)
        self._owner: asyncio.Task[Any] | None = None
        self._depth = 0

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if self._owner is None or self._owner is not task:
            super().__enter__()
            self._owner, self._depth = task, 0
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth <= 0:
            self._owner = None
            self.release()


_locks: weakref.WeakKeyDictionary[object, TaskLock | threading.RLock] = weakref.WeakKeyDictionary()
_registry_lock = ProcessLock()

in_children(_locks.clear)  # the threads that hold one are not there


def alone_with(thing: object, *, is_async: bool) -> AbstractContextManager[object]:
    """Return the lock of a thing that one greenlet, if `is_async`, or one thread at a time may use."""
    with _registry_lock.current:
        # Reentrant: SQLAlchemy has an error for a session's flush that calls a saver on that session.
        return _locks.get(thing) or _locks.setdefault(thing, TaskLock() if is_async else threading.RLock())


def wait_for_others(thing: object) -> None:
    """Wait until a thing is free, after all calls that have asked to be `alone_with` it before."""
    with _registry_lock.current:
        lock = _locks.get(thing)
    if lock is not None:
        with lock:
            pass


checkouts: set[Checkout] = set()
"""Those that have a connection now."""


class Checkout(AbstractContextManager[Executor]):
    """Borrows a connection of the pool for a `with` block.

    Statements go straight to the driver. If an event listener or the log would see them, they are executed by a
    `Connection` of SQLAlchemy's, and in one transaction if a listener sets something in it that policies look at.

    Otherwise each statement commits itself, as a rule, unless the block is to be `in_transaction`.

    Raises:
        WrongThread: If the pool's connections belong to another event loop.
        InvalidOption: If there is a pooler, and the engine is not made for one.
    """

    def __init__(self, engine: Engine, *, in_transaction: bool = False, pooler: bool = False) -> None:
        self.pool = engine.pool
        self._engine = engine
        self._in_transaction = in_transaction
        self._pooler = pooler
        self._pooled: PoolProxiedConnection | None = None
        self._conn: Connection | None = None
        self._block: AbstractContextManager[Executor] | None = None

    def __enter__(self) -> Executor:
        try:
            is_direct = not self._in_transaction and not is_watched(self._engine)
            pooled = self._pooled = take_open(self._engine)
            checkouts.add(self)
            driver: Any = pooled.driver_connection
            check_loop(driver)
            if self._pooler:
                check_is_for_pooler(pooled)
            if is_direct and self._engine.dialect.driver == "asyncpg" and not driver.is_in_transaction():
                return AsyncpgExecutor(self._engine, pooled, driver)
            block = self._other_block(pooled, is_direct=is_direct)
            executor = block.__enter__()
            self._block = block
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            if isinstance(error, RuntimeError) and "attached to a different loop" in str(error):
                raise left_by_loop() from None  # asyncio's words, when the pool itself asks a connection something
            raise
        return executor

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._block is not None:
                try:
                    self._block.__exit__(kind, error, traceback)
                except Exception as failure:  # of the COMMIT
                    self._part_with(failure)
                    raise
            if error is not None:
                self._part_with(error)
        finally:
            try:
                if self._pooled is not None:
                    (self._conn or self._pooled).close()
            finally:  # also if that is interrupted
                checkouts.discard(self)
                if self._engine.pool is not self.pool:
                    # The engine was disposed of meanwhile. SQLAlchemy has the connection closed when it is collected as
                    # garbage, which one that an event loop knows never is while that runs.
                    self.pool.dispose()

    def _other_block(self, pooled: PoolProxiedConnection, *, is_direct: bool) -> AbstractContextManager[Executor]:
        """Return the block for psycopg, and for the ways that are not direct."""
        driver: Any = pooled.driver_connection
        dbapi: Any = self._engine.dialect.dbapi
        if is_direct and self._engine.dialect.driver == "psycopg":
            is_plain = driver.cursor_factory in (dbapi.Cursor, dbapi.AsyncCursor) and driver.info.encoding == "utf-8"
            if is_plain and not is_in_transaction(driver):
                from checkpoint_store.database.psycopg_executor import PsycopgExecutor

                return nullcontext(PsycopgExecutor(self._engine, pooled, driver))
        self._conn = Connection(self._engine, pooled)
        return _committed(self._conn, in_transaction=self._in_transaction)

    def _part_with(self, error: BaseException) -> None:
        """Part with the connection if an error has made it useless, whatever its driver thinks of it."""
        pooled = self._pooled
        if isinstance(error, TimeoutError) and pooled is not None:
            # The caller's limit for statements, not to be taken for a server that did not answer when it was connected
            # to. The connection has been given up, as after an interruption: the next to have it might wait as long.
            raise exc.StatementError("it took too long", None, None, error, hide_parameters=True) from error
        if isinstance(error, exc.StatementError) and pooled is not None and pooled.is_valid and ends_connections(error):
            if ends_all_connections(error):
                # The other connections of the pool are not tried one after the other.
                invalidate_all(self.pool, pooled, without_values(error))  # which the pool logs
            else:
                pooled.invalidate(without_values(error))


@contextmanager
def _committed(conn: Connection, *, in_transaction: bool) -> Iterator[Executor]:
    """Commit the statements of a block: at its end, or each by itself."""
    with nothing_late(conn.connection.driver_connection):
        begun = is_begun(conn)
        # A listener of the pool's or the connection's may have begun a transaction: its settings may end with that.
        in_transaction = in_transaction or begun or bool(conn.dispatch.begin)
        # SQLAlchemy's statements have names; through a pooler they are to be prepared and executed in one transaction.
        in_transaction = in_transaction or (conn.dialect.driver == "asyncpg" and is_for_pooler(conn.connection))
        if not begun:
            # The host's engine may be in AUTOCOMMIT, or at an isolation level that hides later rows of others.
            isolate(conn, "READ COMMITTED" if in_transaction else "AUTOCOMMIT")
        yield ConnectionExecutor(conn)
        if in_transaction:
            conn.commit()


def kept_by_others(engine: Engine) -> int:
    """Return how many connections of a full pool are checked out, if no call of ours has one of them; otherwise 0."""
    pool = engine.pool
    is_full = isinstance(pool, QueuePool) and pool.checkedout() >= pool.size() + max_overflow(pool)
    is_ours = any(checkout.pool is pool for checkout in list(checkouts))
    return pool.checkedout() if is_full and not is_ours else 0  # type: ignore[attr-defined]


def full_of_others(kept: int) -> str:
    """Return the explanation of a pool with N connections, all `kept_by_others`."""
    held = "The only connection of the pool is" if kept == 1 else f"All {kept} connections of the pool are"
    return (
        f"{held} held by the application itself: a request that holds a session or a connection while it calls a saver "
        "on the same pool waits for itself."
    )
