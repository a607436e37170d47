"""Waiting of a migration for table locks: its deadline, and the transactions that it waits for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnClause, ColumnElement, Connection, column, extract, func, or_, select, table

from checkpoint_store.errors import short_repr
from checkpoint_store.schema import Tables, qualified

_MAX_MILLISECONDS = 2**31 - 1  # of `lock_timeout`


@dataclass(frozen=True)
class LockTimeout:
    """The time that a migration waits for transactions that are using the tables."""

    deadline: float
    """The time at which it gives up, by `time.monotonic()`."""
    seconds: float
    """The time that it waits for one lock: later statements wait after it, and two may wait for each other."""

    @property
    def left(self) -> float:
        """The seconds until the deadline."""
        return max(self.deadline - time.monotonic(), 0)

    @classmethod
    def of_one_attempt(cls, seconds: float) -> LockTimeout:
        """Return the timeout of a migration that is attempted once."""
        return cls(time.monotonic() + seconds, seconds)


@contextlib.contextmanager
def limit_lock_waits(conn: Connection, seconds: float, *, local: bool = True) -> Iterator[None]:
    """Limit the wait for each lock by `lock_timeout`; a shorter one that is set already stays.

    It is set for the transaction, which undoes it if it fails, or for the session.
    """
    limit = max(round(min(seconds * 1000, _MAX_MILLISECONDS)), 1)
    settings = table("pg_settings", column("name"), column("setting"))
    before = int(conn.scalar(select(settings.c.setting).where(settings.c.name == "lock_timeout")) or 0)
    if 0 < before <= limit:
        yield
        return
    conn.execute(select(func.set_config("lock_timeout", str(limit), local)))
    try:
        yield
    except BaseException:
        if not local and not conn.invalidated:
            conn.execute(select(func.set_config("lock_timeout", str(before), local)))
        raise
    conn.execute(select(func.set_config("lock_timeout", str(before), local)))


def blocking_transactions(conn: Connection, schema: str | None, *, snapshots: bool) -> str:
    """Describe the transactions that a migration has to wait for; empty if there are none, or the role can't see them.

    With `snapshots` also those that use other tables and have old snapshots, for which CREATE INDEX CONCURRENTLY waits.
    """
    activity = table("pg_stat_activity", *map(column, ("pid", "datname", "application_name", "state")))
    xact_start: ColumnClause[Any] = column("xact_start")
    locks = table("pg_locks", column("pid"), column("granted"), column("relation"))
    names = [func.to_regclass(qualified(each.name, schema)) for each in Tables(schema).all]
    is_blocking: ColumnElement[bool] = activity.c.pid.in_(
        select(locks.c.pid).where(locks.c.granted, locks.c.relation.in_(names))
    )
    if snapshots:
        is_blocking |= column("backend_xmin").is_not(None)
    age = extract("epoch", func.clock_timestamp() - xact_start)
    conn.execute(select(func.pg_stat_clear_snapshot()))  # a caller's transaction may have looked before
    # Never their queries, which have values in them. Short transactions will be over before anyone has read of them.
    found = conn.execute(
        select(activity.c.pid, activity.c.application_name, activity.c.state, age)
        .where(activity.c.datname == func.current_database(), activity.c.pid != func.pg_backend_pid(), is_blocking)
        .where(or_(activity.c.state.like("idle%"), age > 1, xact_start.is_(None)))
        .order_by(xact_start, activity.c.pid)
        .limit(10)
    )
    return "; ".join(
        f"process {pid} (application_name {short_repr(application)}, {state or 'state unknown'}"
        + (")" if seconds is None else f", its transaction {seconds:.0f} s old)")
        for pid, application, state, seconds in found
    )
