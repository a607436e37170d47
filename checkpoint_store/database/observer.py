"""The hook for observers of calls, such as `checkpoint_store.telemetry`; without one, nothing is called."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from checkpoint_store.sql.executor import Executor
from checkpoint_store.storage.operation import Operation
from checkpoint_store.storage.write_batch import Change


class Observer(Protocol):
    """Watches the calls of one backend; registered by `Backend.observe`."""

    def call(self, name: str, thread_id: str | None) -> AbstractContextManager[object]:
        """Return a block for a call of the saver's, from its beginning to its end.

        Args:
            name: The saver's method.
            thread_id: The one thread that it is about, if it is about one.
        """

    def store(self, change: Change) -> AbstractContextManager[object]:
        """Return a block for a call that stores a change."""

    def commit(self, changes: Sequence[Change]) -> AbstractContextManager[object]:
        """Return a block for a commit that several calls may share."""

    def operation(
        self, operation: Operation[..., Any], args: Sequence[Any], db: Executor
    ) -> AbstractContextManager[Executor]:
        """Return a block for an operation on a connection, with the executor to call it with."""

    def connected(self, seconds: float) -> None:
        """Note that a call has waited for a connection."""

    def retried(self, error: BaseException) -> None:
        """Note that an operation is retried after an error."""
