"""Hash partitioning of the tables by thread, for databases with many threads.

A thread's rows are in one partition of each table, and every statement about a thread uses only that one. So partitions
are vacuumed, reindexed and moved to other disks one by one, and their indexes stay small. Partition once, best while
the tables are small: their rows are copied, with the tables locked meanwhile.

    async with engine.begin() as conn:
        await conn.run_sync(partitioning.partition, partitions=16)

This is not a revision, since not every database is partitioned; the migrations are the same on both. It is DDL that
SQLAlchemy has no constructs for, hence text.

`checkpoint_threads` is not partitioned: it has a few bytes for each thread, and the statement that stores the changes
of many threads at once looks them up together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import Connection, Dialect, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex

from checkpoint_store.migrations.ddl import block, literal
from checkpoint_store.migrations.error_translation import translate_errors
from checkpoint_store.migrations.lock import LOCK_SECONDS, Pause, check_arguments, migration_lock
from checkpoint_store.migrations.placement import if_distributed
from checkpoint_store.migrations.table_locks import lock, lock_tables, refuse_snapshot, undoing
from checkpoint_store.migrations.version_check import require_head
from checkpoint_store.schema import Tables, checked, qualified
from checkpoint_store.serde.arguments import number

PARTITIONS = 16
"""The default number of partitions of each table."""

MAX_PARTITIONS = 1024
"""More of them cost the server more than they save."""

_DIALECT: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]


@translate_errors()
def partition(
    conn: Connection,
    schema: str | None = None,
    *,
    partitions: int = PARTITIONS,
    timeout: float = LOCK_SECONDS,
    pause: Pause = time.sleep,
) -> None:
    """Divide the tables into partitions by the hash of the thread's id, in one transaction.

    Args:
        conn: The connection. In a transaction the change becomes part of it; otherwise it is committed.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
        partitions: The number of partitions; it can be changed later only by copying everything.
        timeout: The time to wait for others that migrate the same schema or are using its tables, in seconds.
        pause: A function that sleeps for a number of seconds.

    Raises:
        InvalidOption: If `partitions` is not a number in range, or another argument can't be used.
        UnusableConnection: If `conn` is not a connection.
        WrongTransaction: If it is in AUTOCOMMIT.
        NotSetUp: If the tables are missing, or older than this version works on.
        MigrationLocked: If another has held the lock, or transactions have used the tables, past the deadline.
        MigrationError: If it failed, for instance because they are partitioned already; nothing has changed.
    """
    schema = checked(schema)
    script = statements(schema, partitions=partitions)
    check_arguments(conn, timeout, pause)
    in_transaction, names = conn.in_transaction(), [table.name for table in _divided(Tables(schema))]
    with migration_lock(conn, schema, timeout, pause):
        require_head(conn, schema)
        lock_tables(conn, names, schema, timeout=timeout, pause=pause, action="partitioning")
        with undoing(conn, schema, "partitioning", in_transaction=in_transaction):
            for statement in script:
                conn.exec_driver_sql(statement)
        if not in_transaction:
            conn.commit()


def sql(schema: str | None = None, *, partitions: int = PARTITIONS) -> str:
    """Return the SQL that does the same as `partition`, for a person to run on a database at head.

    Args:
        schema: The PostgreSQL schema, or None for the `search_path`'s.
        partitions: The number of partitions.

    Raises:
        InvalidOption: If `partitions` is not a number in range.
    """
    return "\n".join(f"{statement};" for statement in ["BEGIN", *statements(schema, partitions=partitions), "COMMIT"])


def statements(schema: str | None = None, *, partitions: int = PARTITIONS) -> list[str]:
    """Return the same as single statements, to be run in one transaction.

    Raises:
        InvalidOption: If `partitions` is not a number in range.
    """
    partitions = number(partitions, "partitions", 2, MAX_PARTITIONS)
    schema = checked(schema)
    tables = Tables(schema)
    divided = _divided(tables)
    return [
        _refuse_distributed([table.name for table in tables.all], schema),
        lock([table.name for table in divided], schema),
        refuse_snapshot(),
        _refuse_partitioned(tables.checkpoints.name, schema),
        _refuse_guarded([table.name for table in divided], schema),
        *[statement for table in divided for statement in _divide(table, schema, partitions)],
    ]


def _divided(tables: Tables) -> list[Table]:
    """Return the tables that are partitioned."""
    return [table for table in tables.all if table is not tables.checkpoint_threads]


def _divide(table: Table, schema: str | None, partitions: int) -> list[str]:
    """Return the statements that replace a table by a partitioned one."""
    name, draft = table.name, f"{table.name}_partitioned"
    plain, whole = qualified(name, schema), qualified(draft, schema)
    parts = [f"{name}_p{number:0{len(str(partitions - 1))}}" for number in range(partitions)]
    keys = ", ".join(column.name for column in table.primary_key)
    indexes = sorted(table.indexes, key=lambda index: str(index.name))
    return [
        # Columns with their defaults, storage and compression, as the migrations have left them on this server.
        f"CREATE TABLE {whole} (LIKE {plain} INCLUDING ALL EXCLUDING INDEXES) PARTITION BY HASH (thread_id)",
        *[
            f"CREATE TABLE {qualified(part, schema)} PARTITION OF {whole} "
            f"FOR VALUES WITH (MODULUS {partitions}, REMAINDER {number})"
            for number, part in enumerate(parts)
        ],
        _copy_options(name, parts, schema),
        f"INSERT INTO {whole} SELECT * FROM {plain}",
        f"DROP TABLE {plain}",
        f"ALTER TABLE {whole} RENAME TO {name}",
        f"ALTER TABLE {plain} ADD CONSTRAINT {name}_pkey PRIMARY KEY ({keys})",
        *[str(CreateIndex(index).compile(dialect=_DIALECT)) for index in indexes],
    ]


def _refuse_partitioned(name: str, schema: str | None) -> str:
    """Return the statement that fails if a table is partitioned."""
    return block(f"""
    IF EXISTS (SELECT FROM pg_class WHERE oid = {_oid(name, schema)} AND relkind = 'p') THEN
        RAISE EXCEPTION 'the tables are partitioned already';
    END IF;
    """)


def _refuse_distributed(names: Sequence[str], schema: str | None) -> str:
    """Return the statement that fails if Citus has distributed tables: rows would come back to the coordinator."""
    message = "Citus has distributed the tables by thread over its nodes; partitions are for a single server"
    return block(if_distributed(f"RAISE EXCEPTION {literal(message)};", names, schema))


def _refuse_guarded(names: Sequence[str], schema: str | None) -> str:
    """Return the statement that fails if tables have policies, triggers or rules of a host's, which would be lost."""
    oids = ", ".join(_oid(name, schema) for name in names)
    body = f"""
    SELECT string_agg(relname, ', ' ORDER BY relname) INTO guarded FROM pg_class c WHERE oid IN ({oids}) AND (
        relrowsecurity
        OR EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid)
        OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal)
        OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid)
    );
    IF guarded IS NOT NULL THEN
        RAISE EXCEPTION USING
            MESSAGE = 'policies, triggers or rules on ' || guarded || ' would be lost',
            HINT = 'Drop them, divide the tables, and create them again, while no other session uses the tables.';
    END IF;
    """
    return block(body, "guarded text;")


def _copy_options(name: str, parts: Sequence[str], schema: str | None) -> str:
    """Return the statement that gives partitions a table's storage parameters: a partitioned table can't have any."""
    listed = ", ".join(_oid(part, schema) for part in parts)
    body = f"""
    IF options <> '' THEN
        FOREACH part IN ARRAY ARRAY[{listed}] LOOP
            EXECUTE 'ALTER TABLE ' || part || ' SET (' || options || ')';
        END LOOP;
    END IF;
    """
    options = f"(SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = {_oid(name, schema)})"
    return block(body, f"options text := {options};\n    part regclass;")


def _oid(name: str, schema: str | None) -> str:
    """Return an expression for the oid of a table."""
    return f"{literal(qualified(name, schema))}::regclass"
