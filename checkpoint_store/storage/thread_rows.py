"""All rows of one thread, read in batches as they are stored, and stored under the same id or another."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import exc

from checkpoint_store.conninfo.driver_errors import diagnosis_of, raise_from
from checkpoint_store.errors import Refused, ThreadExists, TransferError, short_repr
from checkpoint_store.sql.arrays import array_binds, thread_binds
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.sql.thread_rows import TABLES, RowKind
from checkpoint_store.storage.delete_thread import delete_locked_threads
from checkpoint_store.storage.locks import check_transaction, take_removal_lock
from checkpoint_store.storage.operation import Kind, operation
from checkpoint_store.storage.refusals import refusal

_DUPLICATE = "23505"
"""The SQLSTATE of a key that exists."""

BATCH_BYTES = 4 * 1024 * 1024
"""The bytes of values in a batch, of which the last may have more."""


@operation(Kind.READ, thread_of=lambda thread_id: thread_id)
def count_rows(db: Executor, sql: Statements, thread_id: str) -> dict[RowKind, int]:
    """Return the numbers of rows that are stored for a thread, by their kinds."""
    return dict(zip(TABLES, db.fetch(sql.count_rows, {"thread_id": thread_id})[0], strict=True))


@operation(Kind.READ, thread_of=lambda thread_id, *_: thread_id)
def next_rows(db: Executor, sql: Statements, thread_id: str, kind: RowKind, after: Sequence[Any]) -> list[Any]:
    """Return the rows of one kind that follow a key, so many that they have about `BATCH_BYTES`."""
    last = {f"last_{name}": value for name, value in zip(kind._fields, after, strict=False)}
    binds = {**last, "thread_id": thread_id, "max_bytes": BATCH_BYTES}
    return [kind._make(row) for row in db.fetch(sql.next_rows(TABLES[kind][0]), binds)]


@operation(Kind.WRITE, in_transaction=True, thread_of=lambda thread_id, _: thread_id)
def make_room(db: Executor, sql: Statements, thread_id: str, replace: bool) -> None:
    """Lock a thread for `insert_rows`, and delete what is stored for it if it is to be replaced.

    Raises:
        ThreadExists: If something is stored for it, and it is not to be replaced.
        WrongTransaction: If the transaction would not see that.
    """
    check_transaction(db, "An import", take_removal_lock(db, sql, [thread_id])[0][0])
    if replace:
        delete_locked_threads(db, sql, [thread_id])
    elif db.fetch(sql.stored_threads, {"thread_id": thread_id, "target_id": thread_id})[0][1]:
        raise ThreadExists(f"something is stored for the thread {short_repr(thread_id, 200)}")
    db.fetch(sql.claim_thread, {"thread_id": thread_id, "epoch": secrets.randbits(62)})


@operation(Kind.WRITE, in_transaction=True, thread_of=lambda copy, *_: copy[1])
def insert_rows(db: Executor, sql: Statements, copy: tuple[str, str], kind: RowKind, rows: Sequence[Any]) -> None:
    """Store rows of one kind as they are, after `make_room` and in its transaction.

    Args:
        db: The executor.
        sql: The statements.
        copy: The id of the thread that the rows are of, and the id to store them under.
        kind: Their class.
        rows: The rows; at least one.

    Raises:
        TransferError: If one of them exists.
        Refused: If rows were dropped.
    """
    source, target = copy
    table = TABLES[kind][0]
    binds = {"thread_id": source, "target_id": target, **array_binds(kind._fields, rows)}
    try:
        stored = db.fetch(sql.insert_rows(table), binds)
    except exc.IntegrityError as error:
        if diagnosis_of(error).state != _DUPLICATE:
            raise
        raise_from(TransferError("a row comes twice, or something else stores to the thread meanwhile"), error)
    if len(stored) < len(rows):
        raise Refused(refusal(target, getattr(sql.tables, table), "Nothing of the thread was stored"))


@operation(Kind.WRITE, in_transaction=True, thread_of=lambda thread_id: thread_id)
def end_rows(db: Executor, sql: Statements, thread_id: str) -> None:
    """Delete what `make_room` has stored for the lock, unless there are pages, for which it stays."""
    db.fetch(sql.delete_thread_rows, thread_binds([thread_id]))
