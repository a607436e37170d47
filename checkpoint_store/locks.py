"""A thread's lock: a block that no two runs are in at once, whatever process they run in."""

from __future__ import annotations

from types import TracebackType
from typing import Any, cast

from checkpoint_store.options import seconds
from checkpoint_store.source import Source
from checkpoint_store.source.hold import Hold, lost


class ThreadLock:
    """Has the runs of a thread wait for each other; what `thread_lock` of the savers returns.

        async with saver.thread_lock("42", timeout=30):
            await graph.ainvoke(...)

    With a plain `with` in sync code. It does not lock out who does not ask for it, and may not be asked for again in
    the block. On a saver in a transaction of yours, the lock is held until that ends, not only to the end of the block.

    Args:
        source: Where the connections come from.
        thread_id: The thread.
        timeout: How long to wait for others, in seconds; None for as long as it takes.
    """

    def __init__(self, source: Source, thread_id: str, timeout: float | None) -> None:
        self._source = source
        self._thread_id = thread_id
        self._timeout = None if timeout is None else seconds(timeout, "timeout", "0 to try once, or None for ever")
        self._hold: Hold | None = None

    @property
    def lost(self) -> bool:
        """Whether the lock was lost, because its session of the server's ended: better stop what you are doing.

        On a saver in a transaction of yours it is a savepoint rolled back that loses it; the next `put` notices.

        From then on nothing more is stored for the thread on this engine until the block ends: `put` and `put_writes`
        raise `LockLost`, and so does the end of the block.
        """
        return self._hold is not None and self._hold.is_lost

    async def __aenter__(self) -> ThreadLock:
        hold = Hold(self._thread_id, self._timeout, self._source.check_open, self)
        try:
            await self._source.take_lock(hold)
        except BaseException:
            # Where it was waited for in another thread, it may just have come.
            await self._source.leave_lock(hold)
            raise
        self._hold = hold
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        hold = cast("Hold", self._hold)
        self._hold = None
        if error is not None:
            hold.given_up.set()
        await self._source.drop_lock(hold)
        if hold.is_lost and error is None:
            raise lost(hold)

    def __enter__(self) -> ThreadLock:
        hold = Hold(self._thread_id, self._timeout, self._source.check_open, self)
        try:
            self._source.take_lock_blocking(hold)
            self._hold = hold
        except BaseException:
            # Ctrl-C may come when the lock has, too.
            self._source.leave_lock_blocking(hold)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Ctrl-C can come before this, too, and then nothing below is executed: see `Hold.is_forgotten`.
        hold: Any = self._hold
        try:
            self._hold = None
            if error is not None:
                hold.given_up.set()
            self._source.drop_lock_blocking(hold)
        except BaseException:
            self._source.leave_lock_blocking(hold)
            raise
        if hold.is_lost and error is None:
            raise lost(hold)
