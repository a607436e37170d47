"""What a process remembers of the pages it has stored is never trusted where they were not kept."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, empty_checkpoint
from sqlalchemy import event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver
from checkpoint_store.url import pooler_options
from tests.faults.bed import servers

THREAD: RunnableConfig = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
WORDS = [f"message {number} " + "of many words " * 20 for number in range(300)]


def engine_on(url: str, **options: Any) -> AsyncEngine:
    return create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), **options)


def copy(source: Path, target: Path) -> None:
    """Copy a server's files, with their owner."""
    subprocess.run(["/bin/cp", "-a", source, target], check=True)


async def put(saver: AsyncPostgresSaver, config: RunnableConfig, version: str, value: list[str]) -> RunnableConfig:
    checkpoint: Checkpoint = {**empty_checkpoint(), "channel_values": {"a": value}, "channel_versions": {"a": version}}
    return await saver.aput(config, checkpoint, {}, {"a": version})


async def read(url: str, config: RunnableConfig) -> Any:
    """What a process that remembers nothing finds."""
    async with AsyncPostgresSaver.from_conn_string(url) as elsewhere:
        found = await elsewhere.aget_tuple(config)
    return found.checkpoint["channel_values"]["a"] if found else None


@pytest.mark.parametrize("kind", ["listener", "pooler"])
async def test_pages_of_a_commit_that_failed_are_sent_again(url: str, kind: str) -> None:
    """Where a listener begins transactions, or there is a pooler, the pages are there when all is committed."""
    engine = engine_on(url, **(pooler_options() if kind == "pooler" else {}))
    kills = [False]

    @event.listens_for(engine.sync_engine, "begin")
    def begin(conn: Any) -> None:
        conn.exec_driver_sql("SELECT set_config('app.tenant', 'x', true)")

    @event.listens_for(engine.sync_engine, "commit")
    def commit(conn: Any) -> None:
        if kills[0]:
            kills[0] = False
            pid = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar()
            with psycopg.connect(url, autocommit=True) as other:
                # With a time-out it returns when the session has ended (since PostgreSQL 14); before it has to be seen.
                other.execute("SELECT pg_terminate_backend(%s)", (pid,))
                while other.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).rowcount:
                    pass

    saver = AsyncPostgresSaver(engine, share_pages=True, pooler="transaction" if kind == "pooler" else None)
    config = await put(saver, THREAD, "1", WORDS[:200])
    kills[0] = True
    config = await put(saver, config, "2", WORDS)
    assert saver.retries == 1

    assert await read(url, config) == WORDS
    config = await put(saver, config, "3", [*WORDS, "one more"])
    assert await read(url, config) == [*WORDS, "one more"]
    await engine.dispose()


async def test_pages_that_a_restored_server_lacks_are_sent_again() -> None:
    """It has the thread as it was before its last commits, epoch and all; so has a standby that lagged."""
    with servers(1) as [server]:
        engine = engine_on(server.of())
        saver = AsyncPostgresSaver(engine, share_pages=True, retry_timeout=30)
        await saver.setup()
        config = await put(saver, THREAD, "1", WORDS[:200])
        server.stop()
        data = server.home / "cluster" / "data"
        await asyncio.to_thread(copy, data, server.home / "backup")
        server.start()
        config = await put(saver, config, "2", WORDS[:290])
        server.stop()
        shutil.rmtree(data)
        shutil.move(server.home / "backup", data)
        server.start()

        config = await put(saver, config, "3", WORDS)

        assert await read(server.of(), config) == WORDS
        await engine.dispose()
