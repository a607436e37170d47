"""Create the three tables, or adopt those of langgraph-checkpoint-postgres, or ones created by hand like them.

That saver has ten migrations of its own; after any of them its tables are a subset of these. Its three indexes on
`thread_id` are neither created nor dropped: they belong to it, and repeat the first column of a primary key.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from alembic import op
from checkpoint_store.migrations.ddl import block, note_adoption, ours_alone, refuse_foreign, statement, varchar_to_text
from checkpoint_store.migrations.revision import downgrade_from, upgrade_to
from checkpoint_store.schema import qualified

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


@upgrade_to(revision, down_revision)
def upgrade(schema: str | None) -> None:
    op.execute(refuse_foreign(ADOPTABLE, schema))
    op.execute(note_adoption(ADOPTABLE, schema))
    op.create_table(
        "checkpoints",
        sa.Column("thread_id", sa.Text, nullable=False),
        sa.Column("checkpoint_ns", sa.Text, nullable=False, server_default=""),
        sa.Column("checkpoint_id", sa.Text, nullable=False),
        sa.Column("parent_checkpoint_id", sa.Text),
        sa.Column("type", sa.Text),
        sa.Column("checkpoint", JSONB, nullable=False),
        sa.Column("metadata", JSONB, nullable=False, server_default="{}"),
        sa.PrimaryKeyConstraint("thread_id", "checkpoint_ns", "checkpoint_id", name=op.f("checkpoints_pkey")),
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
        sa.PrimaryKeyConstraint("thread_id", "checkpoint_ns", "channel", "version", name=op.f("checkpoint_blobs_pkey")),
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
        sa.PrimaryKeyConstraint(
            "thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "idx", name=op.f("checkpoint_writes_pkey")
        ),
        schema=schema,
        if_not_exists=True,
    )
    complete_adopted(schema)


@downgrade_from(revision, down_revision)
def downgrade(schema: str | None) -> None:
    """Drop the tables, unless they existed before or the stock saver has set them up since."""
    tables = ", ".join(qualified(table, schema) for table in ADOPTABLE)
    op.execute(statement(block(f"IF {ours_alone(schema)} THEN\n        DROP TABLE {tables};\n    END IF;")))


def complete_adopted(schema: str | None) -> None:
    """Make the changes that adopted tables may still lack."""
    op.execute(varchar_to_text(ADOPTABLE, schema))
    op.alter_column("checkpoint_blobs", "blob", nullable=True, schema=schema)
    writes = qualified("checkpoint_writes", schema)
    op.execute(statement(f"ALTER TABLE {writes} ADD COLUMN IF NOT EXISTS task_path TEXT NOT NULL DEFAULT ''"))
    op.execute(varchar_to_text({"checkpoint_writes": {"task_path": "text"}}, schema))
