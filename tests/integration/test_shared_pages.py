"""Large values share pages: they come back whole, whoever deletes what meanwhile, and cost what is new in them."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver as StockSaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver, conversion, migrations
from checkpoint_store.errors import UnreadableValue
from checkpoint_store.serde import pages
from checkpoint_store.sql.statements import statements_of
from checkpoint_store.storage import shared_pages
from checkpoint_store.tools import conversion as cutting

THREAD: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


def messages(count: int, seed: int = 0) -> list[str]:
    """Texts of some 200 characters, no two of them alike."""
    chance = random.Random(seed)
    return [f"{n}: {chance.randbytes(100).hex()}" for n in range(count)]


async def put(saver: AsyncPostgresSaver, value: Any, config: Any = THREAD) -> Any:
    checkpoint: Any = {
        **empty_checkpoint(),
        "id": str(uuid6()),
        "channel_values": {"messages": value},
        "channel_versions": {"messages": f"1.{uuid4()}"},
    }
    return await saver.aput(config, checkpoint, {}, checkpoint["channel_versions"])


async def value_of(saver: AsyncPostgresSaver, config: Any = THREAD) -> Any:
    found = await saver.aget(config)
    assert found is not None
    return found["channel_values"]["messages"]


@pytest.fixture
async def conn(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection to look at the tables with."""
    conn = await asyncpg.connect(url)
    yield conn
    await conn.close()


async def test_a_turn_costs_what_the_turn_adds(saver: AsyncPostgresSaver, conn: asyncpg.Connection[Any]) -> None:
    """A list that grows by one message 50 times is stored hardly more than once."""
    saver = AsyncPostgresSaver(saver._backend._engine)  # type: ignore[attr-defined]
    whole = messages(600)
    for count in range(550, 600):
        await put(saver, whole[: count + 1])

    assert await value_of(saver) == whole
    stored = await conn.fetchval(
        "SELECT (SELECT sum(length(page)) FROM checkpoint_pages) + (SELECT sum(length(blob)) FROM checkpoint_blobs)"
    )
    assert stored < 3 * sum(map(len, whole))


async def test_every_value_of_a_thread_stays_readable(engine: AsyncEngine) -> None:
    """Appended to, trimmed at the front, edited in the middle, reordered, nested: each checkpoint has its own value."""
    saver, chance, value = AsyncPostgresSaver(engine), random.Random(1), messages(300)
    expected = {}
    for step in range(40):
        place = chance.randrange(len(value))
        value = chance.choice(
            [
                [*value, *messages(3, seed=step + 1)],
                value[chance.randrange(5) :],
                [*value[:place], "edited", *value[place + 1 :]],
                [*value[place:], *value[:place]],
            ]
        )
        nested = {"history": value, "step": step} if step % 2 else value
        stored = await put(saver, nested)
        expected[stored["configurable"]["checkpoint_id"]] = nested

    listed = {found.checkpoint["id"]: found.checkpoint["channel_values"] async for found in saver.alist(THREAD)}

    assert {name: values["messages"] for name, values in listed.items()} == expected


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.binary(min_size=40, max_size=200),
    max_leaves=40,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.lists(anything, min_size=1))
def test_the_server_joins_what_was_cut(value: list[Any], url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any value, cut however small it is: PostgreSQL reads recipes as `pages` writes them."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 0)
    config: Any = {"configurable": {"thread_id": str(uuid4()), "checkpoint_ns": ""}}
    checkpoint: Any = {**empty_checkpoint(), "channel_values": {"c": value}, "channel_versions": {"c": "1"}}

    with PostgresSaver.from_conn_string(url) as saver:
        # By its id: the newest might be joined here, of the pages just cut.
        found = saver.get(saver.put(config, checkpoint, {}, {"c": "1"}))

    assert found is not None
    assert found["channel_values"] == {"c": value}


@pytest.mark.parametrize("share_pages", [None, True, False])
@pytest.mark.parametrize("adopted", [False, True])
async def test_pages_are_shared_unless_the_stock_saver_has_to_read_them(
    engine: AsyncEngine, url: str, conn: asyncpg.Connection[Any], share_pages: bool | None, adopted: bool
) -> None:
    """By default off where the stock saver has set up the tables, on elsewhere; True and False decide."""
    if adopted:
        async with StockSaver.from_conn_string(url) as stock:
            await stock.setup()

    await put(AsyncPostgresSaver(engine, share_pages=share_pages), messages(200))

    expected = share_pages if share_pages is not None else not adopted
    assert await conn.fetchval("SELECT type FROM checkpoint_blobs") == ("pages" if expected else "msgpack")


async def test_the_stock_saver_refuses_pages_loudly(saver: AsyncPostgresSaver, engine: AsyncEngine, url: str) -> None:
    """It never takes a recipe for a value."""
    await put(AsyncPostgresSaver(engine, share_pages=True), messages(200))

    async with StockSaver.from_conn_string(url) as stock:
        with pytest.raises(NotImplementedError, match="pages"):
            await stock.aget_tuple(THREAD)


async def test_encrypted_values_stay_whole(engine: AsyncEngine, conn: asyncpg.Connection[Any]) -> None:
    """Nothing of them stays the same, so there is nothing to share."""
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
    saver = AsyncPostgresSaver(engine, serde=serde, share_pages=True)
    await put(saver, messages(200))

    assert await value_of(saver) == messages(200)
    assert await conn.fetchval("SELECT count(*) FROM checkpoint_pages") == 0


async def test_threads_share_nothing(engine: AsyncEngine, conn: asyncpg.Connection[Any]) -> None:
    """The same value in two threads: deleting one of them leaves the other whole."""
    saver, other = AsyncPostgresSaver(engine), {"configurable": {"thread_id": "other", "checkpoint_ns": ""}}
    await put(saver, messages(200))
    await put(saver, messages(200), other)

    await saver.adelete_thread("t")

    assert await value_of(saver, other) == messages(200)
    assert {row["thread_id"] for row in await conn.fetch("SELECT * FROM checkpoint_pages")} == {"other"}
    assert {row["thread_id"] for row in await conn.fetch("SELECT * FROM checkpoint_threads")} == {"other"}


async def test_a_stale_memory_is_not_trusted(engine: AsyncEngine, url: str) -> None:
    """Another process has deleted the thread, or collected its pages: what is missing is sent again."""
    saver, elsewhere = (
        AsyncPostgresSaver(engine),
        create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}),
    )
    whole = messages(400)
    await put(saver, whole[:300])
    await AsyncPostgresSaver(elsewhere).adelete_thread("t")

    await put(saver, whole[:350])
    assert await value_of(saver) == whole[:350]

    async with elsewhere.begin() as conn:
        await conn.exec_driver_sql("DELETE FROM checkpoint_blobs")
    await AsyncPostgresSaver(elsewhere)._backend.run(shared_pages.collect_pages, "t")
    await put(saver, whole)

    assert await value_of(saver) == whole
    await elsewhere.dispose()


async def test_a_cold_process_asks_what_is_there(engine: AsyncEngine, url: str) -> None:
    """It sends the new pages of a long thread only."""
    whole, sent = messages(1_000), []
    await put(AsyncPostgresSaver(engine), whole[:-1])
    cold = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    event.listen(
        cold.sync_engine, "before_cursor_execute", lambda *call: sent.append(len(b"".join(_bytes_in(call[3]))))
    )

    await put(AsyncPostgresSaver(cold), whole)

    assert max(sent) < sum(map(len, whole)) / 4
    assert await value_of(AsyncPostgresSaver(engine)) == whole
    await cold.dispose()


def _bytes_in(parameters: Any) -> list[bytes]:
    return [item for array in parameters if isinstance(array, list) for item in array if isinstance(item, bytes)]


async def test_what_a_caller_rolls_back_is_not_remembered(engine: AsyncEngine) -> None:
    """Pages that were sent in a transaction that came to nothing are sent again."""
    whole = messages(600)
    async with engine.connect() as conn:
        within = AsyncPostgresSaver(conn, share_pages=True)
        await put(within, whole)
        assert await value_of(within) == whole
        await conn.rollback()
        await put(AsyncPostgresSaver(conn, share_pages=True), whole)
        await conn.commit()

    assert await value_of(AsyncPostgresSaver(engine)) == whole


async def test_a_missing_page_is_told(engine: AsyncEngine, url: str, conn: asyncpg.Connection[Any]) -> None:
    """A value that has lost a part is never returned without it."""
    await put(AsyncPostgresSaver(engine), messages(200))
    await conn.execute("DELETE FROM checkpoint_pages WHERE digest = (SELECT digest FROM checkpoint_pages LIMIT 1)")

    async with AsyncPostgresSaver.from_conn_string(url) as elsewhere:
        with pytest.raises(UnreadableValue, match=r"channel 'messages': .*page of it, is missing"):
            await elsewhere.aget_tuple(THREAD)


async def test_what_was_stored_from_here_is_read_without_fetching_its_pages(engine: AsyncEngine, url: str) -> None:
    """The newest value is joined of pages that are at hand; of another process's value nothing is assumed."""
    saver, seen = AsyncPostgresSaver(engine), []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
    await put(saver, messages(200))

    seen.clear()
    assert await value_of(saver) == messages(200)
    assert [("checkpoint_pages" in statement) for statement in seen] == [False]

    async with AsyncPostgresSaver.from_conn_string(url) as elsewhere:
        await put(elsewhere, [*messages(190), "other"])
    assert await value_of(saver) == [*messages(190), "other"]


async def test_collecting_deletes_what_nothing_refers_to(engine: AsyncEngine, conn: asyncpg.Connection[Any]) -> None:
    """And no page that something refers to."""
    saver = AsyncPostgresSaver(engine)
    await put(saver, messages(200))
    kept = await put(saver, messages(200, seed=7))
    before = await conn.fetchval("SELECT count(*) FROM checkpoint_pages")
    await conn.execute(
        "DELETE FROM checkpoint_blobs b USING checkpoints c WHERE c.checkpoint_id <> $1"
        " AND b.version = c.checkpoint #>> '{channel_versions,messages}'",
        kept["configurable"]["checkpoint_id"],
    )

    await saver._backend.run(shared_pages.collect_pages, "t")

    assert 0 < await conn.fetchval("SELECT count(*) FROM checkpoint_pages") < before
    assert await value_of(saver, kept) == messages(200, seed=7)


async def test_a_database_is_converted_both_ways(engine: AsyncEngine, conn: asyncpg.Connection[Any]) -> None:
    """Plain blobs become pages, and pages plain blobs again, byte for byte; a second run finds nothing to do."""
    saver, whole = AsyncPostgresSaver(engine, share_pages=False), messages(400)
    for count in (100, 200, 300, 400):
        await put(saver, whole[:count])
    await put(saver, ["small"], {"configurable": {"thread_id": "small", "checkpoint_ns": ""}})
    rows = "SELECT * FROM checkpoint_blobs ORDER BY thread_id, version"
    plain = await conn.fetch(rows)

    assert await conversion.share(engine, batch_size=3) == 4
    assert await conversion.share(engine) == 0
    assert await value_of(saver) == whole
    assert [row["type"] for row in await conn.fetch(rows)].count("pages") == 4

    reports: list[int] = []
    assert await conversion.inline(engine, batch_size=3, on_progress=reports.append) == 4
    assert await conversion.inline(engine) == 0
    assert reports == [3, 4]
    assert await conn.fetch(rows) == plain
    assert await conn.fetchval("SELECT count(*) FROM checkpoint_pages") == 0


async def test_values_deleted_while_they_are_converted_leave_no_pages(
    engine: AsyncEngine, conn: asyncpg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a thread that is deleted once its values have been read nothing is left, and another may be copied there."""
    saver = AsyncPostgresSaver(engine, share_pages=False)
    for thread_id in ("t", "other"):
        await put(saver, messages(200), {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}})
    cut = cutting._cut

    def late(*args: Any) -> Any:
        asyncio.run_coroutine_threadsafe(saver.adelete_thread("t"), loop).result()
        return cut(*args)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(cutting, "_cut", late)

    assert await conversion.share(engine) == 1
    assert await conn.fetchval("SELECT count(*) FROM checkpoint_pages WHERE thread_id = 't'") == 0
    assert await conn.fetchval("SELECT count(*) FROM checkpoint_threads WHERE thread_id = 't'") == 0
    await saver.acopy_thread("other", "t")


async def test_a_downgrade_turns_pages_into_plain_blobs(engine: AsyncEngine, conn: asyncpg.Connection[Any]) -> None:
    """What is older than pages reads what was stored with them."""
    saver = AsyncPostgresSaver(engine)
    await put(saver, messages(300))
    async with engine.connect() as migrating:
        await migrating.run_sync(lambda sync: migrations.downgrade(sync, revision="cs01_baseline"))
        await migrating.commit()

    kind, blob = await conn.fetchrow("SELECT type, blob FROM checkpoint_blobs") or ("", b"")

    assert saver.serde.loads_typed((kind, blob)) == messages(300)


def _write(url: str, seconds: float, seed: int) -> int:
    """Append to, trim and replace the value of one thread, and read it back each time."""

    async def write() -> int:
        engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
        saver, chance, value, count = AsyncPostgresSaver(engine), random.Random(seed), messages(200, seed), 0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            fresh = messages(chance.randrange(1, 20), seed=chance.randrange(2**32))
            value = [*value[chance.randrange(10) :], *fresh][-300:]
            stored = await put(saver, value)
            # Deleted by the other process, perhaps, the thread or this value of it; but never a part of the value.
            found = await saver.aget(stored)
            assert found is None or found["channel_values"].get("messages", value) == value
            count += 1
        await engine.dispose()
        return count

    return asyncio.run(write())


def _delete(url: str, seconds: float) -> int:
    """Delete the thread now and then, and all its older values and the pages that only they have, again and again."""

    async def delete() -> int:
        engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
        saver, chance, count = AsyncPostgresSaver(engine), random.Random(0), 0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if chance.random() < 0.1:
                await saver.adelete_thread("t")
            else:
                async with engine.begin() as conn:
                    await conn.exec_driver_sql(
                        "DELETE FROM checkpoint_blobs WHERE version NOT IN (SELECT checkpoint #>>"
                        " '{channel_versions,messages}' FROM checkpoints ORDER BY checkpoint_id DESC LIMIT 5)"
                    )
                await saver._backend.run(shared_pages.collect_pages, "t")
            async for _ in saver.alist(THREAD, limit=3):
                pass
            count += 1
            await asyncio.sleep(chance.random() * 0.02)
        await engine.dispose()
        return count

    return asyncio.run(delete())


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_no_read_fails_while_one_process_writes_and_another_deletes(url: str, seconds: float) -> None:
    """Two processes write to one thread, a third deletes it and collects its pages: no page is ever missing."""
    with multiprocessing.get_context("spawn").Pool(3) as processes:
        running = [processes.apply_async(_write, (url, seconds, seed)) for seed in (1, 2)]
        running.append(processes.apply_async(_delete, (url, seconds)))
        counts = [process.get(seconds + 60) for process in running]

    assert min(counts) > 5


async def test_the_hosts_schema_is_known_by_its_statements(engine: AsyncEngine) -> None:
    """Savers on one schema share the statements, and what they compiled."""
    first, second = AsyncPostgresSaver(engine), AsyncPostgresSaver(engine)

    assert first._backend.sql is second._backend.sql is statements_of(None)
    assert first._backend.page_cache.memory is second._backend.page_cache.memory
