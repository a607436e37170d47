"""Tables that Citus has distributed over the nodes of a cluster, by thread; no I/O.

Citus sends a statement to the one node that has a thread's rows if every table in it is compared with a parameter or a
constant; an equality with another table's thread is not enough. So statements on these tables are about one thread
each, which they have as the bind `thread_id`, or read a batch of all threads.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from checkpoint_store.schema import Tables
from checkpoint_store.sql import expressions as ex


class DistributedTables(Tables):
    """The tables of one PostgreSQL schema, where they are distributed."""

    def __init__(self, schema: str | None = None) -> None:
        super().__init__(schema)
        for table in self.all:
            table.info[ex.DISTRIBUTED] = True


def has_citus(_: Tables) -> sa.Select[Any]:
    """Select a row if the database has the extension."""
    extension = sa.table("pg_extension", sa.column("extname", sa.Text), schema="pg_catalog")
    return sa.select(ex.ONE).where(extension.c.extname == ex.text_literal("citus"))


def placement(_: Tables) -> sa.Select[Any]:
    """Select a row if a table is distributed: by a column, or with its schema to one node.

    Only where `has_citus` has found the extension. Binds: `table`, its qualified name.
    """
    columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in ("logicalrelid", "partmethod", "colocationid")]
    relation, method, colocation = (known := sa.table("pg_dist_partition", *columns, schema="pg_catalog")).c
    # A local table that Citus knows has no colocation group.
    is_placed = sa.or_(method != ex.text_literal("n"), colocation != ex.ZERO)
    is_it = relation == sa.func.to_regclass(ex.param("table"))
    return sa.select(ex.ONE).select_from(known).where(is_it, is_placed)
