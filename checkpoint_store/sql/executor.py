"""Where a statement is executed: through SQLAlchemy's `Connection`, or straight on the driver's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from asyncpg import PostgresWarning
from sqlalchemy import Connection

from checkpoint_store.conninfo.driver_errors import error_of_warning
from checkpoint_store.sql.compiled import Statement

Row = Sequence[Any]

_IN_TRANSACTION = (1, 2, 3)
"""psycopg's `TransactionStatus`: ACTIVE, INTRANS, INERROR."""


class Executor(ABC):
    """Executes statements on one connection, in a greenlet of SQLAlchemy's if the engine is an async one."""

    @abstractmethod
    def fetch(self, statement: Statement, binds: Mapping[str, Any]) -> Sequence[Row]:
        """Execute a statement. Returns its rows, none for a statement that returns none."""

    @property
    @abstractmethod
    def is_in_transaction(self) -> bool:
        """Whether the next statement is in one transaction with the last, as the server has said behind that."""


class ConnectionExecutor(Executor):
    """Executes as SQLAlchemy does: in the connection's transaction, seen by event listeners and the log.

    Args:
        conn: The connection.
    """

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def fetch(self, statement: Statement, binds: Mapping[str, Any]) -> Sequence[Row]:
        """Execute a statement."""
        dialect = self._conn.dialect
        try:
            result = self._conn.exec_driver_sql(statement.sql(dialect), statement.parameters(dialect, binds))
        except PostgresWarning as error:
            raise error_of_warning(error) from None
        return result.all() if result.returns_rows else []

    @property
    def is_in_transaction(self) -> bool:
        """Whether the next statement is in one transaction with the last."""
        return is_in_transaction(self._conn.connection.driver_connection)


def is_in_transaction(driver: Any) -> bool:
    """Tell whether a driver's connection is in a transaction."""
    if hasattr(driver, "is_in_transaction"):
        return bool(driver.is_in_transaction())  # asyncpg
    return driver.pgconn.transaction_status in _IN_TRANSACTION
