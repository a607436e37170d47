"""Private names of SQLAlchemy: each use of one in the package, with the reason why no public name does.

`tests/unit/database/test_sqlalchemy_private.py` fails when a release changes one of them, or its meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from sqlalchemy import AsyncAdaptedQueuePool, Connection, Dialect, Engine, Pool, PoolProxiedConnection, QueuePool


def is_watched(engine: Engine) -> bool:
    """Return whether event listeners or the log see the statements of an engine's connections.

    `event.contains` answers only for a listener that one already has, and a `Connection` costs more than the question.
    """
    # SQLAlchemy 2.0 gives the class this attribute when something first listens to it.
    anywhere = getattr(Connection, "_has_events", False)
    return bool(anywhere or engine._has_events or engine.dialect._has_events or engine._should_log_info())


def max_overflow(pool: Pool) -> int:
    """Return how many connections a pool may open beyond its size, -1 for any number.

    `pool.overflow()` is how many there are now.
    """
    return getattr(pool, "_max_overflow", 0)


def has_rules(pool: Pool) -> bool:
    """Return whether something is to be done, or seen, each time a connection is taken from a pool or given back.

    That is a listener, a ping, an age at which it is replaced, a log, or what another class of pools does.
    """
    is_usual = type(pool) in (AsyncAdaptedQueuePool, QueuePool)
    has_age = pool._pre_ping or pool._recycle >= 0
    return bool(has_age or not is_usual or has_listeners(pool) or pool._should_log_debug())


def has_listeners(pool: Pool) -> bool:
    """Return whether listeners see a connection that is taken from a pool or given back.

    A listener that one does not have can't be asked for by public API.
    """
    dispatch: Any = pool.dispatch
    for event in (dispatch.checkout, dispatch.checkin, dispatch.reset):
        if event.listeners or event.parent_listeners:
            return True
    return False


def raise_connect_error(error: Exception, engine: Engine) -> NoReturn:
    """Raise a driver's error as `engine.connect()` does.

    `engine.raw_connection()`, which costs less, raises it as it is.
    """
    Connection._handle_dbapi_exception_noconnection(error, engine.dialect, engine)


def raise_statement_error(conn: Connection, error: BaseException, sql: str | None, parameters: Any) -> NoReturn:
    """Raise an error of a statement executed on the driver's connection as `conn.execute()` does.

    That wraps it, calls `handle_error` listeners, and invalidates the connection if it is lost or was interrupted. It
    is to be called while the error is handled.
    """
    conn._handle_dbapi_exception(error, sql, parameters, None, None)


def keep_others(conn: Connection) -> None:
    """Let a lost connection's error be raised without replacing all others of its pool.

    SQLAlchemy replaces them if it learns of the loss by the error. A `handle_error` listener could prevent that, but
    would be one on the host's engine.
    """
    conn._is_disconnect = True


def invalidate_all(pool: Pool, pooled: PoolProxiedConnection, logged: BaseException | None) -> None:
    """Replace all connections of a pool that are as old as this one; `pooled.invalidate()` replaces this one alone."""
    pool._invalidate(pooled, logged)


def dbapi_error(pooled: PoolProxiedConnection, error: Exception) -> Exception:
    """Return an error of asyncpg's as the DBAPI that SQLAlchemy makes of asyncpg raises it."""
    adapter: Any = pooled.dbapi_connection
    try:
        adapter._handle_exception(error)
    except Exception as translated:
        return translated
    return error


def restore_isolation_at_return(dialect: Dialect, pooled: PoolProxiedConnection) -> None:
    """Give a connection its present isolation level again when it goes back to the pool.

    The level that SQLAlchemy's reset sets is the engine's; a listener of the host's may have set another one on this
    connection. The callback that was added first is called last, so this one has to be added before the level changes.
    """
    connection: Any = pooled
    connection._connection_record.finalize_callback.append(_isolation_setter(dialect, pooled))


def _isolation_setter(dialect: Any, pooled: PoolProxiedConnection) -> Callable[[Any], None]:
    if dialect.driver == "asyncpg":
        adapter: Any = pooled.dbapi_connection
        return partial(_set, isolation_level=adapter.isolation_level, _isolation_setting=adapter._isolation_setting)
    driver: Any = pooled.driver_connection
    return partial(dialect._do_isolation_level, autocommit=driver.autocommit, isolation_level=driver.isolation_level)


def _set(adapter: object, **attributes: Any) -> None:
    for name, value in attributes.items():
        setattr(adapter, name, value)


def keeps_statements(pooled: PoolProxiedConnection) -> bool:
    """Return whether SQLAlchemy's adapter of asyncpg keeps prepared statements of this connection.

    `prepared_statement_cache_size`, which decides it, is an argument of connections, not of engines.
    """
    adapter: Any = pooled.dbapi_connection
    return adapter._prepared_statement_cache is not None
