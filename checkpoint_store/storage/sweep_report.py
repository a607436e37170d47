"""The report of a removal: rows and bytes; imports nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class SweepReport(NamedTuple):
    """The numbers of rows that were removed, or would be."""

    threads: int = 0
    """Threads that checkpoints were removed from."""
    checkpoints: int = 0
    writes: int = 0
    """Pending writes."""
    blobs: int = 0
    """Channel values, those that are stored as pages included."""
    pages: int = 0
    bytes: int = 0
    """Bytes of all that as stored: compressed where PostgreSQL compresses, without row headers and indexes.

    Where Citus has distributed the tables, they are those of the values before PostgreSQL compresses them.
    """


Progress = Callable[[SweepReport], None]
"""Called after each batch with what was removed so far."""

Size = Sequence[int]
"""Rows and their bytes."""


def report_of(
    threads: int = 0, *, checkpoints: Size = (0, 0), writes: Size = (0, 0), blobs: Size = (0, 0), pages: Size = (0, 0)
) -> SweepReport:
    """Return the report of one transaction."""
    rows, sizes = zip(checkpoints, writes, blobs, pages, strict=True)
    return SweepReport(threads, *rows, sum(sizes))
