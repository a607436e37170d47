"""A provider: the source of the connections that operations run on.

All of it is in sync style: on an async engine it runs in a greenlet of SQLAlchemy's.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from sqlalchemy import URL, Dialect, Engine
from sqlalchemy.util import await_only

from checkpoint_store.conninfo.driver_errors import is_from_driver, raise_from, remove_values, sqlstate_of
from checkpoint_store.database.closing import State
from checkpoint_store.database.error_translation import FOREIGN, translate
from checkpoint_store.database.locks.request import LockRequest
from checkpoint_store.database.locks.session import POLL_SECONDS, lock_session_of
from checkpoint_store.database.observer import Observer
from checkpoint_store.database.placement import forget, placed_for
from checkpoint_store.database.replication_lag import replication_lag_of
from checkpoint_store.database.sqlalchemy_private import has_listeners, is_watched
from checkpoint_store.errors import CheckpointStoreError, Closed
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import locks
from checkpoint_store.storage.operation import Kind, Operation

T = TypeVar("T")

_NOT_SUPPORTED = "0A000"
"""The SQLSTATE of statements that Citus refuses."""


class ConnectionProvider(ABC):
    """Runs operations on connections of an engine: a sync one, or the one inside an async engine."""

    is_callers = False
    """Whether the transaction is the caller's, and may be rolled back with all that is stored in it."""

    def __init__(self, engine: Engine, sql: Statements) -> None:
        self.engine = engine
        self._sql = sql
        self.is_placed = False
        """Whether it is known if Citus has distributed the tables, and `sql` are the statements for that."""
        self.state = State.OPEN
        self.is_disposed = False
        """Whether closing has disposed of the engine: connections opened later would stay open."""
        self.observer: Observer | None = None
        self.lock_session = lock_session_of(engine.dialect)
        """Holds the locks that runs have on threads."""
        self.written = replication_lag_of(engine.dialect)
        """The threads that a replica may not have as they are."""

    @property
    def sql(self) -> Statements:
        """The statements, as far as is known by now."""
        return self._sql

    @property
    def retries(self) -> int:
        """The number of retries; in a transaction of the caller's there are none."""
        return 0

    @property
    def is_parents(self) -> bool:
        """Whether the connections belong to the process this one was forked from."""
        return False

    @abstractmethod
    def run(self, operation: Operation[..., T], *args: Any) -> T:
        """Run an operation on a connection."""

    @abstractmethod
    def setup(self, timeout: float) -> None:
        """Bring the schema to head, waiting some seconds at most for other migrations."""

    def close(self, state: State, *, is_disposed: bool = False) -> None:
        """Go on to a further state."""
        self.state, self.is_disposed = state, is_disposed

    def check_open(self) -> None:
        """Raise unless calls are accepted."""
        if self.state is not State.OPEN:
            raise Closed("this saver is closed. Make a new one, or use it inside its `with` block.")

    @property
    def is_heard(self) -> bool:
        """Whether listeners hear of statements or checkouts."""
        return is_watched(self.engine) or has_listeners(self.engine.pool)

    def own(self) -> None:
        """Take over the engine."""
        raise NotImplementedError

    def dispose(self) -> None:
        """Close the connections of the engine's pool."""
        raise NotImplementedError

    def observe(self, observer: Observer | None) -> None:
        """Register an observer, or none."""
        self.observer = observer

    def perform(self, operation: Operation[..., T], db: Executor, args: Sequence[Any]) -> T:
        """Call an operation on a connection; observed, and not for a thread whose lock was lost meanwhile."""
        if self.lock_session.lost and operation.kind is Kind.STORE:
            self.lock_session.check(self.sql, args[-1], db)
        if (observer := self.observer) is None:
            return operation.function(db, self.statements(operation, db), *args)
        with observer.operation(operation, args, db) as observed:
            return operation.function(observed, self.statements(operation, db), *args)

    def statements(self, operation: Operation[..., Any], db: Executor) -> Statements:
        """Return the statements for the tables as they are: distributed by Citus or not, which is asked once."""
        return self._sql if operation.kind is Kind.PROBE else self.placed(db)

    def placed(self, db: Executor) -> Statements:
        """Return the same for an operation that touches the tables."""
        if not self.is_placed:
            self._sql, self.is_placed = placed_for(self.engine.dialect, db, self._sql), True
        return self._sql

    def use(self, sql: Statements) -> None:
        """Use other statements from now on, for tables of which it is known what they are."""
        self._sql, self.is_placed = sql, True

    def take_lock(self, request: LockRequest) -> None:
        """Take a thread's lock until the caller's transaction ends."""
        pause = pause_of(self.engine.dialect)
        # Each try by itself: a wait in the server would block the connection, which others may share.
        while (number := self.run(locks.take_lock_in_transaction, request.thread_id)) is None:
            if request.left == 0:
                raise request.thread_locked()
            pause(POLL_SECONDS)
            request.check()
        request.number, request.sql, request.is_held = number, self.sql, True

    def drop_lock(self, request: LockRequest) -> None:
        """Forget a lock, but keep it: others may not go on before they can see what was stored."""
        request.is_held = False

    @property
    def where(self) -> str:
        """The database's name in messages: without user, password and parameters, any of which may be secret."""
        url = self.engine.url
        return URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Raise errors of the server and the driver in our words."""
        try:
            yield
        except Exception as error:
            self.raise_translated(error)

    def raise_translated(self, error: Exception, tried: float = 0.0) -> NoReturn:
        """Raise an error in our words if it is of the server or the driver, or else as it is."""
        self._doubt_placement(error)
        if isinstance(error, CheckpointStoreError):
            remove_values(error)
            raise error
        if not isinstance(error, FOREIGN) and not is_from_driver(error):
            raise error
        translated = translate(
            *(error, self.where, self.sql.tables),
            callers=self.is_callers,
            tried=tried,
            role=self.role,
            kept=self.kept_by_others(),
        )
        raise_from(translated, error)

    def _doubt_placement(self, error: Exception) -> bool:
        """Return whether an error may come from Citus; then it is asked again whether it has distributed the tables."""
        if sqlstate_of(error) != _NOT_SUPPORTED:
            return False
        if not self._sql.are_distributed:
            forget(self.engine.dialect, self._sql.tables.schema)
            self.is_placed = False
        return True

    def kept_by_others(self) -> int:
        """Return how many connections the application itself has, if it has all of the pool, or else 0."""
        return 0

    def role(self) -> str | None:
        """Return the database role that our statements run as, if it can be known after an error."""
        return None


def pause_of(dialect: Dialect) -> Callable[[float], None]:
    """Return a function that sleeps for some seconds, in a greenlet without blocking its loop."""
    return _pause if dialect.is_async else time.sleep


def _pause(seconds: float) -> None:
    await_only(asyncio.sleep(seconds))
