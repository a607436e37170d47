"""A thread is copied whole, on the server, beside whoever uses it; two threads are never mixed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from operator import add
from typing import Annotated, Any, TypedDict
from uuid import uuid4

import asyncpg
import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver as StockSaver
from langgraph.graph import END, START, StateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command, interrupt
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.errors import InvalidConfig, ThreadExists, ThreadNotFound
from checkpoint_store.serde import pages
from checkpoint_store.storage import copy_thread, shared_pages

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_pages")


class Trip(TypedDict):
    log: Annotated[list[str], add]
    notes: Annotated[list[str], DeltaChannel(lambda old, new: [*old, *(n for part in new for n in part)], list)]


def travelling(saver: BaseCheckpointSaver[str]) -> Pregel:
    """Pack, then ask inside a subgraph, then leave."""

    def ask(state: Trip) -> dict[str, list[str]]:
        return {"log": [f"where to: {interrupt('where to?')}"], "notes": ["asked"]}

    inner = StateGraph(Trip).add_node("ask", ask).add_edge(START, "ask").compile()
    graph = StateGraph(Trip)
    graph.add_node("pack", lambda _: {"log": ["packed " * 50], "notes": ["packing"]})
    graph.add_node("desk", inner)
    graph.add_node("leave", lambda _: {"log": ["left"]})
    for one, other in ((START, "pack"), ("pack", "desk"), ("desk", "leave"), ("leave", END)):
        graph.add_edge(one, other)
    return graph.compile(checkpointer=saver)


def thread(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id}}


async def put(saver: AsyncPostgresSaver, thread_id: str, value: Any, metadata: Any = None) -> str:
    checkpoint: Any = {
        **empty_checkpoint(),
        "id": str(uuid6()),
        "channel_values": {"messages": value},
        "channel_versions": {"messages": f"1.{uuid4()}"},
    }
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    await saver.aput(config, checkpoint, metadata or {}, checkpoint["channel_versions"])
    return checkpoint["id"]


async def values(saver: AsyncPostgresSaver, thread_id: str) -> dict[str, Any]:
    return {t.checkpoint["id"]: t.checkpoint["channel_values"] async for t in saver.alist(thread(thread_id))}


@pytest.fixture
async def conn(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection to look at the tables with."""
    conn = await asyncpg.connect(url)
    yield conn
    await conn.close()


async def rows(conn: asyncpg.Connection[Any], thread_id: str) -> dict[str, list[dict[str, Any]]]:
    """Everything stored for a thread, but its id."""
    found = {}
    for table in TABLES:
        records = await conn.fetch(f"SELECT * FROM {table} WHERE thread_id = $1", thread_id)
        found[table] = sorted((dict(r, thread_id=None) for r in records), key=repr)
    return found


@pytest.mark.parametrize("paged", [False, True])
async def test_a_copy_has_every_row_and_goes_on_by_itself(
    engine: AsyncEngine, conn: asyncpg.Connection[Any], paged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that waits inside a subgraph is copied; both are answered, differently, and neither sees the other."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 0)
    saver = AsyncPostgresSaver(engine, share_pages=paged)
    graph = travelling(saver)
    await asyncio.to_thread(graph.invoke, {"log": ["go"], "notes": ["begun"]}, thread("one"))

    await saver.acopy_thread("one", "two")

    stored = await rows(conn, "one")
    assert await rows(conn, "two") == stored
    assert all(stored[table] for table in TABLES[: 4 if paged else 3])
    assert len({row["checkpoint_ns"] for row in stored["checkpoints"]}) == 2
    await asyncio.to_thread(graph.invoke, Command(resume="Lisbon"), thread("two"))
    assert await rows(conn, "one") == stored
    await saver.adelete_thread("one")
    end = await asyncio.to_thread(graph.get_state, thread("two"))
    assert end.values["log"][-2:] == ["where to: Lisbon", "left"]
    assert end.values["notes"] == ["begun", "packing", "begun", "packing", "asked"]


async def test_the_stock_saver_reads_a_copy(engine: AsyncEngine, url: str) -> None:
    """A copy is rows like any other."""
    saver = AsyncPostgresSaver(engine, share_pages=False)
    stored = await put(saver, "one", ["a", "b"])
    await saver.acopy_thread("one", "two")

    async with StockSaver.from_conn_string(url) as stock:
        found = await stock.aget_tuple(thread("two"))

    assert found is not None
    assert (found.checkpoint["id"], found.checkpoint["channel_values"]) == (stored, {"messages": ["a", "b"]})


async def test_a_target_that_exists_is_refused_or_replaced(
    saver: AsyncPostgresSaver, conn: asyncpg.Connection[Any]
) -> None:
    """Refused it is as it was, replaced it has nothing left of its own, in no table."""
    saver = AsyncPostgresSaver(saver._backend._engine, share_pages=True)  # type: ignore[attr-defined]
    await put(saver, "one", [f"message {n} of one" for n in range(2000)])
    old = await put(saver, "two", [f"message {n} of two" for n in range(2000)])
    before = await rows(conn, "two")

    with pytest.raises(ThreadExists, match=r"'two', for which something is stored.*replace=True"):
        await saver.acopy_thread("one", "two")
    assert await rows(conn, "two") == before

    await saver.acopy_thread("one", "two", replace=True)
    assert await rows(conn, "two") == await rows(conn, "one")
    assert old not in await values(saver, "two")


@pytest.mark.parametrize("table", ["checkpoint_writes", "checkpoint_blobs"])
async def test_leftovers_count_as_existing(
    saver: AsyncPostgresSaver, conn: asyncpg.Connection[Any], table: str
) -> None:
    """What a late write has brought back for a deleted thread must not become part of another one."""
    await put(saver, "one", ["a"])
    config = {"configurable": {"thread_id": "one", "checkpoint_ns": "", "checkpoint_id": await put(saver, "one", [])}}
    await saver.aput_writes(config, [("messages", ["late"])], "task")
    await saver.acopy_thread("one", "two")
    for other in {*TABLES} - {table}:
        await conn.execute(f"DELETE FROM {other} WHERE thread_id = 'two'")

    with pytest.raises(ThreadExists):
        await saver.acopy_thread("one", "two")
    await saver.acopy_thread("one", "two", replace=True)

    assert await rows(conn, "two") == await rows(conn, "one")


async def test_a_source_without_rows_is_an_error_that_changes_nothing(
    saver: AsyncPostgresSaver, sync_saver: PostgresSaver
) -> None:
    """A mistyped id must not pass for a copy made, nor cost the target."""
    stored = await put(saver, "two", ["a"])

    with pytest.raises(ThreadNotFound, match="nothing is stored for the thread 'nobody'"):
        await saver.acopy_thread("nobody", "one")
    with pytest.raises(ThreadNotFound):
        sync_saver.copy_thread("nobody", "two", replace=True)

    assert await values(saver, "two") == {stored: {"messages": ["a"]}}


@pytest.mark.parametrize(("source", "target"), [("one", "one"), ("", "two"), ("one", ""), (1, "two"), ("one", "a\0b")])
async def test_ids_that_can_not_be_are_refused(saver: AsyncPostgresSaver, source: Any, target: Any) -> None:
    """Also a copy onto itself, which with `replace` would delete the thread."""
    await put(saver, "one", ["a"])

    with pytest.raises(InvalidConfig):
        await saver.acopy_thread(source, target, replace=True)

    assert len(await values(saver, "one")) == 1


async def test_metadata_that_names_the_thread_names_the_copy(saver: AsyncPostgresSaver) -> None:
    """Older versions of LangGraph stored the thread's id there; what names another thread stays."""
    await put(saver, "one", [], {"thread_id": "one", "user": "u"})
    await put(saver, "one", [], {"thread_id": "another"})
    await put(saver, "one", [], {"thread_id": 1, "step": 3})

    await saver.acopy_thread("one", "two")

    found = [t.metadata async for t in saver.alist(thread("two"))]
    assert found == [{"thread_id": 1, "step": 3}, {"thread_id": "another"}, {"thread_id": "two", "user": "u"}]


async def test_no_row_travels(engine: AsyncEngine) -> None:
    """The statements carry ids, whatever the size of the thread, and what comes back is a number."""
    saver, sent = AsyncPostgresSaver(engine), []
    await put(saver, "one", ["x" * 1_000_000])
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *call: sent.append(call[2:4]))

    copied = await saver._backend.run(copy_thread.copy_thread, ("one", "two"), False)

    assert copied > 2
    assert 0 < sum(len(repr(parameters)) for _, parameters in sent) < 1000
    assert await values(saver, "two") == {i: {"messages": ["x" * 1_000_000]} for i in await values(saver, "one")}


async def test_a_caller_that_rolls_back_has_copied_nothing(engine: AsyncEngine) -> None:
    """On a connection the copy is part of the caller's transaction, and a refusal leaves that usable."""
    saver = AsyncPostgresSaver(engine)
    await put(saver, "one", ["a"])
    async with engine.connect() as connection:
        within = AsyncPostgresSaver(connection)
        await within.acopy_thread("one", "two")
        with pytest.raises(ThreadExists):
            await within.acopy_thread("one", "two")
        assert len(await values(within, "two")) == 1
        await connection.rollback()

    assert await values(saver, "two") == {}


async def test_of_two_copies_to_one_target_one_is_refused(engine: AsyncEngine) -> None:
    """Whoever comes second waits for the first, and finds the target taken: it is one source's copy, never both's."""
    saver = AsyncPostgresSaver(engine)
    for name in ("one", "two", "three", "four"):
        await put(saver, name, [name])

    outcomes = await asyncio.gather(
        *[saver.acopy_thread(name, "target") for name in ("one", "two", "three", "four")], return_exceptions=True
    )

    assert [type(outcome) for outcome in outcomes if outcome] == [ThreadExists] * 3
    assert len(await values(saver, "target")) == 1


async def test_a_target_that_somebody_stores_to_meanwhile_is_refused(engine: AsyncEngine, url: str) -> None:
    """Nothing should; where something does, it is told in our words, and the copy leaves nothing."""
    saver = AsyncPostgresSaver(engine)
    await put(saver, "one", ["one"])
    connection: asyncpg.Connection[Any] = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "INSERT INTO checkpoints SELECT 'target', checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint,"
        " metadata FROM checkpoints"
    )
    copy = asyncio.create_task(saver.acopy_thread("one", "target"))
    # Such a lock has no database, but whoever waits for it holds others.
    waiting = """
        SELECT count(*) FROM pg_locks AS waiting WHERE NOT granted AND locktype = 'transactionid' AND EXISTS (
            SELECT FROM pg_locks AS held JOIN pg_database AS d ON d.oid = held.database
            WHERE held.pid = waiting.pid AND d.datname = current_database()
        )
    """
    while not await connection.fetchval(waiting):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await transaction.commit()

    with pytest.raises(ThreadExists, match="something was stored while it was to be made"):
        await copy
    assert await connection.fetchval("SELECT count(*) FROM checkpoint_blobs WHERE thread_id = 'target'") == 0
    await connection.close()


async def test_a_stale_memory_of_the_target_is_not_trusted(engine: AsyncEngine, url: str) -> None:
    """A process that remembers the pages of a thread that was there before sends them again."""
    whole = [f"message {n}: {random.Random(n).random()}" for n in range(3000)]
    saver = AsyncPostgresSaver(engine)
    await put(saver, "two", whole)
    elsewhere = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    await put(AsyncPostgresSaver(elsewhere), "one", ["another"] * 3000)
    await AsyncPostgresSaver(elsewhere).acopy_thread("one", "two", replace=True)

    stored = await put(saver, "two", [*whole, "more"])

    assert (await values(AsyncPostgresSaver(elsewhere), "two"))[stored] == {"messages": [*whole, "more"]}
    await elsewhere.dispose()


async def test_copies_beside_a_writer_and_a_collector_are_whole(engine: AsyncEngine, url: str) -> None:
    """One task appends to the source, another deletes its old checkpoints and pages; each copy has what it names."""
    saver, stored, chance = AsyncPostgresSaver(engine), {}, random.Random(3)
    elsewhere = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    value = [f"message {n}: {chance.randbytes(40).hex()}" for n in range(400)]
    stored[await put(saver, "source", value)] = value
    done = asyncio.Event()

    async def write() -> None:
        value = stored[max(stored)]
        while not done.is_set():
            value = [*value[chance.randrange(5) :], *[chance.randbytes(40).hex() for _ in range(5)]]
            stored[await put(saver, "source", value)] = value

    async def collect() -> None:
        collector = AsyncPostgresSaver(elsewhere)
        while not done.is_set():
            async with elsewhere.begin() as conn:
                newest = "(SELECT checkpoint_id FROM checkpoints WHERE thread_id = 'source' ORDER BY 1 DESC LIMIT 3)"
                await conn.exec_driver_sql(
                    f"DELETE FROM checkpoints WHERE thread_id = 'source' AND checkpoint_id NOT IN {newest}"
                )
                await conn.exec_driver_sql(
                    "DELETE FROM checkpoint_blobs b WHERE thread_id = 'source' AND NOT EXISTS (SELECT FROM checkpoints"
                    " WHERE thread_id = 'source' AND checkpoint #>> '{channel_versions,messages}' = b.version)"
                )
            await collector._backend.run(shared_pages.collect_pages, "source")

    tasks = [asyncio.create_task(write()), asyncio.create_task(collect())]
    copies = 0
    while copies < 25:
        await AsyncPostgresSaver(elsewhere).acopy_thread("source", f"copy {copies}")
        copies += 1
    done.set()
    await asyncio.gather(*tasks)

    names = set()
    for number in range(copies):
        found = await values(saver, f"copy {number}")
        names |= found.keys()
        assert found
        assert all(found[name]["messages"] == stored[name] for name in found)
    assert len(names) > 5
    await elsewhere.dispose()
