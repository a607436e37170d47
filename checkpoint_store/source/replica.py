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
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from sqlalchemy import Dialect, exc

from checkpoint_store import migrations, operations
from checkpoint_store.config import Key, Listing
from checkpoint_store.errors import CheckpointStoreError
from checkpoint_store.source.engine import EngineOrigin
from checkpoint_store.source.origin import Origin

T = TypeVar("T")
Operation = Callable[..., Any]

log = logging.getLogger("checkpoint_store")

MOST_THREADS = 10_000
"""How many threads are remembered as written; when there are more, all threads count as such for a while."""

ASK_SECONDS = 0.2
"""How often the servers are asked how far they are, at most."""

REST_SECONDS = 5.0
"""How long a replica that has failed is left alone."""


class Unreplicated:
    """Which threads this process has written that the replica may not have yet; may be used from any thread.

    Writes are numbered. Once the primary's log has a position that was taken after a number, and the replica is beyond
    it, all writes up to that number are there.
    """

    def __init__(self) -> None:
        self._threads: dict[str, int] = {}
        self._everything = self._last = self._passed = 0
        self._sample: tuple[int, int] | None = None
        self._asked = float("-inf")
        self._lock = threading.Lock()

    def note(self, thread_ids: Iterable[str] | None) -> None:
        """Note that threads were written; with None, any of them may have been."""
        with self._lock:
            self._last += 1
            if thread_ids is None:
                self._everything = self._last
                self._threads.clear()
            else:
                for thread_id in thread_ids:
                    self._threads[thread_id] = self._last
            if len(self._threads) > MOST_THREADS:
                self._everything = self._last
                self._threads.clear()

    def has(self, thread_id: str) -> bool:
        """Tell whether a thread is among them."""
        with self._lock:
            return max(self._everything, self._threads.get(thread_id, 0)) > self._passed

    def ask(self, primary: Callable[[], int | None], replica: Callable[[], int | None]) -> None:
        """Find out how far the replica is, unless that was done just now.

        Args:
            primary: Tells where the primary's log ends, as a number of bytes.
            replica: Tells what of it the replica has replayed; None if it can't tell.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._asked < ASK_SECONDS:
                return
            self._asked, sample, last = now, self._sample, self._last
        if sample is None:
            if (position := primary()) is None:
                return
            sample = (last, position)
        replayed = replica()
        with self._lock:
            if replayed is None or replayed < sample[1]:
                self._sample = sample
                return
            self._sample, self._passed = None, max(self._passed, sample[0])
            self._threads = {thread_id: number for thread_id, number in self._threads.items() if number > self._passed}


class ReplicaOrigin(Origin):
    """Lends connections of the primary, and of the replica for reads that may lag.

    Args:
        primary: Where all is written.
        replica: Where some of it is read; not tried again when it fails.
    """

    def __init__(self, primary: EngineOrigin, replica: EngineOrigin) -> None:
        super().__init__(primary.engine, primary.sql)
        self._primary = primary
        self._replica = replica
        self.turn = primary.turn
        # What one saver on an engine writes the others may ask for.
        self._written = _unreplicated.setdefault(primary.engine.dialect, Unreplicated())
        self._rests_until = float("-inf")

    @property
    def retries(self) -> int:
        """How many times an operation was done again."""
        return self._primary.retries

    def stop_trying(self) -> None:
        """Let what fails from now on not be done again."""
        self._primary.stop_trying()

    def lend(self, operation: Callable[..., T], *args: Any) -> T:
        """Lend a connection of either."""
        if (read := _READS.get(operation)) is not None:
            found = read(self, operation, *args)
            return self._primary.lend(operation, *args) if found is None else cast("T", found)
        if operation in _HARMLESS:
            return self._primary.lend(operation, *args)
        try:
            return self._primary.lend(operation, *args)
        finally:
            self._written.note({change.thread_id for change in args[1]} if operation is operations.store else None)

    def lend_transaction(self, operation: Callable[..., T], *args: Any) -> T:
        """Lend a connection of the primary."""
        try:
            return self._primary.lend_transaction(operation, *args)
        finally:
            # Removal, copies: whose threads they are about, they know.
            self._written.note(None)

    def setup(self, timeout: float) -> None:
        """Migrate the primary; the replica follows."""
        self._primary.setup(timeout)

    def _get(self, _: Operation, shelf: Any, key: Key) -> Any:
        return self._ask(key.thread_id, operations.get_settled, shelf, key) if key.checkpoint_id else None

    def _list(self, operation: Operation, shelf: Any, listing: Listing, after: Any) -> Any:
        return self._ask(listing.thread_id, operation, shelf, listing, after)

    def _history(self, operation: Operation, key: Key, channels: Any) -> Any:
        # No row: the checkpoint is not there yet, or has no parent.
        return (self._ask(key.thread_id, operation, key, channels) or None) if key.checkpoint_id else None

    def _across(self, operation: Operation, *args: Any) -> Any:
        return self._ask(None, operation, *args)

    def _of_thread(self, operation: Operation, thread_id: str) -> Any:
        return self._ask(thread_id, operation, thread_id)

    def _ask(self, thread_id: str | None, operation: Operation, *args: Any) -> Any:
        """Return what the replica answers; None if it is not to be asked, or fails."""
        if time.monotonic() < self._rests_until:
            return None
        try:
            if thread_id is not None and self._written.has(thread_id):
                self._written.ask(self._position, self._replayed)
                if self._written.has(thread_id):
                    return None
            return self._replica.lend(operation, *args)
        except (CheckpointStoreError, exc.SQLAlchemyError) as error:
            # Whatever it is: it can't be reached, it has not got the tables yet, the read stood in the way of what it
            # replays. If it is the call's own fault, the primary says so too.
            self._rests_until = time.monotonic() + REST_SECONDS
            log.warning(
                "%s: a read has failed (%s); for %g s the primary is asked instead",
                *(self._replica.where, type(error).__name__, REST_SECONDS),
            )
            return None

    def _position(self) -> int | None:
        return self._primary.lend(operations.log_position)

    def _replayed(self) -> int | None:
        return self._replica.lend(operations.replayed_position)


_unreplicated: weakref.WeakKeyDictionary[Dialect, Unreplicated] = weakref.WeakKeyDictionary()

_READS: Mapping[Operation, Callable[..., Any]] = {
    operations.get_checkpoint: ReplicaOrigin._get,
    operations.list_page: ReplicaOrigin._list,
    operations.delta_history: ReplicaOrigin._history,
    operations.list_threads: ReplicaOrigin._across,
    operations.thread_stats: ReplicaOrigin._of_thread,
}
"""What may be read from a replica."""

_HARMLESS: frozenset[Operation] = frozenset(
    {operations.is_adopted, operations.revisions, migrations.check_revisions, operations.log_position}
)
"""What else writes nothing. Whatever is not known here may have written any thread."""
