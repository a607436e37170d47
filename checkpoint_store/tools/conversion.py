"""Conversion of a database's large values to shared pages, or back, while it is in use; it can be resumed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import groupby
from operator import itemgetter

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store.database.backend import Backend
from checkpoint_store.database.factory import engine_backend
from checkpoint_store.schema import PAGED
from checkpoint_store.serde.arguments import callback, positive
from checkpoint_store.sql.executor import Row
from checkpoint_store.storage import locks, shared_pages, write_batch
from checkpoint_store.storage.page_cache import PageCache
from checkpoint_store.storage.write_batch import Put
from checkpoint_store.tools.batches import Key, batches

Progress = Callable[[int], None]


async def share(
    engine: AsyncEngine | Engine,
    *,
    schema: str | None = None,
    batch_size: int = 20,
    on_progress: Progress | None = None,
) -> int:
    """Store the large values of a database as pages, as `share_pages=True` does for new ones.

    Each batch is a transaction of its own, and after an interruption the next call converts what is left.

    Args:
        engine: The engine; a sync one is used in worker threads.
        schema: The PostgreSQL schema of the tables.
        batch_size: The number of values to read and rewrite at a time.
        on_progress: Called after each batch with the number of values rewritten so far.

    Returns:
        The number of values that were rewritten.

    Raises:
        InvalidOption: If an argument can't be used.
        NotSetUp: If the tables are missing.
        WrongTransaction: If a listener begins our transactions in another isolation level than READ COMMITTED.
        Unavailable: If the server can't be reached.
    """
    limit = _limit(batch_size, on_progress)
    backend, page_cache = engine_backend(engine, {"schema": schema, "share_pages": True}), PageCache()
    await backend.run(locks.check_removal)
    done = 0
    async for rows in _blobs(backend, "msgpack", limit):
        for _, same_thread in groupby(rows, itemgetter(0)):
            puts = [await asyncio.to_thread(_cut, row, page_cache) for row in same_thread]
            shared = await backend.run(shared_pages.share_blobs, puts)
            if shared < len(puts):  # some were deleted meanwhile: nothing refers to their pages
                await backend.run(shared_pages.collect_pages, puts[0].thread_id)
            done += shared
        if on_progress:
            on_progress(done)
    return done


async def inline(
    engine: AsyncEngine | Engine,
    *,
    schema: str | None = None,
    batch_size: int = 20,
    on_progress: Progress | None = None,
) -> int:
    """Store paged values as plain blobs again, which the stock saver can read, and delete the pages.

    Stop what shares pages first: pages that are stored meanwhile may be left. A value that lacks a page stays as it is.
    Arguments, result and errors are those of `share`.
    """
    limit = _limit(batch_size, on_progress)
    backend = engine_backend(engine, {"schema": schema, "share_pages": False})
    await backend.run(locks.check_removal)
    done = 0
    async for rows in _blobs(backend, PAGED, limit):
        done += await backend.run(shared_pages.inline_blobs, [tuple(row[:4]) for row in rows])
        for thread_id in dict.fromkeys(row[0] for row in rows):
            await backend.run(shared_pages.collect_pages, thread_id)
        if on_progress:
            on_progress(done)
    return done


def _blobs(backend: Backend, kind: str, limit: int) -> AsyncIterator[Sequence[Row]]:
    def read(last: Key) -> Awaitable[Sequence[Row]]:
        return backend.run(shared_pages.next_blobs, kind, last, limit)

    return batches(backend, "checkpoint_blobs", ("", "", "", ""), read)


def _limit(batch_size: object, on_progress: object) -> int:
    callback(on_progress, "on_progress")
    return positive(batch_size, "batch_size")


def _cut(row: Row, page_cache: PageCache) -> Put:
    """Cut a stored blob into pages. Returns a put of only these and their recipe."""
    thread_id, checkpoint_ns, channel, version, blob = row
    named = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": "", "parent_checkpoint_id": None}
    value = {"channels": [channel], "versions": [version], "types": ["msgpack"], "blobs": [blob]}
    return write_batch.paged({**named, **value, "checkpoint": "", "metadata": "", "kept": None}, page_cache)
