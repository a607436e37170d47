"""Create the orders."""

import sqlalchemy as sa

from alembic import op

revision = "0001_orders"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("title", sa.String, nullable=False),
        sa.Column("thread_id", sa.String, nullable=False),
    )
    op.create_index("ix_orders_thread_id", "orders", ["thread_id"])


def downgrade() -> None:
    op.drop_table("orders")
