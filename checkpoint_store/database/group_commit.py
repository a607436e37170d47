"""Group commit: the calls that arrive while a commit is under way share the next one."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Hashable, Sequence
from itertools import islice
from typing import Self

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store.database.commit_outcomes import Outcome, attempts, fail_late, resolve
from checkpoint_store.database.commit_queue import MAX_BYTES, MAX_CALLS, Call, CommitQueue, Store
from checkpoint_store.database.event_loop import EventLoop
from checkpoint_store.errors import Closed, Unavailable, UnusableConnection
from checkpoint_store.serde.arguments import number
from checkpoint_store.storage.write_batch import Change

FLUSHES = 8
"""The largest number of commits under way at once."""

_SHARED_COMMITS = 2
"""The largest number of them that several calls share, unless these take long."""

_GROUPS = 5
"""The number of groups that concurrent runs fall into: while two are with the server, the values of others are encoded.

Measured with 24, 64 and 256 runs: with three the server waits now and then, with eight commits become too small.
"""

_ENOUGH = 0.75
"""The size of a second shared commit, in that of the first, from which on it need not wait for more calls."""

_GATHER_SECONDS = 0.02
"""The seconds that calls gather for a further shared commit."""


class GroupCommit:
    """Concurrent `put` and `put_writes` on one engine's loop, which share commits.

    Args:
        event_loop: The loop.
        flushes: The largest number of commits under way at once.
    """

    def __init__(self, event_loop: EventLoop, flushes: int = FLUSHES) -> None:
        self._event_loop = event_loop
        self._flushes = flushes
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reset()

    def _reset(self) -> None:
        self._waiting = CommitQueue()
        self._under_way = self._shared = self._alone = self._last_size = 0
        self._calls = 0
        """The number of calls in commits that are under way."""
        self._crowd = 0
        """The number of concurrent calls when the last shared commit began; 0 since there was none."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._abandoned: set[asyncio.Future[None]] = set()
        """The ends of commits under way that have a call whose caller was cancelled."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_gathering = False
        """Whether commits are about to be started, for the calls of this iteration of the loop."""

    def _start_on_loop(self) -> asyncio.AbstractEventLoop:
        """Start afresh on another loop: the calls of the one before have ended with it, or never will."""
        if (loop := asyncio.get_running_loop()) is not self._loop:
            if self._loop is not None:
                self._reset()
            self._loop = loop
        return loop

    async def submit(self, store: Store, target: Hashable, change: Change) -> None:
        """Store a change together with others, on the engine's loop.

        Args:
            store: Stores changes, all in one commit.
            target: The tables' schema, and how they are stored to; only changes to the same share a commit.
            change: The change.
        """
        if self._closed:
            raise Closed("this pipeline is closed")
        loop = self._start_on_loop()
        few = self._under_way < self._flushes and not self._waiting and self._crowd <= self._flushes
        if few and not self._shared and self._waiting.begin(change.sequence):
            self._begin(1)
            try:
                await self._commit(store, target, [change])
            finally:
                self._end([change])
            return
        call = Call(store, target, change, loop.create_future(), loop.time())
        self._waiting.add(call)
        if not self._is_gathering:
            # Not at once: other calls of this iteration of the loop may come along.
            self._is_gathering = True
            loop.call_soon(self._start_gathered)
        try:
            await call.outcome
        except asyncio.CancelledError:
            if call.commit is not None and not call.waits:
                self._abandoned.add(call.commit)
                call.commit.add_done_callback(self._abandoned.discard)
            raise

    @property
    def has_abandoned(self) -> bool:
        """Whether a change is under way whose caller was cancelled."""
        return bool(self._abandoned)

    async def settled(self) -> None:
        """Wait for changes that are under way though their callers were cancelled: none is to come after a removal."""
        while self._abandoned:
            await asyncio.wait(self._abandoned)

    @property
    def is_idle(self) -> bool:
        """Whether no call waits and no commit is under way."""
        return self._idle.is_set()

    async def aclose(self) -> None:
        """Refuse further calls, and wait for those that were made."""
        self._closed = True
        await self._event_loop.acall(self._drained)

    async def _drained(self) -> None:
        self._start_on_loop()
        await self._idle.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _begin(self, calls: int) -> None:
        self._under_way += 1
        self._calls += calls
        self._idle.clear()

    def _end(self, changes: Sequence[Change]) -> None:
        self._under_way -= 1
        self._calls -= len(changes)
        self._waiting.end(changes)
        if self._waiting or self._under_way:
            self._start_commits()
        else:
            self._rest()

    def _rest(self) -> None:
        """Note that no call waits and no commit is under way."""
        self._crowd = 0
        self._idle.set()

    def _start_gathered(self) -> None:
        self._is_gathering = False
        self._start_commits()

    def _start_commits(self) -> None:
        """Start as many commits as may be under way.

        A second shared one starts only with about as many calls as the first: so the groups of concurrent runs stay as
        large as they are.
        """
        while self._start_single():
            pass
        while self._waiting and self._under_way < self._flushes:
            is_small = bool(self._shared) and self._waiting.ready < self._last_size * _ENOUGH
            if is_small or self._shared >= _SHARED_COMMITS:
                # Not for long: those under way may wait for a lock whose holder waits for one of these calls.
                loop = asyncio.get_running_loop()
                self._timer = self._timer or loop.call_later(_GATHER_SECONDS, self._stop_gathering)
                return
            if not self._start_shared():
                break
        if not self._under_way and not self._waiting:
            self._rest()

    def _stop_gathering(self) -> None:
        """Start a shared commit with the calls that have gathered."""
        self._timer = None
        if self._waiting and self._under_way < self._flushes:
            self._start_shared()
        self._start_commits()

    def _start_shared(self) -> bool:
        if calls := self._waiting.take(MAX_CALLS, MAX_BYTES):
            self._last_size = len(calls)
            self._crowd = self._calls + len(calls) + len(self._waiting)
            self._shared += 1
            self._start(calls, alone=False)
        return bool(calls)

    def _start_single(self) -> bool:
        """Start the commit of a call that goes alone, beside the shared ones, which need not wait for it."""
        limit = max(1, self._flushes - _SHARED_COMMITS)
        if self._alone >= limit or self._under_way >= self._flushes or not (calls := self._waiting.take_alone()):
            return False
        self._alone += 1
        self._start(calls, alone=True)
        return True

    def _start(self, calls: list[Call], *, alone: bool) -> None:
        self._begin(len(calls))
        task = asyncio.get_running_loop().create_task(self._store_and_resolve(calls, alone=alone))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        for call in calls:
            call.commit = task

    async def _store_and_resolve(self, calls: list[Call], *, alone: bool) -> None:
        try:
            outcomes = await self._store(calls)
        except BaseException:
            # The loop ends, and nothing else would wake the callers.
            for call in calls:
                call.outcome.cancel()
            raise
        finally:
            if alone:
                self._alone -= 1
            else:
                self._shared -= 1
            self._end([call.change for call in calls])
        await self._resolve_in_groups(outcomes)

    async def _resolve_in_groups(self, outcomes: Sequence[Outcome]) -> None:
        """Let the callers go on; if most of all calls were in this commit, in groups, each of which makes the next one.

        The next changes of a group are with the server while those of another one are encoded.
        """
        group = -(-(len(outcomes) + self._calls + len(self._waiting)) // _GROUPS)
        if len(outcomes) < 2 * group:
            resolve(outcomes)
            return
        unresolved = iter(outcomes)
        try:
            while some := list(islice(unresolved, group)):
                resolve(some)
                await asyncio.sleep(0)  # they go on
                await asyncio.sleep(0)  # and their commit begins
        finally:
            resolve(unresolved)  # also if the loop ends meanwhile: they are committed

    async def _store(self, calls: list[Call]) -> list[Outcome]:
        """Store the changes of calls. Returns the outcome of each, but for those that wait again, to go alone."""
        trying = attempts(calls, self._waiting)
        part = next(trying)
        while True:
            error: Exception | None = None
            try:
                await self._commit(part[0].store, part[0].target, [call.change for call in part])
            except Exception as failure:
                error = failure
            try:
                part = trying.send(error)
            except StopIteration as end:
                outcomes: list[Outcome] = end.value
                return outcomes

    async def _commit(self, store: Store, target: Hashable, changes: Sequence[Change]) -> None:
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            await store(changes)
        except Unavailable as error:
            fail_late(self._waiting, target, error, begun, clock())
            raise


class AsyncPipeline(GroupCommit):
    """Lets concurrent `put` and `put_writes` share commits: under load the server makes one where it made dozens.

    All savers on an engine do so by themselves. With a pipeline of your own you choose how many commits may be under
    way, and can wait for all changes by `aclose()`.

    A call returns when its own rows are committed. A few at once go straight to the database; further ones wait, and
    share the next commit. The checkpoints of a thread are stored in the order of the calls, and so are the writes of a
    task. If the server refuses the rows of a call, that call alone fails. Several savers on the engine may share one.

    Args:
        engine: The engine of the savers.
        flushes: How many commits may be under way at once, each on a connection of the pool.

    Raises:
        UnusableConnection: If `engine` is not an `AsyncEngine`.
        InvalidOption: If `flushes` is less than one.
    """

    def __init__(self, engine: AsyncEngine, *, flushes: int = FLUSHES) -> None:
        if not isinstance(engine, AsyncEngine):
            raise UnusableConnection(f"engine must be the savers' AsyncEngine, not {type(engine).__qualname__}")
        self.engine = engine
        super().__init__(EventLoop.of(engine.dialect), number(flushes, "flushes", 1))


_of_engines: weakref.WeakKeyDictionary[Engine, GroupCommit] = weakref.WeakKeyDictionary()


def group_commit_of(engine: AsyncEngine) -> GroupCommit:
    """Return the group commit that all savers on an engine share."""
    within = engine.sync_engine
    return _of_engines.get(within) or _of_engines.setdefault(within, GroupCommit(EventLoop.of(engine.dialect)))
