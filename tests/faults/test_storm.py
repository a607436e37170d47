"""Whenever a call is cancelled, it leaves nothing behind: no connection, transaction or task, no half of anything."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver
from tests.faults.bed import PATIENCE_SECONDS
from tests.faults.storm import TASKS, Storm, config_of, is_whole

CONNECTIONS = 5
OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.mark.parametrize("pipeline", [False, True], ids=["plain", "pipeline-pages"])
@pytest.mark.parametrize("cancellations", [250, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_a_storm_of_cancellations_leaves_nothing_behind(url: str, pipeline: bool, cancellations: int) -> None:
    """Thousands of calls, cancelled at whatever they are waiting for, on a pool of five connections."""
    engine = create_async_engine(url.replace(":", "+asyncpg:", 1), pool_size=CONNECTIONS, max_overflow=0)
    pipe = AsyncPipeline(engine) if pipeline else False
    saver = AsyncPostgresSaver(engine, pipe, share_pages=pipeline)
    before = asyncio.all_tasks()
    storm = Storm(saver, cancellations, seed=cancellations)

    await storm.blow()

    if pipe:
        await pipe.aclose()
    await _until(lambda: asyncio.all_tasks() == before)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    reader = AsyncPostgresSaver(engine)
    # As many at once as there are connections, and more: no turn was lost.
    await asyncio.gather(*[reader.aget_tuple(config_of(task)) for task in range(TASKS)])
    with psycopg.connect(url, autocommit=True) as admin:
        _reaches(admin, f"SELECT count(*) <= {CONNECTIONS} {OTHERS}")
        _reaches(admin, f"SELECT count(*) = 0 {OTHERS} AND state <> 'idle'")
        here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        _reaches(admin, f"SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND {here}")
    found: dict[int, list[Any]] = {}
    for task in range(TASKS):
        found[task] = [item async for item in reader.alist(config_of(task))]
    assert all(is_whole(item, task) for task, items in found.items() for item in items)
    there = {(task, int(item.checkpoint["id"])) for task, items in found.items() for item in items}
    assert storm.acknowledged <= there
    assert storm.counts["cancelled"] >= cancellations
    assert storm.counts["returned"] > cancellations / 20, storm.counts
    await engine.dispose()
    with psycopg.connect(url, autocommit=True) as admin:
        _reaches(admin, f"SELECT count(*) = 0 {OTHERS}")


def _reaches(admin: psycopg.Connection[Any], query: str) -> None:
    """Ask until the server says true: what was cancelled may be on its way out."""
    for _ in range(PATIENCE_SECONDS * 100):
        if admin.execute(query.encode()).fetchone() == (True,):
            return
        admin.execute("SELECT pg_sleep(0.01)")
    sessions = admin.execute(f"SELECT state, wait_event, left(query, 60) {OTHERS}".encode()).fetchall()
    pytest.fail(f"{query} is not true: {sessions}")


async def _until(condition: Any) -> None:
    for _ in range(PATIENCE_SECONDS * 100):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"{asyncio.all_tasks()}")
