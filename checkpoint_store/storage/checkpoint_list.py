"""The list of checkpoints: the cursor by which it is read in batches, and their sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import orjson

from checkpoint_store.serde import records
from checkpoint_store.serde.keys import Listing
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.read import MAX_ROWS
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.operation import Kind, operation
from checkpoint_store.storage.page_cache import PageCache
from checkpoint_store.storage.read import read_checkpoints

Position = tuple[str, str, str]
"""Thread, namespace and id of the last row of a batch."""

FIRST_ROWS = 16
"""The size of the first batch, before anything is known of the rows."""

BATCH_BYTES = 4 * 1024 * 1024
"""The bytes of a batch: later ones have as many rows as this allows, going by the rows so far."""


class CheckpointCursor:
    """The state of one list of checkpoints.

    Args:
        listing: The list's arguments.
    """

    def __init__(self, listing: Listing) -> None:
        self._left = listing.limit
        self._rows = self._bytes = 0
        self._ended = False
        self.last: Position | None = None
        """The position after which the next batch begins."""

    @property
    def has_next(self) -> bool:
        """Whether there may be another batch."""
        return not self._ended and self._left != 0

    @property
    def size(self) -> int:
        """The number of rows to ask for."""
        size = FIRST_ROWS
        if self._rows:
            size = max(1, min(MAX_ROWS, BATCH_BYTES * self._rows // (self._bytes + 1)))
        return size if self._left is None else min(size, self._left)

    def advance(self, rows: list[records.Row]) -> Iterator[records.Row]:
        """Yield the rows of a batch, letting go of each, and move to where the next batch begins."""
        self._ended = len(rows) < self.size
        if rows:
            end = rows[-1]
            self.last = (end.thread_id, end.checkpoint_ns, end.checkpoint_id)
        if self._left is not None:
            self._left -= len(rows)
        rows.reverse()
        while rows:
            row = rows.pop()
            self._rows += 1
            self._bytes += len(row.checkpoint) + len(row.metadata)
            for blobs in (row.blobs, row.writes):
                self._bytes += sum(map(len, filter(None, blobs or ())))
            yield row


@operation(
    Kind.READ,
    name="list",
    thread_of=lambda _, listing, __: listing.thread_id,
    may_lag=lambda *_: True,
)
def list_checkpoints(
    db: Executor, sql: Statements, page_cache: PageCache, listing: Listing, after: tuple[Position | None, int]
) -> Sequence[Row]:
    """Return the batch of a list that follows a position, of a given size, smaller at the end; or the first."""
    last, size = after
    binds = {name: value for name, value in listing._asdict().items() if value is not None and name != "limit"}
    if listing.thread_id is None and (run_id := _run_of(listing.filter)) is not None:
        binds["run_id"] = run_id  # there is an index
    conditions = frozenset(binds)
    if last is not None:
        conditions |= {"after_row"}
        binds.update(last_thread_id=last[0], last_checkpoint_ns=last[1], last_checkpoint_id=last[2])
    binds["batch_size"] = size
    if "filter" in conditions and not conditions & {"thread_id", "run_id"}:
        # Most match many, or few; no index tells which. To read all of the table for those that match many takes ages.
        rows = read_checkpoints(db, sql.list_checkpoints(conditions | {"among_newest"}), page_cache, binds)
        if len(rows) == size:
            return rows
    return read_checkpoints(db, sql.list_checkpoints(conditions), page_cache, binds)


def _run_of(metadata_filter: str | None) -> str | None:
    """Return the run that a filter names, if it names one."""
    named = None if metadata_filter is None else orjson.loads(metadata_filter).get("run_id")
    return named if isinstance(named, str) else None
