"""The list of checkpoints: the cursor by which it is read in batches, and their sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from checkpoint_store.serde import records
from checkpoint_store.serde.keys import Listing
from checkpoint_store.sql.arrays import array_binds
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
        binds.update(_after(last))
    binds["batch_size"] = size
    if sql.are_distributed and listing.thread_id is None:
        return _of_all_shards(db, sql, page_cache, conditions, binds)
    if "filter" in conditions and not conditions & {"thread_id", "run_id"}:
        # Most match many, or few; no index tells which. To read all of the table for those that match many takes ages.
        rows = read_checkpoints(db, sql.list_checkpoints(conditions | {"among_newest"}), page_cache, binds)
        if len(rows) == size:
            return rows
    return read_checkpoints(db, sql.list_checkpoints(conditions), page_cache, binds)


def _of_all_shards(
    db: Executor, sql: Statements, page_cache: PageCache, conditions: frozenset[str], binds: dict[str, Any]
) -> Sequence[Row]:
    """Return a batch of a list of all threads: first its keys, then the rows of each thread, all from one shard."""
    rows: list[Row] = []
    while True:
        keys: list[Position] = [(key[0], key[1], key[2]) for key in db.fetch(sql.newest_keys(conditions), binds)]
        threads: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for thread_id, *key in keys:
            threads[thread_id].append((key[0], key[1]))
        found: dict[Position, Row] = {}
        for thread_id, places in threads.items():
            arrays = {"thread_id": thread_id, **array_binds(("checkpoint_ns", "checkpoint_id"), places)}
            for row in read_checkpoints(db, sql.checkpoints_at, page_cache, arrays):
                found[row[0], row[1], row[2]] = row
        rows += [found[key] for key in keys if key in found]
        # A smaller batch would be the end of the list. Some rows may have been deleted since their keys were read.
        left = binds["batch_size"] - len(found)
        if not left or len(keys) < binds["batch_size"]:
            return rows
        conditions |= {"after_row"}
        binds = {**binds, **_after(keys[-1]), "batch_size": left}


def _after(last: Position) -> dict[str, str]:
    """Return the binds of a batch that begins after a row."""
    return {"last_thread_id": last[0], "last_checkpoint_ns": last[1], "last_checkpoint_id": last[2]}


def _run_of(metadata_filter: str | None) -> str | None:
    """Return the run that a filter names, if it names one."""
    named = None if metadata_filter is None else orjson.loads(metadata_filter).get("run_id")
    return named if isinstance(named, str) else None
