"""Operations on the event loop that connections live on: those of an async engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from checkpoint_store.database.backend import Backend, PageSharing
from checkpoint_store.database.closing import closing, closing_blocking
from checkpoint_store.database.event_loop import EventLoop
from checkpoint_store.database.group_commit import AsyncPipeline
from checkpoint_store.database.locks.request import LockRequest
from checkpoint_store.database.locks.scheduling import to_the_end
from checkpoint_store.database.pool import dispose
from checkpoint_store.database.provider import ConnectionProvider
from checkpoint_store.errors import Closed, WrongThread
from checkpoint_store.storage.page_cache import PageCache
from checkpoint_store.storage.write_batch import Change

T = TypeVar("T")


class AsyncBackend(Backend):
    """Runs operations on a loop, each in a greenlet of SQLAlchemy's.

    One greenlet from checkout to return: each switch in and out of one costs as much as a small statement.

    Args:
        origin: Where the connections come from.
        bridge: The loop that they live on.
        page_cache: What is remembered of pages.
        sharing: See `Backend`.
        engine: The engine they are borrowed from; None if they are the caller's.
        replica: The engine of a replica, if there is one.
        pipe: What lets concurrent changes share commits.
    """

    def __init__(
        self,
        provider: ConnectionProvider,
        event_loop: EventLoop,
        page_cache: PageCache,
        page_sharing: PageSharing,
        *,
        engine: AsyncEngine | None = None,
        replica: AsyncEngine | None = None,
        pipe: AsyncPipeline | None = None,
    ) -> None:
        super().__init__(provider, page_cache, page_sharing)
        self.event_loop = event_loop
        self.owned = False
        """Whether the engine is ours to dispose of, and its loop ours to end."""
        self._closing = threading.RLock()
        self._is_released = False
        self._engine = engine
        self._replica = replica
        self._pipe = pipe

    async def store(self, change: Change) -> None:
        """Store a change, from any coroutine."""
        self.check_open()
        await self.event_loop.acall(self._store, change)

    def store_blocking(self, change: Change) -> None:
        """Store a change and wait for it."""
        self.check_open()
        self.event_loop.call(self._store, change)

    def leave_lock_blocking(self, request: LockRequest) -> None:
        """Have a lock given up, on the loop."""
        request.given_up.set()
        with suppress(Closed, WrongThread):
            self.event_loop.send(greenlet_spawn, self.provider.drop_lock, request)

    def check_sync(self) -> None:
        """Raise unless a sync call can be made from here."""
        self.check_open()
        self.event_loop.check_sync()

    async def close(self) -> None:
        """Refuse further operations, and give back what is ours."""
        self._closed = True
        if self.event_loop.is_ours:
            await asyncio.to_thread(self.close_blocking)
        elif not self._is_released and not self.event_loop.is_left_behind:
            await self.event_loop.acall(self._release)

    def close_blocking(self) -> None:
        """Refuse further operations, and give back what is ours."""
        self._closed = True
        # At the end of the interpreter the loop, and all that lived on it, may have gone first.
        if self.event_loop.is_closed:
            return
        with self._closing:
            if self._is_released:
                return
            with closing_blocking(self._end):  # also after Ctrl-C
                self.event_loop.call(self._finish)

    def _end(self) -> None:
        try:
            self.event_loop.call(self._let_go)
        finally:
            if self.owned:
                self.event_loop.stop()

    async def _await(self, function: Callable[..., T], *args: Any) -> T:
        result: T = await self.event_loop.acall(greenlet_spawn, function, *args)
        return result

    def _call(self, function: Callable[..., T], *args: Any) -> T:
        result: T = self.event_loop.call(greenlet_spawn, function, *args)
        return result

    async def _store(self, change: Change) -> None:
        if self._pipe is not None:
            await self._pipe.submit(self._store_all, self.sql.tables.schema, change)
        else:
            self.check_open()  # still: the call may have been on its way for a while
            await greenlet_spawn(self._commit, [change])

    async def _store_all(self, changes: Sequence[Change]) -> None:
        # Also when this saver has been closed meanwhile: it was open when the first call came in, and there may be
        # others' among them.
        await greenlet_spawn(self._commit, changes)

    async def _release(self) -> None:
        async with closing(self._let_go_whole):  # also for who does not want to wait for what was to be finished
            await self._finish()

    async def _let_go_whole(self) -> None:
        await to_the_end(self._let_go())

    async def _finish(self) -> None:
        if self.owned and self._pipe is not None:
            await self._pipe.aclose()

    async def _let_go(self) -> None:
        async with closing(self._let_go_of_connections):
            if self.owned:
                await greenlet_spawn(self.provider.lock_session.close)
        self._is_released = True

    async def _let_go_of_connections(self) -> None:
        # On a loop of ours nobody else could close the connections; the engine opens new ones if it is used again.
        engine = self._engine if self.owned or self.event_loop.is_ours else None
        # A pipeline of the caller's may have changes of others among ours.
        if self._pipe is None or self.owned:
            self.provider.stop_trying(lends=engine is None)
        elif engine is not None:
            self.provider.keep_nothing()
        if engine is not None:
            await greenlet_spawn(dispose, engine.sync_engine)
        if self._replica is not None and self.event_loop.is_ours:
            await greenlet_spawn(dispose, self._replica.sync_engine)
