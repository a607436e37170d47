"""Create the articles."""

import sqlalchemy as sa

from alembic import op

revision = "0001_articles"
down_revision = None
branch_labels = ("newsroom",)
depends_on = "cs01_baseline"


def upgrade() -> None:
    op.create_table(
        "articles",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("title", sa.String, nullable=False),
        sa.Column("thread_id", sa.String),
        sa.Column("checkpoint_ns", sa.String),
        sa.Column("checkpoint_id", sa.String),
        sa.ForeignKeyConstraint(
            ["thread_id", "checkpoint_ns", "checkpoint_id"],
            ["agents.checkpoints.thread_id", "agents.checkpoints.checkpoint_ns", "agents.checkpoints.checkpoint_id"],
            ondelete="SET NULL",
        ),
        schema="newsroom",
    )


def downgrade() -> None:
    op.drop_table("articles", schema="newsroom")
