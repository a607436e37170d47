"""Operations in the calling thread: those on connections of a sync engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from checkpoint_store.changes import Change
from checkpoint_store.source.base import Source
from checkpoint_store.source.hold import Hold
from checkpoint_store.source.worlds import to_the_end

T = TypeVar("T")


class ThreadSource(Source):
    """Runs operations where they are called; for coroutines, in a worker thread."""

    async def store(self, change: Change) -> None:
        """Store a change, from any coroutine."""
        self.check_open()
        await self._await(self._commit, [change])

    def store_blocking(self, change: Change) -> None:
        """Store a change and wait for it."""
        self.check_open()
        self._commit([change])

    async def take_lock(self, hold: Hold) -> None:
        """Take a thread's lock, in a worker thread; if cancelled, not before that has stopped."""
        self.check_open()
        call = asyncio.ensure_future(asyncio.to_thread(self.origin.take_lock, hold))
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            hold.given_up.set()
            await to_the_end(asyncio.wait([call]))
            call.exception()
            raise

    def leave_lock_blocking(self, hold: Hold) -> None:
        """Give a lock up."""
        hold.given_up.set()
        self.origin.drop_lock(hold)

    def check_sync(self) -> None:
        """Raise if this source is closed; a thread that runs a loop may call too, and holds it up."""
        self.check_open()

    async def close(self) -> None:
        """Refuse further operations; engine and connections are the caller's."""
        self._closed = True
        self.origin.stop_trying()

    def close_blocking(self) -> None:
        """Refuse further operations; engine and connections are the caller's."""
        self._closed = True
        self.origin.stop_trying()

    async def _await(self, function: Callable[..., T], *args: Any) -> T:
        if not self.origin.is_callers:
            return await asyncio.to_thread(function, *args)
        call = asyncio.ensure_future(asyncio.to_thread(function, *args))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            # The caller will go on with the connection, or close it: what is under way has to leave it first.
            await asyncio.wait([call])
            call.exception()
            raise

    def _call(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)
