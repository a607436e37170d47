"""Storage of changes on distributed tables: each by itself, on the node of its thread.

A put sends all of its pages in the one statement that stores it, with the thread locked: that is right whatever others
do. Where these are large and there is a transaction, it locks the thread and asks first, and sends the missing ones.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from checkpoint_store.sql.distributed_write import BLOB, MOST_PAGES, MOST_ROWS, PAGE, WRITE, Shape, shaped
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.refusals import refusal
from checkpoint_store.storage.write_batch import Change, Put, Writes

ASK_BYTES = 64 * 1024
"""The bytes of pages from which on the database is asked which of them it has: less is sent sooner."""


def store_each(db: Executor, sql: Statements, changes: Sequence[Change], *, asks: bool = False) -> dict[str, str]:
    """Store changes one after the other, and nothing more of a thread after a refusal.

    Args:
        db: The executor.
        sql: The statements.
        changes: The changes.
        asks: Whether to ask for the pages of large values, which takes a transaction.

    Returns:
        The threads of which something was refused, with the error messages; all else is stored.
    """
    refused: dict[str, str] = {}
    for change in changes:
        if change.thread_id in refused:
            continue
        if isinstance(change, Writes):
            _put_writes(db, sql, change)
        elif not _put_checkpoint(db, sql, change, _lacking(db, sql, change) if asks else change.pages):
            refused[change.thread_id] = refusal(change.thread_id, sql.tables.checkpoints)
    return refused


def is_large(change: Change) -> bool:
    """Return whether a put has so large values that it is worth a transaction to ask for their pages."""
    return isinstance(change, Put) and sum(map(len, change.pages.values())) > ASK_BYTES


def insert_pages(db: Executor, sql: Statements, thread_id: str, pages: Mapping[bytes, bytes]) -> None:
    """Insert pages of a thread."""
    count, binds = _pages(pages)
    db.fetch(sql.put_pages(count), {"thread_id": thread_id, **binds})


def claim_thread(db: Executor, sql: Statements, thread_id: str) -> None:
    """Lock a thread until the transaction ends, so that no other one deletes its pages."""
    db.fetch(sql.claim_thread, {"thread_id": thread_id, "epoch": _new_epoch()})


def _put_writes(db: Executor, sql: Statements, change: Writes) -> None:
    binds = change.binds
    rows = list(zip(*[binds[f"{name}s"] for name in WRITE], strict=True))
    count, each = shaped(WRITE, rows, MOST_ROWS)
    if rows:
        db.fetch(sql.put_some_writes(count), {**binds, **each})


def _put_checkpoint(db: Executor, sql: Statements, put: Put, pages: Mapping[bytes, bytes]) -> bool:
    """Store a put with those of its pages that are not there. Returns whether the checkpoint was stored."""
    binds = put.binds
    kept = db.fetch(sql.kept_inline, binds)[0][0] if binds["kept"] else None
    rows = list(zip(*[binds[f"{name}s"] for name in BLOB], strict=True))
    blobs, each = shaped(BLOB, rows, MOST_ROWS)
    of_pages, sent = _pages(pages)
    shape = Shape(blobs, of_pages, kept is not None)
    return bool(db.fetch(sql.put_some(shape), {**binds, **each, **sent, "kept": kept, "epoch": _new_epoch()}))


def _pages(pages: Mapping[bytes, bytes]) -> tuple[int | None, dict[str, Any]]:
    """Return pages as binds, and their number: by repeating one that is a power of two, so that there are few texts."""
    rows = list(pages.items())
    if rows:
        rows += [min(rows, key=lambda row: len(row[1]))] * ((1 << (len(rows) - 1).bit_length()) - len(rows))
    return shaped(PAGE, rows, MOST_PAGES)


def _lacking(db: Executor, sql: Statements, put: Put) -> Mapping[bytes, bytes]:
    """Return the pages of a put that its thread lacks; or all, if they are few or it can't be locked."""
    if not is_large(put):
        return put.pages
    rows = db.fetch(sql.held_pages, {"thread_id": put.thread_id, "digests": list(put.pages)})
    if not rows or not db.is_in_transaction:
        return put.pages
    there = set(rows[0][0] or ())
    return {digest: page for digest, page in put.pages.items() if digest not in there}


def _new_epoch() -> int:
    """Return an epoch for a row that a thread did not have: none that it had before."""
    return secrets.randbits(62)
