"""A primary and a replica of it -> reads that may lag go to the replica, and never behind what this process wrote.

A streaming replica is some milliseconds or, on a bad day, minutes behind. For a run that would be wrong: what it goes
on from has to be the newest there is. So the newest checkpoint always comes from the primary, whoever wrote it. What is
looked up by id comes from the replica if that has a newer one too: then nobody is at work on this one any more, and its
pending writes are complete. History, delta channels and lists come from the replica as far as it has them.

Threads that this process has written are read from the primary until the replica is known to have caught up, which is
told by positions in the write-ahead log.
"""

from __future__ import annotations

import logging
import time
from typing import Any, TypeVar

from sqlalchemy import exc

from checkpoint_store.database.engine_provider import EngineProvider
from checkpoint_store.database.locks.request import LockRequest
from checkpoint_store.database.provider import ConnectionProvider
from checkpoint_store.errors import CheckpointStoreError
from checkpoint_store.storage import probes
from checkpoint_store.storage.operation import Operation

T = TypeVar("T")

log = logging.getLogger("checkpoint_store")

REST_SECONDS = 5.0
"""How long a replica that has failed is left alone."""


class ReplicaProvider(ConnectionProvider):
    """Lends connections of the primary, and of the replica for reads that may lag.

    Args:
        primary: Where all is written.
        replica: Where some of it is read; not tried again when it fails.
    """

    def __init__(self, primary: EngineProvider, replica: EngineProvider) -> None:
        super().__init__(primary.engine, primary.sql)
        self.primary = primary
        self.replica = replica
        self.turn = primary.turn
        if not primary.written.is_asked:
            primary.written.is_asked = True
            if primary.engine.dialect.server_version_info is not None:
                primary.written.note(None)  # it was used before
        self._rests_until = float("-inf")

    @property
    def retries(self) -> int:
        """How many times an operation was done again."""
        return self.primary.retries

    def stop_trying(self, *, lends: bool = True) -> None:
        """Let what fails from now on not be done again, on the primary."""
        self.primary.stop_trying(lends=lends)

    def keep_nothing(self) -> None:
        """Let no connection be left open by what is still to come."""
        self.primary.keep_nothing()
        self.replica.keep_nothing()

    def run(self, operation: Operation[..., T], *args: Any) -> T:
        """Run an operation on a connection of either."""
        if operation.may_lag is not None and operation.may_lag(*args):
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
        """Return what the replica answers; None if it is not to be asked, or fails."""
        if time.monotonic() < self._rests_until:
            return None
        try:
            written = self.primary.written
            if thread_id is not None and written.has(thread_id):
                written.ask(self._position, self._replayed)
                if written.has(thread_id):
                    return None
            return self.replica.run(operation, *args)
        except (CheckpointStoreError, exc.SQLAlchemyError) as error:
            # Whatever it is: it can't be reached, it has not got the tables yet, the read stood in the way of what it
            # replays. If it is the call's own fault, the primary says so too.
            self._rests_until = time.monotonic() + REST_SECONDS
            log.warning(
                "%s: a read has failed (%s); for %g s the primary is asked instead",
                *(self.replica.where, type(error).__name__, REST_SECONDS),
            )
            return None

    def _position(self) -> int | None:
        return self.primary.run(probes.log_position)

    def _replayed(self) -> int | None:
        return self.replica.run(probes.replayed_position)
