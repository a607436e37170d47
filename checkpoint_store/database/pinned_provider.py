"""A connection of an engine's pool, held over several operations -> all of them in one transaction of ours."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any, TypeVar, cast

from checkpoint_store.database.async_backend import AsyncBackend
from checkpoint_store.database.backend import Backend
from checkpoint_store.database.engine_provider import EngineProvider
from checkpoint_store.database.pool import borrowed
from checkpoint_store.database.provider import ConnectionProvider
from checkpoint_store.database.replica_provider import ReplicaProvider
from checkpoint_store.sql.executor import Executor
from checkpoint_store.storage.operation import Operation

T = TypeVar("T")


class PinnedProvider(ConnectionProvider):
    """Lends one connection, in a transaction, from `begin` to `end`.

    Args:
        pool: Where the connection comes from and goes back to.
    """

    # As with the caller's: it may be rolled back, and can do one thing at a time.
    is_callers = True

    def __init__(self, pool: EngineProvider) -> None:
        super().__init__(pool.engine, pool.sql)
        self._pool = pool
        self._borrowing = ExitStack()
        self._db: Executor | None = None

    def begin(self) -> None:
        """Borrow the connection."""
        with self._pool.told(), ExitStack() as borrowing:
            borrowing.enter_context(self._pool.long_turn())
            self._pool.check_lends()
            self._db = borrowing.enter_context(borrowed(self.engine, whole=True, pooler=self._pool.pooler))
            self._borrowing = borrowing.pop_all()

    def end(self, error: BaseException | None) -> None:
        """Give it back: committed, or after an error rolled back."""
        try:
            with self._pool.told():
                self._borrowing.__exit__(None if error is None else type(error), error, None)
        finally:
            self.written.note(None)

    def run(self, operation: Operation[..., T], *args: Any) -> T:
        """Run an operation on the connection."""
        with self._pool.told():
            return self.perform(operation, cast("Executor", self._db), args)

    def setup(self, timeout: float) -> None:
        """Not here: migrations have transactions of their own."""
        raise NotImplementedError


def held(source: Backend) -> tuple[Backend, PinnedProvider]:
    """Return a source like one on an engine, but on one connection of its pool, and that to begin and end with.

    Begin and end run as all else does that a source asks of its origin: by `_await` or `_call`.
    """
    lender = source.provider.primary if isinstance(source.provider, ReplicaProvider) else source.provider
    provider = PinnedProvider(cast("EngineProvider", lender))
    holding = copy.copy(source)
    holding.provider = provider
    if isinstance(holding, AsyncBackend):
        holding._pipe = None
    return holding, provider
