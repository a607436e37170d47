"""The rows of a table in batches, in the order of their keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from checkpoint_store.database.backend import Backend
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.operation import Kind, operation

_MOST_THREADS = 1_000

Key = Sequence[Any]
"""The primary key of a row; a thread is its first part."""


async def batches(
    backend: Backend, table: str, first: Key, read: Callable[[Key], Awaitable[Sequence[Row]]]
) -> AsyncIterator[Sequence[Row]]:
    """Yield the rows of a table; of a distributed one those of one thread after the other.

    Args:
        backend: The backend, which has run an operation that reads.
        table: The table's name.
        first: A key before all others.
        read: Returns the rows of a batch, which follow a key and begin with theirs; of a distributed table those of the
            key's thread.
    """
    async for start in _starts(backend, table, first):
        last = start
        while rows := await read(last):
            yield rows
            last = rows[-1][: len(first)]


async def _starts(backend: Backend, table: str, first: Key) -> AsyncIterator[Key]:
    if not backend.sql.are_distributed:
        yield first
        return
    after = ""
    while threads := await backend.run(next_threads_of, table, after):
        for after in threads:
            yield (after, *first[1:])


@operation(Kind.READ)
def next_threads_of(db: Executor, sql: Statements, table: str, after: str) -> Sequence[str]:
    """Return the threads that follow one and have rows in a table."""
    return [row[0] for row in db.fetch(sql.next_threads_of(table), {"after": after, "limit": _MOST_THREADS})]
