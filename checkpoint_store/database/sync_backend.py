"""Operations in the calling thread: those on connections of a sync engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from checkpoint_store.database.backend import Backend
from checkpoint_store.database.locks.request import LockRequest
from checkpoint_store.database.locks.scheduling import to_the_end
from checkpoint_store.storage.write_batch import Change

T = TypeVar("T")


class SyncBackend(Backend):
    """Runs operations where they are called; for coroutines, in a worker thread."""

    async def store(self, change: Change) -> None:
        """Store a change, from any coroutine."""
        self.check_open()
        await self._await(self._commit, [change])

    def store_blocking(self, change: Change) -> None:
        """Store a change and wait for it."""
        self.check_open()
        self._commit([change])

    async def take_lock(self, request: LockRequest) -> None:
        """Take a thread's lock, in a worker thread; if cancelled, not before that has stopped."""
        self.check_open()
        call = asyncio.ensure_future(asyncio.to_thread(self.provider.take_lock, request))
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            request.given_up.set()
            await to_the_end(asyncio.wait([call]))
            call.exception()
            raise

    def leave_lock_blocking(self, request: LockRequest) -> None:
        """Give a lock up."""
        request.given_up.set()
        self.provider.drop_lock(request)

    def check_sync(self) -> None:
        """Raise if this source is closed; a thread that runs a loop may call too, and holds it up."""
        self.check_open()

    async def close(self) -> None:
        """Refuse further operations; engine and connections are the caller's."""
        self._closed = True
        self.provider.stop_trying()

    def close_blocking(self) -> None:
        """Refuse further operations; engine and connections are the caller's."""
        self._closed = True
        self.provider.stop_trying()

    async def _await(self, function: Callable[..., T], *args: Any) -> T:
        if not self.provider.is_callers:
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
