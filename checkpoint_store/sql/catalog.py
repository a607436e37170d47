"""The statements that ask PostgreSQL's catalog which tables there are, and tables that are not complete; no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import sqlalchemy as sa

from checkpoint_store.schema import STOCK_TABLE, Tables, quoted
from checkpoint_store.sql import expressions as ex

_COLUMNS = sa.table(
    "pg_attribute",
    *[sa.column(name) for name in ("attrelid", "attname", "attnum", "attisdropped")],
    schema="pg_catalog",
)


def relations(_: Tables) -> sa.Select[Any]:
    """Select the columns of some tables and indexes, and whether our role may read them; the role is in each row.

    A relation that does not exist has no columns (NULL). Binds: `names`, qualified.
    """
    name = sa.func.unnest(ex.array_param("names")).table_valued("name").render_derived("named")
    relation = sa.func.to_regclass(name.c.name)
    is_there = sa.and_(_COLUMNS.c.attrelid == relation, _COLUMNS.c.attnum > ex.ZERO, sa.not_(_COLUMNS.c.attisdropped))
    columns = sa.select(sa.func.array_agg(sa.cast(_COLUMNS.c.attname, sa.Text))).where(is_there)
    may_read = sa.func.has_table_privilege(relation, ex.text_literal("SELECT"))
    return sa.select(name.c.name, columns.correlate(name).scalar_subquery(), may_read, sa.func.current_user())


def stock_version(t: Tables) -> sa.Select[Any]:
    """Select the number of the stock saver's newest migration."""
    schema = None if t.schema is None else quoted(t.schema)
    return sa.select(sa.func.max(sa.table(STOCK_TABLE, sa.column("v"), schema=schema).c.v))


def complete(tables: Tables, found: Mapping[str, Set[str]]) -> Tables:
    """Replace those of the tables that are missing, or lack columns, so that statements can read all of them.

    A missing table has no rows, a missing column its default or NULL.

    Args:
        tables: The tables.
        found: The columns of each table that exists, by name.
    """
    for table in tables.all:
        columns = found.get(table.name, frozenset())
        if not columns >= {*table.columns.keys()}:
            setattr(tables, table.name, _stand_in(table, columns))
    tables.all = tuple(getattr(tables, table.name) for table in tables.all)
    return tables


def _stand_in(table: sa.Table, found: Set[str]) -> sa.Subquery:
    values = [(column if column.name in found else _value(column)).label(column.name) for column in table.columns]
    rows = sa.select(*values)
    return (rows if found else rows.where(sa.false())).subquery(table.name)


def _value(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    default: Any = column.server_default
    return sa.cast(sa.null() if default is None else ex.text_literal(default.arg), column.type)
