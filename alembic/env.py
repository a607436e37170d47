"""Alembic's entry: runs the migrations on a connection handed in, on a database named by URL, or as SQL text.

The URL comes from `-x url=...`, from CHECKPOINT_STORE_URL, or from `sqlalchemy.url` in the ini file; the PostgreSQL
schema from `-x schema=...`, or from the code that drives Alembic.
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
from checkpoint_store import migrations
from checkpoint_store.errors import CheckpointStoreError
from checkpoint_store.executor import is_pooled
from checkpoint_store.schema import VERSION_TABLE, Tables
from checkpoint_store.url import engine_arguments, masked, pooler_options

config = context.config
arguments = context.get_x_argument(as_dictionary=True)
schema = config.attributes.get("schema") or arguments.get("schema")


def run(**where: Any) -> None:
    """Run what the command line or the calling code asked for."""
    context.configure(
        **where,
        target_metadata=Tables(schema).metadata,
        version_table=VERSION_TABLE,
        version_table_schema=schema,
        include_schemas=schema is not None,
        include_name=migrations.is_ours,
        compare_server_default=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_locked(connection: Connection) -> None:
    """Run as the only one who migrates this database."""
    with migrations.locked(connection, schema):
        run(connection=connection)


async def run_on_url(url: str) -> None:
    """Run on an engine of our own."""
    target, connect_args = engine_arguments(url)
    # Nothing here is executed twice; and so it works through a pooler of transactions too.
    connect_args = {**pooler_options()["connect_args"], **connect_args}
    engine = create_async_engine(target, connect_args=connect_args, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            if await connection.run_sync(is_pooled):
                await connection.begin()
            await connection.run_sync(run_locked)
            await connection.commit()
    except (OSError, PostgresError, DBAPIError, CheckpointStoreError) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise CommandError(f"{masked(url)}: {reason}") from error
    finally:
        await engine.dispose()


if context.is_offline_mode():
    run(dialect_name="postgresql", literal_binds=True)
elif (handed_in := config.attributes.get("connection")) is not None:
    run(connection=handed_in)
else:
    if config.config_file_name is not None and config.file_config.has_section("loggers"):
        # By default fileConfig disables every logger that exists, the host's included.
        logging.config.fileConfig(config.config_file_name, disable_existing_loggers=False)
    url = arguments.get("url") or os.environ.get("CHECKPOINT_STORE_URL") or config.get_main_option("sqlalchemy.url")
    if not url:
        raise CommandError(
            "no database named: set CHECKPOINT_STORE_URL=postgresql://..., or pass -x url=postgresql://..."
        )
    asyncio.run(run_on_url(url))
