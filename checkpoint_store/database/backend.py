"""A backend: runs a saver's operations on its provider's connections, for coroutines and for plain code."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from checkpoint_store.database.checkout import cancel_calls
from checkpoint_store.database.closing import State, closing, closing_blocking
from checkpoint_store.database.event_loop import EventLoop
from checkpoint_store.database.group_commit import AsyncPipeline, GroupCommit
from checkpoint_store.database.locks.request import LockRequest
from checkpoint_store.database.locks.scheduling import to_the_end
from checkpoint_store.database.observer import Observer
from checkpoint_store.database.page_sharing import PageSharing
from checkpoint_store.database.pool import dispose
from checkpoint_store.database.provider import ConnectionProvider
from checkpoint_store.database.thread_commit import ThreadCommit
from checkpoint_store.errors import Closed, LimitReached, Refused, WrongThread
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import write
from checkpoint_store.storage.operation import Kind, Operation
from checkpoint_store.storage.page_cache import PageCache
from checkpoint_store.storage.write_batch import Change

P = ParamSpec("P")
T = TypeVar("T")

_UNOBSERVED = nullcontext()


class Backend(ABC):
    """Runs operations on the connections of one provider."""

    def __init__(self, provider: ConnectionProvider, page_cache: PageCache, page_sharing: PageSharing) -> None:
        self.provider = provider
        self.page_cache = page_cache
        self.page_sharing = page_sharing
        self.observer: Observer | None = None

    @property
    def sql(self) -> Statements:
        """The statements for the tables."""
        return self.provider.sql

    @abstractmethod
    def with_provider(self, provider: ConnectionProvider) -> Backend:
        """Return a backend like this one on another provider, each change in a commit of its own."""

    @abstractmethod
    def call(self, function: Callable[..., T], *args: Any) -> Coroutine[Any, Any, T]:
        """Call a function of the provider, from any coroutine."""

    @abstractmethod
    def call_blocking(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function of the provider and wait for it, from a thread other than the loop's."""

    def run(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> Coroutine[Any, Any, T]:
        """Run an operation, from any coroutine."""
        if (observer := self.observer) is not None:
            block = observer.call(operation.name, operation.thread(args))
            return self._observed(block, self.call, self.provider.run, operation, *args)
        self.check_open()
        return self.call(self.provider.run, operation, *args)

    def run_blocking(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run an operation and wait for it, from a thread other than the loop's."""
        observer = self.observer
        with observer.call(operation.name, operation.thread(args)) if observer else _UNOBSERVED:
            self.check_open()
            result: T = self.call_blocking(self.provider.run, operation, *args)
        return result

    def store(self, change: Change) -> Coroutine[Any, Any, None]:
        """Store a change, from any coroutine."""
        if (observer := self.observer) is not None:
            return self._observed(observer.store(change), self._store, change)
        self.check_open()
        return self._store(change)

    def store_blocking(self, change: Change) -> None:
        """Store a change and wait for it."""
        observer = self.observer
        with observer.store(change) if observer else _UNOBSERVED:
            self.check_open()
            self._store_blocking(change)

    async def setup(self, timeout: float) -> None:
        """Bring the schema to head, from any coroutine."""
        observer = self.observer
        with observer.call("setup", None) if observer else _UNOBSERVED:
            self.check_open()
            await self.call(self.provider.setup, timeout)

    def setup_blocking(self, timeout: float) -> None:
        """Bring the schema to head and wait for it."""
        observer = self.observer
        with observer.call("setup", None) if observer else _UNOBSERVED:
            self.check_open()
            self.call_blocking(self.provider.setup, timeout)

    def observe(self, observer: Observer | None) -> None:
        """Register an observer, in place of another one if there is one."""
        self.observer = observer
        self.provider.observe(observer)

    def check_open(self) -> None:
        """Raise if this backend is closed."""
        if self.provider.state is not State.OPEN:
            self.provider.check_open()

    @abstractmethod
    def own(self) -> None:
        """Take over the engine: it ends with the saver."""

    @abstractmethod
    def check_sync(self) -> None:
        """Raise unless a sync call can be made from here."""

    @abstractmethod
    async def close(self) -> None:
        """Refuse further operations, and release the engine and the loop if they are ours."""

    @abstractmethod
    def close_blocking(self) -> None:
        """Refuse further operations, and release the engine and the loop if they are ours."""

    async def take_lock(self, request: LockRequest) -> None:
        """Take a thread's lock, from any coroutine."""
        self.check_open()
        await self.call(self.provider.take_lock, request)

    def take_lock_blocking(self, request: LockRequest) -> None:
        """Take a thread's lock."""
        self.check_open()
        self.call_blocking(self.provider.take_lock, request)

    async def drop_lock(self, request: LockRequest) -> None:
        """Give a thread's lock back, from any coroutine."""
        if request.is_lost:
            self.provider.lock_session.forget(request)  # its loop may have ended
        else:
            await to_the_end(self.call(self.provider.drop_lock, request))

    def drop_lock_blocking(self, request: LockRequest) -> None:
        """Give a thread's lock back."""
        if request.is_lost:
            self.provider.lock_session.forget(request)
        else:
            self.call_blocking(self.provider.drop_lock, request)

    async def leave_lock(self, request: LockRequest) -> None:
        """Give a lock up, whether it was wanted, held, or given back already."""
        request.given_up.set()
        with suppress(Closed, WrongThread):  # then its session has ended too
            await to_the_end(self.call(self.provider.drop_lock, request))

    @abstractmethod
    def leave_lock_blocking(self, request: LockRequest) -> None:
        """Give a lock up, whether it was wanted, held, or given back already, and wait for nothing but the server."""

    async def _observed(
        self, block: AbstractContextManager[object], call: Callable[..., Coroutine[Any, Any, T]], *args: Any
    ) -> T:
        with block:
            self.check_open()
            return await call(*args)

    @abstractmethod
    def _store(self, change: Change) -> Coroutine[Any, Any, None]:
        """Store a change, from any coroutine."""

    @abstractmethod
    def _store_blocking(self, change: Change) -> None:
        """Store a change and wait for it."""

    def _commit(self, changes: Sequence[Change]) -> None:
        """Store changes in one commit."""
        if self.provider.lock_session.lost:
            self.provider.lock_session.check(self.provider.sql, changes)  # here already: there may be no server
        operation = write.operation_for(self.provider.sql, changes)
        # Raised here, once all else is committed.
        if refused := self.provider.run(operation, self.page_cache, changes):
            error = Refused(" ".join(refused.values()))
            error._by_thread = refused
            raise error


class AsyncBackend(Backend):
    """Runs operations on the event loop of an async engine or connection, each in a greenlet of SQLAlchemy's.

    One greenlet from checkout to return: each switch in and out of one costs as much as a small statement.

    Args:
        provider: The provider.
        event_loop: The loop of its connections.
        page_cache: The pages known to be stored.
        page_sharing: Whether large values are stored as pages.
        engine: The engine of the connections; None if these are the caller's.
        replica: The engine of a replica, if there is one.
        pipe: Lets concurrent changes share commits.
        target: Savers share commits with those that have the same one.
    """

    def __init__(
        self,
        provider: ConnectionProvider,
        event_loop: EventLoop,
        page_cache: PageCache,
        page_sharing: PageSharing,
        *,
        engine: AsyncEngine | None = None,
        replica: AsyncEngine | None = None,
        pipe: GroupCommit | None = None,
        target: Hashable = None,
    ) -> None:
        super().__init__(provider, page_cache, page_sharing)
        self.event_loop = event_loop
        self.owned = False
        """Whether the engine and its loop are ours, and end with the saver."""
        self._closing = threading.RLock()
        self._engine = engine
        self._replica = replica
        self._pipe = pipe
        self._target = target

    def own(self) -> None:
        """Take over the engine and its loop: they end with the saver."""
        self.owned = True
        self.provider.own()

    def with_provider(self, provider: ConnectionProvider) -> AsyncBackend:
        """Return a backend like this one on another provider."""
        return AsyncBackend(provider, self.event_loop, self.page_cache, self.page_sharing)

    def run(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> Coroutine[Any, Any, T]:
        """Run an operation, from any coroutine; a removal or copy after all changes that are under way abandoned."""
        if operation.kind is Kind.WRITE and self._pipe is not None and self._pipe.has_abandoned:
            return self._run_settled(self._pipe, super().run(operation, *args, **_))
        return super().run(operation, *args, **_)

    async def _run_settled(self, pipe: GroupCommit, call: Coroutine[Any, Any, T]) -> T:
        try:
            await self.event_loop.acall(pipe.settled)
        except BaseException:
            call.close()  # it has not begun
            raise
        return await call

    def call(self, function: Callable[..., T], *args: Any) -> Coroutine[Any, Any, T]:
        """Call a function of the provider, from any coroutine."""
        if self.event_loop.loop is asyncio.get_running_loop():
            return greenlet_spawn(function, *args)
        return self.event_loop.acall(greenlet_spawn, function, *args)

    def call_blocking(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function of the provider and wait for it, from a thread other than the loop's."""
        result: T = self.event_loop.call(greenlet_spawn, function, *args)
        return result

    def leave_lock_blocking(self, request: LockRequest) -> None:
        """Have a lock given up, on the loop."""
        request.given_up.set()
        with suppress(Closed, WrongThread):
            self.event_loop.send(greenlet_spawn, self.provider.drop_lock, request)

    def check_sync(self) -> None:
        """Raise unless a sync call can be made from here."""
        self.check_open()
        self.event_loop.check_sync()

    async def close(self) -> None:
        """Refuse further operations, and release the engine and the loop if they are ours."""
        self._refuse()
        if self.event_loop.is_ours:
            await asyncio.to_thread(self.close_blocking)
        elif self.owned and self.provider.state is State.DRAINING and not self.event_loop.is_left_behind:
            await self.event_loop.acall(self._close)

    def close_blocking(self) -> None:
        """Refuse further operations, and release the engine and the loop if they are ours."""
        self._refuse()
        # At the end of the interpreter the loop, and all that lived on it, may have gone first.
        if self.event_loop.is_closed:
            return
        with self._closing:
            if self.provider.state is State.DRAINING and not self.provider.is_disposed:
                try:
                    with closing_blocking(partial(self.event_loop.call, self._release)):  # also after Ctrl-C
                        self.event_loop.call(self._drain)
                finally:
                    if self.owned:
                        self.event_loop.stop()

    def _refuse(self) -> None:
        """Refuse further operations."""
        if self.provider.state is State.OPEN:
            # A pipeline of the caller's may have changes of others among ours.
            is_left = self.owned or self.event_loop.is_ours or self._pipe is not None
            self.provider.close(State.DRAINING if is_left else State.CLOSED)

    async def _close(self) -> None:
        async with closing(lambda: to_the_end(self._release())):  # also if the wait for the pipeline is cancelled
            await self._drain()

    async def _drain(self) -> None:
        if self.owned and self._pipe is not None:
            await self._pipe.aclose()

    async def _release(self) -> None:
        async with closing(self._dispose):
            if self.owned:
                await greenlet_spawn(self.provider.lock_session.close)

    async def _dispose(self) -> None:
        """Close the connections: on a loop of ours the host could not."""
        goes_on = self._pipe is not None and not self.owned and not self._pipe.is_idle
        own = self._engine if self.owned or self.event_loop.is_ours else None
        self.provider.close(State.DRAINING if goes_on else State.CLOSED, is_disposed=own is not None)
        try:
            if own is not None:
                await greenlet_spawn(self.provider.dispose)
            if self._replica is not None and self.event_loop.is_ours:
                await greenlet_spawn(dispose, self._replica.sync_engine)
        except BaseException:
            self.provider.close(State.DRAINING)  # to be closed once more
            raise

    def _shares_commits(self) -> bool:
        """Return whether concurrent changes share commits.

        Where listeners hear of statements or checkouts, only if the caller asks for it: they may set what belongs to
        one caller, such as the tenant that policies look at. Where tables are distributed, a commit of several threads
        would be one of several servers.
        """
        if self._pipe is None or self.provider.sql.are_distributed:
            return False
        return isinstance(self._pipe, AsyncPipeline) or not self.provider.is_heard

    def _store(self, change: Change) -> Coroutine[Any, Any, None]:
        if self._pipe is None or not self._shares_commits():
            return self.call(self._commit, [change])
        submitting = self._store_all, self._target, change
        if self.event_loop.loop is asyncio.get_running_loop():
            return self._pipe.submit(*submitting)
        return self.event_loop.acall(self._pipe.submit, *submitting)

    def _store_blocking(self, change: Change) -> None:
        if self._pipe is None or not self._shares_commits():
            self.call_blocking(self._commit, [change])
        else:
            self.event_loop.call(self._pipe.submit, self._store_all, self._target, change)

    async def _store_all(self, changes: Sequence[Change]) -> None:
        # Also when this saver has been closed meanwhile: it was open when the first call came in, and there may be
        # others' among them.
        observer = self.observer
        with observer.commit(changes) if observer else _UNOBSERVED:
            await greenlet_spawn(self._commit, changes)


class SyncBackend(Backend):
    """Runs operations in the calling thread, on a sync engine or connection; for coroutines, in a worker thread.

    Args:
        provider: The provider.
        page_cache: The pages known to be stored.
        page_sharing: Whether large values are stored as pages.
        commits: Lets changes of several threads share commits.
        target: Savers share commits with those that have the same one.
    """

    def __init__(
        self,
        provider: ConnectionProvider,
        page_cache: PageCache,
        page_sharing: PageSharing,
        *,
        commits: ThreadCommit | None = None,
        target: Hashable = None,
    ) -> None:
        super().__init__(provider, page_cache, page_sharing)
        self.owned = False
        """Whether the engine is ours, and ends with the saver."""
        self._closing = threading.RLock()
        self._commits = commits
        self._target = target

    def own(self) -> None:
        """Take over the engine: it ends with the saver."""
        self.owned = True
        self.provider.own()

    def with_provider(self, provider: ConnectionProvider) -> SyncBackend:
        """Return a backend like this one on another provider."""
        return SyncBackend(provider, self.page_cache, self.page_sharing)

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function of the provider in a worker thread."""
        call = asyncio.to_thread(self.call_blocking, function, *args)
        # If cancelled, the caller goes on with its connection, or closes it: the call has to leave that first.
        return await (to_the_end(call) if self.provider.is_callers else call)

    def call_blocking(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function of the provider."""
        try:
            return function(*args)
        except LimitReached:
            if not (self.owned and self.provider.state is State.CLOSED):
                raise
        # The limit was that of `_dispose`.
        raise Closed("this saver was closed while the call was under way; whether it was carried out is unknown")

    def _store(self, change: Change) -> Coroutine[Any, Any, None]:
        return self.call(self._submit, change)

    def _store_blocking(self, change: Change) -> None:
        self.call_blocking(self._submit, change)

    def _submit(self, change: Change) -> None:
        if self._commits is None or self.provider.sql.are_distributed or self.provider.is_heard:
            self._commit([change])
        else:
            self._commits.submit(self._store_all, self._target, change)

    def _store_all(self, changes: Sequence[Change]) -> None:
        observer = self.observer
        with observer.commit(changes) if observer else _UNOBSERVED:
            self._commit(changes)

    async def take_lock(self, request: LockRequest) -> None:
        """Take a thread's lock, in a thread for this alone; if cancelled, not before that has stopped."""
        self.check_open()
        # Not in one of the loop's threads: when all of them wait, the lock's holder has none to go on in.
        executor, context = ThreadPoolExecutor(1, "checkpoint_store lock"), copy_context()
        call = asyncio.get_running_loop().run_in_executor(executor, context.run, self.provider.take_lock, request)
        executor.shutdown(wait=False)
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            request.given_up.set()
            await to_the_end(asyncio.wait([call]))
            call.exception()
            raise

    def leave_lock_blocking(self, request: LockRequest) -> None:
        """Give a lock up."""
        request.given_up.set()
        self.provider.drop_lock(request)

    def check_sync(self) -> None:
        """Raise if this backend is closed; a thread that runs a loop may call too, and blocks it."""
        self.check_open()

    async def close(self) -> None:
        """Refuse further operations, and release the engine if it is ours."""
        await asyncio.to_thread(self.close_blocking)

    def close_blocking(self) -> None:
        """Refuse further operations, and release the engine if it is ours.

        Writes that were accepted are stored first, unless each commits for itself; other calls under way are cancelled.
        """
        if self.provider.state is State.OPEN:
            self.provider.close(State.DRAINING if self.owned else State.CLOSED)
        if self.provider.is_parents:
            return  # the connections are the parent's, and their sessions would end
        with self._closing:
            if self.provider.state is State.DRAINING:
                with closing_blocking(self._release):
                    if self._commits is not None:
                        self._commits.drain()

    def _release(self) -> None:
        with closing_blocking(self._dispose):
            self.provider.lock_session.close()

    def _dispose(self) -> None:
        self.provider.close(State.CLOSED, is_disposed=True)
        try:
            cancel_calls(self.provider.engine.pool)
            self.provider.dispose()
        except BaseException:
            self.provider.close(State.DRAINING)  # to be closed once more
            raise
