"""Execution straight on the driver's connection, without SQLAlchemy's context, result and transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from asyncpg import PostgresWarning
from sqlalchemy import Connection, Engine, PoolProxiedConnection
from sqlalchemy.util import await_only

from checkpoint_store.conninfo.driver_errors import error_of_warning, without_values
from checkpoint_store.conninfo.transient_errors import ends_all_connections
from checkpoint_store.database.liveness import discard_unsent, is_interruption, socket_of
from checkpoint_store.database.sqlalchemy_private import dbapi_error, keep_others, raise_statement_error
from checkpoint_store.sql.compiled import Statement
from checkpoint_store.sql.executor import Executor, Row, is_in_transaction
from checkpoint_store.sql.script import Step, script_of


@dataclass(eq=False)
class DirectExecutor(Executor):
    """Executes on the driver's connection: each statement is a transaction of its own, with neither BEGIN nor COMMIT.

    SQLAlchemy's execution context and result, and setting AUTOCOMMIT and taking it back, cost more than a small
    statement does.

    This works through a pooler of transactions if asyncpg's cache is off: then each execution sends the text along,
    under no name, as one transaction. (SQLAlchemy's way does not: when it has prepared a statement, asyncpg closes
    older ones before it is executed, and the pooler takes that for the end of the transaction.)
    """

    engine: Engine
    pooled: PoolProxiedConnection
    """A connection of its pool."""
    driver: Any
    """The driver's connection in it."""

    @property
    def is_in_transaction(self) -> bool:
        """Whether the next statement is in one transaction with the last."""
        return is_in_transaction(self.driver)

    def fail(self, error: BaseException, sql: str | None = None, parameters: Any = None) -> NoReturn:
        """Raise an error as `Connection.execute()` does, and give up a connection that is lost or was interrupted."""
        if isinstance(error, PostgresWarning):
            raise error_of_warning(error) from None
        if is_interruption(error):
            with suppress(Exception):  # it may be closed
                discard_unsent(socket_of(self.driver))
        dialect, adapter = self.engine.dialect, self.pooled.dbapi_connection
        if dialect.driver == "asyncpg" and isinstance(error, Exception):
            error = dbapi_error(self.pooled, error)
        conn = Connection(self.engine, self.pooled)
        is_dbapis = adapter is not None and isinstance(error, dialect.loaded_dbapi.Error)
        is_lost = is_dbapis and dialect.is_disconnect(error, adapter, None)  # type: ignore[arg-type]
        if is_lost and not ends_all_connections(error):
            conn.invalidate(without_values(error))
            keep_others(conn)
        raise_statement_error(conn, error, sql, parameters)

    def fail_in_script(self, error: BaseException, steps: Sequence[Step]) -> NoReturn:
        """Raise an error of a script, with its statements, but not the values that were in it."""
        self.fail(error, ";\n".join(statement.sql(self.engine.dialect) for statement, _ in steps))


class AsyncpgExecutor(DirectExecutor):
    """Executes on asyncpg's connection."""

    runs_scripts = True

    def fetch(self, statement: Statement, binds: Mapping[str, Any]) -> Sequence[Row]:
        """Execute a statement."""
        sql, parameters = statement.bound(self.engine.dialect, binds)
        try:
            return await_only(self.driver.fetch(sql, *parameters))
        except BaseException as error:
            self.fail(error, sql, parameters)

    def run_script(self, steps: Sequence[Step]) -> int:
        """Execute statements in one round trip and a transaction of their own."""
        try:
            status: str = await_only(self.driver.execute(script_of(steps)))
        except BaseException as error:
            self.fail_in_script(error, steps)
        return int(status.rpartition(" ")[2])
