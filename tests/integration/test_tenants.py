"""A tenant per schema: many in one database and one process, at work at the same time, and no row crosses."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver, conversion, schema

TENANTS = [f"Tenant {number}" for number in range(10)]
THREADS = ["one", "two", "doomed"]
STEPS = 6

# The same for all, so that a page which one tenant has stored must not count as stored by another.
COMMON = [f"a message that every tenant has, number {number}, {'and so on ' * 10}" for number in range(150)]


class Tenant:
    """One tenant's runs, and what they must find at the end."""

    def __init__(self, name: str, saver: AsyncPostgresSaver) -> None:
        self.name = name
        self.saver = saver
        self.stored: dict[tuple[str, str], Any] = {}
        self.writes: Counter[str] = Counter()

    async def run(self, thread_id: str, start: asyncio.Event) -> None:
        """Store a growing list step by step, with writes between, as a graph does; read and list on the way."""
        await start.wait()
        config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        messages = list(COMMON)
        for step in range(STEPS):
            messages = [*messages, *[f"<{self.name}> {thread_id} {step} {number} " * 4 for number in range(20)]]
            versions = {"messages": f"{step}", "tenant": f"{step}"}
            checkpoint: Any = {
                **empty_checkpoint(),
                # The same ids in all schemas.
                "id": f"{step:04}",
                "channel_values": {"messages": messages, "tenant": f"<{self.name}>"},
                "channel_versions": versions,
            }
            metadata: Any = {"tenant": f"<{self.name}>", "step": step}
            if step % 3 == 2:
                config = await asyncio.to_thread(self.saver.put, config, checkpoint, metadata, versions)
            else:
                config = await self.saver.aput(config, checkpoint, metadata, versions)
            self.stored[thread_id, checkpoint["id"]] = checkpoint["channel_values"]
            await self.saver.aput_writes(config, [("messages", [f"<{self.name}> write"])], f"task {step}")
            self.writes[thread_id] += 1
            newest = await self.saver.aget_tuple({"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}})
            assert newest is not None
            assert newest.checkpoint["channel_values"] == checkpoint["channel_values"]
            assert {item.metadata["tenant"] async for item in self.saver.alist(None)} == {f"<{self.name}>"}
        if thread_id == "two":
            await self.saver.acopy_thread("two", "copy of two")
            copied = {("copy of two", key): value for (thread, key), value in self.stored.items() if thread == "two"}
            self.stored |= copied
            self.writes["copy of two"] = self.writes["two"]
        if thread_id == "doomed" and int(self.name[-1]) % 2 == 0:
            await self.saver.adelete_thread(thread_id)
            self.stored = {key: value for key, value in self.stored.items() if key[0] != thread_id}
            del self.writes[thread_id]

    async def verify(self) -> None:
        """Find exactly what was stored."""
        found = [item async for item in self.saver.alist(None)]
        place = "configurable"
        assert {
            (item.config[place]["thread_id"], item.checkpoint["id"]): item.checkpoint["channel_values"]
            for item in found
        } == self.stored
        assert len(found) == len(self.stored)
        writes = Counter(item.config[place]["thread_id"] for item in found for _ in item.pending_writes or ())
        assert writes == self.writes
        assert {found.thread_id async for found in self.saver.alist_threads()} == set(self.writes)


async def marks(conn: asyncpg.Connection[Any], name: str) -> dict[str, set[bytes]]:
    """The tenants that the rows of each table of a schema speak of, in any column."""
    found = {}
    for table in schema.tables.all:
        rows = await conn.fetch(f'SELECT * FROM "{name}".{table.name}')
        values = [value if isinstance(value, bytes) else str(value).encode() for row in rows for value in row]
        found[table.name] = set(re.findall(rb"<(Tenant \d)>", b" ".join(values)))
    return found


@pytest.fixture
async def empty(empty_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": empty_url}, pool_size=10)
    yield engine
    await engine.dispose()


async def test_ten_schemas_at_work_at_once(empty: AsyncEngine, empty_url: str) -> None:
    """Puts, writes, reads, lists, deletions, with pages and with a pipeline that all tenants share."""
    engine = empty
    pipe = AsyncPipeline(engine)
    tenants = [
        Tenant(name, AsyncPostgresSaver(engine, pipe if number % 3 else None, schema=name, share_pages=number % 5 != 4))
        for number, name in enumerate(TENANTS)
    ]
    await asyncio.gather(*[tenant.saver.setup() for tenant in tenants])

    start = asyncio.Event()
    runs = [asyncio.create_task(tenant.run(thread, start)) for thread in THREADS for tenant in tenants]
    start.set()
    await asyncio.gather(*runs)

    for tenant in tenants:
        await tenant.verify()
    # One tenant's values change their form, another's old checkpoints go; nobody else's do.
    assert await conversion.inline(engine, schema=TENANTS[0]) > 0
    assert (await tenants[1].saver.asweep(keep_last=1)).checkpoints > 0
    tenants[1].stored = {key: value for key, value in tenants[1].stored.items() if key[1] == f"{STEPS - 1:04}"}
    tenants[1].writes = Counter(dict.fromkeys(tenants[1].writes, 1))
    await asyncio.gather(*[tenant.verify() for tenant in tenants])
    conn = await asyncpg.connect(empty_url)
    for number, tenant in enumerate(tenants):
        named = await marks(conn, tenant.name)
        own = {tenant.name.encode()}
        paged = number % 5 != 4 and number != 0
        assert named == {
            "checkpoints": own,
            "checkpoint_blobs": own if not paged else named["checkpoint_blobs"] & own,
            "checkpoint_writes": own,
            "checkpoint_pages": own if paged else set(),
            "checkpoint_threads": set(),
        }
        orphans = "SELECT count(*) FROM \"{0}\".checkpoint_{1} WHERE thread_id = 'doomed'"
        for table in ("blobs", "writes", "pages", "threads"):
            if number % 2 == 0:
                assert await conn.fetchval(orphans.format(tenant.name, table)) == 0
    assert await conn.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    await conn.close()
    await pipe.aclose()


async def test_savers_of_two_schemas_in_one_transaction(empty: AsyncEngine) -> None:
    """On one connection of the caller's they commit together, each into its own tables."""
    for name in TENANTS[:2]:
        await AsyncPostgresSaver(empty, schema=name).setup()
    config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    async with empty.begin() as conn:
        for name in TENANTS[:2]:
            values: Any = {**empty_checkpoint(), "channel_values": {"of": name}, "channel_versions": {"of": "1"}}
            await AsyncPostgresSaver(conn, schema=name).aput(config, values, {}, {"of": "1"})

    for name in TENANTS[:2]:
        found = await AsyncPostgresSaver(empty, schema=name).aget(config)
        assert found is not None
        assert found["channel_values"] == {"of": name}


@pytest.mark.parametrize("pipeline", [False, True])
def test_sync_savers_of_several_schemas(empty_url: str, pipeline: bool) -> None:
    """Each from a connection string of its own, as scripts do it."""
    config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    for name in TENANTS[:3]:
        with PostgresSaver.from_conn_string(empty_url, schema=name, pipeline=pipeline) as saver:
            saver.setup()
            assert saver.get(config) is None
            values: Any = {**empty_checkpoint(), "channel_values": {"of": name}, "channel_versions": {"of": "1"}}
            saver.put(config, values, {}, {"of": "1"})
            assert len(list(saver.list(None))) == 1
