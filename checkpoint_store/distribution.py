"""Distribution of the tables by thread over the nodes of a Citus cluster.

A thread's rows are on one node, and every statement about a thread is executed there. Distribute once, on the
coordinator, best while the tables are small: their rows are copied, with the tables locked meanwhile.

    async with engine.begin() as conn:
        print(await conn.run_sync(distribution.distribute))

This is not a revision, since not every database is distributed; the migrations are the same on both, and distribute the
tables that they make where the others are. `checkpoint_store_version` becomes a reference table, which every node has.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from sqlalchemy import Connection, exc

from checkpoint_store.conninfo.driver_errors import driver_error, field, raise_from, sqlstate_of
from checkpoint_store.errors import MigrationError
from checkpoint_store.migrations.ddl import block, literal, statement
from checkpoint_store.migrations.error_translation import translate_errors
from checkpoint_store.migrations.lock import LOCK_SECONDS, Pause, check_arguments, migration_lock
from checkpoint_store.migrations.placement import (
    IF_WORKER_FAIL,
    LACKS_CITUS,
    Distribution,
    distribute_table,
    distribution_of,
    is_placed,
    is_together,
    names_and_oids,
    oid,
)
from checkpoint_store.migrations.table_locks import lock, lock_tables, refuse_snapshot, undoing
from checkpoint_store.migrations.version_check import require_head
from checkpoint_store.schema import VERSION_TABLE, Tables, checked, qualified

__all__ = ["Distribution", "current", "distribute", "sql"]

_DUPLICATE_TABLE = "42P07"
"""The SQLSTATE of a table that exists already."""


@translate_errors()
def distribute(
    conn: Connection, schema: str | None = None, *, timeout: float = LOCK_SECONDS, pause: Pause = time.sleep
) -> Distribution:
    """Distribute the tables by thread, in one transaction; distributed tables are left unchanged.

    The stored rows are moved to the nodes. Those that Citus leaves behind in the coordinator's own tables are deleted,
    also after tables were distributed by hand.

    Args:
        conn: A connection to the coordinator. In a transaction the change becomes part of it; otherwise it is
            committed.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
        timeout: The time to wait for others that migrate the same schema or are using its tables, in seconds.
        pause: A function that sleeps for a number of seconds.

    Returns:
        The number of shards and of nodes, and what was done.

    Raises:
        InvalidOption: If an argument can't be used.
        UnusableConnection: If `conn` is not a connection.
        WrongTransaction: If it is in AUTOCOMMIT.
        NotSetUp: If the tables are missing, or older than this version works on.
        MigrationLocked: If another has held the lock, or transactions have used the tables, past the deadline.
        MigrationError: If it failed, for instance because the server is not the coordinator, or the tables are
            partitioned; nothing has changed.
    """
    schema = checked(schema)
    check_arguments(conn, timeout, pause)
    in_transaction, changes = conn.in_transaction(), []
    with migration_lock(conn, schema, timeout, pause):
        require_head(conn, schema)
        lock_tables(conn, _names(schema), schema, timeout=timeout, pause=pause, action="distribution")
        with undoing(conn, schema, "distribution", in_transaction=in_transaction), _naming_worker():
            for step, change in _steps(schema):
                result = conn.execute(statement(step))
                if change and result.first():
                    changes.append(change)
            # Not None: a step has looked.
            found = cast("Distribution", distribution_of(conn, schema))
        if not in_transaction:
            conn.commit()
        return replace(found, changes=tuple(changes))


@translate_errors()
def current(conn: Connection, schema: str | None = None) -> Distribution | None:
    """Return how the tables are distributed, or None if they are not.

    Args:
        conn: A connection to any node, in a transaction or not.
        schema: The PostgreSQL schema, or None for the `search_path`'s.

    Raises:
        NotSetUp: If only some of the tables are distributed, or not all together; the message names them.
    """
    return distribution_of(conn, checked(schema))


def sql(schema: str | None = None) -> str:
    """Return the SQL that does the same as `distribute`, for a person to run on a coordinator's database at head.

    Args:
        schema: The PostgreSQL schema, or None for the `search_path`'s.
    """
    steps = [step.strip() for step, _ in _steps(checked(schema))]
    return "\n".join(f"{step};" for step in ["BEGIN", *steps, "COMMIT"])


def _steps(schema: str | None) -> list[tuple[str, str]]:
    """Return the statements, each with the change that it has made if it returns a row, or an empty text."""
    names = _names(schema)
    return [
        (_refuse_unfit(schema), ""),
        (lock(names, schema), ""),
        (refuse_snapshot(), ""),
        *[(_distribute(name, schema), f"distributed {name}") for name in names],
        (_refuse_scattered(schema), ""),
        (_refer(schema), f"made {VERSION_TABLE} a reference table"),
        *[
            (_truncate(name, schema), f"deleted the rows of {name} that were left in the coordinator's own table")
            for name in [*names, VERSION_TABLE]
        ],
    ]


@contextlib.contextmanager
def _naming_worker() -> Iterator[None]:
    """Name the table and the worker in the error if a worker has a table of the same name."""
    try:
        yield
    except exc.DBAPIError as error:
        raw = driver_error(error)
        node = re.search(r"executing command on (\S+)", field(raw, "context") or "")
        if node is None or sqlstate_of(raw) != _DUPLICATE_TABLE:
            raise
        # The server's message, which has nothing but the table's name in it.
        reason = f"{str(raw).splitlines()[0]} on the worker {node.group(1)}"
        advice = "Drop it there, on a connection to that worker, then try again."
        raise_from(MigrationError(f"distribution failed and was rolled back: {reason}. {advice}"), error)


def _names(schema: str | None) -> list[str]:
    return [table.name for table in Tables(schema).all]


def _refuse_unfit(schema: str | None) -> str:
    """Return the statement that fails where nothing can be distributed."""
    body = f"""
    IF {LACKS_CITUS} THEN
        RAISE EXCEPTION 'this database has no extension citus; run CREATE EXTENSION citus here and on each worker';
    END IF;
    {IF_WORKER_FAIL.strip()}
    SELECT string_agg(table_name, ', ') INTO missing FROM {names_and_oids(schema)} WHERE oid IS NULL;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION USING
            MESSAGE = 'these tables are missing: ' || missing || '; run `checkpoint-store upgrade` first';
    END IF;
    SELECT string_agg(table_name, ', ') INTO divided FROM {names_and_oids(schema)} JOIN pg_class USING (oid)
    WHERE relkind = 'p';
    IF divided IS NOT NULL THEN
        RAISE EXCEPTION USING
            MESSAGE = 'partitioned tables can''t be distributed: ' || divided
            || '. Copy the threads to a database without partitions, by `checkpoint-store import-from`';
    END IF;
    """
    return block(body, "missing text;\n    divided text;")


def _distribute(table: str, schema: str | None) -> str:
    """Return the statement that distributes a table unless it is distributed."""
    return f"SELECT {distribute_table(table, schema)} WHERE NOT {is_placed(oid(table, schema))}"


def _refer(schema: str | None) -> str:
    """Return the statement that makes the version table a reference table."""
    # "t" stands for two-phase commits, by which the copies stay the same.
    known = f"SELECT FROM pg_dist_partition WHERE logicalrelid = {oid(VERSION_TABLE, schema)} AND repmodel = 't'"
    create = f"create_reference_table({literal(qualified(VERSION_TABLE, schema))})"
    return f"SELECT {create} WHERE NOT EXISTS ({known})"


def _truncate(table: str, schema: str | None) -> str:
    """Return the statement that deletes the rows that were copied to shards from the coordinator's own table."""
    name = literal(qualified(table, schema))
    return f"SELECT truncate_local_data_after_distributing_table({name}) WHERE pg_relation_size({name}) > 0"


def _refuse_scattered(schema: str | None) -> str:
    """Return the statement that fails unless all tables are distributed together."""
    advice = ". Run SELECT undistribute_table(...) for each, or citus_schema_undistribute(...), then this again"
    body = f"""
    SELECT string_agg(table_name, ', ') INTO apart FROM {names_and_oids(schema)} WHERE NOT {is_together(schema)};
    IF apart IS NOT NULL THEN
        RAISE EXCEPTION USING
            MESSAGE = 'not distributed by thread_id together with checkpoints: ' || apart || {literal(advice)};
    END IF;
    """
    return block(body, "apart text;")
