"""The connection of a lock session: out of the pool, with a limit on the time that the server may take to answer."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

from sqlalchemy import Connection

from checkpoint_store.database.locks.scheduling import Scheduling
from checkpoint_store.sql.executor import ConnectionExecutor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import locks

T = TypeVar("T")

ANSWER_SECONDS = 5.0
"""The seconds that the server may take to answer."""

# The server takes 25 s to give up a client that no longer answers, and its locks with it: by then the client, if it
# still runs and only the network fails, has noticed.
SETTINGS = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "idle_session_timeout": "0",
}


class LockConnection:
    """Executes operations on a connection that is out of the pool; it is closed if the session can't be begun."""

    def __init__(self, conn: Connection, scheduling: Scheduling, sql: Statements) -> None:
        self._conn = conn
        self._scheduling = scheduling
        self._dbapi = cast("Any", conn.connection.dbapi_connection)
        self._driver: Any = conn.dialect.get_driver_connection(self._dbapi)
        terminate = getattr(self._driver, "terminate", None)  # asyncpg's
        self._disconnect: Callable[[], object] = terminate or partial(_shut_down, self._driver)
        self._terminate: Callable[[], object] = terminate or partial(conn.dialect.do_terminate, self._dbapi)
        try:
            self.execute(sql, locks.begin_session, SETTINGS)
        except BaseException:
            # A connection that is out of the pool is not closed when it is invalidated, as when it is interrupted.
            if self.is_lost:
                self._terminate()
            else:
                self.close()
            raise

    @property
    def is_lost(self) -> bool:
        """Whether an error has ended the connection."""
        return self._conn.invalidated

    def on_end(self, function: Callable[[], object]) -> None:
        """Have a function called when the server ends the connection, if the driver notices it by itself."""
        if hasattr(self._driver, "add_termination_listener"):
            self._driver.add_termination_listener(lambda *_: function())

    def execute(self, sql: Statements, operation: Callable[..., T], *args: Any) -> T:
        """Call an operation; if the server does not answer in time, the connection is ended."""
        with self._scheduling.limited(ANSWER_SECONDS, self._disconnect):
            return operation(ConnectionExecutor(self._conn), sql, *args)

    def close(self) -> None:
        """Close the connection; `Connection.close()` leaves one of psycopg's open that is out of the pool."""
        self._conn.close()
        self._conn.dialect.do_close(self._dbapi)

    def abandon(self) -> None:
        """Close the connection without a word to its server, which may not answer."""
        with suppress(Exception):
            self._terminate()
        self._conn.invalidate()
        self._conn.close()


def _shut_down(driver: Any) -> None:
    """End a connection of psycopg's while a thread waits for its answer; no other thread may call its `close()`."""
    with suppress(Exception):
        shared = socket.socket(fileno=driver.fileno())
        try:
            shared.shutdown(socket.SHUT_RDWR)
        finally:
            shared.detach()
