"""A standby that lags is promoted under load: what was acknowledged and is lost, and what is read meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPostgresSaver
from checkpoint_store.errors import Conflict
from tests.faults.bed import Network, Server, has_standbys, servers
from tests.faults.load import Load, checkpoint_of

pytestmark = pytest.mark.skipif(not has_standbys(), reason="pg_basebackup is missing")


class Chats(Load):
    """Checkpoints with values that share pages, and two writes after each; what was just stored is listed at once."""

    tasks = 12

    def __init__(self, saver: AsyncPostgresSaver, name: str) -> None:
        super().__init__(saver, name)
        self.intended: dict[tuple[int, int], list[str]] = {}
        self.stored: dict[tuple[int, int], float] = {}
        """When a checkpoint and its writes were acknowledged."""
        self.unlisted: list[tuple[int, int]] = []
        """Those that a list right afterwards lacked."""

    async def call(self, task: int, number: int) -> None:
        before = self.intended.get((task, number - 1), [])[-60:]
        texts = self.intended[task, number] = [*before, f"{task}: {number} " + "x" * 500]
        checkpoint: Any = checkpoint_of(number, "")
        checkpoint["channel_values"]["texts"] = texts
        await self.saver.aput(self.config(task), checkpoint, {}, checkpoint["channel_versions"])
        writes = [("texts", texts[-1]), ("number", number)]
        await self.saver.aput_writes(self.config(task, f"{number:08}"), writes, "task")
        self.stored[task, number] = time.monotonic()
        listed = [found.checkpoint["id"] async for found in self.saver.alist(self.config(task), limit=1)]
        if listed != [f"{number:08}"]:
            self.unlisted.append((task, number))

    async def found(self, reader: AsyncPostgresSaver, task: int) -> set[int]:
        """Which checkpoints of a thread another saver finds with their writes; raises if one is there in part."""
        found = set()
        async for each in reader.alist(self.config(task)):
            number = int(each.checkpoint["id"])
            texts = self.intended[task, number]
            assert each.checkpoint["channel_values"] == {"number": number, "texts": texts}
            writes = [(channel, value) for _, channel, value in each.pending_writes or ()]
            assert sorted(writes) in ([], [("number", number), ("texts", texts[-1])])
            if writes:
                found.add(number)
        return found

    async def lost(self, reader: AsyncPostgresSaver) -> int:
        return len(await self.missing(reader))

    async def missing(self, reader: AsyncPostgresSaver) -> list[tuple[int, int]]:
        """Which of those that were acknowledged are not found."""
        found = {(task, number) for task in range(self.tasks) for number in await self.found(reader, task)}
        return sorted(self.stored.keys() - found)


class Copies(Load):
    """Copies of a thread, each to another one."""

    tasks = 2

    async def prepare(self) -> None:
        for number in range(5):
            checkpoint: Any = checkpoint_of(number, "y" * 2000)
            await self.saver.aput(self._named("source"), checkpoint, {}, checkpoint["channel_versions"])
        self._stored: list[str] = []
        self._tried: list[str] = []

    async def call(self, task: int, number: int) -> None:
        self._tried.append(f"copy-{task}-{number}")
        await self.saver.acopy_thread("source", self._tried[-1])
        self._stored.append(f"copy-{task}-{number}")

    async def lost(self, reader: AsyncPostgresSaver) -> int:
        lost = 0
        source = [found.checkpoint async for found in reader.alist(self._named("source"))]
        for copy in self._tried:
            found = [found.checkpoint async for found in reader.alist(self._named(copy))]
            assert found in ([], source), "a copy is there in part"
            lost += copy in self._stored and not found
        return lost

    @staticmethod
    def _named(thread_id: str) -> Any:
        return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


@asynccontextmanager
async def saver_on(primary: Server, standby: Server, **options: Any) -> AsyncIterator[AsyncPostgresSaver]:
    """A saver that writes to whichever takes writes, and reads from the one that was the standby."""
    hosts = ",".join(str(server.socket.parent) for server in (primary, standby))
    url = f"postgresql://postgres@/postgres?host={hosts}&port=5432,5432&target_session_attrs=read-write"
    reading = create_async_engine(make_url(standby.of()).set(drivername="postgresql+asyncpg"))
    options = {"read_engine": reading, "retry_timeout": 60, "share_pages": True, "pool_timeout": 60, **options}
    async with AsyncPostgresSaver.from_conn_string(url, **options) as saver:
        yield saver
    await reading.dispose()


async def read_along(load: Chats, reader: AsyncPostgresSaver, is_over: Callable[[], bool]) -> int:
    """Read threads as another process does, which may lag: what it finds has no gap. Returns how many reads it were."""
    reads = 0
    while not is_over():
        for task in range(load.tasks):
            found = await load.found(reader, task)
            assert found == set(range(1, len(found) + 1)) or is_over(), "a list has a gap"
            reads += 1
    return reads


def promote(primary: Server, standby: Server) -> None:
    """Kill the one for good, and have the other take over."""
    primary.kill()
    standby.promote()
    standby.reaches("SELECT NOT pg_is_in_recovery()")


async def test_a_synchronous_standby_has_all_that_was_acknowledged() -> None:
    """Also what it has not replayed yet, a second of it; no call fails, and nobody reads a part of anything."""
    with servers(2) as [primary, standby]:
        async with AsyncExitStack() as stack:
            saver = await stack.enter_async_context(saver_on(primary, standby))
            elsewhere = await stack.enter_async_context(saver_on(primary, standby))
            await saver.setup()
            await asyncio.to_thread(primary.copy_to, standby)
            standby.configure("recovery_min_apply_delay", "1s")
            chats, copies = Chats(saver, "chat"), Copies(saver, "copy")
            loads: list[Load] = [chats, copies]
            is_over = False
            for load in loads:
                await load.prepare()
                await stack.enter_async_context(load)
            along = asyncio.create_task(read_along(chats, elsewhere, lambda: is_over))
            await asyncio.gather(*[load.progress(60) for load in loads])
            await asyncio.to_thread(promote, primary, standby)
            await asyncio.gather(*[load.progress(60) for load in loads])
            is_over = True
            assert await along > chats.tasks
            for load in loads:
                await load.pause()
                assert load.errors == {}
            assert saver.retries > 0
            async with AsyncPostgresSaver.from_conn_string(standby.of()) as reader:
                assert [await load.lost(reader) for load in loads] == [0, 0]
            assert chats.unlisted == []


async def test_an_asynchronous_standby_lacks_what_was_not_sent_to_it() -> None:
    """The last checkpoints and writes of each thread, whole ones: the thread is as it was a moment before."""
    with servers(2) as [primary, standby], Network(primary.socket) as link:
        async with AsyncExitStack() as stack:
            saver = await stack.enter_async_context(saver_on(primary, standby))
            elsewhere = await stack.enter_async_context(saver_on(primary, standby))
            await saver.setup()
            await asyncio.to_thread(primary.copy_to, standby, synchronous=False)
            await asyncio.to_thread(standby.follow, link)
            chats, copies = Chats(saver, "chat"), Copies(saver, "copy")
            is_over = False
            for load in (chats, copies):
                await load.prepare()
                await stack.enter_async_context(load)
            along = asyncio.create_task(read_along(chats, elsewhere, lambda: is_over))
            await asyncio.gather(chats.progress(60), copies.progress(5))
            link.stall()
            stalled = time.monotonic()
            await asyncio.gather(chats.progress(60), copies.progress(5))
            is_over = True
            await along
            killed = time.monotonic()
            await asyncio.to_thread(promote, primary, standby)
            await asyncio.gather(chats.progress(60), copies.progress(5))
            for load in (chats, copies):
                await load.pause()
                assert load.errors == {}
            async with AsyncPostgresSaver.from_conn_string(standby.of()) as reader:
                missing = await chats.missing(reader)
                assert len(missing) >= 60 - chats.tasks
                assert await copies.lost(reader) >= 5 - copies.tasks
            assert set(chats.unlisted) <= set(missing)
            # What was on its way while the link was cut may have come through.
            assert all(stalled <= chats.stored[each] <= killed + 1 for each in missing)
            for task in range(chats.tasks):
                numbers = [number for one, number in missing if one == task]
                assert numbers == list(range(min(numbers), max(numbers) + 1)), "lost ones are not the last ones"


@asynccontextmanager
async def after_a_loss(**options: Any) -> AsyncIterator[tuple[AsyncPostgresSaver, Any]]:
    """A saver, and the config of its newest checkpoint, which has been lost with the value of a channel."""
    with servers(2) as [primary, standby], Network(primary.socket) as link:
        async with saver_on(primary, standby, **options) as saver:
            await saver.setup()
            await asyncio.to_thread(primary.copy_to, standby, synchronous=False)
            await asyncio.to_thread(standby.follow, link)
            config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
            for number in range(2):
                checkpoint: Any = checkpoint_of(number, f"{number}")
                config = await saver.aput(config, checkpoint, {}, checkpoint["channel_versions"])
                query = f"SELECT pg_last_wal_replay_lsn() >= '{primary.execute('SELECT pg_current_wal_lsn()')[0][0]}'"
                if number == 0:
                    await asyncio.to_thread(standby.reaches, query)
                    link.stall()
            await asyncio.to_thread(promote, primary, standby)
            yield saver, config


def next_of(config: Any) -> Any:
    """The checkpoint with which a run goes on that has its state in memory: one channel has not changed."""
    checkpoint: Any = checkpoint_of(2, "")
    del checkpoint["channel_values"]["texts"]
    checkpoint["channel_versions"]["texts"] = config["configurable"]["checkpoint_id"]
    return checkpoint


async def test_a_run_that_goes_on_from_what_is_lost_is_refused_if_forks_are() -> None:
    """Its parent is not the newest: the run is begun again from what is there."""
    async with after_a_loss(refuse_forks=True) as (saver, config):
        with pytest.raises(Conflict):
            await saver.aput(config, next_of(config), {}, {"number": "2"})
        found = await saver.aget({"configurable": {"thread_id": "t"}})
        assert found is not None
        assert found["channel_values"] == {"number": 0, "texts": ["0"] * 20}


async def test_otherwise_it_stores_checkpoints_that_lack_the_lost_values() -> None:
    """Each put stores what is new in it, and can't know that what was acknowledged before is gone."""
    async with after_a_loss() as (saver, config):
        await saver.aput(config, next_of(config), {}, {"number": "2"})
        found = await saver.aget({"configurable": {"thread_id": "t"}})
        assert found is not None
        assert found["channel_values"] == {"number": 2}
