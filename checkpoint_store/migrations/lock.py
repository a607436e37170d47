"""The migration lock: one migration at a time in a process, and one in a schema of a database.

Alembic keeps its `context` in a module global, so a mutex excludes other threads of the process; an advisory lock
excludes other processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from sqlalchemy import Connection, Select, func, select

from checkpoint_store.conninfo.fork import ProcessLock
from checkpoint_store.errors import MigrationLocked, UnusableConnection
from checkpoint_store.schema import VERSION_TABLE
from checkpoint_store.serde import arguments

LOCK_SECONDS = 60.0
"""The time to wait for another process that migrates the same schema."""

_POLL_SECONDS = 0.05
_HELD = "checkpoint_store_locked"
"""The key in a connection's `info` of the numbers of the locks that it holds."""

T = TypeVar("T")
Pause = Callable[[float], None]
"""A function that sleeps for a number of seconds."""

_mutex = ProcessLock()


@contextlib.contextmanager
def migration_lock(
    conn: Connection, schema: str | None, timeout: float = LOCK_SECONDS, pause: Pause = time.sleep
) -> Iterator[None]:
    """Hold the migration lock of a schema, or raise `MigrationLocked`; a connection that holds it already goes on.

    In a transaction the connection holds it until its end, otherwise until the end of the block.
    """
    check_arguments(conn, timeout, pause)
    in_transaction = conn.in_transaction()
    key = lock_key_of(conn, schema)
    held: set[int] = conn.info.setdefault(_HELD, set())
    if key in held:
        yield
        return
    deadline = time.monotonic() + timeout
    with process_lock(timeout, pause):
        take = func.pg_try_advisory_xact_lock if in_transaction else func.pg_try_advisory_lock
        # Poll instead of blocking: a waiting lock holds a snapshot, and CREATE INDEX CONCURRENTLY waits for those.
        while not _scalar(conn, select(take(key)), in_transaction):
            _wait(deadline, pause, "another process")
        held.add(key)
        try:
            yield
        finally:
            held.discard(key)
            if not in_transaction and not conn.invalidated:
                conn.rollback()
                _scalar(conn, select(func.pg_advisory_unlock(key)), in_transaction)


@contextlib.contextmanager
def process_lock(timeout: float = LOCK_SECONDS, pause: Pause = time.sleep) -> Iterator[None]:
    """Exclude other migrations of this process, or raise `MigrationLocked`."""
    deadline = time.monotonic() + timeout
    mutex = _mutex.current
    while not mutex.acquire(blocking=False):
        _wait(deadline, pause, "another thread of this process")
    try:
        yield
    finally:
        mutex.release()


def check_arguments(conn: object, timeout: object, pause: object) -> None:
    """Check the types of a caller's arguments, or raise `UnusableConnection` or `InvalidOption`."""
    if not isinstance(conn, Connection):
        kind = f"{type(conn).__module__}.{type(conn).__qualname__}"
        raise UnusableConnection(
            f"conn must be an open Connection of SQLAlchemy's, not a {kind}. From an AsyncConnection, use "
            "`await conn.run_sync(...)`."
        )
    arguments.seconds(timeout, "timeout")
    arguments.callback(pause, "pause")


def lock_key(schema: str | None) -> int:
    """Return the number of the advisory lock on a schema's migrations."""
    return int.from_bytes(hashlib.sha256(f"{VERSION_TABLE} {schema}".encode()).digest()[:8], "big", signed=True)


def lock_key_of(conn: Connection, schema: str | None) -> int:
    """Return the same; None stands for the schema that the connection's `search_path` resolves to."""
    return lock_key(schema or _scalar(conn, select(func.current_schema()), conn.in_transaction()))


def _scalar(conn: Connection, query: Select[tuple[T]], in_transaction: bool) -> T:
    """Return the query's value, and leave no transaction open that was not open before."""
    value: T = conn.scalar(query)
    if not in_transaction:
        conn.commit()
    return value


def _wait(deadline: float, pause: Pause, holder: str) -> None:
    if time.monotonic() > deadline:
        raise MigrationLocked(f"{holder} has held the migration lock past the deadline. Let it finish, then try again.")
    pause(_POLL_SECONDS * random.uniform(0.5, 1.5))
