"""A provider on a primary and a replica: reads that may lag go to the replica, and always see this process's writes.

A streaming replica lags by some milliseconds or, on a bad day, by minutes. A run has to continue the newest checkpoint,
so that always comes from the primary, whichever process wrote it. A checkpoint with a given id comes from the replica
if that has a newer one too: then no run is at work on this one any more, and its pending writes are complete. History,
delta channels and lists come from the replica as far as it has them.

Threads that this process has written are read from the primary until positions in the write-ahead log show that the
replica has caught up.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import exc

from checkpoint_store.database.closing import State
from checkpoint_store.database.engine_provider import EngineProvider
from checkpoint_store.database.locks.request import LockRequest
from checkpoint_store.database.observer import Observer
from checkpoint_store.database.provider import ConnectionProvider
from checkpoint_store.errors import CheckpointStoreError
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import probes
from checkpoint_store.storage.operation import Operation

T = TypeVar("T")

log = logging.getLogger("checkpoint_store")

REST_SECONDS = 5.0
"""For how long a replica that has failed is not asked."""


class ReplicaProvider(ConnectionProvider):
    """Runs operations on connections of the primary, and on the replica's, without retries, if they may lag."""

    def __init__(self, primary: EngineProvider, replica: EngineProvider) -> None:
        super().__init__(primary.engine, primary.sql)
        self.primary = primary
        self.replica = replica
        if not primary.written.is_asked:
            primary.written.is_asked = True
            if primary.engine.dialect.server_version_info is not None:
                primary.written.note(None)  # it was used before
        self._rests_until = float("-inf")

    @property
    def sql(self) -> Statements:
        """The primary's statements."""
        return self.primary.sql

    @property
    def retries(self) -> int:
        """The number of retries, on the primary."""
        return self.primary.retries

    @property
    def is_parents(self) -> bool:
        """Whether the connections belong to the process this one was forked from."""
        return self.primary.is_parents

    def close(self, state: State, *, is_disposed: bool = False) -> None:
        """Go on to a further state."""
        super().close(state, is_disposed=is_disposed)
        self.primary.close(state, is_disposed=is_disposed)
        if state is State.DRAINING:
            self.replica.close(state, is_disposed=is_disposed)

    def own(self) -> None:
        """Take over the primary's engine; a replica's is always the caller's."""
        self.primary.own()

    def dispose(self) -> None:
        """Close the connections of the primary's pool."""
        self.primary.dispose()

    def observe(self, observer: Observer | None) -> None:
        """Register an observer, or none."""
        super().observe(observer)
        self.primary.observe(observer)
        self.replica.observe(observer)

    def run(self, operation: Operation[..., T], *args: Any) -> T:
        """Run an operation on a connection of either."""
        if operation.may_lag is not None and operation.may_lag(*args) and self.state is not State.CLOSED:
            found: T | None = self._ask(operation.thread(args), operation.on_replica or operation, args)
            if found is not None:
                return found
        return self.primary.run(operation, *args)

    def take_lock(self, request: LockRequest) -> None:
        """Take a thread's lock, which is one of the primary's."""
        self.primary.take_lock(request)

    def drop_lock(self, request: LockRequest) -> None:
        """Give a thread's lock back."""
        self.primary.drop_lock(request)

    def setup(self, timeout: float) -> None:
        """Migrate the primary; the replica follows."""
        self.primary.setup(timeout)

    def _ask(self, thread_id: str | None, operation: Operation[..., T], args: tuple[Any, ...]) -> T | None:
        """Return the replica's answer; None if it may not be asked, or fails."""
        if time.monotonic() < self._rests_until:
            return None
        try:
            written = self.primary.written
            if thread_id is not None and written.has(thread_id):
                written.ask(
                    partial(self.primary.run, probes.log_position), partial(self.replica.run, probes.replayed_position)
                )
                if written.has(thread_id):
                    return None
            return self.replica.run(operation, *args)
        except (CheckpointStoreError, exc.SQLAlchemyError) as error:
            # Whatever it is: the replica can't be reached, it lacks the tables yet, the read stood in the way of
            # the replay. If the call itself is wrong, the primary raises the same.
            self._rests_until = time.monotonic() + REST_SECONDS
            log.warning(
                "%s: a read has failed (%s); for %g s the primary is asked instead",
                *(self.replica.where, type(error).__name__, REST_SECONDS),
            )
            return None
