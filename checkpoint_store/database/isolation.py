"""Isolation levels of borrowed connections, and transactions that a host's listeners have begun on them."""

from __future__ import annotations

from sqlalchemy import Connection

from checkpoint_store.database.sqlalchemy_private import restore_isolation_at_return
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
