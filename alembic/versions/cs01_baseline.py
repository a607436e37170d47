"""Create the three tables, or adopt those of langgraph-checkpoint-postgres.

That saver has ten migrations of its own; after any of them its tables are a subset of these. Its three indexes on
`thread_id` are neither made nor dropped: they repeat the first column of a primary key, and belong to it.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from alembic import op

revision = "cs01_baseline"
down_revision = None
branch_labels = ("checkpoint_store",)
depends_on = None

# Every column that its tables have had since its first version.
ADOPTABLE = {
    "checkpoints": {
        "thread_id": "text",
        "checkpoint_ns": "text",
        "checkpoint_id": "text",
        "parent_checkpoint_id": "text",
        "type": "text",
        "checkpoint": "jsonb",
        "metadata": "jsonb",
    },
    "checkpoint_blobs": {
        "thread_id": "text",
        "checkpoint_ns": "text",
        "channel": "text",
        "version": "text",
        "type": "text",
        "blob": "bytea",
    },
    "checkpoint_writes": {
        "thread_id": "text",
        "checkpoint_ns": "text",
        "checkpoint_id": "text",
        "task_id": "text",
        "idx": "integer",
        "channel": "text",
        "type": "text",
        "blob": "bytea",
    },
}


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    refuse_foreign_tables(schema)
    op.create_table(
        "checkpoints",
        sa.Column("thread_id", sa.Text, nullable=False),
        sa.Column("checkpoint_ns", sa.Text, nullable=False, server_default=""),
        sa.Column("checkpoint_id", sa.Text, nullable=False),
        sa.Column("parent_checkpoint_id", sa.Text),
        sa.Column("type", sa.Text),
        sa.Column("checkpoint", JSONB, nullable=False),
        sa.Column("metadata", JSONB, nullable=False, server_default="{}"),
        sa.PrimaryKeyConstraint("thread_id", "checkpoint_ns", "checkpoint_id"),
        schema=schema,
        if_not_exists=True,
    )
    op.create_table(
        "checkpoint_blobs",
        sa.Column("thread_id", sa.Text, nullable=False),
        sa.Column("checkpoint_ns", sa.Text, nullable=False, server_default=""),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("blob", sa.LargeBinary),
        sa.PrimaryKeyConstraint("thread_id", "checkpoint_ns", "channel", "version"),
        schema=schema,
        if_not_exists=True,
    )
    op.create_table(
        "checkpoint_writes",
        sa.Column("thread_id", sa.Text, nullable=False),
        sa.Column("checkpoint_ns", sa.Text, nullable=False, server_default=""),
        sa.Column("checkpoint_id", sa.Text, nullable=False),
        sa.Column("task_id", sa.Text, nullable=False),
        sa.Column("idx", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("type", sa.Text),
        sa.Column("blob", sa.LargeBinary, nullable=False),
        sa.Column("task_path", sa.Text, nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "idx"),
        schema=schema,
        if_not_exists=True,
    )
    # What an adopted database may still lack.
    op.alter_column("checkpoint_blobs", "blob", nullable=True, schema=schema)
    op.execute(
        f"ALTER TABLE {qualified('checkpoint_writes', schema)} "
        "ADD COLUMN IF NOT EXISTS task_path TEXT NOT NULL DEFAULT ''"
    )


def downgrade() -> None:
    """Drop the tables, unless the stock saver's bookkeeping shows that they are its too."""
    schema = op.get_context().version_table_schema
    tables = ", ".join(qualified(table, schema) for table in ADOPTABLE)
    op.execute(
        f"""
        DO $$
        BEGIN
            IF to_regclass({literal(qualified("checkpoint_migrations", schema))}) IS NULL THEN
                DROP TABLE {tables};
            END IF;
        END
        $$
        """
    )


def refuse_foreign_tables(schema: str | None) -> None:
    """Stop before anything is made if a table of one of our names is somebody else's."""
    # No percent sign may stand in here: some drivers double it, others don't.
    wanted = ",\n                ".join(
        f"({literal(table)}, {literal(qualified(table, schema))}, '{column}', '{kind}')"
        for table, columns in ADOPTABLE.items()
        for column, kind in columns.items()
    )
    op.execute(
        f"""
        DO $$
        DECLARE
            missing text;
        BEGIN
            SELECT string_agg(name || '.' || col || ' ' || kind, ', ') INTO missing
            FROM (VALUES
                {wanted}
            ) AS wanted(name, rel, col, kind)
            WHERE to_regclass(rel) IS NOT NULL AND NOT EXISTS (
                SELECT FROM pg_attribute
                WHERE attrelid = to_regclass(rel) AND attname = col AND NOT attisdropped
                AND format_type(atttypid, atttypmod) = kind
            );
            IF missing IS NOT NULL THEN
                RAISE EXCEPTION USING
                    MESSAGE = 'a table of another application has the name of a checkpoint table; it lacks ' || missing,
                    HINT = 'Keep the checkpoints in a PostgreSQL schema of their own.';
            END IF;
        END
        $$
        """
    )


def qualified(table: str, schema: str | None) -> str:
    quote = op.get_context().dialect.identifier_preparer.quote
    return table if schema is None else f"{quote(schema)}.{table}"


def literal(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"
