"""Threads as a whole: what a list tells of each, how a list goes on, and what a thread occupies; no I/O."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, cast
from uuid import UUID

from checkpoint_store.errors import InvalidConfig, short_repr
from checkpoint_store.serde import jsonb, validation
from checkpoint_store.serde.arguments import choice, flag
from checkpoint_store.serde.keys import limit_of, plain_text
from checkpoint_store.sql.list_threads import MAX_STEPS

Order = Literal["newest", "thread_id"]

PAGE_THREADS = 128
"""How many threads a statement returns at most."""

_FEWEST_STEPS, _STEPS_PER_THREAD = 64, 16
"""How many checkpoints are looked at first: it should do for threads that have some 16 each."""

_MOST_PASSED = 64
"""How many threads are passed over at once; each costs a comparison for every row."""

# 1582-10-15, where the time of a uuid begins (https://www.rfc-editor.org/rfc/rfc9562#section-5.1).
_EPOCH = datetime(1582, 10, 15, tzinfo=UTC)


@dataclass(frozen=True)
class ThreadSummary:
    """A thread in a list."""

    thread_id: str
    checkpoint_id: str | None
    """The newest checkpoint of the root graph, or None if only subgraphs have any."""
    updated_at: datetime | None
    """When that one was made, in UTC, going by its id; None if that is none of LangGraph's, which have the time."""
    metadata: dict[str, Any]
    """That checkpoint's metadata."""
    checkpoints: int | None
    """How many checkpoints it has, in all namespaces; None unless they were to be counted."""
    cursor: str
    """Where a list goes on that is to begin after this thread."""


class TableSize(NamedTuple):
    """What a thread has in one table."""

    rows: int
    bytes: int
    """As stored: compressed where PostgreSQL compresses, without indexes."""


class ChannelSize(NamedTuple):
    """What a thread has of one channel."""

    graph: str
    """The namespace without the ids of tasks: `""` for the root graph, `"node"` for all calls of a subgraph there."""
    channel: str
    values: int
    """How many values are stored."""
    writes: int
    """How many pending writes are."""
    bytes: int
    """As stored, of both; a page that values share is counted once."""


@dataclass(frozen=True)
class ThreadStats:
    """What a thread occupies."""

    thread_id: str
    tables: Mapping[str, TableSize]
    """By the tables' names."""
    channels: Sequence[ChannelSize]
    """The largest first."""

    @property
    def checkpoints(self) -> int:
        """How many checkpoints it has, in all namespaces."""
        return self.tables["checkpoints"].rows

    @property
    def bytes(self) -> int:
        """What it has in all tables."""
        return sum(table.bytes for table in self.tables.values())


class ThreadListRequest(NamedTuple):
    """What a list of threads is to hold."""

    start: tuple[str, str | None, str] | None
    """The stage of the walk to begin in, and the checkpoint and thread to begin after."""
    order: Order
    limit: int | None
    prefix: str | None
    filter: str | None
    counts: bool


def listing_of(
    *,
    limit: int | None,
    cursor: str | None,
    order: Order,
    metadata_filter: dict[str, Any] | None,
    prefix: str | None,
    count: bool,
) -> ThreadListRequest:
    """Return what a list of threads is to hold.

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
    )


def time_of(checkpoint_id: str) -> datetime | None:
    """Return when a checkpoint was made, going by its id (a version 6 UUID, as LangGraph's are), or None."""
    try:
        uuid = UUID(checkpoint_id)
        if uuid.version != 6:
            return None
        ticks = uuid.time_low << 28 | uuid.time_mid << 12 | uuid.time_hi_version & 0xFFF
        return _EPOCH + timedelta(microseconds=ticks // 10)
    except (ValueError, OverflowError):
        return None


def stats_of(thread_id: str, tables: Sequence[Sequence[Any]], channels: Sequence[Sequence[Any]]) -> ThreadStats:
    """Return what `operations.thread_stats` has found."""
    sizes = {name: TableSize(rows, size) for name, rows, size in tables}
    return ThreadStats(thread_id, sizes, [ChannelSize(*channel) for channel in channels])


_STAGES = {"newest": ("newest", "rootless"), "thread_id": ("thread_id",)}
"""A list of the newest ends with the threads that have no root checkpoint: nothing says when those were last used."""


class ThreadCursor:
    """The state of one list of threads.

    Args:
        listing: What is listed.
    """

    def __init__(self, listing: ThreadListRequest) -> None:
        self._listing = listing
        self._left = listing.limit
        stages = _STAGES[listing.order]
        stage, *last = listing.start or (stages[0], None, None)
        # No metadata contains anything where there is none.
        self._stages = [one for one in stages[stages.index(stage) :] if one != "rootless" or listing.filter is None]
        self._last: tuple[str | None, str | None] = (last[0], last[1])
        self._passed: list[str] = []
        self._steps = min(MAX_STEPS, max(_FEWEST_STEPS, self._wanted * _STEPS_PER_THREAD))

    @property
    def has_next(self) -> bool:
        """Whether there may be more threads."""
        return bool(self._stages) and self._left != 0

    @property
    def conditions(self) -> frozenset[str]:
        """What the next statement has to heed, its stage among it."""
        listing = self._listing
        given = {"after": self._last[1], "prefix": listing.prefix, "filter": listing.filter, "count": listing.counts}
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

    def turn(self, row: Sequence[Any]) -> list[ThreadSummary]:
        """Return the threads that a statement has found, and note where the next one begins."""
        steps, checkpoint_id, thread_id, many, *arrays = row
        stage = self._stages[0]
        found = [
            ThreadSummary(
                thread_id,
                newest,
                time_of(newest) if newest else None,
                _metadata(thread_id, metadata),
                count,
                _cursor(stage, newest if stage == "newest" else None, thread_id),
            )
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
        if self._left is not None:
            self._left -= len(found)
        return found

    @property
    def _wanted(self) -> int:
        return PAGE_THREADS if self._left is None else min(PAGE_THREADS, self._left)


def _metadata(thread_id: str, text: str | None) -> dict[str, Any]:
    """Return the members of metadata; of what somebody wrote by hand and is no object there are none."""
    found = validation.stored_json(text, f"thread {short_repr(thread_id, 200)}: the metadata") if text else {}
    return found if type(found) is dict else {}


def _cursor(stage: str, checkpoint_id: str | None, thread_id: str) -> str:
    text = json.dumps([stage, checkpoint_id, thread_id], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _position(cursor: object) -> tuple[str, str | None, str]:
    try:
        if not issubclass(type(cursor), str):
            raise TypeError
        encoded = str.__str__(cursor)
        text = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        stage, checkpoint_id, thread_id = json.loads(text)
        if stage == "newest":
            plain_text(checkpoint_id, "checkpoint_id")
        elif checkpoint_id is not None or stage not in ("rootless", "thread_id"):
            raise ValueError
        return stage, checkpoint_id, plain_text(thread_id, "thread_id")
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise InvalidConfig(
            f"cursor is {short_repr(cursor)}, which no list has given; it is the `cursor` of a thread listed before"
        ) from None
