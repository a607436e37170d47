import asyncio
import os

from sqlalchemy import Connection, NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from alembic import context
from bookshop import Base
from checkpoint_store import migrations


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
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
