"""The savers' methods about threads as a whole: lists and sizes, beyond LangGraph's interface."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver

from checkpoint_store.database.backend import Backend
from checkpoint_store.serde.keys import checked_thread_id
from checkpoint_store.storage import thread_list
from checkpoint_store.storage.thread_list import Order, ThreadCursor, ThreadSummary, listing_of
from checkpoint_store.storage.thread_stats import ThreadStats, stats_of, thread_stats


class ThreadsMixin(BaseCheckpointSaver[str]):
    """The methods that list and measure threads."""

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

        They are read in batches, each by a statement of its own: no connection is held while you iterate. A thread that
        is used meanwhile keeps its place, or moves up in front of those still to come.

        Args:
            limit: The largest number of threads; None for all.
            cursor: The `cursor` of a thread: the list goes on after it. The other arguments must stay the same.
            order: "newest" by the newest checkpoint of the root graph, those that have none at the end; "thread_id" by
                id, as the database sorts text.
            filter: A dict that that checkpoint's metadata must contain (PostgreSQL's `@>`).
            prefix: The beginning of their ids.
            count: Whether each thread's checkpoints are counted.

        Returns:
            An async iterator of threads.

        Raises:
            InvalidConfig: If an argument can't be used.
            NotSetUp: If the tables are missing.
            UnreadableValue: If metadata is nested too deeply.
            Unavailable: If the server can't be reached.
        """
        wanted = listing_of(limit=limit, cursor=cursor, order=order, metadata_filter=filter, prefix=prefix, count=count)
        return self._alist_threads(ThreadCursor(wanted))

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
        wanted = listing_of(limit=limit, cursor=cursor, order=order, metadata_filter=filter, prefix=prefix, count=count)
        return self._list_threads(ThreadCursor(wanted))

    async def aget_thread_stats(self, thread_id: str) -> ThreadStats:
        """Measure a thread: rows and bytes by table, and its channels by size.

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
        """Measure a thread, as `aget_thread_stats`."""
        thread_id = checked_thread_id(thread_id)
        return stats_of(thread_id, *self._backend.run_blocking(thread_stats, thread_id))

    async def _alist_threads(self, cursor: ThreadCursor) -> AsyncIterator[ThreadSummary]:
        while cursor.has_next:
            rows = await self._backend.run(thread_list.list_threads, cursor.conditions, cursor.binds)
            for summary in cursor.advance(rows):
                yield summary

    def _list_threads(self, cursor: ThreadCursor) -> Iterator[ThreadSummary]:
        while cursor.has_next:
            rows = self._backend.run_blocking(thread_list.list_threads, cursor.conditions, cursor.binds)
            yield from cursor.advance(rows)
