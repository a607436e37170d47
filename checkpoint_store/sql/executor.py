"""The interface by which operations execute statements, and its implementation on SQLAlchemy's `Connection`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from asyncpg import PostgresWarning
from sqlalchemy import Connection

from checkpoint_store.conninfo.driver_errors import error_of_warning
from checkpoint_store.sql.compiled import Statement
from checkpoint_store.sql.script import Step

Row = Sequence[Any]

_IN_TRANSACTION = (1, 2, 3)
"""psycopg's `TransactionStatus`: ACTIVE, INTRANS, INERROR."""


class Executor(ABC):
    """An executor of statements on one connection; on an async engine, in one of SQLAlchemy's greenlets."""

    runs_scripts = False
    """Whether `run_script` may be called."""

    @abstractmethod
    def fetch(self, statement: Statement, binds: Mapping[str, Any]) -> Sequence[Row]:
        """Execute a statement and return its rows; none for a statement that returns no rows."""

    def run_script(self, steps: Sequence[Step]) -> int:
        """Execute statements in one round trip and a transaction of their own.

        Returns:
            The number of rows of the last one.
        """
        raise NotImplementedError

    @property
    @abstractmethod
    def is_in_transaction(self) -> bool:
        """Whether the next statement is in one transaction with the last, as the server said after that one."""


class ConnectionExecutor(Executor):
    """An executor in the transaction of an SQLAlchemy connection, whose event listeners and log see each statement."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def fetch(self, statement: Statement, binds: Mapping[str, Any]) -> Sequence[Row]:
        """Execute a statement and return its rows."""
        try:
            result = self._conn.exec_driver_sql(*statement.bound(self._conn.dialect, binds))
        except PostgresWarning as error:
            raise error_of_warning(error) from None
        return result.all() if result.returns_rows else []

    @property
    def is_in_transaction(self) -> bool:
        """Whether the next statement is in one transaction with the last."""
        return is_in_transaction(self._conn.connection.driver_connection)


def is_in_transaction(driver: Any) -> bool:
    """Return whether a driver's connection is in a transaction."""
    if hasattr(driver, "is_in_transaction"):
        return bool(driver.is_in_transaction())  # asyncpg
    return driver.pgconn.transaction_status in _IN_TRANSACTION
