"""Concurrent changes -> few commits: what arrives while a commit is under way goes with the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from types import TracebackType

from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store.conninfo.transient_errors import is_conflict
from checkpoint_store.database.commit_queue import Call, Store, Suspicion, Waiting
from checkpoint_store.database.event_loop import EventLoop
from checkpoint_store.errors import (
    ONE_CALLS,
    CheckpointStoreError,
    Closed,
    LimitReached,
    Refused,
    Unavailable,
    UnusableConnection,
)
from checkpoint_store.serde.arguments import number
from checkpoint_store.storage.write_batch import Change

MOST_CALLS = 256
"""How many calls a commit may carry."""

MOST_BYTES = 4 * 1024 * 1024
"""How many bytes a commit should carry; one call alone may have more."""

FLUSHES = 8
"""How many commits may be under way at once."""

_COHORTS = 2
"""How many of them may be shared by several calls."""

_ALONE = 4
"""How many more may be of calls that were in one which a limit has ended: each may take as long again."""

_AT_ONCE = 4
"""How many callers are told of their commit before those told get to go on."""

_PATIENCE_SECONDS = 0.02
"""How long a call waits for company while a commit is under way and another one might be."""

_IN_VAIN_SECONDS = 1.0
"""From so long on, a commit that could not be made for want of a server speaks for the calls that waited meanwhile."""


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
        self._bridge = EventLoop.of(engine.dialect)
        self._flushes = number(flushes, "flushes", 1)
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._waiting = Waiting()
        self._under_way = self._shared = self._alone = self._last_size = 0
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
        if few and not self._waiting.is_busy(change.thread_id):
            self._begin()
            self._waiting.begin(change.thread_id)
            try:
                await self._commit(store, [change])
            finally:
                self._end([change])
            return
        loop = asyncio.get_running_loop()
        call = Call(store, schema, change, loop.create_future(), loop.time())
        self._waiting.add(call)
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

    def _begin(self) -> None:
        self._under_way += 1
        self._idle.clear()

    def _end(self, changes: Sequence[Change]) -> None:
        self._under_way -= 1
        self._waiting.end(changes)
        self._pump()

    def _pump(self) -> None:
        """Send off as many commits as may be under way.

        A second shared one only when it carries as many calls as the first: so runs that wait for each other's commits
        fall into cohorts, and while the server works for one of them, the other one's values are encoded.
        """
        while self._send_alone():
            pass
        while self._waiting and self._under_way < self._flushes and self._shared < _COHORTS:
            if self._shared and self._waiting.ready < self._last_size:
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
        if calls := self._waiting.take(MOST_CALLS, MOST_BYTES):
            self._last_size = len(calls)
            self._shared += 1
            self._start(calls, alone=False)
        return bool(calls)

    def _send_alone(self) -> bool:
        """Send off a call that goes alone, beside the shared commits: they need not wait for it."""
        most = max(1, min(_ALONE, self._flushes - _COHORTS))
        if self._alone >= most or self._under_way >= self._flushes or not (calls := self._waiting.take_alone()):
            return False
        self._alone += 1
        self._start(calls, alone=True)
        return True

    def _start(self, calls: list[Call], *, alone: bool) -> None:
        self._begin()
        task = asyncio.get_running_loop().create_task(self._flush(calls, alone=alone))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _flush(self, calls: list[Call], *, alone: bool) -> None:
        try:
            outcomes = await self._store(calls)
        except BaseException:
            # The loop ends: nobody will tell the callers otherwise.
            for call in calls:
                call.outcome.cancel()
            raise
        finally:
            if alone:
                self._alone -= 1
            else:
                self._shared -= 1
            self._end([call.change for call in calls])
        untold = iter(outcomes)
        try:
            # Those who are told first go on first: what they store next is on its way while others still encode.
            while some := list(islice(untold, _AT_ONCE)):
                _tell(some)
                await asyncio.sleep(0)
        finally:
            _tell(untold)  # also if the loop ends meanwhile: it is committed

    async def _store(self, calls: list[Call]) -> list[tuple[Call, Exception | None]]:
        """Store what some calls want stored.

        Returns:
            What is to be raised for each, but for those that wait again, to go alone.
        """
        outcomes: list[tuple[Call, Exception | None]] = []
        parts = deque([calls])
        while parts:
            part = parts.popleft()
            error = await self._error_of(part)
            is_limit = error is not None and _is_limit(error)
            first = part[0]
            if len(part) == 1 and first.suspicion is not None:
                left = first.suspicion.note(first.change.thread_id, stored=error is None, limited=is_limit)
                _tell((call, error and _own(error)) for call in left)  # now: they are not to be sent
            elif error is not None and len(part) > 1 and not _by_thread(error):
                if is_limit:
                    # Not in smaller and smaller company: each time it may take as long again.
                    left = [*part, *chain.from_iterable(parts)]
                    Suspicion(left)
                    self._waiting.put_back(left)
                    break
                if _may_be_one_calls_fault(error):
                    # In halves, until whoever it was is alone; each half keeps its order.
                    half = len(part) // 2
                    parts.extendleft([part[half:], part[:half]])
                    continue
            outcomes += [(call, error and _share_of(error, call.change.thread_id)) for call in part]
        return outcomes

    async def _error_of(self, calls: list[Call]) -> Exception | None:
        """Store what some calls want stored, in one commit. Returns what has kept it from being made."""
        try:
            await self._commit(calls[0].store, [call.change for call in calls])
        except Exception as error:
            return error
        return None

    async def _commit(self, store: Store, changes: Sequence[Change]) -> None:
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            await store(changes)
        except Unavailable as error:
            # It was tried all this time. Calls that have waited as long would wait as long again, and those behind
            # them longer: they fail with it. Not so where it was in conflict with others' changes, or took too long.
            if clock() - begun >= _IN_VAIN_SECONDS and not (is_conflict(error.__cause__) or _is_limit(error)):
                for call in self._waiting:
                    if call.since <= begun and not call.outcome.done():
                        call.outcome.set_exception(_own(error))
            raise


def _tell(outcomes: Iterable[tuple[Call, Exception | None]]) -> None:
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


def _is_limit(error: Exception) -> bool:
    """Tell whether a limit has ended the statement, of the server's or the driver's."""
    cause = error.__cause__
    return isinstance(error, LimitReached) or (
        isinstance(cause, exc.StatementError) and isinstance(cause.orig, TimeoutError)
    )


def _by_thread(error: Exception) -> Mapping[str, str]:
    """Return which threads an error is about, each with its message, where all others are stored."""
    return error._by_thread if isinstance(error, Refused) else {}


def _share_of(error: Exception, thread_id: str) -> Exception | None:
    """Return what of an error of several calls is to be raised for one on a thread."""
    if not (why := _by_thread(error)):
        return _own(error)
    return Refused(why[thread_id]) if thread_id in why else None


def _own(error: Exception) -> Exception:
    """Return an error of ours anew: each caller adds a traceback of its own to the one it gets."""
    if not isinstance(error, CheckpointStoreError):
        return error
    again = type(error)(*error.args)
    again.__cause__ = error.__cause__
    return again
