"""The schema's whole life: created, adopted, found at head, undone, printed as SQL."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psycopg
import pytest
from alembic.script import ScriptDirectory
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver as StockSaver
from langgraph.checkpoint.postgres.base import MIGRATIONS as STOCK_MIGRATIONS
from sqlalchemy import event, func, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver, errors, migrations, schema
from checkpoint_store.migrations.lock import lock_key

REPOSITORY = Path(__file__).parents[2]
CONFIG: Any = {"configurable": {"thread_id": "1", "checkpoint_ns": ""}}
CHECKPOINT: Any = {
    "v": 4,
    "id": "1ef4f797-8335-6428-8001-8a1503f9b875",
    "ts": "2026-01-01T00:00:00+00:00",
    "channel_values": {"messages": ["hello"]},
    "channel_versions": {"messages": "1.0"},
    "versions_seen": {},
    "updated_channels": None,
}


@pytest.fixture
async def empty(empty_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": empty_url})
    yield engine
    await engine.dispose()


async def columns(engine: AsyncEngine, table: str) -> dict[str, tuple[str, bool, str | None]]:
    async with engine.connect() as conn:
        found = await conn.run_sync(lambda c: inspect(c).get_columns(table))
    return {column["name"]: (str(column["type"]), column["nullable"], column["default"]) for column in found}


async def shape(url: str) -> list[Any]:
    """Every column and primary key of the three tables, as the catalogs have them."""
    conn = await asyncpg.connect(url)
    try:
        return await conn.fetch(
            """
            SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                   pg_get_expr(d.adbin, d.adrelid),
                   array_position((SELECT i.indkey::int[] FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
                                  a.attnum::int) AS key
            FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
            WHERE c.relname IN ('checkpoints', 'checkpoint_blobs', 'checkpoint_writes')
            ORDER BY 1, 2
            """
        )
    finally:
        await conn.close()


async def set_up_stock(url: str, migrations_run: int) -> None:
    """Bring a database to one of the stock saver's versions, the way its setup() does."""
    conn = await asyncpg.connect(url)
    try:
        for version, migration in enumerate(STOCK_MIGRATIONS[:migrations_run]):
            await conn.execute(migration)
            await conn.execute("INSERT INTO checkpoint_migrations (v) VALUES ($1)", version)
    finally:
        await conn.close()


def alembic(*arguments: str, url: str | None, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "CHECKPOINT_STORE_URL"}
    if url is not None:
        environment["CHECKPOINT_STORE_URL"] = url
    command = [sys.executable, "-m", "alembic", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, check=check, capture_output=True, text=True)


async def test_setup_makes_the_stock_savers_tables_column_for_column(
    empty_url: str, make_database: Callable[[], str]
) -> None:
    """A fresh database of ours can't be told from one of the stock saver's by its columns, types, defaults and keys."""
    async with AsyncPostgresSaver.from_conn_string(empty_url) as ours:
        await ours.setup()
    theirs = make_database()
    async with StockSaver.from_conn_string(theirs) as stock:
        await stock.setup()

    assert await shape(empty_url) == await shape(theirs)


async def test_setup_leaves_out_the_stock_savers_redundant_indexes(url: str) -> None:
    """What a checkpoint pays for beside the primary key: the index by run, and one of the two by age."""
    conn = await asyncpg.connect(url)
    indexes = await conn.fetch("SELECT indexname FROM pg_indexes WHERE tablename LIKE 'checkpoint%' ORDER BY 1")
    await conn.close()

    assert [row["indexname"] for row in indexes] == [
        "checkpoint_blobs_pkey",
        "checkpoint_pages_pkey",
        "checkpoint_store_latest_idx",
        "checkpoint_store_run_idx",
        "checkpoint_store_subgraphs_idx",
        "checkpoint_store_version_pkc",
        "checkpoint_threads_pkey",
        "checkpoint_writes_pkey",
        "checkpoints_pkey",
    ]


@pytest.mark.parametrize("adopted", [False, True])
async def test_values_are_compressed_by_lz4_where_the_server_has_it(empty_url: str, adopted: bool) -> None:
    """In tables of our own; those of the stock saver stay as they are."""
    if adopted:
        await set_up_stock(empty_url, len(STOCK_MIGRATIONS))
    async with AsyncPostgresSaver.from_conn_string(empty_url) as saver:
        await saver.setup()
    conn = await asyncpg.connect(empty_url)
    has_lz4 = await conn.fetchval(
        "SELECT coalesce((SELECT 'lz4' = ANY (enumvals) FROM pg_settings"
        " WHERE name = 'default_toast_compression'), false)"
    )
    methods = await conn.fetch(
        "SELECT to_jsonb(a) ->> 'attcompression' FROM pg_attribute a WHERE attname = 'blob'"
        " AND attrelid IN ('checkpoint_blobs'::regclass, 'checkpoint_writes'::regclass)"
    )
    await conn.close()

    assert {(row[0] or "").strip() for row in methods} == ({"l"} if has_lz4 and not adopted else {""})


async def test_setup_again_changes_nothing(saver: AsyncPostgresSaver) -> None:
    """setup() at every start of a service costs a look and keeps what is stored."""
    await saver.aput(CONFIG, CHECKPOINT, {}, {"messages": "1.0"})

    await saver.setup()

    assert (await saver.aget(CONFIG) or {})["channel_values"] == {"messages": ["hello"]}


async def test_setup_at_head_is_one_statement(engine: AsyncEngine, saver: AsyncPostgresSaver) -> None:
    """A service that starts on a migrated database asks once, takes no lock and never imports Alembic's scripts."""
    seen: list[str] = []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: seen.append(args[2]))

    await saver.setup()

    assert len(seen) == 1
    assert seen[0].startswith("SELECT checkpoint_store_version.version_num")


def test_the_command_line_says_in_one_line_that_a_server_is_unreachable() -> None:
    """A deploy job's log shows host and reason, and no password."""
    failed = alembic("upgrade", "head", url="postgresql://me:secret@127.0.0.1:1/app", check=False)

    assert failed.returncode != 0
    assert "FAILED: postgresql://127.0.0.1:1/app: [Errno 111]" in failed.stderr + failed.stdout
    assert "secret" not in failed.stderr + failed.stdout


async def test_a_role_without_ddl_rights_is_told_what_to_do_before_head(empty_url: str) -> None:
    """On an empty database that role gets the way out, not a bare 'permission denied'."""
    admin = await asyncpg.connect(empty_url)
    role = f"powerless_{os.getpid()}"
    await admin.execute(f"CREATE ROLE {role}; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    engine = create_async_engine(
        "postgresql+asyncpg://", connect_args={"dsn": empty_url, "server_settings": {"role": role}}
    )
    try:
        with pytest.raises(errors.MigrationError, match=r"alembic upgrade head.*with a role that may create tables"):
            await AsyncPostgresSaver(engine).setup()
    finally:
        await engine.dispose()
        await admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await admin.close()


@pytest.mark.parametrize("migrations_run", range(len(STOCK_MIGRATIONS) + 1))
async def test_setup_adopts_a_database_of_every_stock_version(
    empty_url: str, make_database: Callable[[], str], migrations_run: int
) -> None:
    """Whatever version of the stock saver a database comes from, setup() leaves it with the tables both savers want."""
    await set_up_stock(empty_url, migrations_run)

    async with AsyncPostgresSaver.from_conn_string(empty_url) as ours:
        await ours.setup()
        await ours.aput(CONFIG, CHECKPOINT, {}, {"messages": "1.0"})

    newest = make_database()
    await set_up_stock(newest, len(STOCK_MIGRATIONS))
    assert await shape(empty_url) == await shape(newest)
    async with StockSaver.from_conn_string(empty_url) as stock:
        assert (await stock.aget(CONFIG) or {})["channel_values"] == {"messages": ["hello"]}


async def test_adoption_keeps_what_the_stock_saver_stored(empty_url: str) -> None:
    """Checkpoints and writes from before the switch are read as they were."""
    async with StockSaver.from_conn_string(empty_url) as stock:
        await stock.setup()
        stored = await stock.aput(CONFIG, CHECKPOINT, {"step": 1}, {"messages": "1.0"})
        await stock.aput_writes(stored, [("messages", "more")], "task", "path")
        before = await stock.aget_tuple(stored)

    async with AsyncPostgresSaver.from_conn_string(empty_url) as ours:
        await ours.setup()
        assert await ours.aget_tuple(stored) == before


async def test_the_stock_savers_setup_on_ours_does_no_harm(url: str) -> None:
    """During a rollout old pods may start after new ones: their setup() finds nothing to break."""
    async with AsyncPostgresSaver.from_conn_string(url) as ours, StockSaver.from_conn_string(url) as stock:
        stored = await ours.aput(CONFIG, CHECKPOINT, {}, {"messages": "1.0"})
        before = await ours.aget_tuple(stored)

        await stock.setup()
        await ours.setup()

        assert await ours.aget_tuple(stored) == before == await stock.aget_tuple(stored)
    assert "No new upgrade operations" in alembic("check", url=url).stdout


async def test_a_foreign_table_of_the_same_name_is_refused_and_left_alone(empty: AsyncEngine) -> None:
    """An application that has its own `checkpoints` is told so, before anything is made."""
    async with empty.begin() as conn:
        await conn.execute(text("CREATE TABLE checkpoints (id int PRIMARY KEY)"))

    with pytest.raises(errors.MigrationError, match=r"another application.*checkpoints\.thread_id"):
        await AsyncPostgresSaver(empty).setup()

    assert set(await columns(empty, "checkpoints")) == {"id"}
    async with empty.connect() as conn:
        assert await conn.scalar(text("SELECT to_regclass('checkpoint_blobs')")) is None


VARCHAR = """
CREATE TABLE checkpoints (
    thread_id varchar(150) NOT NULL, checkpoint_ns varchar(150) NOT NULL DEFAULT '', checkpoint_id varchar NOT NULL,
    parent_checkpoint_id varchar(150), type varchar(150), checkpoint jsonb NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}', tenant varchar(20), PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id)
);
CREATE TABLE checkpoint_blobs (
    thread_id varchar(150) NOT NULL, checkpoint_ns varchar(150) NOT NULL DEFAULT '', channel varchar NOT NULL,
    version varchar NOT NULL, type varchar NOT NULL, blob bytea,
    PRIMARY KEY (thread_id, checkpoint_ns, channel, version)
);
CREATE TABLE checkpoint_writes (
    thread_id varchar NOT NULL, checkpoint_ns varchar NOT NULL DEFAULT '', checkpoint_id varchar NOT NULL,
    task_id varchar NOT NULL, idx integer NOT NULL, channel varchar NOT NULL, type varchar, blob bytea NOT NULL,
    task_path varchar NOT NULL DEFAULT '', PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
);
INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint)
VALUES ('old', '1', '{"id": "1", "channel_versions": {}, "channel_values": {}}');
"""


@pytest.mark.parametrize("postgres_schema", [None, "Ag'ents"])
async def test_tables_with_varchar_are_adopted_without_being_rewritten(
    empty_url: str, make_database: Callable[[], str], postgres_schema: str | None
) -> None:
    """As an ORM makes them: they become what the stock saver makes, and a column of the host's own stays as it is."""
    theirs = asyncpg.utils._quote_ident(postgres_schema or "public")
    conn = await asyncpg.connect(empty_url)
    await conn.execute(f"CREATE SCHEMA IF NOT EXISTS {theirs}; SET search_path = {theirs};" + VARCHAR)
    files = (
        "SELECT relname, pg_relation_filenode(oid) FROM pg_class WHERE relname IN ('checkpoints', 'checkpoint_blobs',"
        " 'checkpoint_writes', 'checkpoints_pkey', 'checkpoint_blobs_pkey', 'checkpoint_writes_pkey') ORDER BY 1"
    )
    before = await conn.fetch(files)
    async with AsyncPostgresSaver.from_conn_string(empty_url, schema=postgres_schema) as saver:
        await saver.setup()
        await saver.aput({"configurable": {"thread_id": "t" * 200, "checkpoint_ns": ""}}, CHECKPOINT, {}, {})

        assert await saver.aget({"configurable": {"thread_id": "old"}}) is not None
    assert await conn.fetch(files) == before
    await conn.execute("ALTER TABLE checkpoints DROP COLUMN tenant")
    await conn.close()
    newest = make_database()
    await set_up_stock(newest, len(STOCK_MIGRATIONS))
    assert await shape(empty_url) == await shape(newest)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_an_encoding_that_lacks_characters_is_named_once(
    server_url: str, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By setup() and by what readiness probes call, with the way out; they go on, since most texts can be stored."""
    name = f"test_{uuid.uuid4().hex}"
    url = urlsplit(server_url)._replace(path=f"/{name}").geturl()
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0".encode()
        )
        try:
            with PostgresSaver.from_conn_string(url) as saver:
                saver.setup()
                saver.check()
            (told,) = [record.getMessage() for record in caplog.records if "encoding" in record.getMessage()]
            assert told.startswith(f'database "{name}" has the encoding {encoding}, not UTF8')

            command = [sys.executable, "-m", "checkpoint_store", "check", "--url", url]
            checked = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
            assert checked.stderr == f"{told}\n"
            assert checked.stdout.startswith(f"at {schema.HEAD}")
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.mark.timeout(900)  # a process takes seconds of CPU to start
def test_32_processes_set_up_an_empty_database_at_once(empty_url: str) -> None:
    """A deployment of many replicas may call setup() in all of them: each one succeeds."""
    script = (
        "import sys; from checkpoint_store import PostgresSaver\n"
        "with PostgresSaver.from_conn_string(sys.argv[1]) as saver:\n"
        "    sys.stdin.readline()\n"
        "    saver.setup(timeout=600)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, empty_url], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(32)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    try:
        outcomes = [
            (process.communicate(timeout=600)[1].splitlines()[-1:], process.returncode) for process in processes
        ]
    finally:
        for process in processes:
            process.kill()

    assert outcomes == [([], 0)] * 32
    assert alembic("current", url=empty_url).stdout.strip() == f"{schema.HEAD} (head)"


async def test_setups_on_one_loop_do_not_disturb_each_other(empty_url: str, make_database: Callable[[], str]) -> None:
    """Alembic has one context per process; two savers on one loop set up two databases all the same."""
    urls = [empty_url, make_database(), make_database()]
    async with (
        AsyncPostgresSaver.from_conn_string(urls[0]) as one,
        AsyncPostgresSaver.from_conn_string(urls[1]) as two,
        AsyncPostgresSaver.from_conn_string(urls[2]) as three,
    ):
        await asyncio.gather(*[saver.setup() for saver in (one, two, three) for _ in range(4)])

        for saver in (one, two, three):
            await saver.aput(CONFIG, CHECKPOINT, {}, {"messages": "1.0"})


async def test_setup_gives_up_when_another_process_holds_the_lock(empty: AsyncEngine) -> None:
    """A migration that hangs elsewhere becomes an error here, not a hang."""
    async with empty.connect() as other:
        await other.execute(select(func.pg_advisory_lock(lock_key("public"))))

        with pytest.raises(errors.MigrationLocked, match="another process has held the migration lock"):
            await AsyncPostgresSaver(empty).setup(timeout=0.2)


async def test_setup_in_a_callers_transaction_is_undone_with_it(empty: AsyncEngine) -> None:
    """On a connection of the caller's setup() commits nothing: the tables come and go with the transaction."""
    async with empty.connect() as conn:
        saver = AsyncPostgresSaver(conn)
        await saver.setup()
        await saver.aput(CONFIG, CHECKPOINT, {}, {"messages": "1.0"})
        await conn.rollback()

    with pytest.raises(errors.NotSetUp):
        await AsyncPostgresSaver(empty).aget(CONFIG)


async def test_setup_makes_a_schema_that_is_missing(empty_url: str) -> None:
    """A schema per tenant is made with its tables and its own version table, quoting included."""
    async with AsyncPostgresSaver.from_conn_string(empty_url, schema='The "Agents"') as saver:
        await saver.setup()
        await saver.aput(CONFIG, CHECKPOINT, {}, {"messages": "1.0"})
        assert await saver.aget(CONFIG) is not None
    async with AsyncPostgresSaver.from_conn_string(empty_url) as outside:
        with pytest.raises(errors.NotSetUp):
            await outside.aget(CONFIG)


async def test_a_newer_database_is_left_as_it_is(
    engine: AsyncEngine, saver: AsyncPostgresSaver, caplog: pytest.LogCaptureFixture
) -> None:
    """While a rollout goes on, old processes that restart neither fail nor touch what newer ones have migrated."""
    async with engine.begin() as conn:
        await conn.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = 'cs99_future'"))

    await saver.setup()

    assert "newer than this library" in caplog.text


async def test_setup_leaves_the_hosts_loggers_alone(empty_url: str) -> None:
    """Alembic's usual fileConfig would disable every logger of the application; ours doesn't."""
    log = logging.getLogger("host.application")

    async with AsyncPostgresSaver.from_conn_string(empty_url) as saver:
        await saver.setup()

    assert not log.disabled


def test_the_sync_saver_sets_up_too(empty_url: str) -> None:
    """PostgresSaver.setup() is a plain call."""
    with PostgresSaver.from_conn_string(empty_url) as saver:
        saver.setup()
        saver.setup()
        assert saver.get(CONFIG) is None


async def test_up_down_and_up_again(empty_url: str) -> None:
    """`alembic downgrade base` takes away what `alembic upgrade head` has made, and only that."""
    alembic("upgrade", "head", url=empty_url)
    made = await shape(empty_url)
    alembic("downgrade", "base", url=empty_url)
    assert await shape(empty_url) == []
    alembic("upgrade", "head", url=empty_url)

    assert await shape(empty_url) == made != []


async def test_downgrade_leaves_an_adopted_database_to_the_stock_saver(empty_url: str) -> None:
    """Undoing the adoption must not drop the tables that the stock saver had before."""
    async with StockSaver.from_conn_string(empty_url) as stock:
        await stock.setup()
        await stock.aput(CONFIG, CHECKPOINT, {}, {"messages": "1.0"})
        alembic("upgrade", "head", url=empty_url)

        alembic("downgrade", "base", url=empty_url)

        assert await stock.aget(CONFIG) is not None


def test_autogenerate_finds_no_difference(url: str) -> None:
    """What the revisions make and what `schema` describes are the same."""
    assert "No new upgrade operations detected" in alembic("check", url=url).stdout


def test_there_is_one_head_and_the_library_knows_it() -> None:
    """`schema.HEAD`, which setup() compares without Alembic, is the head of the revisions."""
    script = ScriptDirectory.from_config(migrations.config())

    assert script.get_heads() == [schema.HEAD]
    assert script.get_revision(schema.HEAD).branch_labels == {"checkpoint_store"}


@pytest.mark.parametrize("postgres_schema", [None, "Ag'ents"])
async def test_offline_sql_does_what_upgrade_does(
    empty_url: str, make_database: Callable[[], str], postgres_schema: str | None
) -> None:
    """The SQL for a database administrator to run makes the same tables, and setup() then has nothing to do."""
    script = migrations.offline_sql(postgres_schema)
    conn = await asyncpg.connect(empty_url)
    if postgres_schema:
        await conn.execute(f'CREATE SCHEMA "{postgres_schema}"')
    await conn.execute(script)
    await conn.close()

    online = make_database()
    async with AsyncPostgresSaver.from_conn_string(online, schema=postgres_schema) as saver:
        await saver.setup()
    assert await shape(empty_url) == await shape(online) != []


def test_offline_sql_from_the_command_line_needs_no_database() -> None:
    """`alembic upgrade head --sql` prints without a URL, and `downgrade` too."""
    up = alembic("upgrade", "head", "--sql", url=None).stdout
    down = alembic("downgrade", f"{schema.HEAD}:base", "--sql", url=None).stdout

    assert up.count("CREATE TABLE IF NOT EXISTS") == 5
    assert "DROP TABLE checkpoints" in down


def test_the_command_line_says_what_is_missing_without_a_url() -> None:
    """Alembic without a database is one clear line."""
    failed = alembic("upgrade", "head", url=None, check=False)

    assert failed.returncode != 0
    assert "no database is named: set CHECKPOINT_STORE_URL" in failed.stderr


def test_the_command_line_takes_a_url_argument(empty_url: str) -> None:
    """`alembic -x url=...` works where an environment variable does not fit."""
    alembic("-x", f"url={empty_url}", "upgrade", "head", url=None)

    assert schema.HEAD in alembic("-x", f"url={empty_url}", "current", url=None).stdout


async def test_current_tells_where_a_database_is(empty: AsyncEngine) -> None:
    """Code that drives the migrations can ask before and after, up and down."""
    async with empty.connect() as conn:
        assert await conn.run_sync(migrations.current) is None
        await conn.run_sync(migrations.upgrade)
        assert await conn.run_sync(migrations.current) == schema.HEAD
        await conn.run_sync(migrations.downgrade)
        assert await conn.run_sync(migrations.current) is None


async def test_a_revision_that_is_not_known_is_a_migration_error(empty: AsyncEngine) -> None:
    """Code that drives the migrations has one family of errors to expect."""
    async with empty.connect() as conn:
        with pytest.raises(errors.MigrationError, match="Can't locate revision identified by 'cs99'"):
            await conn.run_sync(lambda sync: migrations.upgrade(sync, revision="cs99"))
        await conn.run_sync(migrations.upgrade)
        with pytest.raises(errors.MigrationError, match="can't be run"):
            await conn.run_sync(lambda sync: migrations.downgrade(sync, revision="cs00"))


def test_the_command_line_refuses_a_name_that_can_be_no_schemas() -> None:
    """As one line, with the reason."""
    failed = alembic("-x", f"schema={'x' * 64}", "upgrade", "head", "--sql", url=None, check=False)

    assert failed.returncode != 0
    assert "FAILED: schema must have at most 63 bytes, not 64 as 'xxx" in failed.stdout + failed.stderr
