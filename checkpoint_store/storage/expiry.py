"""The expiry of whole threads: its rules, the threads that have expired, and their deletion."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, Self

from checkpoint_store.errors import InvalidOption, short_repr
from checkpoint_store.serde import jsonb
from checkpoint_store.sql.arrays import array_binds, thread_binds
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import deletion, locks
from checkpoint_store.storage.checkpoint_time import first_id_within
from checkpoint_store.storage.deletion_plan import Rule
from checkpoint_store.storage.operation import Kind, operation
from checkpoint_store.storage.sweep_report import SweepReport
from checkpoint_store.storage.thread_list import ThreadSummary, summary_of

Keep = Callable[[ThreadSummary], Awaitable[bool] | bool]
"""Returns whether a thread that has expired is kept; may be async for `asweep`."""

BeforeDelete = Callable[[list[ThreadSummary]], Awaitable[None] | None]
"""Called with threads before they are deleted; may be async for `asweep`."""


@dataclass(frozen=True)
class Expiry:
    """A rule by which a thread as a whole expires.

        Expiry(idle=timedelta(days=30), filter={"plan": "trial"})

    A thread has expired once nothing of it is younger than `idle`, or its oldest checkpoint is older than `age`. The
    times are those in the checkpoints' ids; a thread with an id that has none never expires.

    Raises:
        InvalidOption: If there is neither `idle` nor `age`, or an option can't be used.
    """

    idle: timedelta | None = None
    """The time since anything was stored in the thread: the age of its newest checkpoint, in any namespace."""
    age: timedelta | None = None
    """The age of its oldest checkpoint that is stored, whether the thread is in use or not."""
    filter: Mapping[str, Any] | None = None
    """The metadata that its newest root checkpoint must contain (PostgreSQL's `@>`); None for every thread."""
    quiet: timedelta = timedelta(hours=1)
    """The time without a write before a thread is deleted by `age`, so that no run under way loses its thread."""

    def __post_init__(self) -> None:
        if self.idle is None and self.age is None:
            raise InvalidOption("Expiry() needs idle or age, or both; Expiry.never() exempts threads")
        for name in ("idle", "age", "quiet"):
            value = getattr(self, name)
            if (isinstance(value, timedelta) and value > timedelta(0)) or (value is None and name != "quiet"):
                continue
            raise InvalidOption(f"{name} must be a timedelta, more than 0, not {short_repr(value)}")
        if self.filter is not None:
            jsonb.filter_text(dict(self.filter) if isinstance(self.filter, Mapping) else self.filter)

    @classmethod
    def never(cls, filter: Mapping[str, Any] | None = None) -> Self:
        """Return a rule by which threads never expire, to be named before the rules that would delete them.

        Args:
            filter: As that of other rules.
        """
        return cls(idle=timedelta.max, filter=filter)


@dataclass(frozen=True)
class Expiration:
    """The rules of one sweep, with the times at which it began."""

    binds: Mapping[str, Any]
    """Those of `sql.expired_threads`."""
    before: str
    """An id that some checkpoint of a thread that has expired is older than."""

    @classmethod
    def of(cls, rules: Sequence[Expiry]) -> Self:
        """Return the rules as of now."""
        rows = [
            (
                jsonb.filter_text(dict(rule.filter or {})),
                *[None if age is None else first_id_within(age) for age in (rule.idle, rule.age, rule.quiet)],
            )
            for rule in rules
        ]
        before = max(one for _, idle, age, _ in rows for one in (idle, age) if one is not None)
        return cls(array_binds(("filter", "idle", "age", "quiet"), rows), before)


class ExpiredThread(NamedTuple):
    """A thread that has expired, as `sql.expired_threads` selects it: two are equal if nothing was stored between."""

    thread_id: str
    root_id: str | None
    """The newest checkpoint of the root graph."""
    metadata: str | None
    """That checkpoint's metadata as JSON text."""
    checkpoints: int
    oldest: str
    newest: str
    writes: int
    """The number of its pending writes."""

    def summary(self) -> ThreadSummary:
        """Return the thread's entry in a list by id."""
        return summary_of(self.thread_id, self.root_id, self.metadata, self.checkpoints)


@operation(Kind.READ)
def find_next_expired(
    db: Executor, sql: Statements, after: str, expiration: Expiration
) -> tuple[str | None, int, list[ExpiredThread]]:
    """Look at the threads that follow one for those that have expired.

    Returns:
        Where to go on, the number of threads, and those.
    """
    after_those, count, rows = deletion.find_next_threads(
        db, sql, after, Rule(before=expiration.before, deletes_threads=True)
    )
    return after_those, count, _expired_among(db, sql, expiration, [row[0] for row in rows])


@operation(Kind.WRITE, in_transaction=True)
def delete_expired(
    db: Executor, sql: Statements, expiration: Expiration, found: Sequence[ExpiredThread]
) -> SweepReport:
    """Delete threads that have expired, each completely, if nothing was stored in them since they were found.

    One whose lock a run holds stays as it is.
    """
    ids = [one.thread_id for one in found]
    locks.lock_removal(db, sql, ids)
    idle = locks.take_free_locks(db, sql, ids)
    same = {*found} & {*_expired_among(db, sql, expiration, idle)}
    return deletion.delete_whole_threads(db, sql, {one.thread_id: one.checkpoints for one in same})


def _expired_among(
    db: Executor, sql: Statements, expiration: Expiration, thread_ids: Sequence[str]
) -> list[ExpiredThread]:
    # Of distributed tables by one thread after the other: each is a task of one shard.
    parts = [[one] for one in thread_ids] if sql.are_distributed else [thread_ids] if thread_ids else []
    return [
        ExpiredThread._make(row)
        for part in parts
        for row in db.fetch(sql.expired_threads, {**thread_binds(part), **expiration.binds})
    ]
