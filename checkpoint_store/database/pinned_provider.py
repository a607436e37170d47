"""A provider on one connection of an engine's pool: several operations in one transaction of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any, TypeVar, cast

from checkpoint_store.database.backend import Backend
from checkpoint_store.database.checkout import Checkout
from checkpoint_store.database.engine_provider import EngineProvider
from checkpoint_store.database.provider import ConnectionProvider
from checkpoint_store.database.replica_provider import ReplicaProvider
from checkpoint_store.sql.executor import Executor
from checkpoint_store.storage.operation import Operation

T = TypeVar("T")


class PinnedProvider(ConnectionProvider):
    """Runs operations on one connection, in a transaction, from `begin` to `end`."""

    # As with the caller's: it may be rolled back, and can do one thing at a time.
    is_callers = True

    def __init__(self, pool: EngineProvider, level: str) -> None:
        super().__init__(pool.engine, pool.sql)
        self.is_placed = pool.is_placed
        self._pool = pool
        self._level = level
        self._checkout = ExitStack()
        self._db: Executor | None = None

    def begin(self) -> None:
        """Take the connection, and begin the transaction."""
        with self._pool.translate_errors(), ExitStack() as stack:
            stack.enter_context(self._pool.long_slot)
            self._pool.check_connects()
            self._db = stack.enter_context(
                Checkout(
                    *(self.engine, self._pool.queue),
                    in_transaction=True,
                    pooler=self._pool.pooler,
                    level=self._level,
                )
            )
            self._checkout = stack.pop_all()

    def end(self, error: BaseException | None = None) -> None:
        """Commit the transaction, or roll it back after an error, and give the connection back."""
        try:
            with self._pool.translate_errors():
                self._checkout.__exit__(None if error is None else type(error), error, None)
        finally:
            self.written.note(None)

    def run(self, operation: Operation[..., T], *args: Any) -> T:
        """Run an operation on the connection."""
        with self._pool.translate_errors():
            return self.perform(operation, cast("Executor", self._db), args)

    def setup(self, timeout: float) -> None:
        """Refuse: migrations have transactions of their own."""
        raise NotImplementedError


def pinned(backend: Backend, level: str = "READ COMMITTED") -> tuple[Backend, PinnedProvider]:
    """Return a backend like one on an engine, but on one connection of its pool, and its provider.

    The provider's `begin` and `end` run as its operations do, by the backend's `call` or `call_blocking`. `level` is
    the transaction's isolation level.
    """
    backend.check_open()
    on_engine = backend.provider.primary if isinstance(backend.provider, ReplicaProvider) else backend.provider
    provider = PinnedProvider(cast("EngineProvider", on_engine), level)
    on_connection = backend.with_provider(provider)
    on_connection.observe(backend.observer)
    return on_connection, provider


@asynccontextmanager
async def one_transaction(backend: Backend, level: str = "READ COMMITTED") -> AsyncIterator[Backend]:
    """Yield a backend like one on an engine, but in one transaction, which is committed unless there is an error.

    In one that is REPEATABLE READ all operations see what was stored at the moment of the first.
    """
    on_connection, provider = pinned(backend, level)
    await on_connection.call(provider.begin)
    try:
        yield on_connection
    except BaseException as error:
        await on_connection.call(provider.end, error)
        raise
    await on_connection.call(provider.end)
