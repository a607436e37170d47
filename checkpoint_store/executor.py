"""Where a statement is executed: through SQLAlchemy's `Connection`, or straight on the driver's."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, PoolProxiedConnection, exc
from sqlalchemy.engine.interfaces import IsolationLevel
from sqlalchemy.util import await_only

from checkpoint_store.errors import WrongThread
from checkpoint_store.faults import ends_connections
from checkpoint_store.statements import Statement

Row = Sequence[Any]


class Executor(ABC):
    """Executes statements on one connection, in a greenlet of SQLAlchemy's."""

    @abstractmethod
    def fetch(self, statement: Statement, binds: Mapping[str, Any]) -> Sequence[Row]:
        """Execute a statement. Returns its rows, none for a statement that returns none."""


class Ordinary(Executor):
    """Executes as SQLAlchemy does: in the connection's transaction, seen by event listeners and the log.

    Args:
        conn: The connection.
    """

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def fetch(self, statement: Statement, binds: Mapping[str, Any]) -> Sequence[Row]:
        """Execute a statement."""
        dialect = self._conn.dialect
        sql, parameters = statement.sql(dialect), statement.parameters(dialect, binds)
        try:
            result = self._conn.exec_driver_sql(sql, parameters)
        except asyncio.TimeoutError as error:
            # As `Direct` has it: a limit for statements is not to be taken for a server that can't be reached.
            raise exc.StatementError("the statement took too long", sql, None, error, hide_parameters=True) from error
        return result.all() if result.returns_rows else []


class Direct(Executor):
    """Executes on asyncpg's connection: each statement is a transaction of its own, with neither BEGIN nor COMMIT sent.

    SQLAlchemy's execution context and result, and setting AUTOCOMMIT and taking it back, cost more than a small
    statement does.

    Args:
        engine: The engine of an asyncpg dialect.
        pooled: A connection of its pool.
    """

    def __init__(self, engine: Engine, pooled: PoolProxiedConnection) -> None:
        self._engine = engine
        self._pooled = pooled
        self._driver: Any = pooled.driver_connection

    def fetch(self, statement: Statement, binds: Mapping[str, Any]) -> Sequence[Row]:
        """Execute a statement."""
        dialect = self._engine.dialect
        sql, parameters = statement.sql(dialect), statement.parameters(dialect, binds)
        try:
            rows: Sequence[Row] = await_only(self._driver.fetch(sql, *parameters))
        except BaseException as error:
            # What Connection does: wraps the error, and gives up a connection that is lost or was interrupted.
            conn, translated = Connection(self._engine, self._pooled), self._translated(error)
            conn._is_disconnect = ends_connections(translated)
            conn._handle_dbapi_exception(translated, sql, parameters, None, None)
        return rows

    def _translated(self, error: BaseException) -> BaseException:
        """Return an error of asyncpg's as the dialect's DBAPI has it, with the original as its cause."""
        if isinstance(error, Exception):
            try:
                self._pooled.dbapi_connection._handle_exception(error)  # type: ignore[union-attr]
            except Exception as translated:
                return translated
        return error


@contextmanager
def borrowed(engine: Engine) -> Iterator[Executor]:
    """Borrow a connection for statements that need no transaction around them.

    Where an event listener or the log would want to know, they are executed the ordinary way.

    Raises:
        WrongThread: If the pool's connections belong to another event loop.
    """
    if Connection._has_events or engine._has_events or engine.dialect._has_events or engine._should_log_info():
        with _connected(engine, "AUTOCOMMIT") as conn:
            yield Ordinary(conn)
        return
    pooled = _checkout(engine)
    while pooled.driver_connection.is_closed():  # type: ignore[union-attr]
        # The server, or something on the way to it, hung up while the connection lay in the pool.
        pooled.invalidate()
        pooled.close()
        pooled = _checkout(engine)
    try:
        _check_loop(pooled)
        yield Direct(engine, pooled)
    finally:
        pooled.close()


@contextmanager
def transaction(engine: Engine) -> Iterator[Executor]:
    """Borrow a connection for statements in one transaction, which is committed unless the block raises.

    Raises:
        WrongThread: If the pool's connections belong to another event loop.
    """
    # The host's engine may be in AUTOCOMMIT.
    with _connected(engine, "READ COMMITTED") as conn, conn.begin():
        yield Ordinary(conn)


@contextmanager
def _connected(engine: Engine, isolation_level: IsolationLevel) -> Iterator[Connection]:
    with engine.connect() as conn:
        _check_loop(conn.connection)
        try:
            yield conn.execution_options(isolation_level=isolation_level)
        except exc.DBAPIError as error:
            if ends_connections(error) and not conn.invalidated:
                # As where the driver notices by itself, the other connections of the pool are not tried either.
                engine.pool._invalidate(conn.connection, error, _checkin=False)
                conn.invalidate(error)
            raise


def _checkout(engine: Engine) -> PoolProxiedConnection:
    try:
        return engine.raw_connection()
    except engine.dialect.loaded_dbapi.Error as error:
        Connection._handle_dbapi_exception_noconnection(error, engine.dialect, engine)


def _check_loop(pooled: PoolProxiedConnection) -> None:
    loop = getattr(pooled.driver_connection, "_loop", None)
    if loop is not None and loop is not asyncio.get_running_loop():
        raise WrongThread(
            "the engine's pool holds connections of another event loop. Make an engine for the saver, or make the "
            "saver before the engine is first used."
        )
