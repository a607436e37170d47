"""What a type checker makes of the public API; `make check` runs mypy over it, nothing runs it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from alembic.runtime.environment import EnvironmentContext
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session
from typing_extensions import assert_type

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver, migrations
from checkpoint_store.schema import Tables, checkpoints, metadata
from checkpoint_store.threads import ThreadStats, ThreadSummary


async def async_savers(engine: AsyncEngine, connection: AsyncConnection) -> None:
    async with AsyncPostgresSaver.from_conn_string("", pipeline=True, serde=JsonPlusSerializer(), pool_size=5) as saver:
        assert_type(saver, AsyncPostgresSaver)
        assert_type(saver.retries, int)
        await saver.setup(timeout=5)
    contract: BaseCheckpointSaver[str] = AsyncPostgresSaver(engine, None, JsonPlusSerializer(), schema="agents")
    AsyncPostgresSaver(connection)
    AsyncPostgresSaver(engine, retry_timeout=0)
    AsyncPostgresSaver("postgresql://localhost")  # type: ignore[arg-type]
    assert_type(contract.get_next_version(None, None), str)


async def async_methods(saver: AsyncPostgresSaver, config: RunnableConfig, checkpoint: Checkpoint) -> None:
    described: CheckpointMetadata = {"source": "loop", "step": 1}
    assert_type(await saver.aput(config, checkpoint, described, {}), RunnableConfig)
    assert_type(await saver.aget_tuple(config), CheckpointTuple | None)
    assert_type(await saver.aget(config), Checkpoint | None)
    async for found in saver.alist(config, filter={"step": 1}, before=config, limit=5):
        assert_type(found, CheckpointTuple)
    history = await saver.aget_delta_channel_history(config=config, channels=["messages"])
    assert_type(history, Mapping[str, DeltaChannelHistory])
    await saver.aput_writes(config, [("messages", 1)], "task", "path")
    await saver.adelete_thread("1")
    await saver.acopy_thread("1", "2", replace=True)
    async for thread in saver.alist_threads(limit=5, order="thread_id", filter={"step": 1}, prefix="1", count=True):
        assert_type(thread, ThreadSummary)
        assert_type((thread.updated_at, thread.cursor), tuple[datetime | None, str])
    assert_type(await saver.aget_thread_stats("1"), ThreadStats)
    await saver.acheck()
    await saver.aclose()


def sync_savers(saver: PostgresSaver, config: RunnableConfig, checkpoint: Checkpoint) -> None:
    with PostgresSaver.from_conn_string("") as made:
        assert_type(made, PostgresSaver)
        made.setup()
    assert_type(saver.put(config, checkpoint, {}, {}), RunnableConfig)
    assert_type(saver.get_tuple(config), CheckpointTuple | None)
    for found in saver.list(None):
        assert_type(found, CheckpointTuple)
    saver.put_writes(config, [("messages", 1)], "task")
    saver.delete_thread("1")
    saver.copy_thread("1", "2")
    for thread in saver.list_threads(order="oldest"):  # type: ignore[arg-type]
        assert_type(thread, ThreadSummary)
    assert_type([channel.bytes for channel in saver.get_thread_stats("1").channels], list[int])
    saver.check()
    saver.close()


def hosts(
    engine: AsyncEngine,
    connection: AsyncConnection,
    session: AsyncSession,
    scoped: async_scoped_session[AsyncSession],
) -> None:
    saver = AsyncPostgresSaver(engine)
    assert_type(saver.bind(connection), AsyncPostgresSaver)
    assert_type(saver.bind(session, bind_arguments={"bind": engine}), AsyncPostgresSaver)
    assert_type(Own(engine).bind(scoped), Own)
    PostgresSaver(engine, AsyncPipeline(engine))
    PostgresSaver(connection)
    PostgresSaver(engine).bind(session)
    AsyncPostgresSaver(session)  # type: ignore[arg-type]
    saver.bind(engine)  # type: ignore[arg-type]
    AsyncPostgresSaver(engine.sync_engine)  # type: ignore[arg-type]


def sync_hosts(engine: Engine, connection: Connection, session: Session, scoped: scoped_session[Session]) -> None:
    saver = PostgresSaver(engine, serde=JsonPlusSerializer(), schema="agents", share_pages=True)
    PostgresSaver(connection)
    assert_type(saver.bind(connection), PostgresSaver)
    assert_type(saver.bind(session), PostgresSaver)
    assert_type(saver.bind(scoped), PostgresSaver)
    PostgresSaver(session)  # type: ignore[arg-type]
    AsyncPipeline(engine)  # type: ignore[arg-type]


class Own(AsyncPostgresSaver):
    pass


def tables() -> None:
    assert Tables("agents").checkpoints.schema == "agents"
    assert checkpoints.metadata is metadata
    assert Tables("agents", metadata=metadata).metadata is metadata


async def schema_and_alembic(conn: Connection, connection: AsyncConnection, context: EnvironmentContext) -> None:
    migrations.upgrade(conn, "agents", revision="head", timeout=5)
    migrations.downgrade(conn, revision="-1")
    await connection.run_sync(migrations.check, "agents")
    assert_type(await connection.run_sync(migrations.current), str | None)
    assert_type(migrations.offline_sql("agents"), str)
    assert_type(migrations.grants("app", "agents"), str)
    context.configure(connection=conn, include_object=migrations.not_ours)
