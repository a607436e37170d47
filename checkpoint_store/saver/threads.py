"""What the savers tell of threads as a whole, beyond LangGraph's contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver

from checkpoint_store.database.backend import Backend
from checkpoint_store.serde.keys import checked_thread_id
from checkpoint_store.storage.thread_list import (
    Order,
    ThreadCursor,
    ThreadListRequest,
    ThreadSummary,
    list_threads,
    listing_of,
)
from checkpoint_store.storage.thread_stats import ThreadStats, stats_of, thread_stats


class ThreadsMixin(BaseCheckpointSaver[str]):
    """Lists threads, and tells what they occupy."""

    _backend: Backend

    def alist_threads(
        self,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        order: Order = "newest",
        filter: dict[str, Any] | None = None,
        prefix: str | None = None,
        count: bool = False,
    ) -> AsyncIterator[ThreadSummary]:
        """List threads, those that were last used first.

        They are read in pages, each by a statement of its own: no connection is held while you iterate. A thread that
        is used meanwhile keeps its place, or moves up in front of what is still to come.

        Args:
            limit: How many threads at most; None for all.
            cursor: The `cursor` of a thread: the list goes on after it. The other arguments have to stay the same.
            order: "newest" by the newest checkpoint of the root graph, those that have none at the end; "thread_id" by
                id, as the database sorts text.
            filter: What that checkpoint's metadata must contain (PostgreSQL's `@>`).
            prefix: What their ids begin with.
            count: Whether each thread's checkpoints are counted.

        Returns:
            An async iterator of threads.

        Raises:
            InvalidConfig: If an argument can't be used.
            NotSetUp: If the tables are missing.
            UnreadableValue: If metadata is nested too deeply.
            Unavailable: If the server can't be reached.
        """
        return listed(
            self._backend,
            listing_of(limit=limit, cursor=cursor, order=order, metadata_filter=filter, prefix=prefix, count=count),
        )

    def list_threads(
        self,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        order: Order = "newest",
        filter: dict[str, Any] | None = None,
        prefix: str | None = None,
        count: bool = False,
    ) -> Iterator[ThreadSummary]:
        """List threads, those that were last used first, as `alist_threads`."""
        self._backend.check_sync()
        return listed_blocking(
            self._backend,
            listing_of(limit=limit, cursor=cursor, order=order, metadata_filter=filter, prefix=prefix, count=count),
        )

    async def aget_thread_stats(self, thread_id: str) -> ThreadStats:
        """Tell what a thread occupies: rows and bytes by table, and its channels by size.

        Every row of the thread is looked at, but no large value is read.

        Args:
            thread_id: The thread; of one that does not exist everything is 0.

        Returns:
            Rows and bytes.

        Raises:
            InvalidConfig: If it can't be a thread id.
            NotSetUp: If the tables are missing.
            Unavailable: If the server can't be reached.
        """
        thread_id = checked_thread_id(thread_id)
        return stats_of(thread_id, *await self._backend.run(thread_stats, thread_id))

    def get_thread_stats(self, thread_id: str) -> ThreadStats:
        """Tell what a thread occupies, as `aget_thread_stats`."""
        thread_id = checked_thread_id(thread_id)
        return stats_of(thread_id, *self._backend.run_blocking(thread_stats, thread_id))


async def listed(source: Backend, listing: ThreadListRequest) -> AsyncIterator[ThreadSummary]:
    """List threads; no connection is held while the caller iterates."""
    walk = ThreadCursor(listing)
    while walk.has_next:
        for summary in walk.advance(await source.run(list_threads, walk.conditions, walk.binds)):
            yield summary


def listed_blocking(source: Backend, listing: ThreadListRequest) -> Iterator[ThreadSummary]:
    """List threads, as `listed`."""
    walk = ThreadCursor(listing)
    while walk.has_next:
        yield from walk.advance(source.run_blocking(list_threads, walk.conditions, walk.binds))
