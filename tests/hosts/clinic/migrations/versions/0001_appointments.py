"""Create the appointments."""

import sqlalchemy as sa

from alembic import op

revision = "0001_appointments"
down_revision = None
branch_labels = ("clinic",)
depends_on = None


def upgrade() -> None:
    op.create_table(
        "appointments",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("patient", sa.String, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("appointments")
