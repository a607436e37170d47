"""The event loop that an engine's connections belong to, and calls to it from coroutines and threads.

asyncpg's connections belong to the loop they were opened on, and so does the pool that holds them. The loop's own
coroutines call straight through, all others across threads. A call that would deadlock or never end raises
`WrongThread` instead.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import Dialect

from checkpoint_store.conninfo.fork import ProcessLock
from checkpoint_store.errors import Closed, WrongThread

T = TypeVar("T")

_WATCH_SECONDS = 1.0
"""The seconds between two checks of a sync caller that waits, that the loop it waits for still runs."""

_END_SECONDS = 5.0
"""The seconds that an interrupted sync caller waits for its call to end: the driver takes two to close a connection."""

_event_loops: weakref.WeakKeyDictionary[Dialect, EventLoop] = weakref.WeakKeyDictionary()
_registry_lock = ProcessLock()


class EventLoop:
    """The event loop of one engine, or of one connection.

    It is bound to the running loop by `adopt`, or to one in a daemon thread of its own by `start`. When the former has
    ended, an engine's is bound to the next one that runs; a checkout finds out whether the pool has connections of the
    ended one. A connection's does not move. (anyio's BlockingPortal has a loop of its own too, but takes no part in one
    that runs already.)
    """

    def __init__(self, *, moves: bool = True) -> None:
        self._moves = moves
        self._starts = False
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop, once it is known."""
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._pid = os.getpid()
        self._lock = threading.Lock()

    @staticmethod
    def of(dialect: Dialect) -> EventLoop:
        """Return the event loop of an engine: savers that share an engine share its loop.

        Its dialect stands for it, which outlives dispose() and is the same for its execution_options() variants.
        """
        with _registry_lock.current:
            event_loop = _event_loops.get(dialect)
            if event_loop is None or event_loop.is_left_behind or (event_loop.is_ours and event_loop.is_closed):
                event_loop = _event_loops[dialect] = EventLoop()
                weakref.finalize(dialect, event_loop.stop)
            return event_loop

    @property
    def is_left_behind(self) -> bool:
        """Whether the loop and its connections belong to the process this one was forked from."""
        return self._pid != os.getpid()

    @property
    def is_closed(self) -> bool:
        """Whether the loop has ended, or was left to the parent process."""
        return self.is_left_behind or (self.loop is not None and self.loop.is_closed())

    @property
    def is_ours(self) -> bool:
        """Whether the loop runs in a thread of our own."""
        return self._thread is not None

    def adopt(self) -> None:
        """Bind to the running loop, if there is one and nothing is bound yet, or to a loop that has ended."""
        with self._lock:
            if self.loop is None or self._has_ended:
                self.loop = _running_loop() or self.loop

    def start(self) -> None:
        """Bind to a loop in a thread of its own, if nothing is bound yet, or to a loop that has ended."""
        self._starts = True
        with self._lock:
            if self.loop is None or self._has_ended:
                self.loop = asyncio.new_event_loop()
                runs = threading.Event()
                self.loop.call_soon(runs.set)
                self._thread = threading.Thread(
                    target=_run_forever, args=(self.loop,), name="checkpoint_store", daemon=True
                )
                self._thread.start()
                # On a busy machine the first call may come before the loop runs, and would fail as if it never did.
                runs.wait()

    def stop(self) -> None:
        """End the loop if it runs in a thread of its own; calls under way are cancelled."""
        loop, thread = self.loop, self._thread
        if loop is None or thread is None or self.is_closed:
            return
        self._stopped = True
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join()

    async def acall(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Await a coroutine function on the loop, from any coroutine.

        Raises:
            WrongThread: If the loop is not ours and not the one that runs here.
        """
        here = asyncio.get_running_loop()
        if self.loop is not here:
            self.adopt()
        if self.loop is here:
            return await function(*args)
        self._check_process()
        if self._thread is None:
            if self._moves:
                raise WrongThread(
                    "this saver's engine belongs to another event loop, which still runs. Make engine and saver on the "
                    "loop that uses them, or use PostgresSaver, which has a loop of its own."
                )
            raise WrongThread(
                f"this saver's connection belongs to another event loop{', which is closed' * self.is_closed}. Bind a "
                "saver to a connection or session of the loop that uses it."
            )
        is_over = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the call that waited has ended with its loop
                here.call_soon_threadsafe(is_over.set)

        call = self._begin(function, args, wake)
        try:
            await is_over.wait()
        except asyncio.CancelledError:
            # The caller goes on only when the call has ended: its next changes are newer.
            call.cancel()
            await is_over.wait()
            raise
        try:
            return call.result()
        except asyncio.CancelledError:
            if self._stopped:
                raise self._ended() from None
            raise

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Run a coroutine function on the loop and wait for it, from a thread that is not the loop's own.

        Raises:
            WrongThread: If called on the loop's own thread, or if nothing runs the loop.
        """
        self.check_sync()
        under_way = threading.Lock()
        under_way.acquire()
        call = self._begin(function, args, under_way.release)
        try:
            while not _wait(under_way, _WATCH_SECONDS):
                if not call.loop.is_running():
                    raise self._ended()
            return call.result()
        except asyncio.CancelledError:
            raise self._ended() from None
        finally:
            # If the wait itself was interrupted, by Ctrl-C for one, the caller too goes on when the call has ended.
            if call.cancel() and call.loop.is_running():
                under_way.acquire(timeout=_END_SECONDS)

    def send(self, function: Callable[..., Coroutine[Any, Any, object]], *args: Any) -> None:
        """Run a coroutine function on the loop, from any thread, without waiting for it."""
        self._begin(function, args, lambda: None)

    def _begin(
        self, function: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...], at_end: Callable[[], object]
    ) -> _Call[T]:
        loop = self._running()
        try:
            return _Call(loop, function, args, at_end)
        except RuntimeError:  # closed just now
            raise self._ended() from None

    def check_sync(self) -> None:
        """Raise `WrongThread` if called on the loop's own thread, or if nothing runs the loop."""
        if self.loop is None or (self._starts and self._has_ended):
            self.start()
        if self.loop is _running_loop():
            monkey = sys.modules.get("gevent.monkey")
            if monkey is not None and monkey.is_module_patched("threading"):
                raise WrongThread(
                    "gevent has made greenlets of this process's threads, so none is left for the event loop that an "
                    "async engine needs. Use PostgresSaver on a sync engine, which works under gevent: "
                    'PostgresSaver(create_engine("postgresql+psycopg://...")).'
                )
            raise WrongThread(
                "a sync method was called on the event loop's own thread and would wait for itself forever. "
                "Use `await graph.ainvoke()`, or the saver's async method (aput, aget_tuple, alist, ...), `async with "
                "saver.thread_lock()`, `await acopy_threads()`; or call from another thread."
            )
        self._running()

    @property
    def _has_ended(self) -> bool:
        """Whether the loop was not ours and runs no more, so that another one may take its place."""
        movable = self._moves and self._thread is None and not self.is_left_behind
        return movable and self.loop is not None and not self.loop.is_running()

    def _check_process(self) -> None:
        if self.is_left_behind:
            raise WrongThread(
                "this saver was made before the process forked; its connections belong to the parent. "
                "Make engine and saver in the child."
            )

    def _running(self) -> asyncio.AbstractEventLoop:
        self._check_process()
        if self.loop is None or not self.loop.is_running():
            raise WrongThread(
                "the event loop that this saver was made on does not run, so a sync call would wait forever. "
                "Use PostgresSaver, which has a loop of its own."
            )
        return self.loop

    def _ended(self) -> Closed | WrongThread:
        if self._stopped:
            return Closed("this saver was closed while the call was under way; whether it was carried out is unknown")
        return WrongThread("the event loop ended before the call did; whether it was carried out is unknown")


class _Call(Generic[T]):
    """A call to a running loop from another thread, and its outcome; `at_end` is called there when it is over.

    Half of the cost of `asyncio.run_coroutine_threadsafe` is that of its two chained futures; here a lock is enough.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        function: Callable[..., Coroutine[Any, Any, T]],
        args: tuple[Any, ...],
        at_end: Callable[[], object],
    ) -> None:
        self.loop = loop
        self._at_end = at_end
        self._task: asyncio.Task[T] | None = None
        loop.call_soon_threadsafe(self._start, function, args)

    def result(self) -> T:
        """Return the result of a call that is over, or raise its error."""
        return cast("asyncio.Task[T]", self._task).result()

    def cancel(self) -> bool:
        """Cancel the call if it is under way, and return whether it is."""
        is_under_way = (self._task is None or not self._task.done()) and not self.loop.is_closed()
        if is_under_way:
            self.loop.call_soon_threadsafe(self._stop)
        return is_under_way

    def _start(self, function: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...]) -> None:
        self._task = self.loop.create_task(function(*args))
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # or asyncio logs, if the wait was interrupted, that it was never retrieved
        self._at_end()

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()


def _wait(under_way: threading.Lock, seconds: float) -> bool:
    """Wait for a call, and return whether it is over."""
    return under_way.acquire(timeout=seconds)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _run_forever(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped, and close it.

    An `asyncio.Runner` would wait for the threads of the loop's executor too: a name lookup may take minutes.
    """
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
