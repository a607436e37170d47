"""The lock that whoever migrates a schema holds, and how long a migration waits for locks of others.

Alembic keeps its `context` in a module global, so only one migration may run in a process at a time, and only one in a
schema, whatever the number of processes: a mutex sees to the first, an advisory lock to the second.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import ColumnClause, ColumnElement, Connection, Select, column, extract, func, or_, select, table

from checkpoint_store.conninfo.fork import ProcessLock
from checkpoint_store.errors import MigrationLocked, UnusableConnection, short_repr
from checkpoint_store.schema import VERSION_TABLE, Tables, qualified
from checkpoint_store.serde import arguments

LOCK_SECONDS = 60.0
"""How long to wait for another process that migrates the same schema."""

_POLL_SECONDS = 0.05
_MOST_MILLISECONDS = 2**31 - 1  # that `lock_timeout` takes
_HELD = "checkpoint_store_locked"
"""Where a connection's `info` has the keys of the locks that it holds."""

NOT_AVAILABLE = "55P03"
"""The SQLSTATE of a lock that was waited for past `lock_timeout`."""

PATIENCE = "checkpoint_store_patience"
"""Where the attributes of an Alembic configuration have a `Patience`."""

T = TypeVar("T")
Pause = Callable[[float], None]


@dataclass(frozen=True)
class Patience:
    """How long a migration waits for transactions that are using the tables."""

    deadline: float
    """When it gives up, by `time.monotonic()`."""
    seconds: float
    """How long it waits for one lock: whoever comes later waits behind it, and two may wait for each other."""

    @property
    def left(self) -> float:
        """The seconds until the deadline."""
        return max(self.deadline - time.monotonic(), 0)


def patience_of(timeout: float) -> Patience:
    """Return the patience of whoever tries once."""
    return Patience(time.monotonic() + timeout, timeout)


@contextlib.contextmanager
def bounded(conn: Connection, seconds: float, *, local: bool = True) -> Iterator[None]:
    """Bound the wait for each lock by `lock_timeout`; a shorter one that is set already stays.

    Args:
        conn: Where to set it.
        seconds: The bound.
        local: Whether it is set for the transaction, which undoes it if it fails, or for the session.
    """
    most = max(round(min(seconds * 1000, _MOST_MILLISECONDS)), 1)
    settings = table("pg_settings", column("name"), column("setting"))
    before = int(conn.scalar(select(settings.c.setting).where(settings.c.name == "lock_timeout")) or 0)
    if 0 < before <= most:
        yield
        return
    conn.execute(select(func.set_config("lock_timeout", str(most), local)))
    try:
        yield
    except BaseException:
        if not local and not conn.invalidated:
            conn.execute(select(func.set_config("lock_timeout", str(before), local)))
        raise
    conn.execute(select(func.set_config("lock_timeout", str(before), local)))


def in_use(
    what: str, conn: Connection, schema: str | None, *, theirs: bool, snapshots: bool = False
) -> MigrationLocked:
    """Return the error for DDL that has waited for a lock on a table past its deadline.

    Args:
        what: What has.
        conn: Where it has failed; its transaction is rolled back, unless it is a caller's.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
        theirs: Whether the transaction is a caller's: nothing can be asked in it any more.
        snapshots: See `those_in_the_way`.
    """
    known = ""
    if not theirs:
        conn.rollback()
        known = those_in_the_way(conn, schema, snapshots=snapshots)
        conn.rollback()
    return MigrationLocked(
        f"{what} waits for transactions that are using the tables: {known or 'see pg_stat_activity'}. "
        "What it had begun was rolled back. Let them end, and try again."
    )


def those_in_the_way(conn: Connection, schema: str | None, *, snapshots: bool) -> str:
    """Name the transactions that a migration has to wait for; empty if there are none, or the role can't see them.

    Args:
        conn: A connection, not in a transaction that has failed.
        schema: The PostgreSQL schema of the tables, or None for the `search_path`'s.
        snapshots: Whether it waits for old snapshots too, as CREATE INDEX CONCURRENTLY does, also those of
            transactions that use other tables.
    """
    activity = table("pg_stat_activity", *map(column, ("pid", "datname", "application_name", "state")))
    xact_start: ColumnClause[Any] = column("xact_start")
    backend_xmin: ColumnClause[Any] = column("backend_xmin")
    locks = table("pg_locks", column("pid"), column("granted"), column("relation"))
    names = [func.to_regclass(qualified(each.name, schema)) for each in Tables(schema).all]
    in_the_way: ColumnElement[bool] = activity.c.pid.in_(
        select(locks.c.pid).where(locks.c.granted, locks.c.relation.in_(names))
    )
    if snapshots:
        in_the_way |= backend_xmin.is_not(None)
    age = extract("epoch", func.clock_timestamp() - xact_start)
    # Never their queries, which have values in them. What is short will be over before anybody has read of it.
    found = conn.execute(
        select(activity.c.pid, activity.c.application_name, activity.c.state, age)
        .where(activity.c.datname == func.current_database(), activity.c.pid != func.pg_backend_pid(), in_the_way)
        .where(or_(activity.c.state.like("idle%"), age > 1, xact_start.is_(None)))
        .order_by(xact_start, activity.c.pid)
        .limit(10)
    )
    return "; ".join(
        f"process {pid} (application_name {short_repr(application)}, {state or 'state unknown'}"
        + (")" if seconds is None else f", its transaction {seconds:.0f} s old)")
        for pid, application, state, seconds in found
    )


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
    arguments.seconds(timeout, "timeout")
    arguments.callback(pause, "pause")


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
