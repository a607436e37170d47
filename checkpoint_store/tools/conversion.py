"""A whole database's large values, from plain blobs to shared pages or back; while it is in use, and resumable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store.database.factory import engine_backend
from checkpoint_store.schema import PAGED
from checkpoint_store.serde.arguments import callback, positive
from checkpoint_store.sql.executor import Row
from checkpoint_store.storage import locks, shared_pages, write_batch
from checkpoint_store.storage.page_cache import PageCache
from checkpoint_store.storage.shared_pages import Blob
from checkpoint_store.storage.write_batch import Put

Progress = Callable[[int], None]

_FIRST: Blob = ("", "", "", "")


async def share(
    engine: AsyncEngine | Engine,
    *,
    schema: str | None = None,
    batch_size: int = 20,
    on_progress: Progress | None = None,
) -> int:
    """Store the large values of a database as pages, as `share_pages=True` does for new ones.

    Each batch is a transaction of its own and finds only what is left to do: what was interrupted can be called again.

    Args:
        engine: The engine; a sync one is worked on from worker threads.
        schema: The PostgreSQL schema of the tables.
        batch_size: How many values to read and rewrite at a time.
        on_progress: Called after each batch with the number of values rewritten so far.

    Returns:
        How many values were rewritten.

    Raises:
        InvalidOption: If an argument can't be used.
        NotSetUp: If the tables are missing.
        WrongTransaction: If a listener begins our transactions, and in another isolation level than READ COMMITTED.
        Unavailable: If the server can't be reached.
    """
    most = _batch(batch_size, on_progress)
    source, shelf = engine_backend(engine, {"schema": schema, "share_pages": True}), PageCache()
    await source.run(locks.check_removal)
    done, last = 0, _FIRST
    while rows := await source.run(shared_pages.next_blobs, "msgpack", last, most):
        for _, same_thread in groupby(rows, itemgetter(0)):
            puts = [await asyncio.to_thread(_cut, row, shelf) for row in same_thread]
            shared = await source.run(shared_pages.share_blobs, puts)
            if shared < len(puts):  # deleted meanwhile: nothing refers to their pages
                await source.run(shared_pages.collect_pages, puts[0].thread_id)
            done += shared
        last = tuple(rows[-1][:4])
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

    Stop what shares pages first: what is stored as pages meanwhile may be left. A value that lacks a page stays as it
    is.

    Args:
        engine: The engine; a sync one is worked on from worker threads.
        schema: The PostgreSQL schema of the tables.
        batch_size: How many values to rewrite at a time.
        on_progress: Called after each batch with the number of values rewritten so far.

    Returns:
        How many values were rewritten.

    Raises:
        InvalidOption: If an argument can't be used.
        NotSetUp: If the tables are missing.
        WrongTransaction: If a listener begins our transactions, and in another isolation level than READ COMMITTED.
        Unavailable: If the server can't be reached.
    """
    most = _batch(batch_size, on_progress)
    source = engine_backend(engine, {"schema": schema, "share_pages": False})
    await source.run(locks.check_removal)
    done, last = 0, _FIRST
    while rows := await source.run(shared_pages.next_blobs, PAGED, last, most):
        done += await source.run(shared_pages.inline_blobs, [tuple(row[:4]) for row in rows])
        for thread_id in dict.fromkeys(row[0] for row in rows):
            await source.run(shared_pages.collect_pages, thread_id)
        last = tuple(rows[-1][:4])
        if on_progress:
            on_progress(done)
    return done


def _batch(batch_size: object, on_progress: object) -> int:
    callback(on_progress, "on_progress")
    return positive(batch_size, "batch_size")


def _cut(row: Row, shelf: PageCache) -> Put:
    """Return a stored blob as a put of nothing but its pages and its recipe."""
    thread_id, checkpoint_ns, channel, version, blob = row
    named = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": "", "parent_checkpoint_id": None}
    value = {"channels": [channel], "versions": [version], "types": ["msgpack"], "blobs": [blob]}
    return write_batch.paged({**named, **value, "checkpoint": "", "metadata": "", "kept": None}, shelf)
