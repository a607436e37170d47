"""Connections stay checked out from call to call where nobody can notice, and only there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import AsyncAdaptedQueuePool, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver
from checkpoint_store.database import checkout
from checkpoint_store.database.liveness import take_open

pytestmark = pytest.mark.shortcut

SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
async def host(url: str) -> AsyncIterator[AsyncEngine]:
    """A host's engine with a pool of two."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}, pool_size=2, max_overflow=5)
    yield engine
    await engine.dispose()


@pytest.fixture
def checkouts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The connections taken from a pool: a listener of the pool's would change what is tested."""
    taken: list[Any] = []

    def noted(engine: Any) -> Any:
        taken.append(pooled := take_open(engine))
        return pooled

    monkeypatch.setattr(checkout, "take_open", noted)
    return taken


async def put(saver: AsyncPostgresSaver, thread_id: str = "t") -> None:
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    await saver.aput(config, empty_checkpoint(), {}, {})


def left_out(engine: Any) -> int:
    return int(engine.pool.checkedout())


async def test_an_engine_of_ours_keeps_its_connection_until_it_is_closed(url: str, checkouts: list[Any]) -> None:
    """One checkout, however many calls; then its session has ended."""
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        for _ in range(10):
            await put(saver)
        assert len(checkouts) == 1

    with psycopg.connect(url, autocommit=True) as conn:
        assert conn.execute(SESSIONS.encode()).fetchone() == (0,)


async def test_of_a_hosts_engine_nothing_is_kept_between_calls(host: AsyncEngine, checkouts: list[Any]) -> None:
    """A call that is the only one gives its connection back."""
    saver = AsyncPostgresSaver(host)
    for number in range(3):
        await put(saver)
        assert (len(checkouts), left_out(host)) == (number + 1, 0)


async def test_a_call_that_waits_gets_the_connection_of_the_one_before(host: AsyncEngine, checkouts: list[Any]) -> None:
    """Twenty reads on a pool of two: two checkouts, no overflow, and nothing left out."""
    saver = AsyncPostgresSaver(host)
    config: Any = {"configurable": {"thread_id": "t"}}

    await asyncio.gather(*[saver.aget_tuple(config) for _ in range(20)])

    assert len(checkouts) == 2
    assert left_out(host) == 0


@pytest.mark.parametrize("seed", range(10))
async def test_what_was_kept_for_a_call_that_is_cancelled_goes_back(host: AsyncEngine, seed: int) -> None:
    """Whenever that happens, all connections are in the pool afterwards, and can be taken."""
    saver, chance = AsyncPostgresSaver(host), random.Random(seed)
    calls = [asyncio.create_task(put(saver, str(n))) for n in range(40)]
    while not all(call.done() for call in calls):
        chance.choice(calls).cancel()
        await asyncio.sleep(chance.random() * 0.002)
    await asyncio.gather(*calls, return_exceptions=True)

    assert left_out(host) == 0
    await asyncio.gather(*[put(saver, str(n)) for n in range(4)])
    assert left_out(host) == 0


async def test_a_pool_that_somebody_listens_to_sees_each_checkout(host: AsyncEngine) -> None:
    """Settings that a host makes as a connection is checked out are made for each call."""
    seen: list[str] = []
    for name in ("checkout", "checkin"):
        event.listen(host.sync_engine, name, lambda *_, name=name: seen.append(name))
    saver = AsyncPostgresSaver(host)

    await asyncio.gather(*[saver.aget_tuple({"configurable": {"thread_id": "t"}}) for _ in range(10)])

    assert (seen.count("checkout"), seen.count("checkin")) == (10, 10)


class OtherPool(AsyncAdaptedQueuePool):
    """A pool that may do anything at a checkout."""


RULES: list[dict[str, Any]] = [
    {"pool_pre_ping": True},
    {"pool_recycle": 3600},
    {"echo_pool": "debug"},
    {"poolclass": OtherPool, "pool_size": 5, "max_overflow": 0},
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: next(iter(rule)))
async def test_what_is_to_be_done_at_each_checkout_is_done(
    url: str, checkouts: list[Any], rule: dict[str, Any]
) -> None:
    """Also on an engine of ours: a ping, an age, a log, another class of pools."""
    async with AsyncPostgresSaver.from_conn_string(url, **rule) as saver:
        for _ in range(3):
            await put(saver)
    assert len(checkouts) == 3


async def test_a_host_that_disposes_of_its_engine_closes_what_calls_hand_on(host: AsyncEngine, url: str) -> None:
    """Calls that wait go on with connections of the next pool; none of the last one stays open."""
    saver = AsyncPostgresSaver(host)
    calls = [asyncio.create_task(put(saver, str(n))) for n in range(40)]
    await asyncio.sleep(0.005)
    await host.dispose()
    await asyncio.gather(*calls)

    assert left_out(host) == 0
    await host.dispose()
    with psycopg.connect(url, autocommit=True) as conn:
        assert conn.execute(SESSIONS.encode()).fetchone() == (0,)
