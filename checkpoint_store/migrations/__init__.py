"""Migrations: upgrade, downgrade, check and grants, and the hooks that a host's Alembic environment uses.

On an async connection, call a function that takes a `Connection` through `run_sync`:
`await conn.run_sync(migrations.check)`.
"""

from checkpoint_store.migrations.alembic_config import config, not_ours
from checkpoint_store.migrations.privileges import grants
from checkpoint_store.migrations.runner import downgrade, offline_sql, upgrade
from checkpoint_store.migrations.version_check import check, current

__all__ = ["check", "config", "current", "downgrade", "grants", "not_ours", "offline_sql", "upgrade"]
