"""Indexes on the checkpoints, built online where there is something to build.

On a table in use they are built one after the other, each by a statement that commits itself. The remains of an index
from an interrupted migration are dropped first, and an index that was built by hand is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import sqlalchemy as sa

from alembic import op
from checkpoint_store.migrations.ddl import statement
from checkpoint_store.migrations.revision import outside_transaction, waiting_for_snapshots
from checkpoint_store.schema import qualified

Indexes = Mapping[str, str]
"""The columns and the condition of indexes, by name, as SQL text."""


def create_indexes(indexes: Indexes, schema: str | None) -> None:
    """Build indexes on the checkpoints."""
    table = qualified("checkpoints", schema)
    if op.get_context().as_sql:
        # The script may be run in one transaction, where nothing can be built online.
        for name, definition in indexes.items():
            op.execute(statement(f"CREATE INDEX IF NOT EXISTS {name} ON {table} {definition}"))
        return
    # Building one by hand holds this lock; no session will finish an index that is invalid once we have it.
    op.execute(statement(f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE"))
    valid, leftovers = _found(table, indexes)
    with _online(table, schema) as concurrently:
        for name, definition in indexes.items():
            if name in leftovers:
                # Citus: not every shard may have it.
                op.execute(statement(f"DROP INDEX {concurrently} IF EXISTS {leftovers[name]}"))
            if name not in valid:
                op.execute(statement(f"CREATE INDEX {concurrently} {name} ON {table} {definition}"))


def drop_indexes(indexes: Indexes, schema: str | None) -> None:
    """Drop the same."""
    for name in indexes:
        op.execute(statement(f"DROP INDEX IF EXISTS {qualified(name, schema)}"))


@contextmanager
def _online(table: str, schema: str | None) -> Iterator[str]:
    """Yield CONCURRENTLY, outside a transaction, where an index can be and should be built so; else nothing.

    Where the table is empty the other way is better: it does not wait, and is undone with the rest.
    """
    context = op.get_context()
    connection = op.get_bind()
    ours = not context._in_external_transaction and context.opts.get("transaction_per_migration")
    kind = connection.scalar(sa.text("SELECT relkind FROM pg_class WHERE oid = to_regclass(:name)"), {"name": table})
    # A partitioned table does not allow it.
    if ours and kind in ("r", b"r") and connection.scalar(statement(f"SELECT 1 FROM {table} LIMIT 1")):
        try:
            with outside_transaction(), waiting_for_snapshots(schema):
                yield "CONCURRENTLY"
        except sa.exc.PendingRollbackError as error:
            # Alembic rolls back a connection even when it is lost, and hides the cause.
            if isinstance(error.__context__, sa.exc.DBAPIError):
                raise error.__context__ from None
            raise
    else:
        yield ""


def _found(table: str, indexes: Indexes) -> tuple[set[str], dict[str, str]]:
    """Return which of the indexes the table has, and the full names of those that were never finished."""
    rows = op.get_bind().execute(
        sa.text(
            "SELECT relname, CAST(CAST(indexrelid AS regclass) AS text), indisvalid"
            " FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE indrelid = to_regclass(:name)"
        ),
        {"name": table},
    )
    ours = [row for row in rows if row[0] in indexes]
    return {name for name, _, is_valid in ours if is_valid}, {
        name: full for name, full, is_valid in ours if not is_valid
    }
