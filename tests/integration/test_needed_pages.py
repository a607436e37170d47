"""What the database has is asked by the statement that counts on it, and what hides rows is an error, not a loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from sqlalchemy import create_engine, event, make_url
from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver, conversion
from checkpoint_store.errors import Refused
from checkpoint_store.sql.statements import statements_of
from checkpoint_store.storage.page_cache import PageCache
from checkpoint_store.storage.write_batch import merged, paged, parts_of

Config = Any
THREAD: Config = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
WORDS = [f"{number}: {random.Random(number).randbytes(100).hex()}" for number in range(700)]


def config_of(thread_id: str) -> Config:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


def call(count: int) -> tuple[Any, Any, dict[str, str]]:
    """The arguments of a put, but for the config: a list of so many messages."""
    checkpoint: Any = {
        **empty_checkpoint(),
        "id": str(uuid6()),
        "channel_values": {"messages": WORDS[:count]},
        "channel_versions": {"messages": f"1.{uuid4()}"},
    }
    return checkpoint, {}, checkpoint["channel_versions"]


async def put(saver: AsyncPostgresSaver, count: int, thread_id: str = "t") -> Config:
    return await saver.aput(config_of(thread_id), *call(count))


async def read(url: str, config: Config = THREAD) -> Any:
    """What a process that remembers nothing finds."""
    async with AsyncPostgresSaver.from_conn_string(url) as elsewhere:
        found = await elsewhere.aget(config)
    return found and found["channel_values"].get("messages")


@pytest.fixture
async def conn(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    conn = await asyncpg.connect(url)
    yield conn
    await conn.close()


class Storing:
    """A put of a thread by `statements.store` itself, on a connection whose planner can be steered."""

    def __init__(self, conn: asyncpg.Connection[Any]) -> None:
        self.conn = conn
        self.put = paged(
            {
                "thread_id": "t",
                "checkpoint_ns": "",
                "checkpoint_id": "1",
                "parent_checkpoint_id": None,
                "checkpoint": "{}",
                "metadata": "{}",
                "kept": None,
                "channels": ["messages"],
                "versions": ["1"],
                "types": ["msgpack"],
                "blobs": [b"\xc6" + (200_000).to_bytes(4, "big") + random.Random(0).randbytes(200_000)],
            },
            PageCache(),
        )

    async def store(self, known: int | None) -> bool:
        """Store it, with all pages (None) or all but some that are known. Tells whether the thread passed."""
        there = None if known is None else set(list(self.put.pages)[:known])
        binds = merged([self.put], {} if there is None else {"t": there})
        sql, parameters = statements_of(None).store(parts_of(binds)).bound(dialect.dialect(), binds)
        return bool(await self.conn.fetch(sql, *parameters))


@asynccontextmanager
async def waiting_for_a_lock(url: str, call: Awaitable[Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Begin a call, and enter once the server says that it waits for somebody's lock."""
    watcher = await asyncpg.connect(url)
    task = asyncio.ensure_future(call)
    try:
        while not await watcher.fetchval(WAITING):
            assert not task.done(), "it did not wait"
        yield task
    finally:
        await watcher.close()


async def test_a_page_that_is_not_there_is_noticed_by_the_statement_that_needs_it(
    conn: asyncpg.Connection[Any],
) -> None:
    """Whatever epoch the thread has, and whoever has deleted it."""
    storing = Storing(conn)
    assert await storing.store(None)
    assert await storing.store(5)
    await conn.execute("DELETE FROM checkpoint_pages WHERE digest = $1", list(storing.put.pages)[2])
    await conn.execute("DELETE FROM checkpoints")

    assert not await storing.store(5)
    assert await conn.fetchval("SELECT count(*) FROM checkpoints") == 0
    assert await storing.store(2), "it is sent"
    assert await storing.store(5)
    await conn.execute("DELETE FROM checkpoint_threads")
    assert not await storing.store(5)


PLANNERS: dict[str, str] = {
    "as it likes": "SELECT",
    "generic": "SET plan_cache_mode = force_generic_plan",
    "hash joins": "SET enable_nestloop = off; SET enable_mergejoin = off",
    "merge joins": "SET enable_nestloop = off; SET enable_hashjoin = off",
    "sequential": "SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off",
    "bitmaps": "SET enable_indexscan = off; SET enable_seqscan = off; SET enable_indexonlyscan = off",
}
REMOVERS: dict[str, tuple[str, bool]] = {
    "collects": ("DELETE FROM checkpoint_pages; UPDATE checkpoint_threads SET epoch = epoch + 1", False),
    "deletes": ("DELETE FROM checkpoint_pages; DELETE FROM checkpoint_threads", False),
    "replaces": (
        "DELETE FROM checkpoint_pages; DELETE FROM checkpoint_threads;"
        "INSERT INTO checkpoint_threads SELECT 't', epoch FROM kept",
        False,
    ),
    "leaves all": ("SELECT", True),
}


@pytest.mark.parametrize("remover", REMOVERS)
@pytest.mark.parametrize("planner", PLANNERS)
async def test_who_waited_for_a_remover_knows_of_it(
    conn: asyncpg.Connection[Any], url: str, planner: str, remover: str
) -> None:
    """The pages were there in the statement's snapshot, but the thread's row has changed since; in whatever plan."""
    other = await asyncpg.connect(url)
    storing = Storing(conn)
    await storing.store(None)
    await other.execute("CREATE TABLE kept AS SELECT epoch FROM checkpoint_threads")
    await conn.execute(PLANNERS[planner])
    statement, passes = REMOVERS[remover]
    async with other.transaction():
        await other.execute("SELECT FROM checkpoint_threads FOR UPDATE")
        await other.execute(statement)
        waiting = waiting_for_a_lock(url, storing.store(len(storing.put.pages)))
        task = await waiting.__aenter__()
    await waiting.__aexit__(None, None, None)

    assert await task == passes
    await other.close()


async def test_whose_pages_all_come_along_passes_whatever_others_do(engine: AsyncEngine, url: str) -> None:
    """Its row is made by another process, or deleted, at the same moment: it is stored all the same."""
    saver = AsyncPostgresSaver(engine)
    async with engine.connect() as host:
        await put(AsyncPostgresSaver(host, share_pages=True), 200)
        async with waiting_for_a_lock(url, put(saver, 300)) as storing:
            await host.commit()
            stored = await storing
    assert await read(url, stored) == WORDS[:300]

    async with engine.connect() as host:
        await AsyncPostgresSaver(host).adelete_thread("t")
        await put(AsyncPostgresSaver(host, share_pages=True), 250)
        async with waiting_for_a_lock(url, put(saver, 400)) as storing:
            await host.commit()
            stored = await storing
    assert await read(url, stored) == WORDS[:400]


DROPPING = """
    CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$;
    CREATE TRIGGER dropping BEFORE INSERT ON {table} FOR EACH ROW WHEN (NEW.thread_id = 't') EXECUTE FUNCTION drop_row()
"""

HIDING = """
    CREATE ROLE "{role}" LOGIN;
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{role}";
    ALTER TABLE checkpoint_threads ADD tenant text NOT NULL DEFAULT current_setting('app.tenant', true);
    ALTER TABLE checkpoint_threads ENABLE ROW LEVEL SECURITY;
    CREATE POLICY tenants ON checkpoint_threads USING (tenant = current_setting('app.tenant', true));
"""


class Host:
    """One way of using a saver: puts by it."""

    def __init__(self, url: str, kind: str) -> None:
        self.kind = kind
        driver = "psycopg" if "psycopg" in kind or kind == "sync" else "asyncpg"
        made = make_url(url).set(drivername=f"postgresql+{driver}")
        self.sync = create_engine(made) if kind == "sync" else None
        self.engine = create_async_engine(made)
        self.pipe = AsyncPipeline(self.engine) if "pipeline" in kind else False
        self.saver = AsyncPostgresSaver(self.engine, self.pipe, share_pages=True)

    async def put(self, count: int, thread_id: str) -> Config:
        if self.sync is not None:
            saver = PostgresSaver(self.sync, share_pages=True)
            return await asyncio.to_thread(saver.put, config_of(thread_id), *call(count))
        if self.kind == "bound":
            async with self.engine.begin() as conn:
                return await put(self.saver.bind(conn), count, thread_id)
        return await put(self.saver, count, thread_id)

    async def close(self) -> None:
        await self.engine.dispose()
        if self.sync is not None:
            self.sync.dispose()


KINDS = ["plain", "pipeline", "sync", "psycopg", "psycopg pipeline", "bound"]


@pytest.fixture
def host(url: str, request: pytest.FixtureRequest) -> Any:
    return Host(url, request.param)


@pytest.mark.parametrize("host", KINDS, indirect=True)
@pytest.mark.parametrize("table", ["checkpoint_threads", "checkpoint_pages", "checkpoints"])
async def test_a_trigger_that_drops_rows_is_an_error(host: Host, conn: asyncpg.Connection[Any], table: str) -> None:
    """It names the thread and the table; of other threads, stored together with that one, all is there."""
    await conn.execute(DROPPING.format(table=table))

    threads = ["t", *[f"other {number}" for number in range(30)]]
    outcomes = await asyncio.gather(*[host.put(200, one) for one in threads], return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [Refused, *[dict] * 30]
    assert f"thread 't': the database dropped a row of {table}, " in str(outcomes[0])
    assert await conn.fetchval("SELECT count(*) FROM checkpoints WHERE thread_id <> 't'") == 30
    if table == "checkpoint_threads":
        for one in ("checkpoints", "checkpoint_blobs", "checkpoint_pages"):
            assert await conn.fetchval(f"SELECT count(*) FROM {one} WHERE thread_id = 't'") == 0
    await conn.execute(f"DROP TRIGGER dropping ON {table}")
    await host.put(300, "t")
    assert await conn.fetchval("SELECT count(*) FROM checkpoint_pages WHERE thread_id = 't'") > 0
    await host.close()


@pytest.mark.parametrize("host", ["plain", "pipeline"], indirect=True)
async def test_a_trigger_that_renames_a_thread_is_an_error(host: Host, conn: asyncpg.Connection[Any]) -> None:
    """What answers then is the row of another thread: nothing of this one is stored."""
    await conn.execute("""
        CREATE FUNCTION lower_case() RETURNS trigger LANGUAGE plpgsql
            AS $$BEGIN NEW.thread_id := lower(NEW.thread_id); RETURN NEW; END$$;
        CREATE TRIGGER lowering BEFORE INSERT ON checkpoint_threads FOR EACH ROW EXECUTE FUNCTION lower_case()
    """)
    with pytest.raises(Refused, match="thread 'User:1'"):
        await host.put(200, "User:1")
    await host.close()


@pytest.mark.parametrize("table", ["checkpoint_pages", "checkpoint_blobs", "checkpoints"])
async def test_a_copy_of_which_a_trigger_drops_rows_is_an_error(
    engine: AsyncEngine, conn: asyncpg.Connection[Any], url: str, table: str
) -> None:
    """What was to be replaced is as it was."""
    saver = AsyncPostgresSaver(engine, share_pages=True)
    await put(saver, 200, "source")
    stored = await put(saver, 250, "t")
    await conn.execute(DROPPING.format(table=table))

    with pytest.raises(Refused, match=f"thread 't': the database dropped rows of {table} "):
        await saver.acopy_thread("source", "t", replace=True)

    assert await read(url, stored) == WORDS[:250]


async def test_a_conversion_whose_pages_a_trigger_drops_changes_nothing(
    engine: AsyncEngine, conn: asyncpg.Connection[Any], url: str
) -> None:
    """The values stay as they were."""
    stored = await put(AsyncPostgresSaver(engine, share_pages=False), 250)
    await conn.execute(DROPPING.format(table="checkpoint_pages"))

    with pytest.raises(Refused, match="checkpoint_pages"):
        await conversion.share(engine)

    assert await read(url, stored) == WORDS[:250]


async def test_a_value_that_needs_no_page_is_told_of_too(
    saver: AsyncPostgresSaver, conn: asyncpg.Connection[Any]
) -> None:
    """A checkpoint that a trigger drops is not acknowledged."""
    await conn.execute(DROPPING.format(table="checkpoints"))

    with pytest.raises(Refused, match=r"dropped a row of checkpoints, .*The checkpoint was not stored"):
        await put(saver, 3)
    await put(saver, 3, "another")


async def test_conversion_says_what_hides_rows(engine: AsyncEngine, conn: asyncpg.Connection[Any]) -> None:
    """It does not end as if there had been nothing to convert."""
    await put(AsyncPostgresSaver(engine, share_pages=False), 200)
    for table in ("checkpoint_threads", "checkpoint_pages"):
        await conn.execute(DROPPING.format(table=table))
        with pytest.raises(Refused, match=f"dropped a row of {table}"):
            await conversion.share(engine)
        await conn.execute(f"DROP TRIGGER dropping ON {table}; DROP FUNCTION drop_row")


@pytest.mark.parametrize("pipeline", [False, True])
async def test_one_thread_id_of_two_tenants_is_an_error(
    url: str, conn: asyncpg.Connection[Any], pipeline: bool
) -> None:
    """Whose row a policy hides; the second tenant's other threads are stored."""
    role = f"role_{uuid4().hex}"
    await conn.execute(HIDING.format(role=role))
    engines = []
    try:
        savers = []
        for tenant in ("first", "second"):
            made = make_url(url).set(drivername="postgresql+asyncpg", username=role)
            options = {"server_settings": {"app.tenant": tenant}}
            engines.append(create_async_engine(made, connect_args=options))
            pipe = AsyncPipeline(engines[-1]) if pipeline else False
            savers.append(AsyncPostgresSaver(engines[-1], pipe, share_pages=True))
        await put(savers[0], 200)

        threads = ["t", *[f"other {number}" for number in range(30)]]
        outcomes = await asyncio.gather(*[put(savers[1], 200, one) for one in threads], return_exceptions=True)

        assert [type(outcome) for outcome in outcomes] == [Refused, *[dict] * 30]
        assert "thread 't': the database dropped a row of checkpoint_threads, or hides it" in str(outcomes[0])
        assert "another tenant" in str(outcomes[0])
    finally:
        for engine in engines:
            await engine.dispose()
        await conn.execute(f'DROP OWNED BY "{role}" CASCADE; DROP ROLE "{role}"')


async def test_what_a_transaction_rolled_back_is_noticed_by_the_next_put(engine: AsyncEngine, url: str) -> None:
    """A bound saver remembers what it sends; where it came to nothing, the next put sends it again."""
    saver = AsyncPostgresSaver(engine)
    async with engine.connect() as host:
        await put(saver.bind(host), 300)
        await host.rollback()
    stored = await put(saver, 310)
    assert await read(url, stored) == WORDS[:310]


async def test_a_bound_saver_sends_what_is_new(engine: AsyncEngine, url: str) -> None:
    """As any other: it remembers what the engine's savers have stored."""
    saver, sent = AsyncPostgresSaver(engine), []
    await put(saver, 500)

    def count(*call: Any) -> None:
        arrays = [array for array in call[3] if isinstance(array, list)]
        sent.append(sum(len(item) for array in arrays for item in array if isinstance(item, bytes)))

    async with engine.begin() as host:
        event.listen(host.sync_connection, "before_cursor_execute", count)
        stored = await put(saver.bind(host), 501)

    assert max(sent) < 30_000
    assert await read(url, stored) == WORDS[:501]
