"""Providers on a connection or session of the caller's: operations in the caller's transaction, one at a time."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, event, exc
from sqlalchemy.orm import Session

from checkpoint_store.database.closing import State
from checkpoint_store.database.locks.request import LockRequest
from checkpoint_store.database.provider import ConnectionProvider, pause_of
from checkpoint_store.database.semaphore import alone_with, wait_for_others
from checkpoint_store.errors import WrongTransaction
from checkpoint_store.migrations.lock_timeout import LockTimeout
from checkpoint_store.migrations.runner import upgrade_to_head
from checkpoint_store.sql.executor import ConnectionExecutor, Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import locks
from checkpoint_store.storage.operation import Kind, Operation

T = TypeVar("T")

_guarded: weakref.WeakSet[Connection] = weakref.WeakSet()
_ended: weakref.WeakSet[object] = weakref.WeakSet()
"""The transactions of connections that have begun to COMMIT or ROLLBACK."""


class BoundProvider(ConnectionProvider):
    """Runs one operation at a time on a connection or session of the caller's, as long as its transaction lasts.

    That is the one that is open when the saver is made. A saver made before any has begun may begin the first, and goes
    on in those that the caller begins; it never begins another, which the caller might never end.
    """

    is_callers = True

    def __init__(self, engine: Engine, sql: Statements, shared: Connection | Session) -> None:
        super().__init__(engine, sql)
        self._shared = shared
        self._bound_in = shared.get_transaction()
        self._may_begin = self._bound_in is None

    def run(self, operation: Operation[..., T], *args: Any) -> T:
        """Run an operation on the connection when it is free."""
        if self.state is State.CLOSED:
            self.check_open()
        return self._use(lambda conn: self.perform(operation, ConnectionExecutor(conn), args))

    def setup(self, timeout: float) -> None:
        """Migrate in the caller's transaction."""
        self._use(lambda conn: _migrate(conn, self.sql, timeout))

    def take_lock(self, request: LockRequest) -> None:
        """Take a thread's lock until the caller's transaction ends."""
        super().take_lock(request)
        request.transaction = self._shared.get_transaction()
        self.lock_session.in_transactions.add(request)

    def drop_lock(self, request: LockRequest) -> None:
        """Forget a lock, but keep it, and note if it was lost before."""
        self.lock_session.forget(request)
        # A savepoint that was rolled back has freed the locks taken in it; the end of the transaction frees them too.
        if request.is_held and not request.given_up.is_set() and self._is_in(request.transaction):
            with suppress(Exception):
                request.is_lost = not self._use(
                    lambda conn: locks.has_lock(ConnectionExecutor(conn), self.sql, request.number), flushes=False
                )
        super().drop_lock(request)

    def perform(self, operation: Operation[..., T], db: Executor, args: Sequence[Any]) -> T:
        """Call an operation on the connection, but not for a thread whose lock a savepoint has freed."""
        if self.lock_session.in_transactions and operation.kind is Kind.STORE:
            threads = {change.thread_id for change in args[-1]}
            held = [one for one in self.lock_session.in_transactions if one.thread_id in threads]
            for request in held:
                if self._is_in(request.transaction) and not locks.has_lock(db, self.sql, request.number):
                    request.is_lost = True
                    self.lock_session.lost.add(request)
        return super().perform(operation, db, args)

    def _is_in(self, transaction: object) -> bool:
        now = self._shared.get_transaction()
        return now is not None and now is transaction and now not in _ended

    @abstractmethod
    def _use(self, use: Callable[[Connection], T], *, flushes: bool = True) -> T:
        """Call a function with the connection when it is free, after a flush of the session if there is one."""

    def _alone(self, thing: Connection | Session) -> AbstractContextManager[object]:
        """Return a block that no other call on the connection or session is in, by whichever saver."""
        return alone_with(thing, is_async=self.engine.dialect.is_async)

    def _check(self, called_in: object) -> None:
        """Raise if the transaction that a call was made in has ended."""
        now = self._shared.get_transaction()
        if now is None:
            is_over = not self._may_begin or called_in is not None or getattr(self._shared, "closed", False)
        else:
            is_over = now is not (self._bound_in or called_in or now)
        if is_over:
            raise _over()
        self._may_begin = False


class BoundConnectionProvider(BoundProvider):
    """Runs operations on an open connection of the caller's, in the caller's transaction."""

    def __init__(self, connection: Connection, sql: Statements) -> None:
        super().__init__(connection.engine, sql, connection)
        self._connection = connection

    def _use(self, use: Callable[[Connection], T], *, flushes: bool = True) -> T:  # noqa: ARG002 - there is no session
        called_in = self._connection.get_transaction()
        try:
            with self._alone(self._connection):
                self._check(called_in)
                _guard(self._connection)
                return use(self._connection)
        except Exception as error:
            self.raise_translated(error)


class BoundSessionProvider(BoundProvider):
    """Runs operations on the connection that a session of the caller's uses, after a flush.

    The engine is the one of its engines that has the tables; `bind_arguments` select it in `Session.connection()`.
    """

    def __init__(self, session: Session, engine: Engine, sql: Statements, bind_arguments: Mapping[str, Any]) -> None:
        super().__init__(engine, sql, session)
        self._session = session
        self._bind_arguments = bind_arguments
        event.listen(session, "before_commit", wait_for_others)

    def _use(self, use: Callable[[Connection], T], *, flushes: bool = True) -> T:
        called_in = self._session.get_transaction()
        with self._alone(self._session):
            self._check(called_in)
            # Each time: after a commit the session may go on with another connection.
            with self.translate_errors():
                conn = self._session_connection()
            with self._alone(conn):
                _guard(conn)
                # An error here is about the caller's own rows.
                if flushes:
                    self._session.flush()
                with self.translate_errors():
                    return use(conn)

    def _session_connection(self) -> Connection:
        transaction = self._session.get_transaction()
        try:
            return self._session.connection(dict(self._bind_arguments))
        except exc.InvalidRequestError as error:
            # The caller is about to end it. After a flush that failed SQLAlchemy's own message is as good.
            if transaction is None or transaction.is_active or isinstance(error, exc.PendingRollbackError):
                raise
            raise _over() from None


def _guard(conn: Connection) -> None:
    """Have the end of a connection's transaction wait for a call of ours on it; refuse calls that come later."""
    if conn.get_transaction() in _ended:
        raise _over()
    if conn not in _guarded:
        _guarded.add(conn)
        for name in ("commit", "rollback"):
            event.listen(conn, name, _end)


def _end(conn: Connection) -> None:
    # asyncpg can't do two things at once: a COMMIT that meets a statement fails, and SQLAlchemy takes it for done. The
    # connection would go back to the pool in the middle of a transaction.
    wait_for_others(conn)
    if (transaction := conn.get_transaction()) is not None:
        _ended.add(transaction)


def _over() -> WrongTransaction:
    return WrongTransaction(
        "the transaction that this saver was bound to has ended; the call came too late, and nothing was carried out. "
        "A run or stream that you have left may still make such calls. For your next transaction bind a saver again: "
        "saver.bind(session)."
    )


def _migrate(conn: Connection, sql: Statements, timeout: float) -> None:
    # The first statement on a connection begins the caller's transaction, here as everywhere in SQLAlchemy.
    if not conn.in_transaction() and not getattr(conn.connection.dbapi_connection, "autocommit", False):
        conn.begin()
    upgrade_to_head(conn, sql, LockTimeout.of_one_attempt(timeout), pause_of(conn.dialect))
