"""Index the checkpoints by run and by age: for deleting those of a run, and for listing threads newest first.

On a table in use they are built online, one after the other, each by a statement that commits itself. The remains of an
index from an interrupted migration are dropped first, and an index that was built by hand is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from alembic import op
from checkpoint_store.migrations.ddl import statement
from checkpoint_store.migrations.revision import (
    downgrade_from,
    outside_transaction,
    upgrade_to,
    waiting_for_snapshots,
)
from checkpoint_store.schema import qualified

revision = "cs03_lifecycle"
down_revision = "cs02_pages"
branch_labels = None
depends_on = None

INDEXES = {
    "checkpoint_store_run_idx": "((metadata ->> 'run_id')) WHERE (metadata ->> 'run_id') IS NOT NULL",
    "checkpoint_store_latest_idx": "(checkpoint_id, thread_id) WHERE checkpoint_ns LIKE ''",
}


@upgrade_to(revision, down_revision)
def upgrade(schema: str | None) -> None:
    table = qualified("checkpoints", schema)
    if op.get_context().as_sql:
        # The script may be run in one transaction, where nothing can be built online.
        for name, definition in INDEXES.items():
            op.execute(statement(f"CREATE INDEX IF NOT EXISTS {name} ON {table} {definition}"))
        return
    # Building one by hand holds this lock; no session will finish an index that is invalid once we have it.
    op.execute(statement(f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE"))
    valid, leftovers = found(table)
    with online(table, schema) as concurrently:
        for name, definition in INDEXES.items():
            if name in leftovers:
                op.execute(statement(f"DROP INDEX {concurrently} {leftovers[name]}"))
            if name not in valid:
                op.execute(statement(f"CREATE INDEX {concurrently} {name} ON {table} {definition}"))


@downgrade_from(revision, down_revision)
def downgrade(schema: str | None) -> None:
    for name in INDEXES:
        op.execute(statement(f"DROP INDEX IF EXISTS {qualified(name, schema)}"))


@contextmanager
def online(table: str, schema: str | None) -> Iterator[str]:
    """Yield CONCURRENTLY, outside a transaction, where an index can be and should be built so; else nothing.

    Where the table is empty the other way is better: it does not wait, and is undone with the rest.
    """
    context = op.get_context()
    connection = op.get_bind()
    ours = not context._in_external_transaction and context.opts.get("transaction_per_migration")
    kind = connection.scalar(sa.text("SELECT relkind FROM pg_class WHERE oid = to_regclass(:name)"), {"name": table})
    # A partitioned table does not allow it.
    if ours and kind in ("r", b"r") and connection.scalar(statement(f"SELECT EXISTS (SELECT FROM {table})")):
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


def found(table: str) -> tuple[set[str], dict[str, str]]:
    """Return which of the indexes the table has, and the full names of those that were never finished."""
    rows = op.get_bind().execute(
        sa.text(
            "SELECT relname, CAST(CAST(indexrelid AS regclass) AS text), indisvalid"
            " FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE indrelid = to_regclass(:name)"
        ),
        {"name": table},
    )
    ours = [row for row in rows if row[0] in INDEXES]
    return {name for name, _, is_valid in ours if is_valid}, {
        name: full for name, full, is_valid in ours if not is_valid
    }
