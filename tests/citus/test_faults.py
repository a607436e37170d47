"""Nodes that come, and nodes that fail, under load: nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest

from checkpoint_store import AsyncPostgresSaver
from tests.citus.cluster import SHARDS, TABLES, Address, add_worker, apart, distribute, migrate, workers_of
from tests.faults.bed import Network
from tests.faults.load import LOADS, Load

KINDS = ["put", "put_writes", "get", "pipeline"]
OUTAGE_SECONDS = 10
NOWHERE = ("127.0.0.1", 1)
"""An address where nothing listens."""

pytestmark = pytest.mark.slow


@pytest.fixture
def workers(cluster_url: str) -> list[Address]:
    """The addresses of two workers."""
    workers = workers_of(cluster_url)
    if len(workers) < 2:
        pytest.skip("the cluster has fewer than two workers")
    return workers[:2]


@pytest.fixture
def apart_url(cluster_url: str) -> Iterator[str]:
    """A database whose nodes do not know each other yet."""
    with apart(cluster_url) as url:
        yield url


@asynccontextmanager
async def under_load(url: str) -> AsyncIterator[list[Load]]:
    """Have tasks make calls of all kinds; at the end nothing that was acknowledged is missing."""
    async with AsyncExitStack() as stack:
        saver = await stack.enter_async_context(AsyncPostgresSaver.from_conn_string(url, share_pages=True))
        loads = [LOADS[kind](saver, kind) for kind in KINDS]
        for load in loads:
            await load.prepare()
        async with AsyncExitStack() as running:
            for load in loads:
                await running.enter_async_context(load)
            yield loads
            await progress(loads)
        reader = await stack.enter_async_context(AsyncPostgresSaver.from_conn_string(url))
        assert [await load.lost(reader) for load in loads] == [0] * len(loads)


async def progress(loads: list[Load]) -> None:
    """Wait until calls of each kind were acknowledged."""
    for load in loads:
        await load.progress(5)


async def test_shards_move_to_a_new_worker_under_load(apart_url: str, workers: list[Address]) -> None:
    """No call fails while a worker is added and half of the threads move there."""
    add_worker(apart_url, workers[0])
    migrate(apart_url)
    distribute(apart_url)
    async with under_load(apart_url) as loads:
        await progress(loads)
        add_worker(apart_url, workers[1])
        await asyncio.to_thread(rebalance, apart_url)

    with psycopg.connect(apart_url) as conn:
        query = "SELECT count(*) FROM citus_shards WHERE citus_table_type = 'distributed' GROUP BY nodename, nodeport"
        assert conn.execute(query).fetchall() == [(SHARDS * len(TABLES) // 2,)] * 2
    assert [dict(load.errors) for load in loads] == [{}] * len(loads)


def rebalance(url: str) -> None:
    """Move shards until each worker has as many."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SELECT rebalance_table_shards()")


async def test_a_worker_is_away_for_ten_seconds(apart_url: str, workers: list[Address]) -> None:
    """Calls for its threads wait until it is back, the others go on."""
    with Network(workers[1]) as network:
        add_worker(apart_url, workers[0])
        add_worker(apart_url, ("127.0.0.1", network.port))
        migrate(apart_url)
        distribute(apart_url)
        async with under_load(apart_url) as loads:
            await progress(loads)
            network.lead_to(NOWHERE)
            network.cut()
            before = sum(load.acknowledged for load in loads)
            await asyncio.sleep(OUTAGE_SECONDS)
            went_on = sum(load.acknowledged for load in loads) - before
            network.lead_to(workers[1])
    assert went_on > OUTAGE_SECONDS * 10
    assert [dict(load.errors) for load in loads] == [{}] * len(loads)
