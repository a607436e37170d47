"""The checkout of a connection, and its use by one operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from typing import Any

from sqlalchemy import Connection, Engine, Pool, PoolProxiedConnection, QueuePool, exc

from checkpoint_store.conninfo.driver_errors import without_values
from checkpoint_store.conninfo.transient_errors import ends_all_connections, ends_connections
from checkpoint_store.database.connection_queue import Connected, ConnectionQueue
from checkpoint_store.database.direct_executor import AsyncpgExecutor
from checkpoint_store.database.liveness import check_loop, left_by_loop, nothing_late, take_open
from checkpoint_store.database.pool import check_is_for_pooler, is_begun, is_for_pooler, isolate
from checkpoint_store.database.sqlalchemy_private import invalidate_all, is_watched, max_overflow
from checkpoint_store.sql.executor import ConnectionExecutor, Executor, is_in_transaction

_CANCEL_SECONDS = 5.0
"""The seconds that the server has to take note of a cancellation."""

checkouts: set[Checkout] = set()
"""Those that have a connection now."""


class Checkout(AbstractContextManager[Executor]):
    """Borrows a connection of the pool for a `with` block.

    Statements go straight to the driver. If an event listener or the log would see them, they are executed by a
    `Connection` of SQLAlchemy's, and in one transaction if a listener sets something in it that policies look at.

    Otherwise each statement commits itself, as a rule, unless the block is to be `in_transaction`: of a `level` of
    isolation, if no listener has begun it.

    Raises:
        WrongThread: If the pool's connections belong to another event loop.
        InvalidOption: If there is a pooler, and the engine is not made for one.
    """

    def __init__(
        self,
        engine: Engine,
        queue: ConnectionQueue | None = None,
        *,
        in_transaction: bool = False,
        as_script: bool = False,
        pooler: bool = False,
        level: str = "READ COMMITTED",
    ) -> None:
        self.pool = engine.pool
        self._engine = engine
        self._queue = queue
        self._in_transaction = in_transaction
        self._as_script = as_script
        self._pooler = pooler
        self._level = level
        self._connected: Connected | None = None
        self._pooled: PoolProxiedConnection | None = None
        self._conn: Connection | None = None
        self._block: AbstractContextManager[Executor] | None = None

    def __enter__(self) -> Executor:
        try:
            is_direct = (self._as_script or not self._in_transaction) and not is_watched(self._engine)
            queue = self._queue
            connected = None if queue is None else queue.take(self.pool)
            if connected is None:
                pooled = self._pooled = take_open(self._engine)
                connected = Connected(self.pool, pooled, pooled.driver_connection)
            self._connected = connected
            _, pooled, driver = connected
            self._pooled = pooled
            checkouts.add(self)
            check_loop(driver)
            if self._pooler:
                check_is_for_pooler(pooled)
            if is_direct and (direct := self._direct_executor(pooled, driver)) is not None:
                return direct
            conn = self._conn = Connection(self._engine, pooled)
            block = _committed(conn, self._level, in_transaction=self._in_transaction)
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
                if self._pooled is not None and not (error is None and self._is_kept()):
                    (self._conn or self._pooled).close()
            finally:  # also if that is interrupted
                checkouts.discard(self)
                if self._engine.pool is not self.pool:
                    # The engine was disposed of meanwhile. SQLAlchemy has the connection closed when it is collected as
                    # garbage, which one that an event loop knows never is while that runs.
                    self.pool.dispose()

    def _is_kept(self) -> bool:
        """Keep the connection checked out for the next call, if there may be one. Returns whether it is kept."""
        if self._queue is None or self._connected is None or self._block is not None:
            return False
        return self._engine.pool is self.pool and self._queue.keep(self._connected)

    def _direct_executor(self, pooled: PoolProxiedConnection, driver: Any) -> Executor | None:
        """Return an executor on the driver's connection, if it is as the driver makes it and in no transaction."""
        if is_in_transaction(driver):
            return None
        if self._engine.dialect.driver == "asyncpg":
            return AsyncpgExecutor(self._engine, pooled, driver)
        dbapi: Any = self._engine.dialect.dbapi
        if driver.cursor_factory not in (dbapi.Cursor, dbapi.AsyncCursor) or driver.info.encoding != "utf-8":
            return None
        from checkpoint_store.database.psycopg_executor import PsycopgExecutor

        return PsycopgExecutor(self._engine, pooled, driver)

    def _part_with(self, error: BaseException) -> None:
        """Part with the connection if an error has made it useless, whatever its driver thinks of it."""
        pooled = self._pooled
        if isinstance(error, TimeoutError) and pooled is not None:
            # The caller's limit for statements, not to be taken for a server that did not answer when it was connected
            # to. The connection has been given up, as after an interruption: the next to have it might wait as long.
            raise exc.StatementError("it took too long", None, None, error, hide_parameters=True) from error
        if not isinstance(error, exc.StatementError) or pooled is None or not ends_connections(error):
            return
        # Of what ends all of them the other connections are not tried one after the other.
        ends_all = ends_all_connections(error)
        if pooled.is_valid and ends_all:
            invalidate_all(self.pool, pooled, without_values(error))  # which the pool logs
        elif pooled.is_valid:
            pooled.invalidate(without_values(error))
        if ends_all and self._queue is not None:
            self._queue.give_back()  # the pool replaces those that are as old


def cancel_calls(pool: Pool) -> None:
    """Cancel what the server does for calls of ours that have a connection of a pool of psycopg's."""
    for checkout in list(checkouts):
        if checkout.pool is pool and checkout._pooled is not None:
            driver: Any = checkout._pooled.driver_connection
            with suppress(Exception):  # it may have come to its end
                driver.cancel_safe(timeout=_CANCEL_SECONDS)


@contextmanager
def _committed(conn: Connection, level: str, *, in_transaction: bool) -> Iterator[Executor]:
    """Commit the statements of a block: at its end, or each by itself."""
    with nothing_late(conn.connection.driver_connection):
        begun = is_begun(conn)
        # A listener of the pool's or the connection's may have begun a transaction: its settings may end with that.
        in_transaction = in_transaction or begun or bool(conn.dispatch.begin)
        # SQLAlchemy's statements have names; through a pooler they are to be prepared and executed in one transaction.
        in_transaction = in_transaction or (conn.dialect.driver == "asyncpg" and is_for_pooler(conn.connection))
        if not begun:
            # The host's engine may be in AUTOCOMMIT, or at an isolation level that hides later rows of others.
            isolate(conn, level if in_transaction else "AUTOCOMMIT")
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
