"""Alembic's environment: migrations on a connection of the caller's, on a database named by URL, or as SQL text.

The URL comes from `-x url=...`, from CHECKPOINT_STORE_URL, or from `sqlalchemy.url` in the ini file; the PostgreSQL
schema from `-x schema=...`, from `checkpoint_store_schema` in the ini file, or from the code that drives Alembic. An
upgrade creates the schema if it is missing.
"""

from __future__ import annotations

import asyncio
import logging.config
import os
from typing import Any

from alembic.util import CommandError
from asyncpg import PostgresError
from sqlalchemy import Connection, NullPool
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from alembic import context
from checkpoint_store.conninfo.driver_errors import diagnosis_of, without_values
from checkpoint_store.conninfo.url import masked
from checkpoint_store.database.pool import is_pooled
from checkpoint_store.errors import CheckpointStoreError
from checkpoint_store.migrations.alembic_config import SCHEMA_OPTION, schema_option
from checkpoint_store.migrations.ddl import create_schema
from checkpoint_store.migrations.lock import migration_lock
from checkpoint_store.migrations.placement import refuse_worker
from checkpoint_store.schema import VERSION_TABLE, Tables, quoted
from checkpoint_store.url import engine_arguments, pooler_options

config = context.config
arguments = context.get_x_argument(as_dictionary=True)
if SCHEMA_OPTION not in config.attributes:
    config.attributes[SCHEMA_OPTION] = arguments.get("schema") or schema_option(config)
schema: str | None = config.attributes[SCHEMA_OPTION]
try:
    ours = Tables(schema)
except CheckpointStoreError as error:
    raise CommandError(str(error)) from error

# Each repeats the first column of a primary key. The stock saver creates them; these migrations neither create nor drop
# them.
STOCK_INDEXES = {
    "checkpoints_thread_id_idx",
    "checkpoint_blobs_thread_id_idx",
    "checkpoint_writes_thread_id_idx",
}


def run(*, default_schema: str | None = None, **where: Any) -> None:
    """Run the command of the command line or the calling code."""
    # Autogenerate knows the schema that the search_path resolves to as None.
    elsewhere = schema if schema != default_schema else None

    def is_ours(name: str | None, kind: str, _: object) -> bool:
        if kind == "schema":
            return name == elsewhere
        if kind == "table":
            return name in {table.name for table in ours.all}
        return name not in STOCK_INDEXES

    context.configure(
        **where,
        target_metadata=ours.metadata,
        version_table=VERSION_TABLE,
        version_table_schema=None if schema is None else quoted(schema),
        include_schemas=elsewhere is not None,
        include_name=is_ours,
        compare_server_default=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        if schema is not None and context.get_context().opts["fn"].__name__ == "upgrade":
            context.execute(refuse_worker())
            context.execute(create_schema(schema))
        context.run_migrations()


def run_on(connection: Connection) -> None:
    """Run on a connection, with the migration lock of the schema."""
    with migration_lock(connection, schema):
        run(connection=connection, default_schema=connection.dialect.default_schema_name)


async def run_on_url(url: str) -> None:
    """Run on an engine of our own."""
    target, connect_args = engine_arguments(url)
    # No statement here is executed twice; and so it works through a pooler in transaction mode too.
    connect_args = {**pooler_options()["connect_args"], **connect_args}
    engine = create_async_engine(target, connect_args=connect_args, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            if await connection.run_sync(is_pooled):
                await connection.begin()
            await connection.run_sync(run_on)
            await connection.commit()
    except (OSError, PostgresError, DBAPIError, CheckpointStoreError) as error:
        diagnosis = diagnosis_of(error)
        reason = error if isinstance(error, CheckpointStoreError) else diagnosis.message or diagnosis.name
        raise CommandError(f"{masked(url)}: {reason}") from without_values(error)
    finally:
        await engine.dispose()


if context.is_offline_mode():
    # With the default style a percent sign in a name would be printed twice.
    run(dialect_name="postgresql", literal_binds=True, dialect_opts={"paramstyle": "named"})
elif (handed_in := config.attributes.get("connection")) is not None:
    run_on(handed_in)
else:
    if config.config_file_name is not None and config.file_config.has_section("loggers"):
        # By default fileConfig disables every logger that exists, the host's included.
        logging.config.fileConfig(config.config_file_name, disable_existing_loggers=False)
    url = arguments.get("url") or os.environ.get("CHECKPOINT_STORE_URL") or config.get_main_option("sqlalchemy.url")
    if not url:
        raise CommandError(
            "no database is named: set CHECKPOINT_STORE_URL=postgresql://..., or pass -x url=postgresql://..."
        )
    asyncio.run(run_on_url(url))
