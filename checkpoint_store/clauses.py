"""The clauses that statements are made of; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    Boolean,
    Column,
    ColumnElement,
    FromClause,
    TableValuedAlias,
    Text,
    and_,
    bindparam,
    func,
    literal_column,
)
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by

from checkpoint_store.schema import Tables


def given(name: str) -> ColumnElement[str]:
    """A text that comes with the call."""
    return bindparam(name, type_=Text())


def key(name: str) -> ColumnElement[str]:
    """A JSON key or other text of ours, as a literal: as a parameter it would travel with every call."""
    return literal_column(f"'{name}'", Text)


def number(value: int) -> ColumnElement[int]:
    """A number of ours, as a literal."""
    return literal_column(str(value))


def named(t: Tables, *more: str) -> ColumnElement[bool]:
    """The condition that picks a thread's namespace in `checkpoints`, or more exactly."""
    return and_(*[t.checkpoints.c[name] == given(name) for name in ("thread_id", "checkpoint_ns", *more)])


def same_graph(one: FromClause, other: FromClause) -> ColumnElement[bool]:
    """The condition that rows of two tables belong to the same thread and namespace."""
    return and_(one.c.thread_id == other.c.thread_id, one.c.checkpoint_ns == other.c.checkpoint_ns)


def member(document: ColumnElement[Any], name: ColumnElement[str]) -> ColumnElement[Any]:
    """A member of a JSON object, as JSON."""
    return document.op("->", return_type=JSONB())(name)


def member_text(document: ColumnElement[Any], name: ColumnElement[str]) -> ColumnElement[Any]:
    """A member of a JSON object, as text."""
    return document.op("->>", return_type=Text())(name)


def has_member(document: ColumnElement[Any], name: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a JSON object has a member, be it null."""
    return document.op("?", return_type=Boolean())(name)


def rows_of_binds(**columns: Any) -> TableValuedAlias:
    """Parallel arrays, bound under the plurals of the columns' names, as rows."""
    arrays = [bindparam(f"{name}s", type_=ARRAY(kind)) for name, kind in columns.items()]
    return (
        func.unnest(*arrays).table_valued(*[Column(name, kind) for name, kind in columns.items()]).render_derived("new")
    )


def rows_of(array: ColumnElement[Any], name: str) -> TableValuedAlias:
    """An array of text as rows of one column."""
    return func.unnest(array).table_valued(Column(name, Text)).render_derived()


def arrays(columns: Sequence[ColumnElement[Any]], prefix: str, *order: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    """Columns aggregated into parallel arrays; NULL where there is no row."""
    return [
        func.array_agg(aggregate_order_by(column, *order) if order else column).label(f"{prefix}_{column.key}")
        for column in columns
    ]


def applied(writes: FromClause) -> list[ColumnElement[Any]]:
    """The order in which LangGraph applies the writes of a step (its `writes_sort_key`).

    Collation "C" orders strings as Python does, by code point, whatever the database's locale.
    """
    return [writes.c.task_path.collate("C"), writes.c.task_id.collate("C"), writes.c.idx]
