import asyncio
import os

from sqlalchemy import Connection, NullPool
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.schema import CreateSchema

from alembic import context
from checkpoint_store import migrations
from newsroom import Base


def run(connection: Connection) -> None:
    connection.execute(CreateSchema("newsroom", if_not_exists=True))
    connection.commit()
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table_schema="newsroom",
        include_schemas=True,
        include_object=migrations.not_ours,
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_online() -> None:
    engine = create_async_engine(os.environ["DATABASE_URL"], poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)
    await engine.dispose()


asyncio.run(run_online())
