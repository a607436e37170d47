"""The tables, hash-partitioned by thread: for databases of many threads, whose tables would grow past handling.

A thread's rows are in one partition of each table, and every statement about a thread keeps to it. So partitions are
vacuumed, reindexed and moved to other disks one by one, and their indexes stay small. It is decided once, best while
there is little in the tables: rows that are there are copied, with the tables locked meanwhile.

    async with engine.begin() as conn:
        await conn.run_sync(partitioning.partition, partitions=16)

Unlike the migrations this is no revision, since not every database goes through it; whether one did makes no
difference to them. It is DDL that SQLAlchemy has no constructs for, hence text.

`checkpoint_threads` stays whole: it has a few bytes for each thread, and the statement that stores the changes of many
threads at once looks them up together.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, Dialect, Table, exc
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex

from checkpoint_store import migrations
from checkpoint_store.conninfo.driver_errors import chain, diagnosis_of
from checkpoint_store.errors import MigrationError
from checkpoint_store.migrations.lock import LOCK_SECONDS, NOT_AVAILABLE, bounded, check_arguments, in_use, patience_of
from checkpoint_store.schema import Tables, checked, qualified
from checkpoint_store.serde.arguments import number

PARTITIONS = 16
"""How many partitions each table is divided into, unless it is said otherwise."""

_DIALECT: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]

MOST_PARTITIONS = 1024
"""More of them cost the server more than they spare it."""


@migrations.told()
def partition(
    conn: Connection,
    schema: str | None = None,
    *,
    partitions: int = PARTITIONS,
    timeout: float = LOCK_SECONDS,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Divide the tables into partitions by the hash of the thread's id; in one transaction.

    Args:
        conn: Where to run. In a transaction it becomes part of it; otherwise it is committed.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
        partitions: How many; what there are can't be changed later but by copying everything.
        timeout: How long to wait for others that migrate the same schema or are using its tables, in seconds.
        pause: Sleeps for so many seconds.

    Raises:
        InvalidOption: If `partitions` is no such number, or another argument can't be used.
        UnusableConnection: If `conn` is no connection.
        NotSetUp: If the tables are missing, or older than this version works on.
        MigrationLocked: If another has held the lock, or transactions have used the tables, past the deadline.
        MigrationError: If it failed, as where they are partitioned already; nothing has changed.
    """
    schema = checked(schema)
    script = statements(schema, partitions=partitions)
    check_arguments(conn, timeout, pause)
    theirs, patience = conn.in_transaction(), patience_of(timeout)
    with migrations.locked(conn, schema, timeout, pause):
        migrations.check(conn, schema)
        try:
            with bounded(conn, patience.left):
                for statement in script:
                    conn.exec_driver_sql(statement)
        except exc.DBAPIError as error:
            if error.connection_invalidated:
                raise
            said = diagnosis_of(error)
            if said.state == NOT_AVAILABLE:
                chain(in_use("partitioning", conn, schema, theirs=theirs), error)
            chain(MigrationError(f"partitioning failed, and nothing has changed: {said.message or said.name}"), error)
        if not theirs:
            conn.commit()


def sql(schema: str | None = None, *, partitions: int = PARTITIONS) -> str:
    """Return the SQL that does what `partition` does, for a person to run on a database at head.

    Args:
        schema: The PostgreSQL schema, or None for the `search_path`'s.
        partitions: How many.

    Raises:
        InvalidOption: If `partitions` is no such number.
    """
    return "\n".join(f"{statement};" for statement in ["BEGIN", *statements(schema, partitions=partitions), "COMMIT"])


def statements(schema: str | None = None, *, partitions: int = PARTITIONS) -> list[str]:
    """Return the same as single statements, to be run in one transaction.

    Raises:
        InvalidOption: If `partitions` is no such number.
    """
    partitions = number(partitions, "partitions", 2, MOST_PARTITIONS)
    schema = checked(schema)
    tables = Tables(schema)
    divided = [table for table in tables.all if table is not tables.checkpoint_threads]
    locked = ", ".join(qualified(table.name, schema) for table in divided)
    script = [
        f"LOCK TABLE {locked} IN ACCESS EXCLUSIVE MODE",
        _refuse_partitioned(tables.checkpoints.name, schema),
        _refuse_guarded([table.name for table in divided], schema),
    ]
    for table in divided:
        script += _divided(table, schema, partitions)
    return script


def _divided(table: Table, schema: str | None, partitions: int) -> list[str]:
    """Return what puts a partitioned table in a table's place."""
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
        _same_options(name, parts, schema),
        f"INSERT INTO {whole} SELECT * FROM {plain}",
        f"DROP TABLE {plain}",
        f"ALTER TABLE {whole} RENAME TO {name}",
        f"ALTER TABLE {plain} ADD CONSTRAINT {name}_pkey PRIMARY KEY ({keys})",
        *[str(CreateIndex(index).compile(dialect=_DIALECT)) for index in indexes],
    ]


def _refuse_partitioned(name: str, schema: str | None) -> str:
    """Return what fails if a table is partitioned."""
    return textwrap.dedent(
        f"""\
        DO $checkpoint_store$
        BEGIN
            IF EXISTS (SELECT FROM pg_class WHERE oid = {_table(name, schema)} AND relkind = 'p') THEN
                RAISE EXCEPTION 'the tables are partitioned already';
            END IF;
        END
        $checkpoint_store$"""
    )


def _refuse_guarded(names: Sequence[str], schema: str | None) -> str:
    """Return what fails if tables have policies, triggers or rules of a host's: new tables would have none."""
    oids = ", ".join(_table(name, schema) for name in names)
    return textwrap.dedent(
        f"""\
        DO $checkpoint_store$
        DECLARE guarded text;
        BEGIN
            SELECT string_agg(relname, ', ' ORDER BY relname) INTO guarded FROM pg_class c WHERE oid IN ({oids}) AND (
                relrowsecurity
                OR EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid)
                OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal)
                OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid)
            );
            IF guarded IS NOT NULL THEN
                RAISE EXCEPTION USING
                    MESSAGE = 'policies, triggers or rules on ' || guarded || ' would be lost',
                    HINT = 'Drop them, divide the tables, and make them again, while nobody uses the tables.';
            END IF;
        END
        $checkpoint_store$"""
    )


def _table(name: str, schema: str | None) -> str:
    """Return an expression for the oid of a table."""
    escaped = qualified(name, schema).replace("'", "''")
    return f"'{escaped}'::regclass"


def _same_options(name: str, parts: list[str], schema: str | None) -> str:
    """Return what gives partitions a table's storage parameters, which a partitioned table can't have."""
    listed = ", ".join(_table(part, schema) for part in parts)
    return textwrap.dedent(
        f"""\
        DO $checkpoint_store$
        DECLARE
            options text := (SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = {_table(name, schema)});
            part regclass;
        BEGIN
            IF options <> '' THEN
                FOREACH part IN ARRAY ARRAY[{listed}] LOOP
                    EXECUTE 'ALTER TABLE ' || part || ' SET (' || options || ')';
                END LOOP;
            END IF;
        END
        $checkpoint_store$"""
    )
