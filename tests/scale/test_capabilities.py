"""Every capability of the library, wherever its database may be: all of them work, or an error says why not."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store import partitioning
from tests.scale.capabilities import outcomes
from tests.scale.place import Place

LOCK = {"thread_lock": "UnusableConnection: .*pooler or proxy, such as PgBouncer"}


async def check(place: Place, refused: dict[str, str] | None = None) -> None:
    """Try all; those that are refused must say so in such words."""
    refused = refused or {}
    found = [outcome async for outcome in outcomes(place)]
    assert [str(each) for each in found if not re.match(refused.get(each.name, "$"), each.error)] == []


async def test_on_one_server(empty_url: str) -> None:
    """From a database without tables on."""
    await check(Place(empty_url))


async def test_on_partitioned_tables(url: str, engine: AsyncEngine) -> None:
    """They are partitioned once."""
    async with engine.begin() as conn:
        await conn.run_sync(partitioning.partition, partitions=4)
    await check(Place(url), {"partition": "MigrationError: .*the tables are partitioned already"})


async def test_through_pgbouncer(url: str, pooled_url: str) -> None:
    """In transaction mode; locks need sessions, which are lent from client to client there."""
    await check(Place(pooled_url, "transaction", direct=url), LOCK)


async def test_through_one_that_carries_prepared_statements(url: str, carrying_url: str) -> None:
    """With no option at all."""
    await check(Place(carrying_url, direct=url), LOCK)


async def test_with_a_replica(pair: Any) -> None:
    """What this process has written it reads, and lists over all threads get it soon."""
    await check(Place(pair.primary, replica=pair.standby))
