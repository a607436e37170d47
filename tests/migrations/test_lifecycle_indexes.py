"""The indexes on checkpoints: built online where there is something to build, and never left half done."""

from __future__ import annotations

import asyncio
import io
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from langgraph.checkpoint.postgres.base import MIGRATIONS as STOCK_MIGRATIONS
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from alembic import command
from checkpoint_store import AsyncPostgresSaver, errors, migrations, schema

INDEXES = {
    "checkpoint_store_run_idx": True,
    "checkpoint_store_latest_idx": True,
    "checkpoint_store_subgraphs_idx": True,
}
"""In the order in which they are built."""
STATES = """
SELECT i.relname, indisvalid FROM pg_index JOIN pg_class i ON i.oid = indexrelid JOIN pg_class t ON t.oid = indrelid
WHERE t.relname = 'checkpoints' AND i.relname LIKE 'checkpoint_store%'
"""
FILL = """
INSERT INTO {prefix}checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
SELECT 'thread-' || i, 'checkpoint-' || i, '{{}}', jsonb_build_object('run_id', i / 10)
FROM generate_series(1, {count}) i
"""


@pytest.fixture
async def conn(empty_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    conn = await asyncpg.connect(empty_url)
    yield conn
    await conn.close()


async def at_previous_revision(url: str, *, postgres_schema: str | None = None, count: int = 100) -> None:
    """Bring a database to the revision before, with checkpoints in it."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    async with engine.connect() as conn:
        await conn.run_sync(lambda sync: migrations.upgrade(sync, postgres_schema, revision="cs02_pages"))
        prefix = f'"{postgres_schema}".' if postgres_schema else ""
        await conn.execute(text(FILL.format(prefix=prefix, count=count)))
        await conn.commit()
    await engine.dispose()


async def states(conn: asyncpg.Connection[Any]) -> dict[str, bool]:
    return dict(map(tuple, await conn.fetch(STATES)))


def sent_by(engine: AsyncEngine) -> list[str]:
    """The index statements that the engine sends from now on."""
    sent: list[str] = []

    def note(*call: Any) -> None:
        if " INDEX " in call[2]:
            sent.append(" ".join(call[2].split()[:4]))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    return sent


@pytest.mark.parametrize("postgres_schema", [None, "Ag'ents"])
async def test_they_are_built_online_where_there_are_checkpoints(
    empty_url: str, conn: asyncpg.Connection[Any], postgres_schema: str | None
) -> None:
    """Nobody who writes has to wait: each index is built CONCURRENTLY, in a schema of its own too."""
    await at_previous_revision(empty_url, postgres_schema=postgres_schema)
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": empty_url})
    sent = sent_by(engine)

    await AsyncPostgresSaver(engine, schema=postgres_schema).setup()

    await engine.dispose()
    assert sent == [f"CREATE INDEX CONCURRENTLY {name}" for name in INDEXES]
    assert await states(conn) == INDEXES


async def test_an_empty_table_gets_them_in_the_transaction_of_the_migration(
    empty_url: str, conn: asyncpg.Connection[Any]
) -> None:
    """There is nothing to wait for: neither here, nor for whoever holds an old snapshot elsewhere."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": empty_url})
    sent = sent_by(engine)
    async with conn.transaction(isolation="repeatable_read"):
        await conn.fetch("SELECT")  # a snapshot that CONCURRENTLY would wait for

        await AsyncPostgresSaver(engine).setup()

    await engine.dispose()
    assert not any("CONCURRENTLY" in statement for statement in sent)
    assert await states(conn) == INDEXES


async def test_a_leftover_that_is_invalid_is_built_anew(empty_url: str, conn: asyncpg.Connection[Any]) -> None:
    """A migration that was killed while it built an index is finished by the next one."""
    await at_previous_revision(empty_url)
    await conn.execute("CREATE INDEX checkpoint_store_latest_idx ON checkpoints (checkpoint_id, thread_id)")
    await conn.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'checkpoint_store_latest_idx'::regclass"
    )
    async with AsyncPostgresSaver.from_conn_string(empty_url) as saver:
        await saver.setup()

    assert await states(conn) == INDEXES
    definition = await conn.fetchval("SELECT pg_get_indexdef('checkpoint_store_latest_idx'::regclass)")
    assert "WHERE (checkpoint_ns ~~ ''::text)" in definition


async def test_setup_killed_while_it_builds_is_finished_by_the_next(
    empty_url: str, conn: asyncpg.Connection[Any]
) -> None:
    """What a build that was cut off leaves behind doesn't stand in the way of another one."""
    await at_previous_revision(empty_url)
    await conn.execute("CREATE TABLE held (id int)")
    async with conn.transaction(isolation="repeatable_read"):
        # CREATE INDEX CONCURRENTLY waits for this snapshot, with an index that is there but not valid.
        await conn.fetch("SELECT * FROM held")
        first = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": empty_url})
        building = asyncio.create_task(AsyncPostgresSaver(first, retry_timeout=0).setup())
        watcher = await asyncpg.connect(empty_url)
        find = (
            "SELECT pid FROM pg_stat_progress_create_index"
            " WHERE phase LIKE 'waiting for old snapshots' AND datname = current_database()"
        )
        while (pid := await watcher.fetchval(find)) is None:
            assert not building.done()
        assert await states(watcher) == {"checkpoint_store_run_idx": False}
        await watcher.execute("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises(errors.Unavailable):
            await building
        await watcher.close()
        await first.dispose()
    assert await states(conn) == {"checkpoint_store_run_idx": False}

    async with AsyncPostgresSaver.from_conn_string(empty_url) as saver:
        await saver.setup()

    assert await states(conn) == INDEXES


async def test_an_index_that_was_built_by_hand_is_kept(empty_url: str, conn: asyncpg.Connection[Any]) -> None:
    """An administrator may build it at a quiet hour; the migration then finds it done."""
    await at_previous_revision(empty_url)
    await conn.execute(
        "CREATE INDEX CONCURRENTLY checkpoint_store_latest_idx ON checkpoints (checkpoint_id, thread_id)"
        " WHERE checkpoint_ns LIKE ''"
    )
    before = await conn.fetchval("SELECT 'checkpoint_store_latest_idx'::regclass::oid")
    async with AsyncPostgresSaver.from_conn_string(empty_url) as saver:
        await saver.setup()

    assert await conn.fetchval("SELECT 'checkpoint_store_latest_idx'::regclass::oid") == before
    assert await states(conn) == INDEXES


async def test_an_invalid_index_of_somebody_elses_is_left_alone(empty_url: str, conn: asyncpg.Connection[Any]) -> None:
    """Only an index of exactly our name, on our table, is ours to drop; another relation of that name is an error."""
    await at_previous_revision(empty_url)
    await conn.execute("CREATE TABLE theirs (id int); CREATE INDEX checkpoint_store_run_idx ON theirs (id)")
    await conn.execute("UPDATE pg_index SET indisvalid = false WHERE indrelid = 'theirs'::regclass")
    async with AsyncPostgresSaver.from_conn_string(empty_url) as saver:
        with pytest.raises(errors.MigrationError, match=r"checkpoint_store_run_idx.*already exists"):
            await saver.setup()

    assert await conn.fetchval("SELECT count(*) FROM pg_indexes WHERE tablename = 'theirs'") == 1


async def test_writers_go_on_while_they_are_built(empty_url: str, conn: asyncpg.Connection[Any]) -> None:
    """setup() under load: while the index waits for an old snapshot, checkpoints are stored as ever."""
    await at_previous_revision(empty_url, count=20_000)
    await conn.execute("CREATE TABLE held (id int)")
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": empty_url})
    saver = AsyncPostgresSaver(engine, share_pages=False)
    stored: list[str] = []
    is_waiting: list[int] = []
    more = asyncio.Event()

    async def write(number: int) -> None:
        while not building.done():
            thread: Any = {"configurable": {"thread_id": f"writer-{number}", "checkpoint_ns": ""}}
            checkpoint: Any = {"v": 4, "id": str(uuid.uuid4()), "channel_values": {}, "channel_versions": {}}
            await saver.aput(thread, checkpoint, {"run_id": str(number)}, {})
            stored.append(checkpoint["id"])
            if is_waiting and len(stored) > is_waiting[0] + 20:
                more.set()

    async with conn.transaction(isolation="repeatable_read"):
        await conn.fetch("SELECT * FROM held")
        building = asyncio.create_task(AsyncPostgresSaver(engine).setup())
        writers = [asyncio.create_task(write(number)) for number in range(4)]
        async with engine.connect() as watcher:
            phase = text(
                "SELECT count(*) FROM pg_stat_progress_create_index"
                " WHERE phase = 'waiting for old snapshots' AND datname = current_database()"
            )
            while not (await watcher.execute(phase)).scalar_one():
                await watcher.rollback()
        is_waiting.append(len(stored))
        await more.wait()
        assert not building.done()
    await building
    await asyncio.gather(*writers)
    await engine.dispose()

    assert await states(conn) == INDEXES
    assert await conn.fetchval("SELECT count(*) FROM checkpoints WHERE thread_id LIKE 'writer-%'") == len(stored)
    found = "SELECT count(*) FROM checkpoints WHERE metadata ->> 'run_id' = '3' AND thread_id = 'writer-3'"
    await conn.execute("SET enable_seqscan = off")
    by_index = await conn.fetchval(found)
    await conn.execute("SET enable_seqscan = on; SET enable_indexscan = off; SET enable_bitmapscan = off")
    assert by_index == await conn.fetchval(found) > 0


async def test_in_a_callers_transaction_they_come_and_go_with_it(empty_url: str, conn: asyncpg.Connection[Any]) -> None:
    """There nothing may be committed, so they are built as part of the transaction, checkpoints or not."""
    await at_previous_revision(empty_url)
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": empty_url})
    async with engine.connect() as caller:
        await AsyncPostgresSaver(caller).setup()
        await caller.rollback()
        assert await states(conn) == {}
        await AsyncPostgresSaver(caller).setup()
        await caller.commit()
    await engine.dispose()

    assert await states(conn) == INDEXES


async def test_in_a_hosts_single_transaction_nothing_is_committed_early(
    empty_url: str, conn: asyncpg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An env.py without transaction_per_migration keeps its promise: all revisions or none."""
    await at_previous_revision(empty_url)
    from alembic import context

    configure = context.configure
    monkeypatch.setattr(context, "configure", lambda **options: configure(**options | {"transaction_per_migration": 0}))
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": empty_url})
    sent = sent_by(engine)
    async with engine.connect() as host:
        await host.run_sync(migrations.upgrade)
    await engine.dispose()

    assert not any("CONCURRENTLY" in statement for statement in sent)
    assert await states(conn) == INDEXES


@pytest.mark.parametrize("migrations_run", [len(STOCK_MIGRATIONS), 7, 3])
async def test_a_database_of_the_stock_saver_in_use_gets_them_too(
    empty_url: str, conn: asyncpg.Connection[Any], migrations_run: int
) -> None:
    """Adoption builds them online as well, and a downgrade takes away those alone."""
    for version, migration in enumerate(STOCK_MIGRATIONS[:migrations_run]):
        await conn.execute(migration)
        await conn.execute("INSERT INTO checkpoint_migrations (v) VALUES ($1)", version)
    await conn.execute(FILL.format(prefix="", count=100))
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": empty_url})
    sent = sent_by(engine)
    await AsyncPostgresSaver(engine).setup()

    assert sent == [f"CREATE INDEX CONCURRENTLY {name}" for name in INDEXES]
    async with engine.connect() as migrating:
        await migrating.run_sync(migrations.downgrade)
    await engine.dispose()
    assert await states(conn) == {}
    assert await conn.fetchval("SELECT count(*) FROM checkpoints") == 100


async def test_many_setups_at_once_build_them_once(empty_url: str, conn: asyncpg.Connection[Any]) -> None:
    """While one builds online, the others wait without a snapshot that it would have to wait for."""
    await at_previous_revision(empty_url)
    outcomes: list[BaseException | None] = []

    def set_up() -> None:
        async def run() -> None:
            async with AsyncPostgresSaver.from_conn_string(empty_url) as saver:
                await saver.setup(timeout=30)

        try:
            asyncio.run(run())
            outcomes.append(None)
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=set_up) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)

    assert outcomes == [None] * 8
    assert await states(conn) == INDEXES


async def test_the_script_for_an_administrator_makes_them(empty_url: str, conn: asyncpg.Connection[Any]) -> None:
    """`--sql` from the revision before runs in one transaction, and does not mind those that are there."""
    await at_previous_revision(empty_url)
    made = migrations.config()
    made.output_buffer = io.StringIO()
    command.upgrade(made, f"cs02_pages:{schema.HEAD}", sql=True)
    await conn.execute("CREATE INDEX checkpoint_store_run_idx ON checkpoints ((metadata ->> 'run_id'))")
    await conn.execute(made.output_buffer.getvalue())

    assert await states(conn) == INDEXES


def test_offline_and_online_define_the_same_indexes(empty_url: str, make_database: Callable[[], str]) -> None:
    """The script and the migration leave the same definitions."""

    async def definitions(url: str, script: str | None) -> list[Any]:
        conn = await asyncpg.connect(url)
        try:
            if script is None:
                async with AsyncPostgresSaver.from_conn_string(url) as saver:
                    await saver.setup()
            else:
                await conn.execute(script)
            return await conn.fetch("SELECT indexdef FROM pg_indexes WHERE tablename = 'checkpoints' ORDER BY 1")
        finally:
            await conn.close()

    online = asyncio.run(definitions(empty_url, None))
    assert online == asyncio.run(definitions(make_database(), migrations.offline_sql()))
    assert len(online) == 4
