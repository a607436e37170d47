"""The outcomes of a commit that calls share: what is tried again after an error, and what each caller is told."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Mapping
from itertools import chain

from sqlalchemy import exc

from checkpoint_store.database.commit_queue import Call, CommitQueue, LimitedCommit
from checkpoint_store.errors import ONE_CALLS, CheckpointStoreError, LimitReached, Refused

OUTAGE_SECONDS = 1.0
"""After N seconds without a server, the calls that have waited as long as a failed commit fail with it."""

Outcome = tuple[Call, Exception | None]
"""A call, and the error to raise for it, if it was not stored."""


def attempts(calls: list[Call], waiting: CommitQueue) -> Generator[list[Call], Exception | None, list[Outcome]]:
    """Yield the calls of one commit after the other, each to be sent the error of the commit, if it has failed.

    Returns the outcome of each call, but for those that wait again, to go alone.
    """
    outcomes: list[Outcome] = []
    parts = deque([calls])
    while parts:
        part = parts.popleft()
        error = yield part
        if error is not None and len(part) > 1 and not _by_thread(error):
            if is_limit(error):
                # Halves would not do: each commit may take as long again.
                limited = [*part, *chain.from_iterable(parts)]
                LimitedCommit(limited)
                waiting.put_back(limited)
                break
            if isinstance(error, ONE_CALLS) or type(error) is CheckpointStoreError:
                # In halves, until the call that is refused is alone; each half keeps its order. Not so if the
                # server or the tables are missing.
                half = len(part) // 2
                parts.extendleft([part[half:], part[:half]])
                continue
        if len(part) == 1:
            _note_limit(part[0], error)
        outcomes += [(call, error and _error_for(error, call.change.thread_id)) for call in part]
    return outcomes


def resolve(outcomes: Iterable[Outcome]) -> None:
    """Let the callers go on, each with its outcome."""
    for call, error in outcomes:
        if call.outcome.done():
            continue  # its caller was cancelled
        if error is None:
            call.outcome.set_result(None)
        else:
            call.outcome.set_exception(error)


def _note_limit(call: Call, error: Exception | None) -> None:
    """Note the outcome of a call that went alone after a limit had ended its commit; fail the others if hopeless."""
    if call.limited is not None:
        limited = error is not None and is_limit(error)
        hopeless = call.limited.note(call.change.thread_id, stored=error is None, limited=limited)
        resolve((other, error and copy_of(error)) for other in hopeless)  # now: they are not to be sent


def is_limit(error: Exception) -> bool:
    """Return whether a limit has ended the statement, of the server's or the driver's."""
    cause = error.__cause__
    return isinstance(error, LimitReached) or (
        isinstance(cause, exc.StatementError) and isinstance(cause.orig, TimeoutError)
    )


def _by_thread(error: Exception) -> Mapping[str, str]:
    """Return the threads that an error is about, each with its message, if all others are stored."""
    return error._by_thread if isinstance(error, Refused) else {}


def _error_for(error: Exception, thread_id: str) -> Exception | None:
    """Return the error to raise for a call on a thread, of one that several calls have met."""
    if not (messages := _by_thread(error)):
        return copy_of(error)
    return Refused(messages[thread_id]) if thread_id in messages else None


def copy_of(error: Exception) -> Exception:
    """Return a copy of an error of ours: each caller adds a traceback of its own to the one it gets."""
    if not isinstance(error, CheckpointStoreError):
        return error
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
