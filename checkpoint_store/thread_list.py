"""A list of threads, read from a source statement by statement, for async and for sync callers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from checkpoint_store import operations
from checkpoint_store.source import Source
from checkpoint_store.threads import ThreadListing, ThreadSummary, Walk


async def listed(source: Source, listing: ThreadListing) -> AsyncIterator[ThreadSummary]:
    """List threads; no connection is held while the caller iterates."""
    walk = Walk(listing)
    while walk.has_next:
        for summary in walk.turn(await source.run(operations.list_threads, walk.conditions, walk.binds)):
            yield summary


def listed_blocking(source: Source, listing: ThreadListing) -> Iterator[ThreadSummary]:
    """List threads, as `listed`."""
    walk = Walk(listing)
    while walk.has_next:
        yield from walk.turn(source.run_blocking(operations.list_threads, walk.conditions, walk.binds))
