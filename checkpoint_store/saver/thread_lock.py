"""The lock of a thread: a block that no two runs are in at once, also in different processes."""

from __future__ import annotations

from types import TracebackType
from typing import Any, cast

from checkpoint_store.database.backend import Backend
from checkpoint_store.database.locks.request import LockRequest
from checkpoint_store.serde.arguments import seconds


class ThreadLock:
    """The lock of a thread, for which its runs wait in turn; returned by the savers' `thread_lock`.

        async with saver.thread_lock("42", timeout=30):
            await graph.ainvoke(...)

    With a plain `with` in sync code. It does not lock out runs that do not take it, and must not be taken again in the
    block. On a saver in a transaction of yours, the lock is held until that ends, not only to the end of the block.

    Args:
        backend: The backend whose connections the lock is held on.
        thread_id: The thread.
        timeout: The longest wait for others, in seconds; None for as long as it takes.
    """

    def __init__(self, backend: Backend, thread_id: str, timeout: float | None) -> None:
        self._backend = backend
        self._thread_id = thread_id
        self._timeout = None if timeout is None else seconds(timeout, "timeout", "0 to try once, or None for ever")
        self._request: LockRequest | None = None

    @property
    def lost(self) -> bool:
        """Whether the lock was lost, because its session on the server ended: end the run soon.

        On a saver in a transaction of yours it is a savepoint rolled back that loses it; the next `put` notices.

        From then on nothing more is stored for the thread on this engine until the block ends: `put` and `put_writes`
        raise `LockLost`, and so does the end of the block.
        """
        return self._request is not None and self._request.is_lost

    async def __aenter__(self) -> ThreadLock:
        request = LockRequest(self._thread_id, self._timeout, self._backend.check_open, self)
        try:
            await self._backend.take_lock(request)
        except BaseException:
            # A wait in another thread may have ended with the lock just now.
            await self._backend.leave_lock(request)
            raise
        self._request = request
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        request = cast("LockRequest", self._request)
        self._request = None
        if error is not None:
            request.given_up.set()
        await self._backend.drop_lock(request)
        if request.is_lost and error is None:
            raise request.lock_lost()

    def __enter__(self) -> ThreadLock:
        request = LockRequest(self._thread_id, self._timeout, self._backend.check_open, self)
        try:
            self._backend.take_lock_blocking(request)
            self._request = request
        except BaseException:
            # Ctrl-C may come just after the lock was taken.
            self._backend.leave_lock_blocking(request)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Ctrl-C can come before this, too, and then nothing below is executed: see `LockRequest.is_forgotten`.
        request: Any = self._request
        try:
            self._request = None
            if error is not None:
                request.given_up.set()
            self._backend.drop_lock_blocking(request)
        except BaseException:
            self._backend.leave_lock_blocking(request)
            raise
        if request.is_lost and error is None:
            raise request.lock_lost()
