"""The list of threads: its arguments, its entries, and the cursor by which it is read in batches."""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, cast

from checkpoint_store.errors import InvalidConfig, short_repr
from checkpoint_store.serde import jsonb
from checkpoint_store.serde.arguments import choice, flag
from checkpoint_store.serde.keys import limit_of, plain_text
from checkpoint_store.sql.arrays import array_binds
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.list_threads import MANY, MAX_STEPS
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.checkpoint_time import first_id_of, is_older, time_of
from checkpoint_store.storage.operation import Kind, operation

Order = Literal["newest", "thread_id"]

MetadataOf = Callable[[str, str | None], dict[str, Any]]
"""Returns the metadata of a thread, by its id, from JSON text."""

BATCH_THREADS = 128
"""The largest number of threads that a statement returns."""

_FEWEST_STEPS, _STEPS_PER_THREAD = 64, 16
"""The number of checkpoints looked at first: enough for threads that have some 16 each."""

_MOST_PASSED = 64
"""The largest number of threads passed over at once; each costs a comparison for every row."""


@dataclass(frozen=True)
class ThreadSummary:
    """A thread in a list."""

    thread_id: str
    checkpoint_id: str | None
    """The newest checkpoint of the root graph, or None if only subgraphs have any."""
    updated_at: datetime | None
    """The time in that checkpoint's id, in UTC; None if it has none, which LangGraph's ids have."""
    metadata: dict[str, Any]
    """That checkpoint's metadata."""
    checkpoints: int | None
    """The number of its checkpoints in all namespaces; None unless they were to be counted."""
    cursor: str
    """The cursor of a list that begins after this thread."""


class ThreadListRequest(NamedTuple):
    """The arguments of a list of threads."""

    start: tuple[str, str | None, str] | None
    """The stage of the walk to begin in, and the checkpoint and thread to begin after."""
    order: Order
    limit: int | None
    prefix: str | None
    filter: str | None
    counts: bool
    before: str | None
    """The id that the newest checkpoint must be older than; threads whose id has no time are left out then."""


def listing_of(
    *,
    limit: int | None,
    cursor: str | None,
    order: Order,
    metadata_filter: dict[str, Any] | None,
    prefix: str | None,
    count: bool,
    older_than: datetime | None = None,
) -> ThreadListRequest:
    """Return the arguments of a list of threads, checked.

    Raises:
        InvalidConfig: If an argument can't be used.
    """
    order = cast("Order", choice(order, "order", [*_STAGES], InvalidConfig))
    start = None if cursor is None else _position(cursor)
    if start is not None and start[0] not in _STAGES[order]:
        raise InvalidConfig(f"cursor comes from a list in another order than {order!r}; go on in the same one")
    return ThreadListRequest(
        start,
        order,
        None if limit is None else limit_of(limit, "threads"),
        None if prefix is None else plain_text(prefix, "prefix") or None,
        jsonb.filter_text(metadata_filter),
        flag(count, "count", InvalidConfig),
        None if older_than is None else first_id_of(older_than),
    )


_STAGES = {"newest": ("newest", "rootless"), "thread_id": ("thread_id",)}
"""A list of the newest ends with the threads that have no root checkpoint: nothing says when those were last used."""


class ThreadCursor:
    """The state of one list of threads.

    Args:
        listing: The list's arguments.
        metadata_of: Returns the metadata of a thread's JSON text; by default it raises if Python can't hold it.
    """

    def __init__(self, listing: ThreadListRequest, *, metadata_of: MetadataOf | None = None) -> None:
        self._listing = listing
        self._metadata_of = metadata_of
        self._left = listing.limit
        stages = _STAGES[listing.order]
        stage, *last = listing.start or (stages[0], listing.before, None if listing.before is None else "")
        # Where there is no root checkpoint, there is no metadata that contains anything, and no time.
        has_rootless = listing.filter is None and listing.before is None
        self._stages = [one for one in stages[stages.index(stage) :] if one != "rootless" or has_rootless]
        self._last: tuple[str | None, str | None] = (last[0], last[1])
        self._passed: list[str] = []
        self._steps = min(MAX_STEPS, max(_FEWEST_STEPS, self._wanted * _STEPS_PER_THREAD))

    @property
    def has_next(self) -> bool:
        """Whether there may be more threads."""
        return bool(self._stages) and self._left != 0

    @property
    def conditions(self) -> frozenset[str]:
        """The next statement's conditions, its stage among them."""
        listing = self._listing
        given = {
            "after": self._last[1] is not None,
            "prefix": listing.prefix,
            "filter": listing.filter,
            "count": listing.counts,
        }
        return frozenset({self._stages[0], *[name for name, value in given.items() if value]})

    @property
    def binds(self) -> dict[str, Any]:
        """The next statement's binds."""
        return {
            "last_checkpoint_id": self._last[0],
            "last_thread_id": self._last[1],
            "skipped": self._passed,
            "prefix": self._listing.prefix,
            "filter": self._listing.filter,
            "steps": self._steps,
            "wanted": self._wanted,
        }

    def advance(self, row: Sequence[Any]) -> list[ThreadSummary]:
        """Return the threads that a statement has found, and move to where the next one begins."""
        steps, checkpoint_id, thread_id, many, *arrays = row
        stage = self._stages[0]
        found = [
            summary_of(thread_id, newest, metadata, count, stage, metadata_of=self._metadata_of)
            for thread_id, newest, metadata, count in zip(*[array or () for array in arrays], strict=True)
        ]
        if len(found) == self._wanted:
            # There may be more of them among those that were looked at, which were more than needed.
            self._last = (found[-1].checkpoint_id, found[-1].thread_id)
            self._steps = max(self._wanted, self._steps // 2)
        elif steps < self._steps:
            del self._stages[0]
            self._last, self._passed = (None, None), []
        else:
            self._last = (checkpoint_id, thread_id)
            self._passed = [*self._passed, *(many or ())][-_MOST_PASSED:]
            self._steps = min(MAX_STEPS, self._steps * 2)
        before = self._listing.before
        if before is not None:
            found = [one for one in found if one.checkpoint_id is not None and is_older(one.checkpoint_id, before)]
        found = found[: self._left]
        if self._left is not None:
            self._left -= len(found)
        return found

    @property
    def _wanted(self) -> int:
        # In the order of their ids most threads may be passed over.
        passes = self._listing.before is not None and self._stages[:1] == ["thread_id"]
        return BATCH_THREADS if self._left is None or passes else min(BATCH_THREADS, self._left)


@operation(Kind.READ, may_lag=lambda *_: True)
def list_threads(db: Executor, sql: Statements, conditions: frozenset[str], binds: dict[str, Any]) -> Row:
    """Return the next batch of a list of threads, as `sql.list_threads` selects it."""
    if sql.are_distributed:
        return _of_all_shards(db, sql, conditions, binds)
    return db.fetch(sql.list_threads(conditions), binds)[0]


@operation(Kind.READ)
def thread_sizes(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> dict[str, int]:
    """Return the bytes of some threads, as stored; reads their rows, but no large value."""
    return dict(map(tuple, db.fetch(sql.thread_sizes, {"thread_ids": thread_ids})))


def _of_all_shards(db: Executor, sql: Statements, conditions: frozenset[str], binds: dict[str, Any]) -> Row:
    """Return the same of distributed tables: 0 steps, or a smaller number, if there are no more threads."""
    is_counted, conditions = "count" in conditions, conditions - {"count"}
    steps, last, many = 0, (None, None), None
    if "rootless" in conditions or not conditions & {"newest", "filter"}:
        found = _threads_by_id(db, sql, conditions, binds)
    else:
        if "newest" in conditions and "filter" not in conditions and binds["steps"] < MAX_STEPS:
            part = db.fetch(sql.next_roots(conditions), binds)
            steps = len(part)
            if steps == binds["steps"]:
                last = tuple(part[-1])
                many = [name for name, rows in Counter(name for _, name in part).items() if rows >= MANY]
                conditions |= {"until"}
                binds = {**binds, "until_checkpoint_id": last[0], "until_thread_id": last[1]}
        found = db.fetch(sql.threads_with_root(conditions), binds)
    names = {"thread_ids": [thread_id for thread_id, *_ in found]}
    counts = dict(map(tuple, db.fetch(sql.checkpoint_counts, names))) if found and is_counted else {}
    rows = [(*one, counts.get(one[0])) for one in found]
    return [steps, *last, many, *(zip(*rows, strict=True) if rows else [()] * 4)]


def _threads_by_id(db: Executor, sql: Statements, conditions: frozenset[str], binds: dict[str, Any]) -> Sequence[Row]:
    """Return the next threads in the order of their ids, as `sql.threads_with_root` does, with or without a root."""
    found = db.fetch(sql.next_threads_by_id(conditions), binds)
    names = array_binds(("thread_id", "checkpoint_id"), [row for row in found if row[1] is not None])
    metadata = dict(map(tuple, db.fetch(sql.root_metadata, names))) if names["thread_ids"] else {}
    return [(thread_id, newest, metadata.get(thread_id)) for thread_id, newest in found]


def summary_of(
    thread_id: str,
    checkpoint_id: str | None,
    metadata: str | None,
    count: int | None,
    stage: str = "thread_id",
    *,
    metadata_of: MetadataOf | None = None,
) -> ThreadSummary:
    """Return a thread's entry in a list.

    Args:
        thread_id: The thread.
        checkpoint_id: The newest checkpoint of the root graph.
        metadata: That checkpoint's metadata as JSON text.
        count: The number of its checkpoints.
        stage: The stage of the list in which it is found, by default that of a list by id.
        metadata_of: As of `ThreadCursor`.

    Raises:
        UnreadableValue: If the metadata is nested too deeply.
    """
    return ThreadSummary(
        thread_id,
        checkpoint_id,
        time_of(checkpoint_id) if checkpoint_id else None,
        (metadata_of or _metadata)(thread_id, metadata),
        count,
        _cursor(stage, checkpoint_id if stage == "newest" else None, thread_id),
    )


def _metadata(thread_id: str, text: str | None) -> dict[str, Any]:
    """Return the members of metadata; none if it was written by hand and is not an object."""
    found = jsonb.stored(text, "the metadata", f"thread {short_repr(thread_id, 200)}") if text else {}
    return found if isinstance(found, dict) else {}


def _cursor(stage: str, checkpoint_id: str | None, thread_id: str) -> str:
    text = json.dumps([stage, checkpoint_id, thread_id], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _position(cursor: object) -> tuple[str, str | None, str]:
    try:
        if not isinstance(cursor, str):
            raise TypeError
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        stage, checkpoint_id, thread_id = json.loads(text)
        if stage == "newest":
            plain_text(checkpoint_id, "checkpoint_id")
        elif checkpoint_id is not None or stage not in ("rootless", "thread_id"):
            raise ValueError
        return stage, checkpoint_id, plain_text(thread_id, "thread_id")
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise InvalidConfig(
            f"cursor must be the `cursor` of a thread listed before, not {short_repr(cursor)}"
        ) from None
