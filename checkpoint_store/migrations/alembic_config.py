"""Alembic's configuration: location of the revisions, schema to migrate, tables that a host's autogenerate omits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sqlalchemy import Table

from checkpoint_store.schema import STOCK_TABLE, VERSION_TABLE, Tables

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext

SCHEMA_OPTION = "checkpoint_store_schema"
"""The option of the ini file, or the key in `config.attributes`, that names the PostgreSQL schema."""

LOCK_TIMEOUT = "checkpoint_store_lock_timeout"
"""The key of a `LockTimeout` in `config.attributes`, where our own code drives Alembic."""

_KEY_COLUMNS = {table.name: {column.name for column in table.primary_key} for table in Tables().all} | {
    VERSION_TABLE: {"version_num"},
    STOCK_TABLE: {"v"},
}


def script_location() -> Path:
    """Return the folder of env.py and the revisions: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "_alembic"
    return packaged if packaged.is_dir() else package.parent / "alembic"


def config(schema: str | None = None) -> Config:
    """Return an Alembic configuration of our migrations, for `alembic.command`.

    Args:
        schema: The PostgreSQL schema to migrate, or None for the `search_path`'s.
    """
    from alembic.config import Config

    alembic_config = Config()
    alembic_config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    alembic_config.attributes[SCHEMA_OPTION] = schema
    return alembic_config


def schema_option(config: Config) -> str | None:
    """Return the schema that an Alembic configuration file names, if any."""
    # Since Alembic 1.16 also from pyproject.toml.
    read = getattr(config, "get_alembic_option", config.get_main_option)
    return read(SCHEMA_OPTION) or None


def schema_of(context: MigrationContext) -> str | None:
    """Return the schema that Alembic's configuration names for our tables.

    In this order: `config.attributes["checkpoint_store_schema"]`, set by our env.py and by a host's that decides while
    it runs; `-x checkpoint_store_schema=...`; `checkpoint_store_schema` in the ini file or in pyproject.toml.
    """
    config = context.config
    if config is None or context.environment_context is None:
        return None
    if SCHEMA_OPTION in config.attributes:
        return cast("str | None", config.attributes[SCHEMA_OPTION])
    arguments = context.environment_context.get_x_argument(as_dictionary=True)
    return arguments.get(SCHEMA_OPTION) or schema_option(config)


def not_ours(item: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:  # noqa: ARG001
    """Keep our tables out of a host's autogenerate: its `include_object`, or a part of one.

    They are recognised by name and key columns, in every schema, so that a host's own `checkpoints` elsewhere is still
    compared. They are left out whether the host's MetaData has them or not, and with them their columns and indexes.

    Args:
        item: The object that Alembic asks about.
        name: Its name.
        kind: Its kind.
        reflected: Whether it is from the database.
        compare_to: The object that it would be compared to, if any.

    Returns:
        False for one of our tables, True for everything else.
    """
    if not isinstance(item, Table):
        return True
    columns = {column.name for column in item.columns}
    # The table of a partition, as `partitioning` names partitions, or of a shard, as Citus does.
    divided = re.sub(r"_p?\d+$", "", item.name)
    return not columns >= _KEY_COLUMNS.get(divided, columns | {""})
