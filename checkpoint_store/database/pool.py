"""The pool of an engine: its connections' isolation level, a pooler before their server, and the pool's end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, PoolProxiedConnection, StaticPool, func, select

from checkpoint_store.database.liveness import check_loop
from checkpoint_store.database.sqlalchemy_private import keeps_statements, restore_isolation_at_return
from checkpoint_store.errors import InvalidOption, UnusableConnection
from checkpoint_store.sql.executor import is_in_transaction


def isolate(conn: Connection, level: str) -> None:
    """Set the isolation level until the connection goes back to the pool, which gets it as it was."""
    restore_isolation_at_return(conn.dialect, conn.connection)
    conn.execution_options(isolation_level=level)


def is_begun(conn: Connection) -> bool:
    """Return whether a connection is in a transaction, which SQLAlchemy or a listener of the pool's has begun."""
    return conn.in_transaction() or is_in_transaction(conn.connection.driver_connection)


def end_begun_transaction(conn: Connection) -> None:
    """Commit a transaction that listeners have begun on a connection just borrowed; settings of the session stay."""
    if conn.in_transaction():
        conn.commit()
    elif is_in_transaction(conn.connection.driver_connection):
        conn.connection.commit()


def is_pooled(conn: Connection) -> bool:
    """Return whether a pooler stands before the server: it can't pass on the process id of a server's session.

    The connection is in no transaction, nor is it afterwards.
    """
    driver: Any = conn.connection.driver_connection
    pid = driver.get_server_pid() if conn.dialect.driver == "asyncpg" else driver.info.backend_pid
    # In a transaction, and with the text sent along: this much works through all of them.
    with conn.begin():
        return bool(conn.scalar(select(func.pg_backend_pid())) != pid)


def is_for_pooler(pooled: PoolProxiedConnection) -> bool:
    """Return whether a connection keeps no prepared statements: a pooler of transactions would lose them."""
    driver: Any = pooled.driver_connection
    if hasattr(driver, "prepare_threshold"):
        return driver.prepare_threshold is None  # psycopg
    return not driver._config.statement_cache_size and not keeps_statements(pooled)


def check_is_for_pooler(pooled: PoolProxiedConnection) -> None:
    """Raise `InvalidOption` if a connection keeps prepared statements."""
    if not is_for_pooler(pooled):
        raise InvalidOption(
            'pooler is "transaction", but the engine keeps prepared statements, which such a pooler loses. Make it by '
            "create_async_engine(url, **checkpoint_store.url.pooler_options())."
        )


@contextmanager
def migrating(engine: Engine) -> Iterator[Connection]:
    """Borrow a connection for migrations, which begin and commit their transactions themselves.

    Through a pooler they are one transaction: it may lend another of the server's connections to the next, and the lock
    that is held from one to the other would stay with the first.
    """
    pool = engine.pool
    try:
        with engine.connect() as conn:
            check_loop(conn.connection.driver_connection)
            end_begun_transaction(conn)
            isolate(conn, "READ COMMITTED")
            if is_pooled(conn):
                with conn.begin():
                    yield conn
            else:
                yield conn
    finally:
        if engine.pool is not pool:
            pool.dispose()


def detached(engine: Engine) -> Connection:
    """Take a connection out of the pool, which makes a new one in its place; each statement on it commits itself.

    Raises:
        UnusableConnection: If a pooler or proxy lends it, so that it is no session of the server's.
    """
    pool, conn = engine.pool, engine.connect()
    try:
        check_loop(conn.connection.driver_connection)
        end_begun_transaction(conn)
        if is_pooled(conn):
            raise UnusableConnection(
                "between this engine and the server there is a pooler or proxy, such as PgBouncer, which may lend a "
                "session of the server's to others between two statements; a thread's lock needs one to itself. Take "
                "locks with a saver on an engine that connects directly."
            )
        conn.execution_options(isolation_level="AUTOCOMMIT")
        conn.detach()
    except BaseException:
        conn.close()
        if engine.pool is not pool:
            pool.dispose()
        raise
    return conn


def dispose(engine: Engine) -> None:
    """Close the connections in an engine's pool; those in use are closed when they are given back."""
    # In this order: a call that begins meanwhile gets none of those being closed, and no other pool is replaced.
    pool = engine.pool
    engine.dispose(close=False)
    # A StaticPool would close its one connection under the call that uses it.
    one = vars(pool).get("connection") if isinstance(pool, StaticPool) else None
    if one is None or not one.in_use:
        pool.dispose()
