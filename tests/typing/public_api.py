"""What a type checker makes of the public API; `make check` runs mypy over it, nothing runs it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import assert_type

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.schema import Tables, checkpoints, metadata
from checkpoint_store.threads import ThreadStats, ThreadSummary


async def async_savers(engine: AsyncEngine, connection: AsyncConnection) -> None:
    async with AsyncPostgresSaver.from_conn_string("", pipeline=True, serde=JsonPlusSerializer(), pool_size=5) as saver:
        assert_type(saver, AsyncPostgresSaver)
        await saver.setup(timeout=5)
    contract: BaseCheckpointSaver[str] = AsyncPostgresSaver(engine, None, JsonPlusSerializer(), schema="agents")
    AsyncPostgresSaver(connection)
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
    saver.close()


def tables() -> None:
    assert Tables("agents").checkpoints.schema == "agents"
    assert checkpoints.metadata is metadata
