"""Group commit for threads: the calls that arrive while a commit is under way are stored together, by one of them."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Hashable, Sequence

from sqlalchemy import Engine, QueuePool

from checkpoint_store.conninfo.fork import in_children
from checkpoint_store.database.commit_outcomes import attempts, fail_late, resolve
from checkpoint_store.database.commit_queue import MAX_BYTES, MAX_CALLS, Call, CommitQueue, Store
from checkpoint_store.errors import Unavailable
from checkpoint_store.storage.write_batch import Change

COMMITS = 8
"""The largest number of commits under way at once, but for those that take long; or the pool's size, if that is less.

With as many connections as without group commit nobody waits longer than without.
"""

_LONG_SECONDS = 0.02
"""The seconds that a call waits before another commit begins: those under way may wait for a lock of a session whose
own next call is among those that wait here."""

_LOOK_SECONDS = 0.005
"""The seconds between two looks at whether all is stored."""


class Turn:
    """The wait of a call's thread: for its outcome, or for its turn to store a commit's calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        """The calls to store, its own first."""
        self.error: Exception | None = None
        self._done = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def done(self) -> bool:
        """Return whether there is an outcome, or nobody who waits for it."""
        return self._done

    def give_up(self) -> None:
        """Note that nobody waits."""
        self._done = True

    def set_result(self, _: None) -> None:
        """End the wait."""
        self._done = True
        self.wake()

    def set_exception(self, error: Exception) -> None:
        """End the wait by an error."""
        self.error = error
        self.set_result(None)

    def wake(self) -> None:
        """Let the thread go on."""
        self._lock.release()

    def wait(self, seconds: float) -> bool:
        """Wait to be woken, for some seconds at most. Returns whether it was."""
        return self._lock.acquire(timeout=seconds)


class ThreadCommit:
    """Concurrent `put` and `put_writes` of threads on one engine, which share commits.

    The first ones are stored by their own threads, with nothing between them and the database. Others wait; when a
    commit ends, a thread of theirs stores all that it finds waiting. No thread is there for that alone.

    Args:
        commits: The largest number of commits under way at once, but for those that take long.
    """

    def __init__(self, commits: int = COMMITS) -> None:
        self._most = commits
        self._reset()
        _commits.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._waiting = CommitQueue()
        self._under_way = 0

    def submit(self, store: Store, target: Hashable, change: Change) -> None:
        """Store a change, alone or together with others; return when it is committed.

        Args:
            store: Stores changes, all in one commit.
            target: Only changes with the same one share a commit.
            change: The change.
        """
        call: Call | None = None
        is_begun = False
        try:
            with self._lock:
                is_begun = not self._waiting and self._under_way < self._most and self._waiting.begin(change.sequence)
                if is_begun:
                    self._under_way += 1
                else:
                    call = Call(store, target, change, Turn(), time.monotonic())
                    self._waiting.add(call)
            if call is None:
                self._commit(store, target, [change])
            else:
                self._await(call.outcome)
        except BaseException:
            if call is not None:
                self._leave(call.outcome)
            raise
        finally:
            if is_begun:
                with self._lock:
                    self._end([change])

    def drain(self) -> None:
        """Wait until no call waits and no commit is under way."""
        # Not by a condition: Ctrl-C would leave its lock in a state that nobody expects.
        while self._under_way:
            time.sleep(_LOOK_SECONDS)

    def _await(self, turn: Turn) -> None:
        while not turn.done():
            if not turn.wait(_LONG_SECONDS):
                with self._lock:
                    self._start(self._under_way + 1)
            elif turn.calls:
                self._store(turn)
        if turn.error is not None:
            raise turn.error

    def _store(self, turn: Turn) -> None:
        """Store the calls of a commit, and let their threads go on."""
        calls = turn.calls
        trying = attempts(calls, self._waiting)
        part = next(trying)
        while True:
            error = self._try(part)
            with self._lock:
                try:
                    part = trying.send(error)
                except StopIteration as end:
                    turn.calls = []
                    self._end([call.change for call in calls])
                    resolve(end.value)
                    return

    def _try(self, calls: list[Call]) -> Exception | None:
        try:
            self._commit(calls[0].store, calls[0].target, [call.change for call in calls])
        except Exception as error:
            return error
        return None

    def _commit(self, store: Store, target: Hashable, changes: Sequence[Change]) -> None:
        begun = time.monotonic()
        try:
            store(changes)
        except Unavailable as error:
            with self._lock:
                fail_late(self._waiting, target, error, begun, time.monotonic())
            raise

    def _leave(self, turn: Turn) -> None:
        """Give a call up after Ctrl-C: others store what its thread was to store, whether that was stored or not."""
        with self._lock:
            turn.give_up()
            if calls := turn.calls:
                turn.calls = []
                self._waiting.put_back([call for call in calls if not call.outcome.done()])
                self._end([call.change for call in calls])

    def _end(self, changes: Sequence[Change]) -> None:
        """Note the end of a commit, and start the next ones."""
        self._under_way -= 1
        self._waiting.end(changes)
        if self._waiting:
            self._start(self._most)

    def _start(self, limit: int) -> None:
        """Have commits stored by threads that wait, until so many are under way."""
        while self._under_way < limit:
            calls = self._waiting.take(MAX_CALLS, MAX_BYTES) or self._waiting.take_alone()
            if not calls:
                break
            self._under_way += 1
            turn: Turn = calls[0].outcome
            turn.calls = calls
            turn.wake()


_commits: weakref.WeakSet[ThreadCommit] = weakref.WeakSet()
_of_engines: weakref.WeakKeyDictionary[Engine, ThreadCommit] = weakref.WeakKeyDictionary()


def thread_commit_of(engine: Engine) -> ThreadCommit:
    """Return the group commit that all savers on a sync engine share."""
    if (commit := _of_engines.get(engine)) is None:
        pool = engine.pool
        size = pool.size() if isinstance(pool, QueuePool) else 0
        commit = _of_engines.setdefault(engine, ThreadCommit(min(size or COMMITS, COMMITS)))
    return commit


def _start_afresh() -> None:
    """Forget the calls of the process that this one was forked from."""
    for commit in _commits:
        commit._reset()


in_children(_start_afresh)
