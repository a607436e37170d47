"""How a list is cut into pages: how many rows the next one has, and where it begins."""

from __future__ import annotations

from collections.abc import Iterator

from checkpoint_store.serde.keys import Listing
from checkpoint_store.serde.records import Row, size_of
from checkpoint_store.sql.read import MAX_ROWS

FIRST_ROWS = 16
"""The size of the first page, before anything is known of the rows."""

PAGE_BYTES = 4 * 1024 * 1024
"""What a page should hold: later pages have as many rows as this allows, going by the rows so far."""


class Pages:
    """The state of one listing.

    Args:
        listing: What is listed.
    """

    def __init__(self, listing: Listing) -> None:
        self._left = listing.limit
        self._rows = self._bytes = 0
        self._ended = False
        self.last: tuple[str, str, str] | None = None
        """The row after which the next page begins."""

    @property
    def has_next(self) -> bool:
        """Whether there may be another page."""
        return not self._ended and self._left != 0

    @property
    def size(self) -> int:
        """How many rows to ask for."""
        fitting = FIRST_ROWS if self._rows == 0 else max(1, min(MAX_ROWS, PAGE_BYTES * self._rows // (self._bytes + 1)))
        return fitting if self._left is None else min(fitting, self._left)

    def turn(self, rows: list[Row]) -> Iterator[Row]:
        """Give out the rows of a page one by one, letting go of each, and note where the next page begins."""
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
            self._bytes += _size(row)
            yield row


def _size(row: Row) -> int:
    return size_of(row.blobs, row.writes) + len(row.checkpoint) + len(row.metadata)
