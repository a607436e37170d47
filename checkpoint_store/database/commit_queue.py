"""The queue of calls that wait for a commit: in order within a sequence, and fair between sequences; no I/O."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from checkpoint_store.storage.write_batch import Change, size_of

Store = Callable[[Sequence[Change]], Any]
"""Stores changes in one commit; on an event loop a coroutine function."""

MAX_CALLS = 256
"""The largest number of calls in a commit."""

MAX_BYTES = 4 * 1024 * 1024
"""The number of bytes a commit should carry at most; one call alone may have more."""

HOPELESS_THREADS = 4
"""After calls of N threads that a limit has ended alone as well, and none that was stored, the others fail too."""

HOPELESS_IN_A_ROW = 3
"""After N such calls of one thread, one after the other, the others of that thread fail too."""


class LimitedCommit:
    """A commit that a limit, such as `statement_timeout`, has ended. Its calls wait again, and each goes alone.

    One of them may be the reason.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        self.is_cleared = False
        """Whether the calls that still wait may share commits again."""
        # Once only: otherwise each of many slow calls would have the later ones meet the limit once more.
        self._is_last = any(call.limited is not None for call in calls)
        self._stored = self._failed = 0
        self._limited: set[str] = set()
        self._in_a_row: Counter[str] = Counter()
        for call in calls:
            call.limited = self

    def note(self, thread_id: str, *, stored: bool, limited: bool) -> list[Call]:
        """Note the outcome of a call that went alone: whether it was stored, or a limit has ended it.

        Returns:
            The calls that are to fail as well: the limit has ended so many others that none of them is the reason.
        """
        self._stored += stored
        self._failed += not stored
        if limited:
            self._limited.add(thread_id)
        self.is_cleared = bool(self._stored and self._failed and not self._is_last)
        in_a_row = self._in_a_row[thread_id] = limited * (self._in_a_row[thread_id] + 1)
        if limited and len(self._limited) >= HOPELESS_THREADS and not self._stored:
            return [call for call in self.calls if call.waits]
        if in_a_row >= HOPELESS_IN_A_ROW:
            return [call for call in self.calls if call.waits and call.change.thread_id == thread_id]
        return []


@dataclass(eq=False, slots=True)
class Call:
    """A change that waits for a commit."""

    store: Store
    target: Hashable
    change: Change
    outcome: Any
    """A future, or for threads a `Turn`."""
    since: float
    """The time when it was made, by the loop's clock or the monotonic one."""
    limited: LimitedCommit | None = None
    """The last commit with it that a limit has ended."""
    waits: bool = True
    """Whether it is in no commit."""
    commit: Any = None
    """The task of its last commit, on an event loop."""
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = size_of(self.change)

    @property
    def group(self) -> Group:
        """The calls that it may share a commit with."""
        return self.limited is not None and not self.limited.is_cleared, self.target


Group = tuple[bool, Hashable]
"""Whether a call goes alone, and its target: only calls of one group share a commit."""


class CommitQueue:
    """The calls that wait, each sequence's in a queue of its own.

    A sequence is busy while calls of it are in a commit. One that is not, and has calls, is ready, in the group of its
    first call. To take a commit's calls, to add one, to pass over one whose caller was cancelled: each costs the same,
    however many calls wait.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[Call]] = {}
        self._busy: set[str] = set()
        # Those that are ready, by group: of calls that go alone or not, then by target, after its commit the last.
        self._ready: dict[bool, dict[Hashable, deque[str]]] = {False: {}, True: {}}
        self._ready_alone: dict[str, bool] = {}
        """Whether the first call of a ready sequence goes alone."""
        self._ready_count = {False: 0, True: 0}
        self._count = 0

    def __len__(self) -> int:
        """Return how many calls wait, those whose caller was cancelled included."""
        return self._count

    def __iter__(self) -> Iterator[Call]:
        return chain.from_iterable(self._queues.values())

    @property
    def ready(self) -> int:
        """The number of calls that could share commits now: those of ready sequences, but for those that go alone."""
        return self._ready_count[False]

    def begin(self, sequence: str) -> bool:
        """Note that a call is in a commit, where none of its sequence waits. Returns False if that is busy."""
        is_free = sequence not in self._busy
        self._busy.add(sequence)
        return is_free

    def end(self, changes: Iterable[Change]) -> None:
        """Note that a commit has ended, with or without success."""
        for sequence in {change.sequence: None for change in changes}:
            self._busy.discard(sequence)
            self._make_ready(sequence)

    def add(self, call: Call) -> None:
        """Add a call after those of its sequence."""
        sequence = call.change.sequence
        self._queues.setdefault(sequence, deque()).append(call)
        self._count += 1
        if (alone := self._ready_alone.get(sequence)) is not None:
            self._ready_count[alone] += 1
        elif sequence not in self._busy:
            self._make_ready(sequence)

    def put_back(self, calls: Sequence[Call]) -> None:
        """Put calls of a failed commit before the others of their sequences; `end` comes later."""
        for call in reversed(calls):
            call.waits = True
            self._queues.setdefault(call.change.sequence, deque()).appendleft(call)
        self._count += len(calls)

    def take(self, max_calls: int, max_bytes: int) -> list[Call]:
        """Take the calls of the next shared commit; their sequences are busy from now on.

        Sequences give a call each, one after the other, so that one with a long queue does not hold up the others. One
        call alone may have more bytes.
        """
        return self._take(False, max_calls, max_bytes)

    def take_alone(self) -> list[Call]:
        """Take a call that goes alone, if there is one."""
        return self._take(True, 1, 0)

    def _take(self, alone: bool, max_calls: int, max_bytes: int) -> list[Call]:
        taken: list[Call] = []
        by_target = self._ready[alone]
        while by_target and not taken:
            target = next(iter(by_target))
            ready = by_target.pop(target)
            taken = self._take_of((alone, target), ready, max_calls, max_bytes)
            if ready:
                by_target[target] = ready
        return taken

    def _take_of(self, group: Group, ready: deque[str], max_calls: int, max_bytes: int) -> list[Call]:
        taken: list[Call] = []
        again: deque[str] = deque()  # sequences that have given a call and may give another one
        size = 0
        while (source := ready or again) and len(taken) < max_calls:
            sequence = source[0]
            call = self._first(sequence)
            if call is not None and call.group == group and taken and size + call.size > max_bytes:
                break
            source.popleft()
            if (alone := self._ready_alone.pop(sequence, None)) is not None:
                self._ready_count[alone] -= len(self._queues.get(sequence, ()))
            if call is None or call.group != group:
                if sequence not in self._busy:
                    self._make_ready(sequence)
                continue
            again.append(sequence)
            self._queues[sequence].popleft()
            self._count -= 1
            self._busy.add(sequence)
            call.waits = False
            taken.append(call)
            size += call.size
        return taken

    def _first(self, sequence: str) -> Call | None:
        """Return the first call of a sequence, but for those whose caller was cancelled, which are removed."""
        queue = self._queues.get(sequence)
        while queue and queue[0].outcome.done():
            queue.popleft()
            self._count -= 1
            if (alone := self._ready_alone.get(sequence)) is not None:
                self._ready_count[alone] -= 1
        if not queue:
            self._queues.pop(sequence, None)
            return None
        return queue[0]

    def _make_ready(self, sequence: str) -> None:
        """Make a sequence that is not busy ready, if it has calls."""
        if (call := self._first(sequence)) is not None:
            alone, target = call.group
            self._ready[alone].setdefault(target, deque()).append(sequence)
            self._ready_alone[sequence] = alone
            self._ready_count[alone] += len(self._queues[sequence])
