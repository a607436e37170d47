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


def store_each(
    db: Executor, sql: Statements, changes: Sequence[Change], *, in_transaction: bool = False
) -> dict[str, str]:
    """Store changes one after the other, and nothing more of a thread after a refusal.

    Args:
        db: The executor.
        sql: The statements.
        changes: The changes.
        in_transaction: Whether they share a transaction, unless the caller's connection is in AUTOCOMMIT.

    Returns:
        The threads of which something was refused, with the error messages; all else is stored.
    """
    refused: dict[str, str] = {}
    for change in changes:
        if change.thread_id in refused:
            continue
        if isinstance(change, Writes):
            _put_writes(db, sql, change, in_transaction=in_transaction)
        elif not _put_checkpoint(db, sql, change, in_transaction=in_transaction):
            refused[change.thread_id] = refusal(change.thread_id, sql.tables.checkpoints)
    return refused


def takes_transaction(change: Change) -> bool:
    """Return whether a change is worth a transaction: for many rows, or for so large values that it asks for pages."""
    return len(change.binds["types"]) > MOST_ROWS or (isinstance(change, Put) and change.has_large_pages)


def _put_writes(db: Executor, sql: Statements, change: Writes, *, in_transaction: bool) -> None:
    binds = change.binds
    rows = list(zip(*[binds[f"{name}s"] for name in WRITE], strict=True))
    count, each = shaped(WRITE, rows, MOST_ROWS)
    if rows:
        anchored = count is None and in_transaction and _claim(db, sql, change.thread_id)
        db.fetch(sql.put_some_writes(count, anchored), {**binds, **each})


def _put_checkpoint(db: Executor, sql: Statements, put: Put, *, in_transaction: bool) -> bool:
    """Store a put with its pages, or those that are not there. Returns whether the checkpoint was stored."""
    binds, there = put.binds, _stored_pages(db, sql, put) if in_transaction else None
    pages = {digest: page for digest, page in put.pages.items() if there is None or digest not in there}
    kept = db.fetch(sql.kept_inline, binds)[0][0] if binds["kept"] else None
    rows = list(zip(*[binds[f"{name}s"] for name in BLOB], strict=True))
    blobs, each = shaped(BLOB, rows, MOST_ROWS)
    of_pages, sent = _pages(pages)
    anchored = there is not None
    if not anchored and in_transaction and (blobs is None or of_pages is None):
        anchored = _claim(db, sql, put.thread_id)
    shape = Shape(blobs, of_pages, claims=bool(pages) and not anchored, anchored=anchored, has_kept=kept is not None)
    rest = {"kept": kept, "epoch": _new_epoch()}
    return bool(db.fetch(sql.put_some(shape), {**binds, **each, **sent, **rest}))


def _pages(pages: Mapping[bytes, bytes]) -> tuple[int | None, dict[str, Any]]:
    """Return pages as binds, and their number: by repeating one that is a power of two, so that there are few texts."""
    rows = list(pages.items())
    if rows:
        rows += [min(rows, key=lambda row: len(row[1]))] * ((1 << (len(rows) - 1).bit_length()) - len(rows))
    return shaped(PAGE, rows, MOST_PAGES)


def _stored_pages(db: Executor, sql: Statements, put: Put) -> set[bytes] | None:
    """Lock the thread of a put, and return those of its pages that are there; None if it is not locked."""
    if not put.has_large_pages:
        return None
    rows = db.fetch(sql.held_pages, {"thread_id": put.thread_id, "digests": list(put.pages)})
    return set(rows[0][0] or ()) if rows and db.is_in_transaction else None


def _claim(db: Executor, sql: Statements, thread_id: str) -> bool:
    """Lock the row of a thread, which is made if need be. Returns whether it stays locked: there is a transaction."""
    db.fetch(sql.claim_thread, {"thread_id": thread_id, "epoch": _new_epoch()})
    return db.is_in_transaction


def _new_epoch() -> int:
    """Return the epoch of a new row: none that it had before, with which `held_pages` would compare it."""
    return secrets.randbits(62)
