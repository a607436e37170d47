"""The locks that runs have on threads: those of an engine all in one session of the server's.

In sync style, as origins are: on an async engine it runs in greenlets of SQLAlchemy's, otherwise in threads.

The session has a connection of its own, taken out of the pool: runs that hold a lock need the pool's for their steps,
and with a lock on each of them nobody could make one. One session serves them all, since it may hold any number of
locks. But a lock that a session has it gets again when it asks again: so runs of one process queue up here, and only
the first one asks.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Dialect

from checkpoint_store.database.locks.request import LockRequest, lost
from checkpoint_store.database.locks.scheduling import GreenletScheduling, Opening, Scheduling, ThreadScheduling
from checkpoint_store.errors import LockLost
from checkpoint_store.sql.executor import ConnectionExecutor, Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import locks
from checkpoint_store.storage.write_batch import Change

T = TypeVar("T")

BEAT_SECONDS = 5.0
"""How often the session is asked for a sign of life, and locks are looked for that their runs have lost sight of."""

ANSWER_SECONDS = 5.0
"""How long it may take to answer."""

# The server takes 25 s to give up a client whose machine is gone, and its locks with it: by then the client, if it is
# still there and only the network is not, has noticed.
SETTINGS = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "idle_session_timeout": "0",
}

POLL_SECONDS = 0.05
"""How soon the server is asked again for a lock that somebody has; then less and less often."""

_LAST_POLL_SECONDS, _QUEUE_POLL_SECONDS = 0.5, 0.02


class LockSession:
    """Holds locks, until they are given back or the session ends.

    Args:
        is_async: Whether it runs in greenlets.
    """

    def __init__(self, *, is_async: bool) -> None:
        self._is_async = is_async
        self._reset()

    def _reset(self) -> None:
        self.lost: set[LockRequest] = set()
        """Those lost while a run was at work, and still is: nothing more of it may be stored."""
        self.within: set[LockRequest] = set()
        """Those that transactions of callers hold."""
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queues: dict[int, deque[LockRequest]] = {}
        self._wanting: set[LockRequest] = set()
        """The locks that are held or waited for; not those lost."""
        self._registry = threading.Lock()
        self._world: Scheduling = GreenletScheduling() if self._is_async else ThreadScheduling()
        self._conn: Connection | None = None
        self._opening: Opening | None = None
        self._hang_up: Callable[[], object] = lambda: None
        """Ends the session of a server that does not answer, from anywhere."""
        self._abandon: Callable[[], object] = lambda: None
        self._still: Callable[[], object] = lambda: None

    def take(self, open_connection: Callable[[], Connection], sql: Statements, request: LockRequest) -> None:
        """Take a lock, waiting for those who have it.

        Args:
            open_connection: Takes a connection out of the pool, where it is needed.
            sql: The statements.
            request: What is wanted.

        Raises:
            ThreadLocked: If others have it for too long.
            Unavailable: If the server could not be asked in time.
            Closed: If who wants it was closed.
            NotSetUp: If the tables are missing.
            UnusableConnection: If the engine's connections are no sessions of the server's.
        """
        self._settle()
        request.schema, request.pid = sql.tables.schema, self._pid
        with self._registry:
            self._wanting.add(request)
        ask = partial(self._ask, open_connection, sql, request)
        try:
            request.number = ask(self._execute, sql, locks.lock_number, request.thread_id)
            with self._registry:
                queue = self._queues.setdefault(request.number, deque())
                queue.append(request)
            wait = POLL_SECONDS
            while not ((is_next := self._is_next(sql, request, queue)) and ask(self._try, sql, request)):
                if (left := request.left) == 0:
                    raise request.locked()
                pause = wait if is_next else _QUEUE_POLL_SECONDS
                self._world.pause(request, pause if left is None else min(pause, left))
                wait = min(wait * 1.5, _LAST_POLL_SECONDS) if is_next else wait
                request.check()
        except BaseException as error:
            request.failure = error if isinstance(error, Exception) else None
            self.drop(sql, request)
            raise

    def drop(self, sql: Statements, request: LockRequest) -> None:
        """Give a lock back, or the wish for it; does nothing the second time."""
        self._settle()
        if request.pid == os.getpid() and (request.is_held or self.forget(request)):
            self._world.whole(self._drop, sql, request)

    def _settle(self) -> None:
        """Start afresh in a process that was forked, or on a loop that came after another one.

        What is there is the parent's, or was left by runs that ended with their loop, as the session did.
        """
        if self._pid != os.getpid():
            self._reset()
        elif self._is_async and self._loop is not (loop := asyncio.get_running_loop()):
            if self._loop is not None:
                self._note_loss()
                self._reset()
            self._loop = loop

    def close(self) -> None:
        """End the session; locks that are held are lost."""
        self._settle()
        if (opening := self._opening) is not None:
            opening.cancel()
        self._world.whole(self._close)

    def check(self, sql: Statements, changes: Sequence[Change], db: Executor | None = None) -> None:
        """Check that what is to be stored is not of a thread whose lock was lost by somebody who is still at work.

        Args:
            sql: The statements, of the tables it is to be stored in.
            changes: What is to be stored.
            db: What can tell whether two names are the same schema's; without it they are not.

        Raises:
            LockLost: If it is.
        """
        threads = {change.thread_id for change in changes}
        with self._registry:
            requests = [request for request in self.lost if request.thread_id in threads and not request.is_forgotten]
        for request in requests:
            is_named_so = request.schema == sql.tables.schema
            if is_named_so or (db and locks.lock_number(db, sql, request.thread_id) == request.number):
                raise lost(request)

    def forget(self, request: LockRequest) -> bool:
        """Let go of a hold, but not of its lock. Tells whether with it the last wish of the session has gone."""
        with self._registry:
            if request in (queue := self._queues.get(request.number, deque())):
                queue.remove(request)
                if not queue:
                    del self._queues[request.number]
            self.lost.discard(request)
            self.within.discard(request)
            was_wanted = request in self._wanting
            self._wanting.discard(request)
            return was_wanted and not self._wanting

    def _ask(
        self,
        open_connection: Callable[[], Connection],
        sql: Statements,
        request: LockRequest,
        function: Callable[..., T],
        *args: Any,
    ) -> T:
        """Call a function that asks the session something, to its end: a statement interrupted would cost all locks."""
        with self._world.alone(request):
            request.check()
            if self._conn is None:
                self._open(open_connection, sql, request)
            return self._world.whole(function, *args)

    def _open(self, open_connection: Callable[[], Connection], sql: Statements, request: LockRequest) -> None:
        opening = self._opening = Opening()
        try:
            self._world.begin(partial(self._begin_session, open_connection, sql), opening, request)
        finally:
            self._opening = None
        if opening.cancelled():
            request.check()
            raise request.failure or request.silent()
        opening.result()

    def _begin_session(self, open_connection: Callable[[], Connection], sql: Statements, opening: Opening) -> None:
        """Begin the session, unless nobody waits for it any more: those who do may have begun another."""
        try:
            conn = open_connection()
            dbapi = cast("Any", conn.connection.dbapi_connection)
            driver = conn.dialect.get_driver_connection(dbapi)
            terminate = getattr(driver, "terminate", None)
            hang_up = terminate or partial(_hang_up, driver)
            abandon = terminate or partial(conn.dialect.do_terminate, dbapi)
            try:
                with self._world.limited(ANSWER_SECONDS, hang_up):
                    locks.begin_session(ConnectionExecutor(conn), sql, SETTINGS)
            except BaseException:
                # A connection that is out of the pool is not closed when it is invalidated, as when it is interrupted.
                if conn.invalidated:
                    abandon()
                else:
                    _close(conn)
                raise
        except BaseException as error:
            if opening.set_running_or_notify_cancel():
                opening.set_exception(error)
            return
        if not opening.set_running_or_notify_cancel():
            _close(conn)
            return
        if hasattr(driver, "add_termination_listener"):
            driver.add_termination_listener(lambda *_: self._lose(conn))
        self._abandon, self._hang_up, self._conn = abandon, hang_up, conn
        self._still = self._world.repeat(BEAT_SECONDS, self, partial(_beat, sql=sql))
        opening.set_result(None)

    def _is_next(self, sql: Statements, request: LockRequest, queue: deque[LockRequest]) -> bool:
        """Tell whether nobody of this process is before it, but for those who have forgotten their locks."""
        while (first := queue[0] if queue else None) is not None and first.is_forgotten:
            self.drop(sql, first)
        return first is request

    def _try(self, sql: Statements, request: LockRequest) -> bool:
        taken = self._execute(sql, locks.take_lock, request.number)
        # The session may have ended just behind its answer.
        request.is_held = taken and self._conn is not None
        if request.is_held and request not in self._wanting:
            # It was given up while the server was asked.
            self._give_back(sql, request)
        return request.is_held

    def _drop(self, sql: Statements, request: LockRequest) -> None:
        with self._world.alone():
            try:
                self._give_back(sql, request)
            finally:
                self.forget(request)
                if not self._wanting:
                    self._end_session()

    def _give_back(self, sql: Statements, request: LockRequest) -> None:
        try:
            has_it = request.is_held and not request.is_lost
            if has_it and not self._execute(sql, locks.drop_lock, request.number):
                self._lose()
        except Exception:
            self._lose()  # whatever it was, the session must not keep the lock
        finally:
            request.is_held = False

    def _close(self) -> None:
        with self._world.alone():
            self._note_loss()
            self._end_session()

    def _execute(self, sql: Statements, operation: Callable[..., T], *args: Any) -> T:
        """Call an operation on the session; those who call are alone with it."""
        if (conn := self._conn) is None:
            raise LockLost("the session has ended")
        try:
            with self._world.limited(ANSWER_SECONDS, self._hang_up):
                return operation(ConnectionExecutor(conn), sql, *args)
        except BaseException:
            if conn.invalidated:
                self._lose()
            raise

    def _end_session(self) -> None:
        conn, self._conn = self._conn, None
        self._still()
        if conn is not None:
            _close(conn)
        self._hang_up = self._abandon = lambda: None

    def _lose(self, conn: Connection | None = None) -> None:
        """Note that the session has ended; by the driver's word only if it is still the one at work."""
        if conn is None or conn is self._conn:
            ended, self._conn = self._conn, None
            self._note_loss()
            if ended is not None and conn is None:
                with suppress(Exception):
                    self._abandon()
                ended.invalidate()
                ended.close()
            self._still()  # at last: it may be what has noticed

    def _note_loss(self) -> None:
        with self._registry:
            for queue in self._queues.values():
                for request in queue:
                    if request.is_held and not request.is_lost:
                        request.is_lost = True
                        self.lost.add(request)
                        self._wanting.discard(request)

    def _beat(self, sql: Statements) -> None:
        with self._world.alone():
            if self._conn is not None:
                try:
                    self._execute(sql, locks.session_id)
                except Exception:
                    self._lose()
        with self._registry:
            forgotten = [request for queue in self._queues.values() for request in queue if request.is_forgotten]
        for request in forgotten:
            self.drop(sql, request)


def _beat(lock_session: LockSession, sql: Statements) -> None:
    """Ask for a sign of life, and give back what nobody else will."""
    lock_session._beat(sql)


def _hang_up(driver: Any) -> None:
    """End a connection of psycopg's under whoever waits for an answer; close() is not for another thread to call."""
    with suppress(Exception):
        shared = socket.socket(fileno=driver.fileno())
        try:
            shared.shutdown(socket.SHUT_RDWR)
        finally:
            shared.detach()


def _close(conn: Connection) -> None:
    """Close a connection that is out of the pool; of psycopg's, close() alone leaves the driver's open."""
    dbapi: Any = conn.connection.dbapi_connection
    conn.close()
    conn.dialect.do_close(dbapi)


_keepers: weakref.WeakKeyDictionary[Dialect, LockSession] = weakref.WeakKeyDictionary()


def lock_session_of(dialect: Dialect) -> LockSession:
    """Return the keeper that all savers on an engine share; an engine goes by its dialect, as in `EventLoop`."""
    return _keepers.get(dialect) or _keepers.setdefault(dialect, LockSession(is_async=dialect.is_async))
