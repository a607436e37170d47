"""A pooler or proxy between an engine and its server, such as PgBouncer."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, PoolProxiedConnection, func, select

from checkpoint_store.database.sqlalchemy_private import keeps_statements
from checkpoint_store.errors import InvalidOption


def is_pooled(conn: Connection) -> bool:
    """Return whether a pooler stands before the server: it can't pass on the process id of a server's session.

    Args:
        conn: A connection, not in a transaction; nor is it afterwards.
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
