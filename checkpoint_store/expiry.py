"""The expiry of whole threads: rules that `asweep` takes, and sweeps at intervals while a service runs."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Self, Unpack

from checkpoint_store.errors import InvalidOption, short_repr
from checkpoint_store.saver.retention import RetentionMixin, SweepOptions, sweep_of
from checkpoint_store.storage.expiry import Expiry
from checkpoint_store.storage.sweep_report import SweepReport

__all__ = ["Expiry", "SweepOptions", "Sweeper"]

log = logging.getLogger("checkpoint_store")

_FIRST_WAIT = timedelta(minutes=1)
"""The longest wait before the first sweep: the replicas of a service start together."""

_GRACE_SECONDS = 5
"""How long the end of an `async with` block waits for the batch that is under way, or the function that is called."""


class Sweeper:
    """Sweeps at intervals, beside the block that it is entered for.

        async with Sweeper(saver, timedelta(hours=1), expiry=[Expiry(idle=timedelta(days=30))]):
            ...  # the service

    With a plain `with` it sweeps in a thread of its own. A sweep that fails is logged, and the next one does its work.
    At the end of the block a sweep ends before its next transaction. Several processes may sweep at once.

    Args:
        saver: A saver on an engine; one that is bound to a connection or session would share it with the block.
        every: The time from the end of a sweep to the next, give or take a tenth.
        options: Those of `asweep`, or of `sweep` with a plain `with`.

    Raises:
        InvalidOption: If an argument can't be used.
        WrongThread: At the beginning of a plain `with`, on the event loop's own thread.
    """

    def __init__(self, saver: RetentionMixin, every: timedelta, **options: Unpack[SweepOptions]) -> None:
        if not isinstance(saver, RetentionMixin) or saver._backend.provider.is_callers:
            raise InvalidOption("saver must be an AsyncPostgresSaver or PostgresSaver on an engine, not a bound one")
        if not isinstance(every, timedelta) or every <= timedelta(0):
            raise InvalidOption(f"every must be a timedelta, more than 0, not {short_repr(every)}")
        sweep_of(**options)
        self._saver = saver
        self._every = every
        self._options = options
        self._stopping = threading.Event()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    async def __aenter__(self) -> Self:
        self._stopping.clear()
        self._woken = asyncio.Event()
        self._task = asyncio.create_task(self._sweep_awaiting())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        self._stopping.set()
        self._woken.set()
        if task is None:
            return
        try:
            await asyncio.wait([task], timeout=_GRACE_SECONDS)
        finally:
            task.cancel()
        await asyncio.wait([task])

    def __enter__(self) -> Self:
        self._saver._backend.check_sync()  # on the saver's loop the end of the block would wait for ever
        self._stopping.clear()
        self._thread = threading.Thread(target=self._sweep_blocking, name="checkpoint-store-sweeper", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    async def _sweep_awaiting(self) -> None:
        task = asyncio.current_task()
        for seconds in self._waits():
            try:
                await asyncio.wait_for(self._woken.wait(), seconds)
            except TimeoutError:
                with self._logging(task):
                    _log(await self._saver._asweep(sweep_of(**self._options, on_step=self._check)))

    def _sweep_blocking(self) -> None:
        for seconds in self._waits():
            if not self._stopping.wait(seconds):
                with self._logging(None):
                    _log(self._saver._sweep(sweep_of(**self._options, on_step=self._check)))

    def _waits(self) -> Iterator[float]:
        """Return the seconds to wait before each sweep, until the block ends; a thread can wait some 292 years."""
        yield random.random() * min(self._every, _FIRST_WAIT).total_seconds()
        while not self._stopping.is_set():
            yield min(random.uniform(0.9, 1.1) * self._every.total_seconds(), threading.TIMEOUT_MAX)

    def _check(self, _: int) -> None:
        if self._stopping.is_set():
            raise _Stopped

    @contextmanager
    def _logging(self, task: asyncio.Task[None] | None) -> Iterator[None]:
        """Log what a sweep raises, in a task or else in a thread, unless the task is to end."""
        try:
            yield
        except _Stopped:
            log.debug("a sweep was stopped")
        except BaseException as error:
            # A function of the caller's may let out the CancelledError of another task, which it has awaited.
            fails = isinstance(error, (Exception, asyncio.CancelledError))
            if task is not None and (task.cancelling() or not fails):
                raise
            log.warning("a sweep failed; the next one does its work", exc_info=True)


class _Stopped(Exception):
    """Raised between two transactions of a sweep when the block has ended."""


def _log(report: SweepReport) -> None:
    log.info("swept %s checkpoints of %s threads, %s bytes", report.checkpoints, report.threads, report.bytes)
