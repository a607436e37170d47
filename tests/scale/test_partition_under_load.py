"""partition() of a database that is filled and in use: nothing acknowledged is lost, and no call fails."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, partitioning
from checkpoint_store.errors import MigrationError
from tests.faults.load import LOADS, Load, Puts, checkpoint_of
from tests.integration.histories import id_at, unreachable

OLD = timedelta(days=60)
WAITS = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"


class Bound(Puts):
    """Checkpoints after pending writes, in a transaction of the host's: tables in another order than partition()'s."""

    engine: AsyncEngine

    async def call(self, task: int, number: int) -> None:
        async with self.engine.begin() as conn:
            bound = self.saver.bind(conn)
            await bound.aput_writes(self.config(task, f"{number:08}"), [("texts", number)], "task")
            await asyncio.sleep(0.02)
            checkpoint: Any = checkpoint_of(number, f"{task}: {number}")
            await bound.aput(self.config(task), checkpoint, {}, checkpoint["channel_versions"])
        self._stored.add((task, number))


class Sweeps:
    """Old threads that are stored and swept, again and again."""

    def __init__(self, saver: AsyncPostgresSaver) -> None:
        self._saver = saver
        self.swept = 0
        self._filled = 0

    async def fill(self, threads: int) -> None:
        """Store threads that are old enough."""
        chance, begun = Random(self._filled), datetime.now(UTC) - OLD

        async def one(thread: int) -> None:
            for number in range(3):
                checkpoint: Any = checkpoint_of(number, f"{thread} {number} " + "x" * 1000)
                checkpoint["id"] = id_at(begun + timedelta(minutes=number), chance)
                config: Any = {"configurable": {"thread_id": f"old-{thread}", "checkpoint_ns": ""}}
                config = await self._saver.aput(config, checkpoint, {}, checkpoint["channel_versions"])
                await self._saver.aput_writes(config, [("texts", number)], "task")

        self._filled += threads
        await asyncio.gather(*map(one, range(self._filled - threads, self._filled)))

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            report = await self._saver.asweep(older_than=OLD / 2, batch_size=10)
            self.swept += report.threads
            await self.fill(10)

    async def progress(self) -> None:
        """Wait until more was swept."""
        before = self.swept
        while self.swept == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def divide(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.run_sync(partitioning.partition, partitions=4)


async def test_nothing_is_lost_and_no_call_fails(url: str, engine: AsyncEngine) -> None:
    """Writers, readers, a pipeline, transactions of a host's and a sweep go on before, while and after it is done."""
    host = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}, pool_size=8)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(host.dispose)
        options: Any = {"share_pages": True, "retry_timeout": 60, "pool_size": 5, "pool_timeout": 60}
        saver = await stack.enter_async_context(AsyncPostgresSaver.from_conn_string(url, **options))
        loads: list[Load] = [kind(saver, name) for name, kind in [*LOADS.items(), ("bound", Bound)]]
        Bound.engine = host
        sweeps = Sweeps(saver)
        await sweeps.fill(20)
        for load in loads:
            await load.prepare()
            await stack.enter_async_context(load)
        sweeping = asyncio.create_task(sweeps.run())
        stack.callback(sweeping.cancel)

        async def progress() -> None:
            await asyncio.gather(*[load.progress(10) for load in loads], sweeps.progress())

        await progress()
        await divide(engine)
        await progress()
        assert not sweeping.done()
        sweeping.cancel()
        await asyncio.gather(*[load.pause() for load in loads], asyncio.wait([sweeping]))
        assert [(load.name, load.errors) for load in loads] == [(load.name, {}) for load in loads]
        async with AsyncPostgresSaver.from_conn_string(url) as reader:
            assert [(load.name, await load.lost(reader)) for load in loads] == [(load.name, 0) for load in loads]
    assert unreachable(url) == {}
    with psycopg.connect(url) as conn:
        assert conn.execute("SELECT relkind FROM pg_class WHERE relname = 'checkpoints'").fetchone() == ("p",)


@pytest.mark.parametrize("in_transaction", [True, False])
async def test_it_gives_way_to_a_transaction_that_waits_for_it(
    url: str, engine: AsyncEngine, in_transaction: bool
) -> None:
    """Each of the two has a table that the other one waits for; the host's transaction goes on, and then it is done."""
    saver = AsyncPostgresSaver(engine)
    config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "1"}}

    async def by_itself() -> None:
        async with engine.connect() as conn:
            await conn.run_sync(partitioning.partition, partitions=4)

    async with engine.begin() as conn:
        await saver.bind(conn).aput_writes(config, [("a", 1)], "task")
        dividing = asyncio.create_task(divide(engine) if in_transaction else by_itself())
        with psycopg.connect(url, autocommit=True) as watch:
            while watch.execute(WAITS).fetchone() != (True,):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await saver.bind(conn).aput(config, {**empty_checkpoint(), "id": "1"}, {}, {})
        assert not dividing.done()
    await dividing

    found = await saver.aget_tuple(config)
    assert found is not None
    assert found.pending_writes == [("task", "a", 1)]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_a_transaction_that_does_not_see_what_was_stored_meanwhile_is_refused(
    url: str, engine: AsyncEngine, level: str
) -> None:
    """It would copy the rows of the moment it began with, and drop the others."""
    isolated = engine.execution_options(isolation_level=level)
    for connecting in (isolated.begin, isolated.connect):
        async with connecting() as conn:
            with pytest.raises(MigrationError, match=f"the transaction is {level}.* it must be READ COMMITTED"):
                await conn.run_sync(partitioning.partition)
    with psycopg.connect(url, autocommit=True) as by_hand:
        by_hand.execute(f"SET default_transaction_isolation = '{level}'")
        with pytest.raises(psycopg.errors.RaiseException, match="READ COMMITTED"):
            by_hand.execute(partitioning.sql())
