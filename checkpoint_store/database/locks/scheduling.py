"""Waiting and mutual exclusion, for greenlets on an event loop and for threads: the lock session is written once."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from sqlalchemy.util import await_only, greenlet_spawn

from checkpoint_store.database.locks.request import LockRequest
from checkpoint_store.database.semaphore import CheckoutTimeout, FairSemaphore

T = TypeVar("T")

Opening = futures.Future[None]
"""A session that is being opened, which may take long; the waiting request may cancel it until it is set running."""

_END_SECONDS = 1.0
"""The seconds to wait for the end of an opening that was cancelled."""

_LOOK_SECONDS = 0.2
"""The seconds between two checks of a thread that waits, that its request is still wanted."""


class GreenletScheduling:
    """Waiting and mutual exclusion for SQLAlchemy's greenlets."""

    def __init__(self) -> None:
        self._permit = FairSemaphore(1)

    @contextmanager
    def alone(self, request: LockRequest | None = None) -> Iterator[None]:
        """Lock a block. The request that it serves, if one, limits the wait; raises `Unavailable` when that is over."""
        try:
            await_only(self._permit.acquire(None if request is None else request.server_left))
        except CheckoutTimeout:
            raise cast("LockRequest", request).unanswered() from None
        try:
            yield
        finally:
            self._permit.release()

    def shielded(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function to its end, even if the caller is cancelled meanwhile."""
        return await_only(to_the_end(greenlet_spawn(function, *args)))

    @contextmanager
    def limited(self, seconds: float, disconnect: Callable[[], object]) -> Iterator[None]:
        """Limit the time of a block: if it takes longer, its connection is ended."""
        # Not by cancelling it: psycopg, cancelled, waits for an answer.
        limit = asyncio.get_running_loop().call_later(seconds, disconnect)
        try:
            yield
        finally:
            limit.cancel()

    def pause(self, request: LockRequest, seconds: float) -> None:  # noqa: ARG002 - to wait is to be cancelled
        """Sleep."""
        await_only(asyncio.sleep(seconds))

    def start(self, function: Callable[[Opening], None], opening: Opening, request: LockRequest) -> None:
        """Call a function, for as long as a request may wait; then, or if interrupted, cancel the opening."""
        await_only(_start(function, opening, request))

    def repeat(self, seconds: float, thing: T, function: Callable[[T], object]) -> Callable[[], object]:
        """Call a function of a thing again and again, as long as the thing lives. Returns the function that ends it."""
        # A strong reference would keep a thing alive for ever.
        return asyncio.get_running_loop().create_task(_repeat_in_loop(seconds, weakref.ref(thing), function)).cancel


class ThreadScheduling:
    """Waiting and mutual exclusion for threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    @contextmanager
    def alone(self, request: LockRequest | None = None) -> Iterator[None]:
        """Lock a block, as for greenlets."""
        try:
            while not self._lock.acquire(timeout=-1 if request is None else _until_look(request)):
                if request is not None:
                    request.check()
                    if request.server_left == 0:
                        raise request.unanswered()
            yield
        finally:
            # Ctrl-C may come between the lock and any statement after it.
            if self._lock._is_owned():  # type: ignore[attr-defined]
                self._lock.release()

    def shielded(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function."""
        return function(*args)

    @contextmanager
    def limited(self, seconds: float, disconnect: Callable[[], object]) -> Iterator[None]:
        """Limit the time of a block, as for greenlets."""
        limit = threading.Timer(seconds, disconnect)
        limit.daemon = True
        limit.start()
        try:
            yield
        finally:
            limit.cancel()

    def pause(self, request: LockRequest, seconds: float) -> None:
        """Sleep, as long as the request is wanted."""
        request.given_up.wait(seconds)

    def start(self, function: Callable[[Opening], None], opening: Opening, request: LockRequest) -> None:
        """Call a function in a thread of its own, for as long as a request may wait."""
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(function, opening), name="checkpoint_store session", daemon=True).start()
        try:
            while not futures.wait([opening], _until_look(request)).done and request.server_left != 0:
                request.check()
        finally:
            opening.cancel()

    def repeat(self, seconds: float, thing: T, function: Callable[[T], object]) -> Callable[[], object]:
        """Call a function of a thing again and again, as for greenlets."""
        stopped = threading.Event()
        arguments = (seconds, weakref.ref(thing), function, stopped)
        threading.Thread(target=_repeat_in_thread, args=arguments, name="checkpoint_store locks", daemon=True).start()
        return stopped.set


Scheduling = GreenletScheduling | ThreadScheduling


def _until_look(request: LockRequest) -> float:
    """Return the seconds until the next look at a request that waits."""
    return _LOOK_SECONDS if request.server_left is None else min(_LOOK_SECONDS, request.server_left)


async def _start(function: Callable[[Opening], None], opening: Opening, request: LockRequest) -> None:
    task = asyncio.ensure_future(greenlet_spawn(function, opening))
    opening.add_done_callback(lambda _: opening.cancelled() and task.cancel())
    try:
        await asyncio.wait([task], timeout=request.server_left)
    finally:
        if opening.cancel():
            await asyncio.wait([task], timeout=_END_SECONDS)


async def _repeat_in_loop(seconds: float, thing: weakref.ref[T], function: Callable[[T], object]) -> None:
    while True:
        await asyncio.sleep(seconds)
        if (alive := thing()) is None:
            return
        await greenlet_spawn(function, alive)
        del alive


def _repeat_in_thread(
    seconds: float, thing: weakref.ref[T], function: Callable[[T], object], stopped: threading.Event
) -> None:
    while not stopped.wait(seconds):
        if (alive := thing()) is None:
            return
        function(alive)
        del alive


async def to_the_end(call: Coroutine[Any, Any, T]) -> T:
    """Await a call to its end; if cancelled meanwhile, raise that then."""
    task = asyncio.ensure_future(call)
    cancelled: BaseException | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()
        raise cancelled
    return task.result()
