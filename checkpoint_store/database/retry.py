"""Retries of operations that fail with transient errors, until a deadline."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Dialect
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from checkpoint_store.conninfo.fork import ProcessLock
from checkpoint_store.conninfo.transient_errors import TransientError, name_of, transient_error_of
from checkpoint_store.serde import arguments

T = TypeVar("T")

RETRY_SECONDS = 10.0
"""For how long an operation is retried by default: most servers restart, and most standbys take over, in less."""

_jittered = wait_random_exponential(multiplier=0.1, max=1.0)
"""The wait before the next try, in seconds; the first retry comes at once."""

log = logging.getLogger("checkpoint_store")


class Retries:
    """Retries the operations of one saver that fail with transient errors; an engine's savers share log messages."""

    def __init__(self, seconds: float, dialect: Dialect, pause: Callable[[float], None], where: str) -> None:
        self.seconds = arguments.seconds(seconds, "retry_timeout", "0 for no second try")
        self.count = 0
        """The number of retries."""
        self._pause = pause
        self._where = where
        self._incidents = _incidents.setdefault(dialect, {})

    def repeat(
        self,
        transient: TransientError,
        error: BaseException,
        seconds: float,
        before: Callable[[BaseException], None],
        function: Callable[..., T],
        *args: Any,
    ) -> T:
        """Call a function again, and again after waits that grow, until it succeeds or the time is over.

        Raises the last error, or the first that is not transient. `before` is called before each try, with the error
        that the function has failed with; one that it raises itself ends the tries.
        """

        def begin(_: RetryCallState) -> None:
            before(error)
            with _lock.current:
                self.count += 1
                incident.tries += 1

        with self._noted(transient, error, seconds) as incident:
            repeating = Retrying(
                sleep=self._pause,
                retry=retry_if_exception(lambda error: transient_error_of(error) is not None),
                stop=stop_after_delay(seconds),
                wait=partial(_wait, seconds),
                before=begin,
                reraise=True,
            )
            return repeating(function, *args)

    @contextmanager
    def _noted(self, transient: TransientError, error: BaseException, seconds: float) -> Iterator[Incident]:
        """Log the first of simultaneous failures, and its end when the last of their retries has succeeded."""
        with _lock.current:
            incident = self._incidents.setdefault(transient.ends_connections, Incident())
            is_first = not incident.calls
            if is_first:
                incident.tries, incident.since = 0, time.monotonic()
            incident.calls += 1
        if is_first:
            log.warning("%s: %s (%s); trying again for %g s", self._where, transient.reason, name_of(error), seconds)
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


@dataclass
class Incident:
    """Failures of an engine's operations that overlap in time: from the first one to the end of the last retry."""

    calls: int = 0
    """The number of operations that are being retried."""
    tries: int = 0
    """The number of their retries."""
    since: float = 0.0
    """The time of the first failure."""


_lock = ProcessLock()

# By dialect, which an engine shares with its execution_options() variants, and apart for lost connections and for
# conflicts between transactions, which have nothing to do with each other.
_incidents: weakref.WeakKeyDictionary[Dialect, dict[bool, Incident]] = weakref.WeakKeyDictionary()


def _wait(seconds: float, state: RetryCallState) -> float:
    # The last try comes when the time is over, not up to a second before.
    left = seconds - (state.seconds_since_start or 0.0)
    return min(_jittered(state), max(0.0, left))
