"""Concurrent changes -> few commits: what arrives while a commit is under way goes with the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from types import TracebackType
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store.bridge import Bridge
from checkpoint_store.changes import Change, size_of
from checkpoint_store.errors import (
    ONE_CALLS,
    CheckpointStoreError,
    Closed,
    Refused,
    Unavailable,
    UnusableConnection,
)
from checkpoint_store.faults import is_conflict
from checkpoint_store.options import number

MOST_CALLS = 256
"""How many calls a commit may carry."""

MOST_BYTES = 4 * 1024 * 1024
"""How many bytes a commit should carry; one call alone may have more."""

FLUSHES = 8
"""How many commits may be under way at once."""

_COHORTS = 2
"""How many of them may be shared by several calls."""

_AT_ONCE = 4
"""How many callers are told of their commit before those told get to go on."""

_PATIENCE_SECONDS = 0.02
"""How long a call waits for company while a commit is under way and another one might be."""

_IN_VAIN_SECONDS = 1.0
"""From so long on, a commit that could not be made for want of a server speaks for the calls that waited meanwhile."""

Store = Callable[[Sequence[Change]], Awaitable[None]]


class _Call(NamedTuple):
    """A change that waits for a commit."""

    store: Store
    schema: str | None
    change: Change
    outcome: asyncio.Future[None]
    since: float
    """When it was made, by the loop's clock."""


class AsyncPipeline:
    """Lets concurrent `put` and `put_writes` share commits: under load the server makes one where it made dozens.

    A call returns when its own rows are committed. Few at once go straight to the database; more than that wait, and
    what has gathered shares the next commit. Within a thread changes are stored in the order of the calls. A call whose
    rows the server refuses fails alone. May be shared by all savers on the engine.

    Args:
        engine: The engine of the savers.
        flushes: How many commits may be under way at once, each on a connection of the pool.

    Raises:
        UnusableConnection: If `engine` is no `AsyncEngine`.
        InvalidOption: If `flushes` is less than one.
    """

    def __init__(self, engine: AsyncEngine, *, flushes: int = FLUSHES) -> None:
        if not isinstance(engine, AsyncEngine):
            raise UnusableConnection(
                f"engine is a {type(engine).__qualname__}; a pipeline needs the savers' AsyncEngine"
            )
        self.engine = engine
        self._bridge = Bridge.of(engine.dialect)
        self._flushes = number(flushes, "flushes", 1)
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._waiting: deque[_Call] = deque()
        self._under_way = self._shared = self._last_size = 0
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._timer: asyncio.TimerHandle | None = None

    def _settle(self) -> None:
        """Start afresh on another loop: the calls of the one before have ended with it, or never will."""
        if (loop := asyncio.get_running_loop()) is not self._loop:
            if self._loop is not None:
                self._start_afresh()
            self._loop = loop

    async def submit(self, store: Store, schema: str | None, change: Change) -> None:
        """Store a change together with others, on the engine's loop.

        Args:
            store: Stores changes, all in one commit.
            schema: Whose tables; only changes to the same ones go together.
            change: What to store.
        """
        if self._closed:
            raise Closed("this pipeline is closed")
        self._settle()
        few = self._under_way < self._flushes and not self._shared and not self._waiting
        if few and change.thread_id not in self._busy:
            self._begin([change])
            try:
                await self._commit(store, [change])
            finally:
                self._end([change])
            return
        loop = asyncio.get_running_loop()
        call = _Call(store, schema, change, loop.create_future(), loop.time())
        self._waiting.append(call)
        # Not at once: other calls of this turn of the loop may come along.
        loop.call_soon(self._pump)
        await call.outcome

    async def aclose(self) -> None:
        """Refuse further calls, and wait for those that were made."""
        self._closed = True
        await self._bridge.acall(self._drained)

    async def _drained(self) -> None:
        self._settle()
        await self._idle.wait()

    async def __aenter__(self) -> AsyncPipeline:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _begin(self, changes: Sequence[Change]) -> None:
        self._under_way += 1
        self._busy.update(change.thread_id for change in changes)
        self._idle.clear()

    def _end(self, changes: Sequence[Change]) -> None:
        self._under_way -= 1
        self._busy.difference_update(change.thread_id for change in changes)
        self._pump()

    def _pump(self) -> None:
        """Send off as many commits as may be under way.

        A second shared one only when it carries as many calls as the first: so runs that wait for each other's commits
        fall into cohorts, and while the server works for one of them, the other one's values are encoded.
        """
        while self._waiting and self._under_way < self._flushes and self._shared < _COHORTS:
            if self._shared and len(self._waiting) < self._last_size:
                # Not for long: what is under way may itself be waiting for somebody's lock.
                self._timer = self._timer or asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._push)
                return
            if not self._send():
                break
        if not self._under_way and not self._waiting:
            self._idle.set()

    def _push(self) -> None:
        """Send off what has waited long enough."""
        self._timer = None
        if self._waiting and self._under_way < self._flushes:
            self._send()
        self._pump()

    def _send(self) -> bool:
        if calls := self._next():
            self._last_size = len(calls)
            self._shared += 1
            self._begin([call.change for call in calls])
            task = asyncio.get_running_loop().create_task(self._flush(calls))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return bool(calls)

    def _next(self) -> list[_Call]:
        """Take the calls that go together next: none of a thread that is busy, or that has an earlier call left."""
        taken: list[_Call] = []
        left: list[_Call] = []
        passed_over = set(self._busy)
        size = 0
        while self._waiting and len(taken) < MOST_CALLS:
            call = self._waiting.popleft()
            if call.outcome.done():
                continue  # its caller was cancelled
            thread_id, more = call.change.thread_id, size_of(call.change)
            fits = not taken or (call.schema == taken[0].schema and size + more <= MOST_BYTES)
            if fits and thread_id not in passed_over:
                taken.append(call)
                size += more
            else:
                left.append(call)
                passed_over.add(thread_id)
        self._waiting.extendleft(reversed(left))
        return taken

    async def _flush(self, calls: list[_Call]) -> None:
        try:
            outcomes = await self._store(calls)
        except BaseException:
            # The loop ends: nobody will tell the callers otherwise.
            for call in calls:
                call.outcome.cancel()
            raise
        finally:
            self._shared -= 1
            self._end([call.change for call in calls])
        untold = zip(calls, outcomes, strict=True)
        try:
            # Those who are told first go on first: what they store next is on its way while others still encode.
            while some := list(islice(untold, _AT_ONCE)):
                _tell(some)
                await asyncio.sleep(0)
        finally:
            _tell(untold)  # also if the loop ends meanwhile: it is committed

    async def _store(self, calls: list[_Call]) -> list[Exception | None]:
        """Store what some calls want stored. Returns what is to be raised for each."""
        try:
            await self._commit(calls[0].store, [call.change for call in calls])
        except Exception as error:
            if isinstance(error, Refused) and (why := error._by_thread):
                threads = [call.change.thread_id for call in calls]
                return [Refused(why[thread_id]) if thread_id in why else None for thread_id in threads]
            if len(calls) > 1 and _may_be_one_calls_fault(error):
                # In halves, until whoever it was is alone; each half keeps its order.
                half = len(calls) // 2
                return [*await self._store(calls[:half]), *await self._store(calls[half:])]
            return [_own(error) for _ in calls]
        return [None] * len(calls)

    async def _commit(self, store: Store, changes: Sequence[Change]) -> None:
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            await store(changes)
        except Unavailable as error:
            # It was tried all this time. Calls that have waited as long would wait as long again, and those behind
            # them longer: they fail with it. Not so where it was in conflict with others' changes.
            if clock() - begun >= _IN_VAIN_SECONDS and not is_conflict(error.__cause__):
                for call in self._waiting:
                    if call.since <= begun and not call.outcome.done():
                        call.outcome.set_exception(_own(error))
            raise


def _tell(outcomes: Iterable[tuple[_Call, Exception | None]]) -> None:
    """Let callers know what has become of their calls."""
    for call, error in outcomes:
        if call.outcome.done():
            continue  # its caller was cancelled
        if error is None:
            call.outcome.set_result(None)
        else:
            call.outcome.set_exception(error)


def _may_be_one_calls_fault(error: Exception) -> bool:
    """Tell whether others might be stored without it: where the server or the tables are missing they are not."""
    return isinstance(error, ONE_CALLS) or type(error) is CheckpointStoreError


def _own(error: Exception) -> Exception:
    """Return an error of ours anew: each caller adds a traceback of its own to the one it gets."""
    if not isinstance(error, CheckpointStoreError):
        return error
    again = type(error)(*error.args)
    again.__cause__ = error.__cause__
    return again
