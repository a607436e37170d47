"""The statements that read and write all rows of one thread as they are, table by table; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from checkpoint_store.schema import Tables
from checkpoint_store.serde.records import StoredCheckpoint, StoredPage, StoredValue, StoredWrite
from checkpoint_store.sql import expressions as ex
from checkpoint_store.sql.copy_thread import renamed

RowKind = type[Any]
"""The class of a row in `TABLES`."""

TABLES: dict[RowKind, tuple[str, int]] = {
    StoredPage: ("checkpoint_pages", 1),
    StoredValue: ("checkpoint_blobs", 3),
    StoredCheckpoint: ("checkpoints", 2),
    StoredWrite: ("checkpoint_writes", 4),
}
"""The table of each kind of row, and how many of its first columns are the key within a thread."""

MAX_ROWS = 1000
"""The most rows of a batch."""

_KINDS = {name: kind for kind, (name, _) in TABLES.items()}

_FIRST: dict[str, Any] = {"digest": b"", "idx": -(2**31)}


def first_key(kind: RowKind) -> Sequence[Any]:
    """Return a key before all others of a table."""
    return [_FIRST.get(name, "") for name in kind._fields[: TABLES[kind][1]]]


def next_rows(t: Tables, name: str) -> sa.Select[Any]:
    """Select the rows of a thread in one table that follow a key: so many that they have about `max_bytes`, or one.

    The columns are the fields of its rows' class. Only values that are returned are read, none for its length.

    Binds: `thread_id`, the key with the prefix `last_`, and `max_bytes`.
    """
    kind, table = _KINDS[name], getattr(t, name)
    columns = [table.c[field] for field in kind._fields]
    keys = columns[: TABLES[kind][1]]
    last = [ex.param(f"last_{column.name}", column.type) for column in keys]
    found = sa.select(*columns, _bytes(columns).label("bytes")).where(
        ex.in_thread(table), sa.tuple_(*keys) > sa.tuple_(*last)
    )
    batch = found.order_by(*keys).limit(ex.int_literal(MAX_ROWS)).subquery("batch")
    order = [batch.c[column.name] for column in keys]
    # With the bytes of the rows before: the first is always among them.
    before = sa.func.sum(batch.c.bytes).over(order_by=order) - batch.c.bytes
    counted = sa.select(batch, before.label("before")).subquery("counted")
    rows = [_as_text(counted.c[field]) for field in kind._fields]
    few = sa.select(*rows).where(counted.c.before < ex.param("max_bytes", sa.Integer))
    return few.order_by(*[counted.c[column.name] for column in keys])


def count_rows(t: Tables) -> sa.Select[Any]:
    """Select the numbers of rows of a thread, in the order of `TABLES`. Binds: `thread_id`."""
    tables = [getattr(t, name) for name, _ in TABLES.values()]
    counts = [sa.select(sa.func.count()).select_from(one).where(ex.in_thread(one)) for one in tables]
    return sa.select(*[count.scalar_subquery() for count in counts])


def insert_rows(t: Tables, name: str) -> sa.Executable:
    """Insert rows of a thread into one table, as they come; those that exist are an error. Returns a row for each.

    Metadata that names the thread, as with older versions of LangGraph, names the target.

    Binds: `target_id`, the fields of its rows' class as arrays, and of checkpoints `thread_id`, the thread they are of.
    """
    table: sa.Table = getattr(t, name)
    fields = _KINDS[name]._fields
    documents = [name for name in fields if isinstance(table.c[name].type, pg.JSONB)]
    types = {name: sa.Text if name in documents else type(table.c[name].type) for name in fields}
    new = ex.rows_of_binds(**types)
    values = {name: sa.cast(new.c[name], pg.JSONB) if name in documents else new.c[name] for name in fields}
    if "metadata" in values:
        values["metadata"] = renamed(values["metadata"])
    rows = sa.select(ex.param("target_id"), *values.values()).select_from(new)
    return pg.insert(table).from_select(["thread_id", *values], rows).returning(ex.ONE)


def _as_text(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.cast(column, sa.Text).label(column.key) if isinstance(column.type, pg.JSONB) else column


def _bytes(columns: Sequence[sa.ColumnElement[Any]]) -> sa.ColumnElement[Any]:
    """Return the bytes of the values in a row: of JSON those that are stored, since it would be read for its length."""
    sizes: list[sa.ColumnElement[Any]] = []
    for column in columns:
        if isinstance(column.type, sa.LargeBinary):
            sizes.append(sa.func.coalesce(sa.func.octet_length(column), ex.ZERO))
        elif isinstance(column.type, pg.JSONB):
            sizes.append(sa.func.pg_column_size(column))
    return reduce(lambda total, one: total + one, sizes)
