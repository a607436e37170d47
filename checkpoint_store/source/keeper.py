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
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Dialect
from sqlalchemy.util import await_only, greenlet_spawn

from checkpoint_store import operations
from checkpoint_store.errors import LockLost, ThreadLocked, shown
from checkpoint_store.executor import Ordinary
from checkpoint_store.statements import Statements
from checkpoint_store.turns import Turns

T = TypeVar("T")
Name = tuple[str | None, str]
"""A schema and a thread."""

BEAT_SECONDS = 5.0
"""How often the session is asked for a sign of life."""

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


class Hold:
    """A lock that is wanted, held, or was lost.

    Args:
        thread_id: Whose lock.
        timeout: How long to wait for it, in seconds; None for as long as it takes.
    """

    def __init__(self, thread_id: str, timeout: float | None) -> None:
        self.thread_id = thread_id
        self.timeout = timeout
        self.is_held = False
        self.is_lost = False
        self.name: Name = (None, thread_id)
        self.number = 0
        self.pid = os.getpid()
        self.given_up = threading.Event()
        """Set when a thread that waits for it need not any more."""


class Keeper:
    """Holds locks, until they are given back or the session ends.

    Args:
        is_async: Whether it runs in greenlets.
    """

    def __init__(self, *, is_async: bool) -> None:
        self._is_async = is_async
        self._reset()

    def _reset(self) -> None:
        self.lost: set[Name] = set()
        """The threads whose lock was lost while a run was at work: nothing more of it may be stored."""
        self._pid = os.getpid()
        self._queues: dict[int, deque[Hold]] = {}
        self._wanted = 0
        """How many locks are held or waited for."""
        self._registry = threading.Lock()
        self._mutex: Callable[[], AbstractContextManager[object]]
        if self._is_async:
            self._mutex = Turns(1, None).taken
        else:
            lock = threading.Lock()
            self._mutex = lambda: lock
        self._conn: Connection | None = None
        self._abandon: Callable[[], object] = lambda: None
        self._still: Callable[[], object] = lambda: None

    def take(self, open_connection: Callable[[], Connection], sql: Statements, hold: Hold) -> None:
        """Take a lock, waiting for those who have it.

        Args:
            open_connection: Takes a connection out of the pool, where it is needed.
            sql: The statements.
            hold: What is wanted.

        Raises:
            ThreadLocked: If it takes too long.
            NotSetUp: If the tables are missing.
            UnusableConnection: If the engine's connections are no sessions of the server's.
        """
        if self._pid != os.getpid():
            self._reset()  # what is there is the parent's
        deadline = None if hold.timeout is None else time.monotonic() + hold.timeout
        hold.name, hold.pid = (sql.tables.schema, hold.thread_id), self._pid
        with self._registry:
            self._wanted += 1
        try:
            hold.number = self._whole(self._ask, open_connection, sql, operations.lock_number, hold.thread_id)
            with self._registry:
                queue = self._queues.setdefault(hold.number, deque())
                queue.append(hold)
            wait = POLL_SECONDS
            while not (queue[0] is hold and self._whole(self._try, open_connection, sql, hold)):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise locked(hold)
                is_next = queue[0] is hold
                self._pause(hold, min(x for x in (wait if is_next else _QUEUE_POLL_SECONDS, left) if x is not None))
                wait = min(wait * 1.5, _LAST_POLL_SECONDS) if is_next else wait
                if hold.given_up.is_set():
                    self.drop(sql, hold)
                    return
        except BaseException:
            self.drop(sql, hold)
            raise

    def drop(self, sql: Statements, hold: Hold) -> None:
        """Give a lock back, or the wish for it."""
        if hold.pid == os.getpid():
            self._whole(self._drop, sql, hold)

    def close(self) -> None:
        """End the session; locks that are held are lost."""
        self._whole(self._close)

    def check(self, name: Name) -> None:
        """Check that nobody at work on a thread has lost its lock.

        Raises:
            LockLost: If somebody has.
        """
        if name in self.lost:
            raise lost(name[1])

    def _try(self, open_connection: Callable[[], Connection], sql: Statements, hold: Hold) -> bool:
        with self._mutex():
            taken = self._execute(open_connection, sql, operations.take_lock, hold.number)
            # The session may have ended just behind its answer.
            hold.is_held = taken and self._conn is not None
            return hold.is_held

    def _ask(self, open_connection: Callable[[], Connection], sql: Statements, operation: Any, *args: Any) -> Any:
        with self._mutex():
            return self._execute(open_connection, sql, operation, *args)

    def forget(self, hold: Hold) -> bool:
        """Let go of a hold, but not of its lock. Tells whether nothing more is wanted of the session."""
        with self._registry:
            if hold in (queue := self._queues.get(hold.number, deque())):
                queue.remove(hold)
                if not queue:
                    del self._queues[hold.number]
            self.lost.discard(hold.name)
            if not hold.is_lost:
                self._wanted -= 1
            return not self._wanted

    def _drop(self, sql: Statements, hold: Hold) -> None:
        with self._mutex():
            try:
                has_it = hold.is_held and not hold.is_lost
                if has_it and not self._execute(None, sql, operations.drop_lock, hold.number):
                    self._lose()
            except Exception:
                self._lose()  # whatever it was, the session must not keep the lock
            finally:
                if self.forget(hold):
                    self._end_session()

    def _close(self) -> None:
        with self._mutex():
            self._note_loss()
            self._end_session()

    def _execute(
        self, open_connection: Callable[[], Connection] | None, sql: Statements, operation: Callable[..., T], *args: Any
    ) -> T:
        """Call an operation on the session; those who call have the mutex."""
        if self._conn is None:
            if open_connection is None:
                raise LockLost("the session has ended")
            self._begin_session(open_connection, sql)
        conn = cast("Connection", self._conn)
        try:
            return self._limited(operation, Ordinary(conn), sql, *args)
        except BaseException:
            if conn.invalidated:
                self._lose()
            raise

    def _begin_session(self, open_connection: Callable[[], Connection], sql: Statements) -> None:
        conn = open_connection()
        try:
            self._limited(operations.begin_session, Ordinary(conn), sql, SETTINGS)
            dbapi = cast("Any", conn.connection.dbapi_connection)
            driver = conn.dialect.get_driver_connection(dbapi)
        except BaseException:
            if not conn.invalidated:
                _close(conn)
            raise
        if hasattr(driver, "add_termination_listener"):
            driver.add_termination_listener(lambda *_: self._lose(conn))
        # A connection that is out of the pool is not closed when it is invalidated.
        self._abandon = driver.terminate if hasattr(driver, "terminate") else partial(conn.dialect.do_terminate, dbapi)
        self._conn = conn
        self._still = self._beating(sql)

    def _end_session(self) -> None:
        conn, self._conn = self._conn, None
        self._still()
        if conn is not None:
            _close(conn)
        self._abandon = lambda: None

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
                for hold in queue:
                    if hold.is_held and not hold.is_lost:
                        hold.is_lost = True
                        self.lost.add(hold.name)
                        self._wanted -= 1

    def _beat(self, sql: Statements) -> None:
        with self._mutex():
            if self._conn is not None:
                try:
                    self._execute(None, sql, operations.session_id)
                except Exception:
                    self._lose()

    # --- the two worlds: greenlets and threads ---

    def _whole(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function to its end, whoever is cancelled: an interrupted statement would cost all locks."""
        return await_only(to_the_end(greenlet_spawn(function, *args))) if self._is_async else function(*args)

    def _limited(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that has to answer in time."""
        if not self._is_async:
            return function(*args)
        answer: T = await_only(asyncio.wait_for(greenlet_spawn(function, *args), ANSWER_SECONDS))
        return answer

    def _pause(self, hold: Hold, seconds: float) -> None:
        if self._is_async:
            await_only(asyncio.sleep(seconds))
        else:
            hold.given_up.wait(seconds)

    def _beating(self, sql: Statements) -> Callable[[], object]:
        """Ask for a sign of life now and then; returns what ends it."""
        if self._is_async:
            # A reference of its own would keep a keeper that is forgotten, and its session, for ever.
            return asyncio.get_running_loop().create_task(_beat_in_loop(weakref.ref(self), sql)).cancel
        stopped = threading.Event()
        threading.Thread(
            target=_beat_in_thread, args=(weakref.ref(self), sql, stopped), name="checkpoint_store locks", daemon=True
        ).start()
        return stopped.set


def _close(conn: Connection) -> None:
    """Close a connection that is out of the pool; of psycopg's, close() alone leaves the driver's open."""
    dbapi: Any = conn.connection.dbapi_connection
    conn.close()
    conn.dialect.do_close(dbapi)


async def _beat_in_loop(keeper: weakref.ref[Keeper], sql: Statements) -> None:
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        if (alive := keeper()) is None:
            return
        await greenlet_spawn(alive._beat, sql)
        del alive


def _beat_in_thread(keeper: weakref.ref[Keeper], sql: Statements, stopped: threading.Event) -> None:
    while not stopped.wait(BEAT_SECONDS):
        if (alive := keeper()) is None:
            return
        alive._beat(sql)
        del alive


async def to_the_end(call: Coroutine[Any, Any, T]) -> T:
    """Await a call to its end; if cancelled meanwhile, raise that then."""
    task = asyncio.ensure_future(call)
    cancelled: BaseException | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()
        raise cancelled
    return task.result()


def locked(hold: Hold) -> ThreadLocked:
    """Return the error for a lock that others had for too long."""
    return ThreadLocked(
        f"thread {shown(hold.thread_id, 200)}: another run has had the lock for the {hold.timeout or 0:g} s that this "
        "one has waited. Let it finish, or pass a longer timeout."
    )


def lost(thread_id: str) -> LockLost:
    """Return the error for a lock that was not held to the end."""
    return LockLost(
        f"thread {shown(thread_id, 200)}: the lock was lost, because its session of the server's ended (a restart, a "
        "failover, a lost network). Others may have written to the thread since. With refuse_forks=True neither could "
        "have written past the other."
    )


_keepers: weakref.WeakKeyDictionary[Dialect, Keeper] = weakref.WeakKeyDictionary()


def keeper_of(dialect: Dialect) -> Keeper:
    """Return the keeper that all savers on an engine share; an engine goes by its dialect, as in `Bridge`."""
    return _keepers.get(dialect) or _keepers.setdefault(dialect, Keeper(is_async=dialect.is_async))
