"""Placement of the tables by Citus: which are distributed by thread, together or not; and SQL text that depends on it.

Citus keeps it in `pg_dist_partition`, which only databases with the extension have. So in a block of PL/pgSQL it is
named within a condition of its own: what is not executed is not planned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, TextClause

from checkpoint_store.errors import NotSetUp
from checkpoint_store.migrations.ddl import block, literal, statement
from checkpoint_store.schema import Tables, qualified
from checkpoint_store.sql.executor import ConnectionExecutor
from checkpoint_store.sql.statements import statements_of

_CATALOG = "to_regclass('pg_catalog.pg_dist_partition')"
HAS_CITUS = f"{_CATALOG} IS NOT NULL"
"""The condition that a database has the extension."""
LACKS_CITUS = f"{_CATALOG} IS NULL"

IF_WORKER_FAIL = """
    IF (SELECT groupid FROM pg_dist_local_group) <> 0 THEN
        RAISE EXCEPTION 'this server is a worker of a Citus cluster; connect to the coordinator';
    END IF;
"""
"""Statements of PL/pgSQL that fail on a worker, in a database that has the extension."""


@dataclass(frozen=True)
class Distribution:
    """Tables that Citus has distributed by thread: a thread's rows are on one node."""

    shards: int
    """The number of parts of each table."""
    nodes: int
    """The number of servers that have parts."""
    changes: tuple[str, ...] = ()
    """The steps of the call of `distribute` that has returned this, in words; none where nothing was left to do."""


def distribution_of(conn: Connection, schema: str | None) -> Distribution | None:
    """Return how the tables are distributed, or None if they are not; leave no transaction open of our own.

    Raises:
        NotSetUp: If only some of them are, or not all together.
    """
    in_transaction = conn.in_transaction()
    has_citus = ConnectionExecutor(conn).fetch(statements_of(schema).has_citus, {})
    rows = conn.execute(statement(_places(schema))).all() if has_citus else []
    if not in_transaction:
        conn.rollback()
    if not any(row.is_distributed for row in rows):
        return None
    if apart := [row for row in rows if not row.is_together]:
        raise NotSetUp(
            f"Citus has distributed tables, but these not by thread_id together with checkpoints: {_listed(apart)}. "
            f"Run `checkpoint-store distribute` on the coordinator{_undistribution(apart)}."
        )
    return Distribution(min(row.shards for row in rows), max(row.nodes for row in rows))


def refuse_worker() -> TextClause:
    """Return the statement that fails on a worker of a cluster: tables are made by the coordinator, for all nodes."""
    return statement(block(f"IF {HAS_CITUS} THEN {IF_WORKER_FAIL} END IF;"))


def if_distributed(body: str, tables: Iterable[str], schema: str | None) -> str:
    """Return statements of PL/pgSQL that are executed if Citus has distributed one of the tables."""
    is_any_placed = " OR ".join(is_placed(oid(table, schema)) for table in tables)
    return f"""
    IF {HAS_CITUS} THEN
        IF {is_any_placed} THEN
            {body}
        END IF;
    END IF;
    """


def distribute_table(table: str, schema: str | None) -> str:
    """Return the expression that distributes a table by thread, and together with the checkpoints."""
    together = "" if table == "checkpoints" else f", colocate_with => {literal(qualified('checkpoints', schema))}"
    return f"create_distributed_table({literal(qualified(table, schema))}, 'thread_id'{together})"


def distribute_new(tables: Iterable[str], schema: str | None) -> TextClause:
    """Return the statement with which a revision distributes the tables that it has made, if the checkpoints are."""
    steps = "\n            ".join(f"PERFORM {distribute_table(table, schema)};" for table in tables)
    return statement(block(if_distributed(steps, ["checkpoints"], schema)))


def oid(table: str, schema: str | None) -> str:
    """Return an expression for the oid of a table; NULL if it is missing."""
    return f"to_regclass({literal(qualified(table, schema))})"


def is_placed(table: str) -> str:
    """Return the condition that Citus has distributed a table, as an expression for its oid, in whatever way.

    By a column, to every node, or with its schema to one. A local table that Citus knows has no colocation group.
    """
    is_known = "partmethod <> 'n' OR colocationid <> 0"
    return f"EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = {table} AND ({is_known}))"


def names_and_oids(schema: str | None) -> str:
    """Return a list of the tables for FROM: their names, and their oids."""
    rows = ", ".join(f"({literal(table.name)}, {oid(table.name, schema)})" for table in Tables(schema).all)
    return f"(VALUES {rows}) AS ours(table_name, oid)"


def is_together(schema: str | None) -> str:
    """Return the condition that a table of `names_and_oids` is distributed by thread together with the checkpoints."""
    return (
        "EXISTS (SELECT FROM pg_dist_partition p JOIN pg_dist_partition c USING (partmethod, colocationid)"
        f" WHERE p.logicalrelid = ours.oid AND c.logicalrelid = {oid('checkpoints', schema)} AND partmethod = 'h'"
        " AND column_to_column_name(p.logicalrelid, p.partkey) = 'thread_id')"
    )


def _undistribution(apart: Sequence[Row[Any]]) -> str:
    """Return the advice for tables of which some are distributed otherwise; empty if none is."""
    if not (otherwise := [row for row in apart if row.is_distributed]):
        return ""
    return (
        f"; where it refuses, first run SELECT undistribute_table(...) for {_listed(otherwise)}, or "
        "citus_schema_undistribute(...) if their schema is distributed"
    )


def _listed(rows: Sequence[Row[Any]]) -> str:
    return ", ".join(row.table_name for row in rows)


def _places(schema: str | None) -> str:
    """Return the query for the place of each table."""
    return f"""
    SELECT
        table_name,
        {is_placed("ours.oid")} AS is_distributed,
        {is_together(schema)} AS is_together,
        (SELECT count(*) FROM pg_dist_shard WHERE logicalrelid = ours.oid) AS shards,
        (
            SELECT count(DISTINCT groupid) FROM pg_dist_shard JOIN pg_dist_placement USING (shardid)
            WHERE logicalrelid = ours.oid
        ) AS nodes
    FROM {names_and_oids(schema)}
    """
