"""What went wrong and passes by itself -> another try, and another, until a deadline."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Dialect
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from checkpoint_store.conninfo.fork import ProcessLock
from checkpoint_store.conninfo.transient_errors import TransientError, name_of, transient_error_of
from checkpoint_store.errors import Closed
from checkpoint_store.serde import arguments

T = TypeVar("T")

RETRY_SECONDS = 10.0
"""How long a call is tried again by default: most servers restart, and most standbys take over, in less."""

_jittered = wait_random_exponential(multiplier=0.1, max=1.0)
"""The wait before the next try, in seconds; the first repetition comes at once."""

log = logging.getLogger("checkpoint_store")


class Retries:
    """Makes the calls of one saver again that failed by something that passes.

    Args:
        seconds: For how long after a call has failed for the first time; 0 for never.
        dialect: That of the engine, whose savers share what is logged.
        pause: Sleeps for so many seconds.
        where: How the log names the database.

    Raises:
        InvalidOption: If `seconds` is no such time.
    """

    def __init__(self, seconds: float, dialect: Dialect, pause: Callable[[float], None], where: str) -> None:
        self.seconds = arguments.seconds(seconds, "retry_timeout", "0 for no second try")
        self.count = 0
        """How many times a call was made again."""
        self._pause = pause
        self._stopped = False
        self._where = where
        self._incidents = _incidents.setdefault(dialect, {})

    def stop(self) -> None:
        """Make no call again from now on."""
        self._stopped = True

    def repeat(
        self, fault: TransientError, error: BaseException, function: Callable[..., T], *args: Any, seconds: float
    ) -> T:
        """Call a function again, and again after waits that grow, until it succeeds or the time is over.

        Args:
            fault: What has kept it from succeeding.
            error: What it has raised.
            function: What to call.
            args: Its arguments.
            seconds: For how long.

        Raises:
            Closed: If the saver was closed meanwhile.
            BaseException: What it raised last, or as the first thing that doesn't pass.
        """
        with self._noted(fault, error, seconds) as incident:
            repeating = Retrying(
                sleep=self._pause,
                retry=retry_if_exception(_passes),
                stop=stop_after_delay(seconds),
                wait=partial(_wait, seconds),
                before=lambda _: self._count(incident),
                reraise=True,
            )
            return repeating(function, *args)

    def _count(self, incident: Incident) -> None:
        if self._stopped:
            raise Closed("this saver was closed while a call was tried again; whether it was carried out is unknown")
        with _lock.current:
            self.count += 1
            incident.tries += 1

    @contextmanager
    def _noted(self, fault: TransientError, error: BaseException, seconds: float) -> Iterator[Incident]:
        """Log the first failure of many at once, and that it has passed when the last one's call has succeeded."""
        with _lock.current:
            incident = self._incidents.setdefault(fault.ends_connections, Incident())
            is_first = not incident.calls
            if is_first:
                incident.tries, incident.since = 0, time.monotonic()
            incident.calls += 1
        if is_first:
            log.warning("%s: %s (%s); trying again for %g s", self._where, fault.reason, name_of(error), seconds)
        has_passed = False
        try:
            yield incident
            has_passed = True
        finally:
            with _lock.current:
                incident.calls -= 1
                is_last, tries, lasted = not incident.calls, incident.tries, time.monotonic() - incident.since
            if is_last and has_passed:
                log.info("%s: it has passed, after %.1f s and %d more tries", self._where, lasted, tries)


class Incident:
    """What one failure after the other of an engine's calls has in common, from the first to the end of the last."""

    def __init__(self) -> None:
        self.calls = 0
        """How many calls are being tried again."""
        self.tries = 0
        """How many times they were."""
        self.since = 0.0
        """When the first of them failed."""


_lock = ProcessLock()

# Lost connections and conflicts between transactions have nothing to do with each other. As elsewhere an engine goes by
# its dialect, which is the same for its execution_options() variants.
_incidents: weakref.WeakKeyDictionary[Dialect, dict[bool, Incident]] = weakref.WeakKeyDictionary()


def _wait(seconds: float, state: RetryCallState) -> float:
    # The last try comes when the time is over, not up to a second before.
    left = seconds - (state.seconds_since_start or 0.0)
    return min(_jittered(state), max(0.0, left))


def _passes(error: BaseException) -> bool:
    return transient_error_of(error) is not None
