"""Index the checkpoints of subgraphs by age, as those of root graphs are: for listing all checkpoints newest first."""

from __future__ import annotations

from checkpoint_store.migrations.indexes import create_indexes, drop_indexes
from checkpoint_store.migrations.revision import downgrade_from, upgrade_to

revision = "cs04_subgraphs"
down_revision = "cs03_lifecycle"
branch_labels = None
depends_on = None

INDEXES = {
    "checkpoint_store_subgraphs_idx": "(checkpoint_id, thread_id, checkpoint_ns) WHERE checkpoint_ns NOT LIKE ''",
}


@upgrade_to(revision, down_revision)
def upgrade(schema: str | None) -> None:
    create_indexes(INDEXES, schema)


@downgrade_from(revision, down_revision)
def downgrade(schema: str | None) -> None:
    drop_indexes(INDEXES, schema)
