"""Shared pages in the database: those that are missing, those that nothing refers to, and conversion to and from."""

from __future__ import annotations

from collections.abc import Sequence

from checkpoint_store.errors import Refused
from checkpoint_store.schema import PAGED
from checkpoint_store.serde import pages
from checkpoint_store.sql.arrays import array_binds, thread_binds
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.locks import lock_threads
from checkpoint_store.storage.operation import Kind, operation
from checkpoint_store.storage.refusals import refusal
from checkpoint_store.storage.write_batch import Put, merged

Blob = tuple[str, str, str, str]
"""Thread, namespace, channel and version."""


def missing_pages(db: Executor, sql: Statements, puts: Sequence[Put]) -> set[str]:
    """Return the threads that lack a page of stored puts, unless the value was removed since.

    Where tables are distributed the puts are one thread's.
    """
    names = ("thread_id", "checkpoint_ns", "channel", "version", "digest")
    rows = [
        (put.thread_id, put.binds["checkpoint_ns"], channel, version, digest)
        for put in puts
        for channel, version in zip(put.binds["channels"], put.binds["versions"], strict=True)
        for digest in put.digests.get((put.binds["checkpoint_ns"], channel), ())
    ]
    binds = {**array_binds(names, rows), "thread_id": puts[0].thread_id if puts else None}
    return {row[0] for row in db.fetch(sql.missing_pages, binds)}


@operation(Kind.WRITE, in_transaction=True, thread_of=lambda thread_id: thread_id)
def collect_pages(db: Executor, sql: Statements, thread_id: str) -> None:
    """Delete the pages of a thread that nothing refers to."""
    if paged := lock_threads(db, sql, [thread_id]):
        delete_pages(db, sql, paged)


def delete_pages(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> tuple[int, int]:
    """Delete the pages of threads that nothing refers to, and the rows of threads without any, under their locks.

    Returns:
        The number of pages and their bytes.
    """
    binds = thread_binds(thread_ids)
    [(pages, size)] = db.fetch(sql.delete_pages, binds)
    db.fetch(sql.delete_thread_rows, binds)
    return pages, size


@operation(Kind.READ)
def next_blobs(db: Executor, sql: Statements, kind: str, last: Sequence[str], most: int) -> Sequence[Row]:
    """Return the blobs of a type that follow another one, key and bytes; plain ones only if they are large.

    Where tables are distributed they are those of its thread.
    """
    names = ("last_thread_id", "last_checkpoint_ns", "last_channel", "last_version")
    least = 0 if kind == PAGED else pages.LARGE_BYTES
    key = {**dict(zip(names, last, strict=True)), "thread_id": last[0]}
    return db.fetch(sql.next_blobs, {**key, "type": kind, "min_bytes": least, "limit": most})


@operation(Kind.WRITE, in_transaction=True)
def share_blobs(db: Executor, sql: Statements, puts: Sequence[Put]) -> int:
    """Put recipes in the place of stored blobs of one thread. Returns their number.

    Raises:
        Refused: If the database hides the rows that it depends on.
    """
    binds, thread_id = merged(puts, {}), puts[0].thread_id
    rows = db.fetch(sql.share_blobs, {**binds, "thread_id": thread_id})
    if not rows:
        raise Refused(refusal(thread_id, sql.tables.checkpoint_threads))
    [(_, stored, replaced)] = rows
    if stored < len(binds["page_digests"]) and missing_pages(db, sql, puts):
        raise Refused(refusal(thread_id, sql.tables.checkpoint_pages, "The thread's values stay as they were"))
    return int(replaced)


@operation(Kind.WRITE)
def inline_blobs(db: Executor, sql: Statements, keys: Sequence[Blob]) -> int:
    """Put values in the place of recipes, where tables are distributed of one thread. Returns their number."""
    binds = array_binds(("thread_id", "checkpoint_ns", "channel", "version"), keys, "blob_")
    return len(db.fetch(sql.inline_blobs, {**binds, "thread_id": keys[0][0]}))
