"""Calls that wait for a commit: in order within a thread, and no thread behind another one's backlog; no I/O."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from checkpoint_store.storage.write_batch import Change, size_of

Store = Callable[[Sequence[Change]], Awaitable[None]]

IN_VAIN = 4
"""So many calls that a limit has ended alone, none of them stored, speak for all that were in a commit with them."""

IN_A_ROW = 3
"""So many of one thread, one after the other, speak for the rest of that thread."""


class Suspicion:
    """Calls of a commit that took longer than a limit allows, one of which may be the reason; each goes alone next.

    Args:
        calls: The calls.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        self.is_cleared = False
        """Whether those that are left may go together again."""
        # Once only: otherwise each of many slow calls would have those behind it meet the limit once more.
        self._is_last = any(call.suspicion is not None for call in calls)
        self._stored = self._failed = self._limited = 0
        self._in_a_row: Counter[str] = Counter()
        for call in calls:
            call.suspicion = self

    def note(self, thread_id: str, *, stored: bool, limited: bool) -> list[Call]:
        """Note what has become of one of the calls, which went alone.

        Args:
            thread_id: Its thread.
            stored: Whether it was stored.
            limited: Whether a limit has ended it.

        Returns:
            The calls that would fare no better: so many others have met the limit that it can't be their fault.
        """
        self._stored += stored
        self._failed += not stored
        self._limited += limited
        self.is_cleared = bool(self._stored and self._failed and not self._is_last)
        in_a_row = self._in_a_row[thread_id] = limited * (self._in_a_row[thread_id] + 1)
        if limited and self._limited >= IN_VAIN and not self._stored:
            return [call for call in self.calls if call.waits]
        if in_a_row >= IN_A_ROW:
            return [call for call in self.calls if call.waits and call.change.thread_id == thread_id]
        return []


@dataclass(eq=False)
class Call:
    """A change that waits for a commit."""

    store: Store
    schema: str | None
    change: Change
    outcome: asyncio.Future[None]
    since: float
    """When it was made, by the loop's clock."""
    suspicion: Suspicion | None = None
    """What it is under since a commit with it has failed."""
    waits: bool = True
    """Whether it is in no commit."""
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = size_of(self.change)

    @property
    def lane(self) -> Lane:
        """Whether it goes alone, and its schema."""
        return self.suspicion is not None and not self.suspicion.is_cleared, self.schema


Lane = tuple[bool, str | None]
"""Only calls of one go together."""


class Waiting:
    """The calls that wait, each thread's in a queue of its own.

    A thread is busy while calls of it are in a commit. Those that are not, and have calls, stand in the line of their
    first call's lane. To take a commit's calls, to add one, to pass over one whose caller was cancelled: each costs the
    same however many wait.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[Call]] = {}
        self._busy: set[str] = set()
        # By lane. A schema that had its commit goes to the end.
        self._lines: dict[bool, dict[str | None, deque[str]]] = {False: {}, True: {}}
        self._standing: dict[str, bool] = {}
        self._ready = {False: 0, True: 0}
        self._count = 0

    def __len__(self) -> int:
        """Return how many calls wait, those whose caller was cancelled included."""
        return self._count

    def __iter__(self) -> Iterator[Call]:
        return chain.from_iterable(self._queues.values())

    @property
    def ready(self) -> int:
        """How many could go together now: none is behind a commit of its thread, or goes alone."""
        return self._ready[False]

    def is_busy(self, thread_id: str) -> bool:
        """Tell whether calls of a thread are in a commit."""
        return thread_id in self._busy

    def begin(self, thread_id: str) -> None:
        """Note that a call of a thread which has none waiting is in a commit."""
        self._busy.add(thread_id)

    def end(self, changes: Iterable[Change]) -> None:
        """Note that a commit has ended, however it did."""
        for thread_id in {change.thread_id: None for change in changes}:
            self._busy.discard(thread_id)
            self._line_up(thread_id)

    def add(self, call: Call) -> None:
        """Let a call wait behind those of its thread."""
        thread_id = call.change.thread_id
        queue = self._queues.setdefault(thread_id, deque())
        queue.append(call)
        self._count += 1
        if (alone := self._standing.get(thread_id)) is not None:
            self._ready[alone] += 1
        elif thread_id not in self._busy:
            self._line_up(thread_id)

    def put_back(self, calls: Sequence[Call]) -> None:
        """Let calls of a commit that failed wait before the others of their threads; they are still to `end`."""
        for call in reversed(calls):
            call.waits = True
            self._queues.setdefault(call.change.thread_id, deque()).appendleft(call)
        self._count += len(calls)

    def take(self, most_calls: int, most_bytes: int) -> list[Call]:
        """Take the calls that go together next; their threads are busy from now on.

        Threads give a call each in turn, so that one with a long queue does not hold up the others.

        Args:
            most_calls: How many at most.
            most_bytes: How many bytes; one call alone may have more.
        """
        return self._take(False, most_calls, most_bytes)

    def take_alone(self) -> list[Call]:
        """Take a call that goes alone, if there is one."""
        return self._take(True, 1, 0)

    def _take(self, alone: bool, most_calls: int, most_bytes: int) -> list[Call]:
        taken: list[Call] = []
        lines = self._lines[alone]
        while lines and not taken:
            schema = next(iter(lines))
            line = lines.pop(schema)
            taken = self._take_of((alone, schema), line, most_calls, most_bytes)
            if line:
                lines[schema] = line
        return taken

    def _take_of(self, lane: Lane, line: deque[str], most_calls: int, most_bytes: int) -> list[Call]:
        taken: list[Call] = []
        again: deque[str] = deque()  # threads that have given a call and may give another one
        size = 0
        while (source := line or again) and len(taken) < most_calls:
            thread_id = source[0]
            call = self._first(thread_id)
            if call is None or call.lane != lane:
                source.popleft()
                self._leave(thread_id)
                if thread_id not in self._busy:
                    self._line_up(thread_id)
                continue
            if taken and size + call.size > most_bytes:
                break
            source.popleft()
            self._leave(thread_id)
            again.append(thread_id)
            self._queues[thread_id].popleft()
            self._count -= 1
            self._busy.add(thread_id)
            call.waits = False
            taken.append(call)
            size += call.size
        return taken

    def _first(self, thread_id: str) -> Call | None:
        """Return the first call of a thread that is still wanted."""
        queue = self._queues.get(thread_id)
        while queue and queue[0].outcome.done():
            queue.popleft()  # its caller was cancelled
            self._count -= 1
            if (alone := self._standing.get(thread_id)) is not None:
                self._ready[alone] -= 1
        if not queue:
            self._queues.pop(thread_id, None)
            return None
        return queue[0]

    def _line_up(self, thread_id: str) -> None:
        """Let a thread that is not busy stand in line, if it has calls."""
        if (call := self._first(thread_id)) is not None:
            alone, schema = call.lane
            self._lines[alone].setdefault(schema, deque()).append(thread_id)
            self._standing[thread_id] = alone
            self._ready[alone] += len(self._queues[thread_id])

    def _leave(self, thread_id: str) -> None:
        """Note that a thread stands in line no more."""
        if (alone := self._standing.pop(thread_id, None)) is not None:
            self._ready[alone] -= len(self._queues.get(thread_id, ()))
