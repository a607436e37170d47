"""A connection or session of the caller's -> operations in the caller's transaction, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from checkpoint_store import migrations
from checkpoint_store.executor import Ordinary
from checkpoint_store.source.origin import Origin, pause_of
from checkpoint_store.statements import Statements
from checkpoint_store.turns import alone_with

T = TypeVar("T")


class CallersOrigin(Origin):
    """Lends what is the caller's, to one at a time."""

    is_callers = True

    def lend_transaction(self, operation: Callable[..., T], *args: Any) -> T:
        """Lend a connection; the transaction is the caller's."""
        return self.lend(operation, *args)

    def _alone_with(self, shared: Connection | Session) -> AbstractContextManager[object]:
        # All savers on a connection or session share it.
        return alone_with(shared, is_async=self.engine.dialect.is_async)


class ConnectionOrigin(CallersOrigin):
    """Lends a connection of the caller's, in the caller's transaction.

    Args:
        connection: An open connection: a sync one, or what an async one has inside.
        sql: The statements that operations get.
    """

    def __init__(self, connection: Connection, sql: Statements) -> None:
        super().__init__(connection.engine, sql)
        self._connection = connection

    def lend(self, operation: Callable[..., T], *args: Any) -> T:
        """Lend the connection when it is free."""
        with self.told(), self._alone_with(self._connection):
            return self.perform(operation, Ordinary(self._connection), args)

    def setup(self, timeout: float) -> None:
        """Migrate in the caller's transaction."""
        with self.told(), self._alone_with(self._connection):
            _migrate(self._connection, self.sql, timeout)


class SessionOrigin(CallersOrigin):
    """Lends the connection that a session of the caller's is working on, after a flush.

    Args:
        session: A sync session, or what an async one has inside.
        engine: The one of its engines that has the tables.
        sql: The statements that operations get.
        bind_arguments: What tells `Session.connection()` which engine that is.
    """

    def __init__(self, session: Session, engine: Engine, sql: Statements, bind_arguments: Mapping[str, Any]) -> None:
        super().__init__(engine, sql)
        self._session = session
        self._bind_arguments = bind_arguments

    def lend(self, operation: Callable[..., T], *args: Any) -> T:
        """Lend the session's connection when it is free."""
        return self._lend(lambda conn: self.perform(operation, Ordinary(conn), args))

    def setup(self, timeout: float) -> None:
        """Migrate in the caller's transaction."""
        self._lend(lambda conn: _migrate(conn, self.sql, timeout))

    def _lend(self, use: Callable[[Connection], T]) -> T:
        with self._alone_with(self._session):
            # Asked for each time: after a commit the session may go on with another one.
            with self.told():
                conn = self._session.connection(dict(self._bind_arguments))
            with self._alone_with(conn):
                # What goes wrong here is about the caller's own rows.
                self._session.flush()
                with self.told():
                    return use(conn)


def _migrate(conn: Connection, sql: Statements, timeout: float) -> None:
    # The first statement on a connection begins the caller's transaction, here as everywhere in SQLAlchemy.
    if not conn.in_transaction() and not getattr(conn.connection.dbapi_connection, "autocommit", False):
        conn.begin()
    migrations.bring_to_head(conn, sql, timeout, pause_of(conn.dialect))
