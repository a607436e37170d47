"""All rows of one thread, read in batches as they are stored, and stored under the same id or another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.sql.thread_rows import TABLES, RowKind
from checkpoint_store.storage.operation import Kind, operation

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
