"""The tables in a PostgreSQL schema: every way to migrate makes them there, and nothing looks elsewhere."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver as StockSaver
from sqlalchemy import create_engine, func, make_url, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver, conversion, errors, migrations, schema
from checkpoint_store.migrations.alembic_config import script_location
from checkpoint_store.migrations.lock import lock_key, lock_key_of
from checkpoint_store.schema import Tables

REPOSITORY = Path(__file__).parents[2]
CONFIG: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
LARGE = [f"message {number} " * 20 for number in range(200)]

NAMES = [
    "agents",
    "Agents",
    "my agents",
    'say "hi"',
    "it's",
    "100%",
    "%s %%",
    "a:b ::text :x",
    "a.b",
    "a$$b",
    "[x] {y}",
    "back\\slash\\:",
    "-- no comment /*",
    "order",
    "system_user",  # reserved since PostgreSQL 16, which SQLAlchemy doesn't know
    "pages",
    "größer",
    "x" * 63,
    "ß" * 31,
]


@pytest.fixture
async def empty(empty_url: str) -> AsyncIterator[AsyncEngine]:
    async with connected(empty_url) as engine:
        yield engine


@asynccontextmanager
async def connected(url: str, **settings: str) -> AsyncIterator[AsyncEngine]:
    """An engine whose connections have some of the server's settings."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url, "server_settings": settings})
    yield engine
    await engine.dispose()


async def put(saver: AsyncPostgresSaver | StockSaver, value: Any) -> Any:
    version = uuid.uuid4().hex
    checkpoint: Any = {**empty_checkpoint(), "channel_values": {"a": value}, "channel_versions": {"a": version}}
    return await saver.aput(CONFIG, checkpoint, {}, {"a": version})


async def value(saver: AsyncPostgresSaver | StockSaver) -> Any:
    found = await saver.aget(CONFIG)
    return found and found["channel_values"]["a"]


async def tables(url: str) -> dict[str, list[str]]:
    """The tables of every schema that has some."""
    conn = await asyncpg.connect(url)
    rows = await conn.fetch(
        "SELECT schemaname, array_agg(tablename::text ORDER BY tablename) AS names FROM pg_tables"
        " WHERE schemaname NOT IN ('pg_catalog', 'information_schema') GROUP BY 1"
    )
    await conn.close()
    return {row["schemaname"]: row["names"] for row in rows}


EIGHT = """
import os, sys
from checkpoint_store import PostgresSaver

started, start = os.pipe()
children = []
for _ in range(8):
    if not (child := os.fork()):
        os.close(start)
        os.read(started, 1)  # returns when the parent closes the other end
        with PostgresSaver.from_conn_string(sys.argv[1], schema="the agents") as saver:
            saver.setup()
            saver.check()
        os._exit(0)
    children.append(child)
os.close(start)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""

OURS = sorted([*(table.name for table in Tables().all), schema.VERSION_TABLE])


def alembic(*arguments: str, url: str = "", cwd: Path = REPOSITORY, fails: bool = False) -> str:
    command = [sys.executable, "-m", "alembic", "-x", f"url={url}", *arguments]
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr if fails else done.stdout


@pytest.mark.parametrize("name", NAMES)
async def test_any_name_works(empty: AsyncEngine, empty_url: str, name: str) -> None:
    """What needs quoting is quoted: by setup(), by every statement, by conversion, check, grants and downgrade."""
    saver = AsyncPostgresSaver(empty, schema=name, share_pages=False)
    await saver.setup()
    stored = await put(saver, LARGE)
    await saver.aput_writes(stored, [("a", "more")], "task")
    await saver.acheck()
    assert await conversion.share(empty, schema=name) == 1
    found = await AsyncPostgresSaver(empty, schema=name).aget_tuple(stored)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": LARGE}
    assert found.pending_writes == [("task", "a", "more")]
    assert await conversion.inline(empty, schema=name) == 1
    assert await tables(empty_url) == {name: OURS}

    async with empty.connect() as conn:
        assert await conn.run_sync(migrations.current, name) == schema.HEAD
        await conn.run_sync(migrations.downgrade, name)
    assert await tables(empty_url) == {name: [schema.VERSION_TABLE]}


@pytest.mark.parametrize("name", ["100%", "%s %(x)s %%", 'a:b "c"', "system_user"])
def test_any_name_works_through_psycopg(empty_url: str, name: str) -> None:
    """A driver that marks parameters by percent signs migrates, writes and reads the same tables."""
    engine = create_engine(make_url(empty_url).set(drivername="postgresql+psycopg"))
    with engine.connect() as conn:
        migrations.upgrade(conn, name)
        migrations.check(conn, name)
        migrations.downgrade(conn, name, revision="cs01_baseline")
    saver = PostgresSaver(engine, schema=name, share_pages=True)
    saver.setup()
    saver.check()
    checkpoint: Any = {**empty_checkpoint(), "channel_values": {"a": LARGE}, "channel_versions": {"a": "1"}}
    saver.put_writes(saver.put(CONFIG, checkpoint, {}, {"a": "1"}), [("a", "more")], "task")
    (found,) = saver.list(None)
    assert found == PostgresSaver(engine, schema=name).get_tuple(CONFIG)
    assert found.checkpoint["channel_values"] == {"a": LARGE}
    saver.delete_thread("t")
    engine.dispose()

    assert asyncio.run(tables(empty_url)) == {name: OURS}


@pytest.mark.parametrize("name", ["100%", "%s %%", "it's a:b", "a$$b"])
async def test_any_name_works_offline(empty: AsyncEngine, empty_url: str, name: str) -> None:
    """The SQL for a person to run makes the schema, if it is missing, and setup() finds nothing left to do."""
    conn = await asyncpg.connect(empty_url)
    await conn.execute(migrations.offline_sql(name))
    await conn.close()

    async with empty.connect() as checking:
        await checking.run_sync(migrations.check, name)
    assert await tables(empty_url) == {name: OURS}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "must be the name"),
        ("a\0b", "must be the name"),
        (42, "must be the name"),
        ("x" * 64, "63 bytes, not 64"),
        ("ß" * 32, "63 bytes, not 64"),
    ],
)
async def test_a_name_that_can_be_none_is_refused(empty: AsyncEngine, name: Any, why: str) -> None:
    """PostgreSQL would cut a long one short without a word, and two tenants could come to share their tables."""
    with pytest.raises(errors.InvalidOption, match=why):
        AsyncPostgresSaver(empty, schema=name)
    with pytest.raises(errors.InvalidOption, match=why):
        Tables(name)


async def decoys(url: str) -> None:
    """Set up the tables in a schema that is none of the test's business, with a row in each."""
    async with connected(url) as engine:
        saver = AsyncPostgresSaver(engine, schema="decoy", share_pages=True)
        await saver.setup()
        await saver.aput_writes(await put(saver, LARGE), [("a", "decoy")], "task")


@pytest.mark.parametrize("path", ["decoy", "decoy, agents", '""', "missing", "pg_catalog, decoy"])
async def test_the_search_path_does_not_matter(empty_url: str, path: str) -> None:
    """With a schema named, tables of the same names elsewhere are neither read nor written nor taken for ours."""
    await decoys(empty_url)
    conn = await asyncpg.connect(empty_url)
    sums = " UNION ALL ".join(f"SELECT md5(string_agg(t::text, ',')) FROM decoy.{name} t" for name in OURS)
    before = await conn.fetch(sums)
    async with connected(empty_url, search_path=path) as engine:
        saver = AsyncPostgresSaver(engine, schema="agents", share_pages=True)
        with pytest.raises(errors.NotSetUp, match="agents"):
            await saver.acheck()
        await saver.setup()
        await saver.acheck()
        stored = await put(saver, [*LARGE, "ours"])
        await saver.aput_writes(stored, [("a", "ours")], "task")
        assert [item.pending_writes async for item in saver.alist(None)] == [[("task", "a", "ours")]]
        assert await value(saver) == [*LARGE, "ours"]
        async with engine.connect() as caller:
            assert await value(AsyncPostgresSaver(caller, schema="agents")) == [*LARGE, "ours"]
        await saver.adelete_thread("t")
        assert await value(saver) is None
        async with engine.connect() as other:
            await other.run_sync(migrations.downgrade, "agents")
    after = await conn.fetch(sums)
    await conn.close()

    assert after == before
    assert await tables(empty_url) == {"decoy": OURS, "agents": [schema.VERSION_TABLE]}


async def test_a_hosts_translate_map_does_not_move_the_tables(empty_url: str) -> None:
    """What a host renames by schema_translate_map are its own schemas, in migrations as in statements."""
    translated = {None: "elsewhere", "agents": "elsewhere"}
    engine = create_async_engine(
        "postgresql+asyncpg://",
        connect_args={"dsn": empty_url},
        execution_options={"schema_translate_map": translated},
    )
    for name in (None, "agents"):
        saver = AsyncPostgresSaver(engine, schema=name)
        await saver.setup()
        await put(saver, name)
    async with engine.connect() as conn:
        await AsyncPostgresSaver(conn, schema="third").setup()
        assert conn.sync_connection is not None
        assert conn.sync_connection.get_execution_options()["schema_translate_map"] == translated
        await conn.commit()
    await engine.dispose()

    assert await tables(empty_url) == {"public": OURS, "agents": OURS, "third": OURS}


async def test_adoption_of_a_stock_database_in_a_schema(empty_url: str) -> None:
    """The stock saver finds its schema by the search_path; setup() with the schema's name adopts what is there."""
    conn = await asyncpg.connect(empty_url)
    await conn.execute('CREATE SCHEMA "Old Agents"')
    await conn.close()
    theirs = f"{empty_url}&options=-csearch_path%3D%22Old%5C%20Agents%22"
    async with StockSaver.from_conn_string(theirs) as stock, connected(empty_url) as engine:
        await stock.setup()
        await put(stock, LARGE)
        saver = AsyncPostgresSaver(engine, schema="Old Agents")
        await saver.setup()

        assert await value(saver) == LARGE
        # It shares no pages there, so that the stock saver can go on reading.
        await put(saver, [*LARGE, "new"])
        assert await value(stock) == [*LARGE, "new"]
        async with engine.connect() as other:
            await other.run_sync(migrations.downgrade, "Old Agents")
        assert await stock.aget(CONFIG) is not None
    assert set(await tables(empty_url)) == {"Old Agents"}


async def test_public_by_name_and_by_default_are_one(empty: AsyncEngine) -> None:
    """A saver that names the schema, and one that leaves it to the search_path, wait for each other's migrations."""
    named, unnamed = AsyncPostgresSaver(empty, schema="public"), AsyncPostgresSaver(empty)
    async with empty.connect() as one, empty.connect() as other:
        key = await one.run_sync(lock_key_of, None)
        assert key == await other.run_sync(lock_key_of, "public") == lock_key("public")

    await asyncio.gather(*[saver.setup() for saver in (named, unnamed) for _ in range(3)])

    await put(named, "x")
    assert await value(unnamed) == "x"


async def test_ten_schemas_are_set_up_at_once(empty: AsyncEngine, empty_url: str) -> None:
    """A service that starts with all its tenants; each schema has its tables and its version table."""
    savers = [AsyncPostgresSaver(empty, schema=f"tenant {number}") for number in range(10)]

    await asyncio.gather(*[saver.setup() for saver in savers for _ in range(2)])

    await asyncio.gather(*[saver.acheck() for saver in savers])
    assert await tables(empty_url) == {f"tenant {number}": OURS for number in range(10)}


async def test_schemas_do_not_wait_for_each_other(empty: AsyncEngine) -> None:
    """The lock is the schema's: a migration that hangs in one leaves the others alone."""
    async with empty.connect() as conn:
        await conn.execute(select(func.pg_advisory_lock(lock_key("one"))))

        await AsyncPostgresSaver(empty, schema="two").setup(timeout=1)
        with pytest.raises(errors.MigrationLocked):
            await AsyncPostgresSaver(empty, schema="one").setup(timeout=0.1)


def test_eight_processes_set_up_one_schema_at_once(empty_url: str) -> None:
    """One of them makes the schema, none of them fails."""
    done = subprocess.run([sys.executable, "-c", EIGHT, empty_url], check=False, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert asyncio.run(tables(empty_url)) == {"the agents": OURS}


def test_the_command_line_makes_the_schema_when_it_upgrades_and_only_then(empty_url: str, tmp_path: Path) -> None:
    """A mistyped name in `current` or `downgrade` leaves nothing behind; the name may also stand in the ini file."""
    assert alembic("-x", "schema=The Agents", "current", url=empty_url) == ""
    assert 'schema "The Agents" does not exist' in alembic(
        "-x", "schema=The Agents", "downgrade", "base", url=empty_url, fails=True
    )
    assert asyncio.run(tables(empty_url)) == {}

    alembic("-x", "schema=The Agents", "upgrade", "head", url=empty_url)
    ini = tmp_path / "checkpoint_store.ini"
    ini.write_text(f"[alembic]\nscript_location = {script_location()}\ncheckpoint_store_schema = 100%% Agents\n")
    alembic("-c", str(ini), "upgrade", "head", url=empty_url)

    assert asyncio.run(tables(empty_url)) == {"The Agents": OURS, "100% Agents": OURS}
    # Each schema is compared by itself, whatever the others have.
    with psycopg.connect(empty_url) as conn:
        conn.execute('ALTER TABLE "The Agents".checkpoints ADD COLUMN stray int')
    assert "No new upgrade operations" in alembic("-c", str(ini), "check", url=empty_url)
    assert "stray" in alembic("-x", "schema=The Agents", "check", url=empty_url, fails=True)


@pytest.mark.parametrize("may_create", [False, True])
async def test_a_schema_that_exists_needs_no_right_to_create_one(
    empty: AsyncEngine, empty_url: str, may_create: bool
) -> None:
    """An administrator makes the schema and gives it to the deploying role, which may create nothing else."""
    role = f"deployer_{uuid.uuid4().hex}"
    admin = await asyncpg.connect(empty_url)
    await admin.execute(f"CREATE ROLE {role}")
    if may_create:
        await admin.execute(f"CREATE SCHEMA agents AUTHORIZATION {role}")
    async with connected(empty_url, role=role) as engine:
        setup = AsyncPostgresSaver(engine, schema="agents").setup
        if may_create:
            await setup()
            await admin.execute(f"SET ROLE {role}; DROP SCHEMA agents CASCADE; RESET ROLE")
        else:
            with pytest.raises(errors.MigrationError, match=r'permission denied.*and the schema "agents" if'):
                await setup()
    await admin.execute(f"DROP ROLE {role}")
    await admin.close()


@pytest.mark.parametrize("postgres_schema", [None, "The Agents"])
async def test_check_says_where_the_tables_are(
    empty: AsyncEngine, postgres_schema: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A readiness probe fails until head is reached, and tells why; a newer database passes with a warning."""
    saver = AsyncPostgresSaver(empty, schema=postgres_schema)
    async with empty.connect() as conn:
        with pytest.raises(errors.NotSetUp, match=r"were never set up; this version needs \w+. Run `setup\(\)`"):
            await conn.run_sync(migrations.check, postgres_schema)
        with pytest.raises(errors.NotSetUp):
            await saver.acheck()
        await conn.run_sync(lambda sync: migrations.upgrade(sync, postgres_schema, revision="cs01_baseline"))
        with pytest.raises(errors.NotSetUp, match="are at revision cs01_baseline"):
            await conn.run_sync(migrations.check, postgres_schema)
        with pytest.raises(errors.NotSetUp, match="are at revision cs01_baseline"):
            await saver.acheck()
        await conn.run_sync(migrations.upgrade, postgres_schema)
        await conn.run_sync(migrations.check, postgres_schema)
        await saver.acheck()
        await asyncio.to_thread(saver.check)
        assert not caplog.messages
        version = schema.qualified(schema.VERSION_TABLE, postgres_schema)
        await conn.exec_driver_sql(f"UPDATE {version} SET version_num = 'cs99_future'")
        await conn.commit()
        await conn.run_sync(migrations.check, postgres_schema)
        await saver.acheck()

    assert caplog.messages == ["the database is at revision cs99_future, which is newer than this library"] * 2


async def test_check_leaves_a_callers_transaction_as_it_is(empty: AsyncEngine) -> None:
    """It finds no tables without an error of the server's, which would end the transaction."""
    async with empty.begin() as conn:
        await conn.exec_driver_sql("CREATE TABLE orders (id int)")
        with pytest.raises(errors.NotSetUp):
            await conn.run_sync(migrations.check)
        await conn.exec_driver_sql("INSERT INTO orders VALUES (1)")
    async with empty.connect() as conn:
        assert (await conn.exec_driver_sql("SELECT count(*) FROM orders")).scalar() == 1
