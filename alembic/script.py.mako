"""${message}."""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op
from checkpoint_store.migrations.revision import downgrade_from, upgrade_to
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


@upgrade_to(revision, down_revision)
def upgrade(schema: str | None) -> None:
    ${upgrades if upgrades else "pass"}


@downgrade_from(revision, down_revision)
def downgrade(schema: str | None) -> None:
    ${downgrades if downgrades else "pass"}
