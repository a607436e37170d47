"""What a removal reports; imports nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class SweepReport(NamedTuple):
    """How much was removed, or would be."""

    threads: int = 0
    """How many threads checkpoints were removed from."""
    checkpoints: int = 0
    writes: int = 0
    """Pending writes."""
    blobs: int = 0
    """Channel values, those that are stored as pages included."""
    pages: int = 0
    bytes: int = 0
    """What all that occupied as stored: compressed where PostgreSQL compresses, without row headers and indexes."""

    def plus(self, other: SweepReport) -> SweepReport:
        """Return the sum of two reports."""
        return SweepReport(*map(sum, zip(self, other, strict=True)))


Progress = Callable[[SweepReport], None]
"""Called after each batch with what was removed so far."""
