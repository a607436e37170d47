"""Index the checkpoints by run and by age: for deleting those of a run, and for listing threads newest first."""

from __future__ import annotations

from checkpoint_store.migrations.indexes import create_indexes, drop_indexes
from checkpoint_store.migrations.revision import downgrade_from, upgrade_to

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
    create_indexes(INDEXES, schema)


@downgrade_from(revision, down_revision)
def downgrade(schema: str | None) -> None:
    drop_indexes(INDEXES, schema)
