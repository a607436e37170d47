"""What keeps writers apart, through PgBouncer in transaction mode: the check works, a lock says why it can't."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver
from checkpoint_store.errors import Conflict, InvalidOption, UnusableConnection
from checkpoint_store.url import pooler_options
from tests.scale.conftest import bouncer, pgbouncer


def named(checkpoint_id: str | None = None) -> Any:
    return {"configurable": {"thread_id": "t1", "checkpoint_ns": "", "checkpoint_id": checkpoint_id}}


async def test_a_lock_needs_a_direct_connection(url: str, pooled_url: str) -> None:
    """Sessions of the server's are lent from client to client there, and nobody's lock would be his own."""
    through = AsyncPostgresSaver.from_conn_string(pooled_url, pooler="transaction")
    async with through as pooled, AsyncPostgresSaver.from_conn_string(url) as direct:
        with pytest.raises(UnusableConnection, match=r"pooler or proxy, such as PgBouncer.* that connects directly"):
            await pooled.thread_lock("t1").__aenter__()
        # The way out that it names: locks on the one, steps on the other.
        async with direct.thread_lock("t1"):
            await pooled.aput(named(), empty_checkpoint(), {}, {})


def test_a_lock_on_a_sync_engine_does_too(pooled_url: str) -> None:
    """Whatever the driver."""
    engine = create_engine(make_url(pooled_url).set(drivername="postgresql+psycopg"), **pooler_options("psycopg"))
    with pytest.raises(UnusableConnection, match="PgBouncer"):
        PostgresSaver(engine, pooler="transaction").thread_lock("t1").__enter__()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


@pytest.mark.parametrize("shared", [False, True], ids=["plain", "pipeline"])
async def test_forks_are_refused_through_it(pooled_url: str, shared: bool) -> None:
    """The check is one transaction, so it has a connection of the server's to itself: one of many is stored."""
    async with AsyncPostgresSaver.from_conn_string(pooled_url, pooler="transaction") as saver:
        engine = saver._backend._engine  # type: ignore[attr-defined]
        pipe = AsyncPipeline(engine) if shared else False
        careful = AsyncPostgresSaver(engine, pipe, refuse_forks=True, pooler="transaction")
        parent = None
        for turn in range(5):
            outcomes = await asyncio.gather(
                *[
                    careful.aput(named(parent), {**empty_checkpoint(), "id": f"{turn}-{child}"}, {}, {})
                    for child in range(10)
                ],
                return_exceptions=True,
            )
            assert Counter(map(type, outcomes)) == {dict: 1, Conflict: 9}
            (stored,) = [outcome for outcome in outcomes if isinstance(outcome, dict)]
            parent = stored["configurable"]["checkpoint_id"]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_statement_mode_is_refused_at_once(url: str, server_url: str, driver: str) -> None:
    """There are no transactions in it; that does not pass by itself, and so is not tried again."""
    if pgbouncer() is None:
        pytest.skip("PgBouncer is not installed")
    with bouncer(server_url, pool_mode="statement") as home:
        target = make_url(f"postgresql+{driver}://app@{urlsplit(url).path}?host={home}&port=6432")
        engine = create_async_engine(target, **pooler_options(driver))
        saver = AsyncPostgresSaver(engine, retry_timeout=60, pooler="transaction")
        for call in (saver.setup(), saver.aput(named(), empty_checkpoint(), {}, {}), saver.adelete_thread("t1")):
            with pytest.raises(InvalidOption, match="Set its pool_mode to transaction"):
                await call
        assert saver.retries == 0
        await engine.dispose()
