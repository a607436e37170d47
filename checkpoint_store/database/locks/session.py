"""The session that holds the thread locks of an engine.

It has a connection of its own, out of the pool: runs that hold a lock need the pool's for their steps, and with a lock
on each of them none could make one. One session is enough, since it may hold any number of locks. But a session that
has a lock gets it again when it asks again: so the runs of one process queue up here, and only the first one asks.

The code is in sync style: on an async engine it runs in greenlets of SQLAlchemy's, otherwise in threads.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Dialect

from checkpoint_store.database.locks.connection import LockConnection
from checkpoint_store.database.locks.request import LockRequest
from checkpoint_store.database.locks.scheduling import GreenletScheduling, Opening, Scheduling, ThreadScheduling
from checkpoint_store.errors import LockLost
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import locks
from checkpoint_store.storage.write_batch import Change

T = TypeVar("T")

CHECK_SECONDS = 5.0
"""The seconds between two checks of the session; forgotten locks are given back then."""

POLL_SECONDS = 0.05
"""The seconds until the server is asked again for a lock that another session has; then less and less often."""

_LAST_POLL_SECONDS, _QUEUE_POLL_SECONDS = 0.5, 0.02


class LockSession:
    """Holds locks, until they are given back or the session ends."""

    def __init__(self, *, is_async: bool) -> None:
        self._is_async = is_async
        self._reset()

    def _reset(self) -> None:
        self.lost: set[LockRequest] = set()
        """Those lost while a run was at work, and still is: nothing more of it may be stored."""
        self.in_transactions: set[LockRequest] = set()
        """Those that transactions of callers hold."""
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queues: dict[int, deque[LockRequest]] = {}
        self._wanted: set[LockRequest] = set()
        """The locks that are held or waited for; not those lost."""
        self._registry = threading.Lock()
        self._scheduling: Scheduling = GreenletScheduling() if self._is_async else ThreadScheduling()
        self._connection: LockConnection | None = None
        self._opening: Opening | None = None
        self._stop_checks: Callable[[], object] = lambda: None

    def _start_afresh(self) -> None:
        """Start afresh in a process that was forked, or on a loop that came after another one.

        The present state is the parent's, or was left by runs that ended with their loop, as the session did.
        """
        if self._pid != os.getpid():
            self._reset()
        elif self._is_async and self._loop is not (loop := asyncio.get_running_loop()):
            if self._loop is not None:
                self._note_losses()
                self._reset()
            self._loop = loop

    def take(self, request: LockRequest) -> None:
        """Take a lock, and wait for the runs that have it.

        Raises:
            ThreadLocked: If others have it for too long.
            Unavailable: If the server could not be asked in time.
            Closed: If the saver that wants it was closed.
            NotSetUp: If the tables are missing.
            UnusableConnection: If the engine's connections are no sessions of the server's.
        """
        self._start_afresh()
        request.pid = self._pid
        with self._registry:
            self._wanted.add(request)
        try:
            request.sql = self._ask(request, self._execute, request.sql, request.place)
            request.number = self._ask(request, self._execute, request.sql, locks.lock_number, request.thread_id)
            with self._registry:
                queue = self._queues.setdefault(request.number, deque())
                queue.append(request)
            wait = POLL_SECONDS
            while not ((is_next := self._is_next(request, queue)) and self._ask(request, self._try, request)):
                if (left := request.left) == 0:
                    raise request.thread_locked()
                pause = wait if is_next else _QUEUE_POLL_SECONDS
                self._scheduling.pause(request, pause if left is None else min(pause, left))
                wait = min(wait * 1.5, _LAST_POLL_SECONDS) if is_next else wait
                request.check()
        except BaseException as error:
            request.failure = error if isinstance(error, Exception) else None
            self.drop(request)
            raise

    def drop(self, request: LockRequest) -> None:
        """Give a lock back, or stop waiting for it; does nothing the second time."""
        self._start_afresh()
        if request.pid == os.getpid() and (request.is_held or self.forget(request)):
            self._scheduling.shielded(self._drop, request)

    def close(self) -> None:
        """End the session; locks that are held are lost."""
        self._start_afresh()
        if (opening := self._opening) is not None:
            opening.cancel()

        def end() -> None:
            with self._scheduling.alone():
                self._note_losses()
                self._end()

        self._scheduling.shielded(end)

    def check(self, sql: Statements, changes: Sequence[Change], db: Executor | None = None) -> None:
        """Check that no change is of a thread whose lock was lost by a run that is still at work.

        Args:
            sql: The statements, of the tables that the changes are for.
            changes: The changes to be stored.
            db: Finds out whether two names are the same schema's; without it they are not.

        Raises:
            LockLost: If one is.
        """
        threads = {change.thread_id for change in changes}
        with self._registry:
            requests = [request for request in self.lost if request.thread_id in threads and not request.is_forgotten]
        for request in requests:
            is_named_so = request.sql.tables.schema == sql.tables.schema
            if is_named_so or (db and locks.lock_number(db, sql, request.thread_id) == request.number):
                raise request.lock_lost()

    def forget(self, request: LockRequest) -> bool:
        """Forget a request, but not its lock. Returns whether it was the last that wanted the session."""
        with self._registry:
            if request in (queue := self._queues.get(request.number, deque())):
                queue.remove(request)
                if not queue:
                    del self._queues[request.number]
            self.lost.discard(request)
            self.in_transactions.discard(request)
            was_wanted = request in self._wanted
            self._wanted.discard(request)
            return was_wanted and not self._wanted

    def _ask(self, request: LockRequest, function: Callable[..., T], *args: Any) -> T:
        """Call a function that asks the server something, to its end: a statement interrupted would cost all locks."""
        with self._scheduling.alone(request):
            request.check()
            if self._connection is None:
                self._open(request)
            return self._scheduling.shielded(function, *args)

    def _open(self, request: LockRequest) -> None:
        opening = self._opening = Opening()
        try:
            self._scheduling.start(partial(self._begin, request), opening, request)
        finally:
            self._opening = None
        if opening.cancelled():
            request.check()
            raise request.failure or request.unanswered()
        opening.result()

    def _begin(self, request: LockRequest, opening: Opening) -> None:
        """Begin the session, unless no request waits for it any more: a later one may have begun another."""
        try:
            connection = LockConnection(request.open_connection(), self._scheduling, request.sql)
        except BaseException as error:
            if opening.set_running_or_notify_cancel():
                opening.set_exception(error)
            return
        if not opening.set_running_or_notify_cancel():
            connection.close()
            return
        connection.on_end(partial(self._note_end, connection))
        self._connection = connection
        self._stop_checks = self._scheduling.repeat(CHECK_SECONDS, self, partial(LockSession._check, sql=request.sql))
        opening.set_result(None)

    def _is_next(self, request: LockRequest, queue: deque[LockRequest]) -> bool:
        """Return whether no other request of this process is before it, but for those that are forgotten."""
        while (first := queue[0] if queue else None) is not None and first.is_forgotten:
            self.drop(first)
        return first is request

    def _try(self, request: LockRequest) -> bool:
        taken = self._execute(request.sql, locks.take_lock, request.number)
        # The session may have ended just after its answer.
        request.is_held = taken and self._connection is not None
        if request.is_held and request not in self._wanted:
            # It was given up while the server was asked.
            self._release(request)
        return request.is_held

    def _drop(self, request: LockRequest) -> None:
        with self._scheduling.alone():
            try:
                self._release(request)
            finally:
                self.forget(request)
                if not self._wanted:
                    self._end()

    def _release(self, request: LockRequest) -> None:
        try:
            has_it = request.is_held and not request.is_lost
            if has_it and not self._execute(request.sql, locks.drop_lock, request.number):
                self._lose()
        except Exception:
            self._lose()  # whatever it was, the session must not keep the lock
        finally:
            request.is_held = False

    def _execute(self, sql: Statements, operation: Callable[..., T], *args: Any) -> T:
        """Call an operation on the session; the caller is alone with it."""
        if (connection := self._connection) is None:
            raise LockLost("the session has ended")
        try:
            return connection.execute(sql, operation, *args)
        except BaseException:
            if connection.is_lost:
                self._lose()
            raise

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        self._stop_checks()
        if connection is not None:
            connection.close()

    def _lose(self) -> None:
        """Give the session up, and note that its locks are lost."""
        connection, self._connection = self._connection, None
        self._note_losses()
        if connection is not None:
            connection.abandon()
        self._stop_checks()  # at last: a check may have noticed the loss

    def _note_end(self, connection: LockConnection) -> None:
        """Note that the server has ended a connection, if it is still the session's."""
        if connection is self._connection:
            self._connection = None
            self._note_losses()
            self._stop_checks()

    def _note_losses(self) -> None:
        with self._registry:
            for queue in self._queues.values():
                for request in queue:
                    if request.is_held and not request.is_lost:
                        request.is_lost = True
                        self.lost.add(request)
                        self._wanted.discard(request)

    def _check(self, sql: Statements) -> None:
        """Ask the server for a sign of life, and give back the locks that no run will give back."""
        with self._scheduling.alone():
            if self._connection is not None:
                try:
                    self._execute(sql, locks.session_id)
                except Exception:
                    self._lose()
        with self._registry:
            forgotten = [request for queue in self._queues.values() for request in queue if request.is_forgotten]
        for request in forgotten:
            self.drop(request)


_lock_sessions: weakref.WeakKeyDictionary[Dialect, LockSession] = weakref.WeakKeyDictionary()


def lock_session_of(dialect: Dialect) -> LockSession:
    """Return the lock session that all savers on an engine share; its dialect stands for it, as in `EventLoop`."""
    return _lock_sessions.get(dialect) or _lock_sessions.setdefault(dialect, LockSession(is_async=dialect.is_async))
