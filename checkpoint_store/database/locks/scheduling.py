"""Greenlets on an event loop, and threads: how what is written once waits, and is alone, in either."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from sqlalchemy.util import await_only, greenlet_spawn

from checkpoint_store.database.fair_queue import CheckoutTimeout, FairSemaphore
from checkpoint_store.database.locks.request import LockRequest

T = TypeVar("T")

Opening = futures.Future[None]
"""What is under way and may take long; who waits for it may cancel it, until it runs, which is its last moment."""

_END_SECONDS = 1.0
"""How long something that was cancelled is waited for."""

_LOOK_SECONDS = 0.2
"""How often a thread that waits looks whether it still has to."""


class Scheduling(ABC):
    """One of the two."""

    @abstractmethod
    def alone(self, request: LockRequest | None = None) -> AbstractContextManager[object]:
        """Return what makes a block the only one.

        Args:
            request: What it is for. Its patience limits the wait; without it there is none.

        Raises:
            Unavailable: If the turn has not come in time.
        """

    @abstractmethod
    def whole(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function to its end, whoever is cancelled."""

    @abstractmethod
    def limited(self, seconds: float, hang_up: Callable[[], object]) -> AbstractContextManager[object]:
        """Return what hangs up on a block that takes longer."""

    @abstractmethod
    def pause(self, request: LockRequest, seconds: float) -> None:
        """Sleep; in a thread only as long as the hold is wanted."""

    @abstractmethod
    def begin(self, function: Callable[[Opening], None], opening: Opening, request: LockRequest) -> None:
        """Call a function, for as long as a hold has patience; then, or if interrupted, cancel what it is about."""

    @abstractmethod
    def repeat(self, seconds: float, thing: T, function: Callable[[T], object]) -> Callable[[], object]:
        """Call a function of a thing again and again, as long as the thing lives; returns what ends it."""


class GreenletScheduling(Scheduling):
    """Greenlets of SQLAlchemy's."""

    def __init__(self) -> None:
        self._permit = FairSemaphore(1, None)

    @contextmanager
    def alone(self, request: LockRequest | None = None) -> Iterator[None]:
        """Return what makes a block the only one."""
        if request is None:
            with self._permit:
                yield
            return
        try:
            await_only(self._permit.acquire(request.patience))
        except CheckoutTimeout:
            raise request.silent() from None
        try:
            yield
        finally:
            self._permit.release()

    def whole(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function to its end, whoever is cancelled."""
        return await_only(to_the_end(greenlet_spawn(function, *args)))

    @contextmanager
    def limited(self, seconds: float, hang_up: Callable[[], object]) -> Iterator[None]:
        """Return what hangs up on a block that takes longer."""
        # Not by cancelling it: psycopg, cancelled, waits for an answer.
        limit = asyncio.get_running_loop().call_later(seconds, hang_up)
        try:
            yield
        finally:
            limit.cancel()

    def pause(self, request: LockRequest, seconds: float) -> None:  # noqa: ARG002 - to wait is to be cancelled
        """Sleep."""
        await_only(asyncio.sleep(seconds))

    def begin(self, function: Callable[[Opening], None], opening: Opening, request: LockRequest) -> None:
        """Call a function, for as long as a hold has patience."""
        await_only(_begin(function, opening, request))

    def repeat(self, seconds: float, thing: T, function: Callable[[T], object]) -> Callable[[], object]:
        """Call a function again and again."""
        # A reference of its own would keep a thing that is forgotten for ever.
        return asyncio.get_running_loop().create_task(_repeat_in_loop(seconds, weakref.ref(thing), function)).cancel


class ThreadScheduling(Scheduling):
    """Threads, each waiting for itself."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    @contextmanager
    def alone(self, request: LockRequest | None = None) -> Iterator[None]:
        """Return what makes a block the only one."""
        try:
            while not self._lock.acquire(timeout=-1 if request is None else _look(request)):
                if request is not None:
                    request.check()
                    if request.patience == 0:
                        raise request.silent()
            yield
        finally:
            # Ctrl-C may come between the lock and any note of it.
            if self._lock._is_owned():  # type: ignore[attr-defined]
                self._lock.release()

    def whole(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function."""
        return function(*args)

    @contextmanager
    def limited(self, seconds: float, hang_up: Callable[[], object]) -> Iterator[None]:
        """Return what hangs up on a block that takes longer."""
        limit = threading.Timer(seconds, hang_up)
        limit.daemon = True
        limit.start()
        try:
            yield
        finally:
            limit.cancel()

    def pause(self, request: LockRequest, seconds: float) -> None:
        """Sleep, as long as the hold is wanted."""
        request.given_up.wait(seconds)

    def begin(self, function: Callable[[Opening], None], opening: Opening, request: LockRequest) -> None:
        """Call a function in a thread of its own, for as long as a hold has patience."""
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(function, opening), name="checkpoint_store session", daemon=True).start()
        try:
            while not futures.wait([opening], _look(request)).done and request.patience != 0:
                request.check()
        finally:
            opening.cancel()

    def repeat(self, seconds: float, thing: T, function: Callable[[T], object]) -> Callable[[], object]:
        """Call a function again and again."""
        stopped = threading.Event()
        arguments = (seconds, weakref.ref(thing), function, stopped)
        threading.Thread(target=_repeat_in_thread, args=arguments, name="checkpoint_store locks", daemon=True).start()
        return stopped.set


def _look(request: LockRequest) -> float:
    return _LOOK_SECONDS if request.patience is None else min(_LOOK_SECONDS, request.patience)


async def _begin(function: Callable[[Opening], None], opening: Opening, request: LockRequest) -> None:
    task = asyncio.ensure_future(greenlet_spawn(function, opening))
    opening.add_done_callback(lambda _: opening.cancelled() and task.cancel())
    try:
        await asyncio.wait([task], timeout=request.patience)
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
