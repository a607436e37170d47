"""Operations on the event loop that connections live on: those of an async engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from checkpoint_store.bridge import Bridge
from checkpoint_store.changes import Change
from checkpoint_store.closing import closing, closing_blocking
from checkpoint_store.errors import Closed, WrongThread
from checkpoint_store.executor import dispose
from checkpoint_store.pipeline import AsyncPipeline
from checkpoint_store.shelf import Shelf
from checkpoint_store.source.base import Sharing, Source
from checkpoint_store.source.hold import Hold
from checkpoint_store.source.origin import Origin
from checkpoint_store.source.worlds import to_the_end

T = TypeVar("T")


class LoopSource(Source):
    """Runs operations on a loop, each in a greenlet of SQLAlchemy's.

    One greenlet from checkout to return: each switch in and out of one costs as much as a small statement.

    Args:
        origin: Where the connections come from.
        bridge: The loop that they live on.
        shelf: What is remembered of pages.
        sharing: See `Source`.
        engine: The engine they are borrowed from; None if they are the caller's.
        replica: The engine of a replica, if there is one.
        pipe: What lets concurrent changes share commits.
    """

    def __init__(
        self,
        origin: Origin,
        bridge: Bridge,
        shelf: Shelf,
        sharing: Sharing,
        *,
        engine: AsyncEngine | None = None,
        replica: AsyncEngine | None = None,
        pipe: AsyncPipeline | None = None,
    ) -> None:
        super().__init__(origin, shelf, sharing)
        self.bridge = bridge
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
        await self.bridge.acall(self._store, change)

    def store_blocking(self, change: Change) -> None:
        """Store a change and wait for it."""
        self.check_open()
        self.bridge.call(self._store, change)

    def leave_lock_blocking(self, hold: Hold) -> None:
        """Have a lock given up, on the loop."""
        hold.given_up.set()
        with suppress(Closed, WrongThread):
            self.bridge.send(greenlet_spawn, self.origin.drop_lock, hold)

    def check_sync(self) -> None:
        """Raise unless a sync call can be made from here."""
        self.check_open()
        self.bridge.check_sync()

    async def close(self) -> None:
        """Refuse further operations, and give back what is ours."""
        self._closed = True
        if self.bridge.is_ours:
            await asyncio.to_thread(self.close_blocking)
        elif not self._is_released and not self.bridge.is_left_behind:
            await self.bridge.acall(self._release)

    def close_blocking(self) -> None:
        """Refuse further operations, and give back what is ours."""
        self._closed = True
        # At the end of the interpreter the loop, and all that lived on it, may have gone first.
        if self.bridge.is_closed:
            return
        with self._closing:
            if self._is_released:
                return
            with closing_blocking(self._end):  # also after Ctrl-C
                self.bridge.call(self._finish)

    def _end(self) -> None:
        try:
            self.bridge.call(self._let_go)
        finally:
            if self.owned:
                self.bridge.stop()

    async def _await(self, function: Callable[..., T], *args: Any) -> T:
        result: T = await self.bridge.acall(greenlet_spawn, function, *args)
        return result

    def _call(self, function: Callable[..., T], *args: Any) -> T:
        result: T = self.bridge.call(greenlet_spawn, function, *args)
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
                await greenlet_spawn(self.origin.keeper.close)
        self._is_released = True

    async def _let_go_of_connections(self) -> None:
        # On a loop of ours nobody else could close the connections; the engine opens new ones if it is used again.
        engine = self._engine if self.owned or self.bridge.is_ours else None
        # A pipeline of the caller's may have changes of others among ours.
        if self._pipe is None or self.owned:
            self.origin.stop_trying(lends=engine is None)
        elif engine is not None:
            self.origin.keep_nothing()
        if engine is not None:
            await greenlet_spawn(dispose, engine.sync_engine)
        if self._replica is not None and self.bridge.is_ours:
            await greenlet_spawn(dispose, self._replica.sync_engine)
