"""All rows of one thread as they are stored, in batches, as of one moment.

    async with one_moment(backend) as then:
        async for batch in rows_of(then, "user-42", StoredCheckpoint):

Each row comes once, so that the work is that of what is stored: pages by themselves, which many values share, and a
value in pages as its recipe, for `serde.pages.join`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar, cast

from checkpoint_store.database.backend import Backend
from checkpoint_store.database.pinned_provider import one_transaction
from checkpoint_store.sql.thread_rows import TABLES, first_key
from checkpoint_store.storage.thread_rows import next_rows

R = TypeVar("R", bound=Sequence[Any])


def one_moment(backend: Backend) -> AbstractAsyncContextManager[Backend]:
    """Return a block in which all reads of a backend see what was stored at the moment of the first."""
    return one_transaction(backend, "REPEATABLE READ")


async def rows_of(backend: Backend, thread_id: str, kind: type[R]) -> AsyncIterator[list[R]]:
    """Yield the rows of one kind that a thread has, in the order of their keys, in batches of some megabytes."""
    last, size = first_key(kind), TABLES[kind][1]
    while batch := cast("list[R]", await backend.run(next_rows, thread_id, kind, last)):
        yield batch
        last = batch[-1][:size]
