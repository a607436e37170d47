"""The outcomes of a commit that calls share: what is tried again after an error, and what each caller is told."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Hashable, Iterable, Mapping
from itertools import chain

from sqlalchemy import exc

from checkpoint_store.conninfo.transient_errors import is_conflict
from checkpoint_store.database.commit_queue import Call, CommitQueue, LimitedCommit
from checkpoint_store.errors import ONE_CALLS, CheckpointStoreError, Closed, LimitReached, Refused

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
            if isinstance(error, (*ONE_CALLS, Closed)) or type(error) is CheckpointStoreError:
                # In halves, until the call that is refused is alone, or that of a saver that is closed; each half keeps
                # its order. Not so if the server or the tables are missing.
                half = len(part) // 2
                parts.extendleft([part[half:], part[:half]])
                continue
        if len(part) == 1:
            _note_limit(part[0], error)
        elif error is not None and (again := _refused_together(part, error)):
            parts.extendleft([call] for call in reversed(again))
            part = [call for call in part if call not in again]
        outcomes += [(call, error and _error_for(error, call.change.thread_id)) for call in part]
    return outcomes


def _refused_together(part: list[Call], error: Exception) -> list[Call]:
    """Return the calls on a thread that is refused as a whole: each is to be stored once more, for its own outcome."""
    refused = _by_thread(error)
    calls = Counter(call.change.thread_id for call in part)
    return [call for call in part if call.change.thread_id in refused and calls[call.change.thread_id] > 1]


def fail_late(waiting: CommitQueue, target: Hashable, error: Exception, begun: float, now: float) -> None:
    """Fail the calls that have waited since a commit to their target began, which has failed for want of a server.

    It was retried all this time. They would wait as long again, and later ones even longer. Not so if it was in
    conflict with other changes, or took too long.
    """
    if now - begun >= OUTAGE_SECONDS and not (is_conflict(error.__cause__) or is_limit(error)):
        resolve((call, copy_of(error)) for call in waiting if call.target == target and call.since <= begun)


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
