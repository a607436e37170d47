"""The lock that whoever migrates a schema holds.

Alembic keeps its `context` in a module global, so only one migration may run in a process at a time, and only one in a
schema, whatever the number of processes: a mutex sees to the first, an advisory lock to the second.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from sqlalchemy import Connection, Select, func, select

from checkpoint_store import options
from checkpoint_store.errors import MigrationLocked, UnusableConnection
from checkpoint_store.process import ProcessLock
from checkpoint_store.schema import VERSION_TABLE

LOCK_SECONDS = 60.0
"""How long to wait for another process that migrates the same schema."""

_POLL_SECONDS = 0.05
_HELD = "checkpoint_store_locked"
"""Where a connection's `info` has the keys of the locks that it holds."""

T = TypeVar("T")
Pause = Callable[[float], None]

_mutex = ProcessLock()


@contextlib.contextmanager
def locked(
    conn: Connection, schema: str | None, timeout: float = LOCK_SECONDS, pause: Pause = time.sleep
) -> Iterator[None]:
    """Be the only one that migrates, in this process and in the schema; a connection that is already, goes on.

    Args:
        conn: In a transaction the lock lasts until its end; otherwise until the end of the block.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
        timeout: How long to wait, in seconds.
        pause: Sleeps for so many seconds.

    Raises:
        MigrationLocked: If another has held the lock past the deadline.
    """
    check_arguments(conn, timeout, pause)
    theirs = conn.in_transaction()
    key = lock_key_of(conn, schema)
    held: set[int] = conn.info.setdefault(_HELD, set())
    if key in held:
        yield
        return
    deadline = time.monotonic() + timeout
    with in_turn(timeout, pause):
        take = func.pg_try_advisory_xact_lock if theirs else func.pg_try_advisory_lock
        # Poll instead of blocking: a waiting lock holds a snapshot, and CREATE INDEX CONCURRENTLY waits for those.
        while not _answer(conn, select(take(key)), theirs):
            _wait(deadline, pause, "another process")
        held.add(key)
        try:
            yield
        finally:
            held.discard(key)
            if not theirs and not conn.invalidated:
                conn.rollback()
                _answer(conn, select(func.pg_advisory_unlock(key)), theirs)


def check_arguments(conn: object, timeout: object, pause: object) -> None:
    """Raise unless a caller's arguments are of the kinds that they have to be.

    Raises:
        UnusableConnection: If `conn` is no connection.
        InvalidOption: If `timeout` is no time, or `pause` no function.
    """
    if not isinstance(conn, Connection):
        raise UnusableConnection(
            f"conn is a {type(conn).__module__}.{type(conn).__qualname__}; it has to be an open Connection of "
            "SQLAlchemy's. From an AsyncConnection, use `await conn.run_sync(...)`."
        )
    options.seconds(timeout, "timeout")
    options.callback(pause, "pause")


@contextlib.contextmanager
def in_turn(timeout: float = LOCK_SECONDS, pause: Pause = time.sleep) -> Iterator[None]:
    """Be the only one that migrates in this process.

    Args:
        timeout: How long to wait, in seconds.
        pause: Sleeps for so many seconds.

    Raises:
        MigrationLocked: If another has had its turn past the deadline.
    """
    deadline = time.monotonic() + timeout
    mutex = _mutex.current
    while not mutex.acquire(blocking=False):
        _wait(deadline, pause, "another thread of this process")
    try:
        yield
    finally:
        mutex.release()


def lock_key(schema: str | None) -> int:
    """Return the number of the advisory lock that whoever migrates a schema holds."""
    return int.from_bytes(hashlib.sha256(f"{VERSION_TABLE} {schema}".encode()).digest()[:8], "big", signed=True)


def lock_key_of(conn: Connection, schema: str | None) -> int:
    """Return the same, for the schema that a connection's `search_path` resolves to if None is given."""
    return lock_key(schema or _answer(conn, select(func.current_schema()), conn.in_transaction()))


def _answer(conn: Connection, question: Select[tuple[T]], theirs: bool) -> T:
    """Ask, and leave no transaction open that was not open before."""
    answer: T = conn.scalar(question)
    if not theirs:
        conn.commit()
    return answer


def _wait(deadline: float, pause: Pause, who: str) -> None:
    if time.monotonic() > deadline:
        raise MigrationLocked(f"{who} has held the migration lock past the deadline. Let it finish, then try again.")
    pause(_POLL_SECONDS * random.uniform(0.5, 1.5))
