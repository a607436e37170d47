"""Rows as parallel arrays, one for each column: the form in which any number of rows has one SQL text; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import ARRAY, Column, ColumnElement, Table, TableValuedAlias, Text, bindparam, func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by


def array_binds(columns: Sequence[str], rows: Iterable[Sequence[Any]], prefix: str = "") -> dict[str, list[Any]]:
    """Return rows as the binds of `rows_of_binds`: an array for each column, by the plural of the column's name."""
    arrays = list(zip(*rows, strict=True)) or [()] * len(columns)
    return {f"{prefix}{name}s": list(array) for name, array in zip(columns, arrays, strict=True)}


@cache
def array_param(name: str, kind: Any = Text) -> ColumnElement[Any]:
    """Return an array that comes with the call."""
    return bindparam(name, type_=ARRAY(kind))


def key_types(table: Table) -> dict[str, Any]:
    """Return the columns of a table's key with their types, as `rows_of_binds` takes them."""
    return {column.name: type(column.type) for column in table.primary_key}


def rows_of_binds(prefix: str = "", /, **columns: Any) -> TableValuedAlias:
    """Return parallel arrays, bound by the plurals of the columns' names, as rows."""
    return _rows(prefix, columns, lambda array: array)


def few_rows_of_binds(prefix: str, /, **columns: Any) -> TableValuedAlias:
    """Return parallel arrays as rows of which the planner expects ten: it looks each up in an index.

    If it knew how many there are, it would rather read tables whole, up to sizes where that takes ten times as long.
    """
    return _rows(prefix, columns, lambda array: select(array).scalar_subquery())


def _rows(
    prefix: str, columns: Mapping[str, Any], form: Callable[[ColumnElement[Any]], ColumnElement[Any]]
) -> TableValuedAlias:
    arrays = [form(array_param(f"{prefix}{name}s", kind)) for name, kind in columns.items()]
    rows = func.unnest(*arrays).table_valued(*[Column(name, kind) for name, kind in columns.items()])
    return rows.render_derived(f"{prefix}new")


def rows_of(array: ColumnElement[Any], name: str) -> TableValuedAlias:
    """Return an array of text as rows of one column."""
    return func.unnest(array).table_valued(Column(name, Text)).render_derived()


def aggregate(
    columns: Sequence[ColumnElement[Any]], prefix: str, *order: ColumnElement[Any]
) -> list[ColumnElement[Any]]:
    """Return columns aggregated into parallel arrays, NULL where there is no row; named by prefix and column."""
    return [
        func.array_agg(aggregate_order_by(column, *order) if order else column).label(f"{prefix}_{column.key}")
        for column in columns
    ]
