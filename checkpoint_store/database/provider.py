"""Where connections come from, in sync style: on an async engine all of this runs in a greenlet of SQLAlchemy's."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from sqlalchemy import URL, Dialect, Engine
from sqlalchemy.util import await_only

from checkpoint_store.conninfo.driver_errors import is_from_driver, raise_from, remove_values
from checkpoint_store.database.error_translation import FOREIGN, translate
from checkpoint_store.database.locks.request import LockRequest
from checkpoint_store.database.locks.session import POLL_SECONDS, lock_session_of
from checkpoint_store.database.pool import kept_by_others
from checkpoint_store.database.replication_lag import replication_lag_of
from checkpoint_store.errors import CheckpointStoreError
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import locks
from checkpoint_store.storage.operation import Kind, Operation

T = TypeVar("T")


class ConnectionProvider(ABC):
    """Lends connections to operations.

    Args:
        engine: Where the connections come from, directly or not.
        sql: The statements that operations get.
    """

    is_callers = False
    """Whether the transaction is the caller's, who may roll back what is stored in it."""

    def __init__(self, engine: Engine, sql: Statements) -> None:
        self.engine = engine
        self.sql = sql
        self.lock_session = lock_session_of(engine.dialect)
        """Holds the locks that runs have on threads."""
        self.written = replication_lag_of(engine.dialect)
        """What was written; noted where it is committed."""

    @property
    def retries(self) -> int:
        """How many times an operation was done again; in a transaction of the caller's none ever is."""
        return 0

    @abstractmethod
    def run(self, operation: Operation[..., T], *args: Any) -> T:
        """Run an operation on a connection."""

    @abstractmethod
    def setup(self, timeout: float) -> None:
        """Bring the schema to head, waiting so many seconds for others that do."""

    def perform(self, operation: Operation[..., T], db: Executor, args: Sequence[Any]) -> T:
        """Call an operation, at last; not one that stores for a thread whose lock was lost while the call waited."""
        if self.lock_session.lost and operation.kind is Kind.STORE:
            self.lock_session.check(self.sql, args[-1], db)
        return operation.function(db, self.sql, *args)

    def take_lock(self, request: LockRequest) -> None:
        """Take a thread's lock until the caller's transaction ends."""
        pause = pause_of(self.engine.dialect)
        # Each try by itself: who waits in the server holds up the connection, which others may share.
        while (number := self.run(locks.take_lock_in_transaction, request.thread_id)) is None:
            if request.left == 0:
                raise request.locked()
            pause(POLL_SECONDS)
            request.check()
        request.number, request.schema, request.is_held = number, self.sql.tables.schema, True

    def drop_lock(self, request: LockRequest) -> None:
        """Let go of it, but not of the lock: others may not go on before they can see what was stored."""
        request.is_held = False

    def stop_trying(self, *, lends: bool = True) -> None:  # noqa: B027 - by default nothing is done again anyway
        """Let what fails from now on not be done again.

        Args:
            lends: Whether what waits for a connection still gets one.
        """

    def keep_nothing(self) -> None:  # noqa: B027 - what is the caller's is the caller's to close
        """Let no connection be left open by what is still to come."""

    @property
    def where(self) -> str:
        """How messages name the database: without user, password and parameters, any of which may be secret."""
        url = self.engine.url
        return URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()

    @contextmanager
    def told(self, tried: float = 0.0) -> Iterator[None]:
        """Tell errors of the server's and the driver's in our words, and for how many seconds it was tried again."""
        try:
            yield
        except Exception as error:
            self.tell(error, tried)

    def tell(self, error: Exception, tried: float = 0.0) -> NoReturn:
        """Raise an error in our words, if it is of the server's or the driver's, or else as it is."""
        if isinstance(error, CheckpointStoreError):
            remove_values(error)
            raise error
        if not isinstance(error, FOREIGN) and not is_from_driver(error):
            raise error
        told = translate(
            *(error, self.where, self.sql.tables),
            callers=self.is_callers,
            tried=tried,
            role=self.role,
            kept=0 if self.is_callers else kept_by_others(self.engine),
        )
        raise_from(told, error)

    def role(self) -> str | None:
        """Return the database role that our statements run as, where that can be known after an error."""
        return None


def pause_of(dialect: Dialect) -> Callable[[float], None]:
    """Return what sleeps for so many seconds, in a greenlet without holding up its loop."""
    return _pause if dialect.is_async else time.sleep


def _pause(seconds: float) -> None:
    await_only(asyncio.sleep(seconds))
