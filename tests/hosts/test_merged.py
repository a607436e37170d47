"""Our revisions under a host's env.py: `checkpoint_store_version` says where the tables are, whoever ran what."""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import NullPool, create_engine, make_url

from checkpoint_store import PostgresSaver, errors, migrations, schema

REVISIONS = [
    script.revision for script in ScriptDirectory.from_config(migrations.config()).walk_revisions("base", "heads")
][::-1]
NOTED = f"SELECT version_num FROM {schema.VERSION_TABLE}"
HOSTS_OWN = "SELECT version_num FROM alembic_version WHERE version_num LIKE 'cs%'"


@pytest.fixture
def clinic(host_of: Callable[[str], Any]) -> Any:
    return host_of("clinic")


@pytest.fixture
def saver(clinic: Any) -> Iterator[PostgresSaver]:
    with PostgresSaver.from_conn_string(clinic.url) as saver:
        yield saver


def test_both_version_tables_are_in_step(clinic: Any) -> None:
    """After each revision, up and down, ours says what the host's says."""
    for revision in REVISIONS:
        clinic.drive("upgrade", revision)
        assert clinic.fetch(NOTED) == clinic.fetch(HOSTS_OWN) == [revision]
    for revision in REVISIONS[-2::-1]:
        clinic.drive("downgrade", revision)
        assert clinic.fetch(NOTED) == clinic.fetch(HOSTS_OWN) == [revision]
    clinic.drive("downgrade", "checkpoint_store@base")
    assert clinic.fetch(NOTED) == clinic.fetch(HOSTS_OWN) == []


def test_the_tables_are_the_same_whoever_makes_them(clinic: Any, make_database: Callable[[], str]) -> None:
    """Names of constraints and indexes included, under a host's naming convention too."""
    shape = """
        SELECT attrelid::regclass || '.' || attname || ' ' || format_type(atttypid, atttypmod) || attnotnull
        FROM pg_attribute WHERE attrelid::regclass::text LIKE 'checkpoint%' AND attnum > 0
        UNION SELECT 'index ' || indexdef FROM pg_indexes WHERE tablename LIKE 'checkpoint%'
        UNION SELECT 'constraint ' || conname || pg_get_constraintdef(oid) FROM pg_constraint
            WHERE conrelid::regclass::text LIKE 'checkpoint%' ORDER BY 1
    """
    environment = clinic.folder / "migrations" / "env.py"
    convention = "Base.metadata.naming_convention = {'pk': 'pk_%(table_name)s', 'ix': 'ix_%(table_name)s'}\n"
    environment.write_text(environment.read_text().replace("\n\ndef run(", f"\n{convention}\n\ndef run(", 1))
    clinic.drive("upgrade", "heads")
    with psycopg.connect(make_database()) as conn:
        conn.execute(migrations.offline_sql())
        ours = [row[0] for row in conn.execute(shape)]

    assert clinic.fetch(shape) == ours != []


def test_what_setup_has_done_is_not_done_again(clinic: Any, saver: PostgresSaver) -> None:
    """A database that setup() has made, or that it has brought further than the host's pipeline, keeps what it has."""
    clinic.drive("upgrade", "cs01_baseline")
    saver.setup()
    clinic.setup()

    clinic.drive("upgrade", "heads")

    assert clinic.fetch(NOTED) == clinic.fetch(HOSTS_OWN) == [schema.HEAD]
    assert clinic.fetch("SELECT thread_id FROM checkpoints") == ["t"]

    # And what is undone already is not undone again.
    with create_engine(make_url(clinic.url).set(drivername="postgresql+psycopg"), poolclass=NullPool).connect() as conn:
        migrations.downgrade(conn)
    clinic.drive("downgrade", "checkpoint_store@base")
    assert clinic.fetch(HOSTS_OWN) == []


def test_a_host_that_is_behind_does_not_undo_half(clinic: Any, saver: PostgresSaver) -> None:
    """Where setup() has gone further, a downgrade of the host's would leave later revisions hanging: it says so."""
    clinic.drive("upgrade", "cs02_pages")
    saver.setup()

    with pytest.raises(CommandError, match=r"can't undo cs02_pages.*Upgrade first"):
        clinic.drive("downgrade", "cs01_baseline")

    assert clinic.fetch(NOTED) == [schema.HEAD]
    saver.check()


def test_a_host_that_was_stamped_ahead_does_not_skip_revisions(clinic: Any, saver: PostgresSaver) -> None:
    """What the host's table says of a database that never was migrated is not believed; setup() mends it."""
    clinic.drive("stamp", "cs02_pages")

    with pytest.raises(CommandError, match=r"can't run cs03_lifecycle.*at no revision, not at cs02_pages. Run setup"):
        clinic.drive("upgrade", "heads")

    saver.setup()
    clinic.drive("upgrade", "heads")
    assert clinic.fetch(NOTED) == clinic.fetch(HOSTS_OWN) == [schema.HEAD]


def test_a_newer_database_is_left_as_it_is(clinic: Any, saver: PostgresSaver) -> None:
    """A newer version's setup() has been there: the host's older pipeline runs nothing of ours, up or down."""
    clinic.drive("upgrade", "cs02_pages")
    clinic.execute(f"UPDATE {schema.VERSION_TABLE} SET version_num = 'cs99_future'")

    clinic.drive("upgrade", "heads")
    with pytest.raises(CommandError, match="cs99_future, which comes after it"):
        clinic.drive("downgrade", "checkpoint_store@base")

    assert clinic.fetch(NOTED) == ["cs99_future"]
    assert not clinic.fetch("SELECT FROM pg_indexes WHERE indexname LIKE 'checkpoint_store%idx'")


@pytest.mark.parametrize("how", ["argument", "attribute", "option"])
def test_the_schema_can_be_named_in_three_ways(clinic: Any, how: str) -> None:
    """`-x` for one run, `config.attributes` for an env.py that goes through tenants, an option for good."""
    given: dict[str, Any] = {}
    if how == "argument":
        given = {"x": Namespace(x=["checkpoint_store_schema=The Agents"])}
    elif how == "attribute":
        environment = clinic.folder / "migrations" / "env.py"
        line = "context.config.attributes['checkpoint_store_schema'] = 'The Agents'\n"
        environment.write_text(environment.read_text().replace("\n\ndef run(", f"\n{line}\n\ndef run(", 1))
    else:
        ini = clinic.folder / "alembic.ini"
        ini.write_text(ini.read_text() + "checkpoint_store_schema = The Agents\n")

    clinic.drive("upgrade", "heads", **given)

    tables = "SELECT tablename::text FROM pg_tables WHERE schemaname = '{}' ORDER BY 1"
    ours = sorted([*(table.name for table in schema.tables.all), schema.VERSION_TABLE])
    assert clinic.fetch(tables.format("The Agents")) == ours
    assert clinic.fetch(tables.format("public")) == ["alembic_version", "appointments"]
    (look,) = clinic.setup("The Agents")
    assert look.startswith("SELECT")
    clinic.drive("downgrade", "checkpoint_store@base", **given)
    assert clinic.fetch(tables.format("The Agents")) == [schema.VERSION_TABLE]


def test_tables_of_create_all_are_adopted(host_of: Callable[[str], Any]) -> None:
    """A test suite of the host's that makes all tables of its MetaData and stamps: setup() finds nothing in the way."""
    newsroom = host_of("newsroom")
    sys.path.insert(0, str(newsroom.folder))
    from newsroom import Base

    newsroom.execute("CREATE SCHEMA agents; CREATE SCHEMA newsroom")
    engine = create_engine(make_url(newsroom.url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with engine.begin() as conn:
        Base.metadata.create_all(conn)
    newsroom.drive("stamp", "heads")

    newsroom.setup("agents")

    assert newsroom.fetch(f"SELECT version_num FROM agents.{schema.VERSION_TABLE}") == [schema.HEAD]
    newsroom.drive("check")


@pytest.mark.parametrize(
    ("what", "instead"),
    [("", ""), ("        transaction_per_migration=True,\n", ""), ("engine.connect()", "engine.begin()")],
    ids=["each-its-own", "one-for-all", "the-hosts-own"],
)
def test_whatever_transactions_the_host_has(clinic: Any, what: str, instead: str) -> None:
    """One for each revision, one for all, one that env.py began: indexes of a table in use are built in any."""
    environment = clinic.folder / "migrations" / "env.py"
    clinic.drive("upgrade", "cs02_pages")
    clinic.execute("INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint) VALUES ('t', '1', '{}')")
    assert what in environment.read_text()
    environment.write_text(environment.read_text().replace(what, instead))

    clinic.drive("upgrade", "heads")

    assert clinic.fetch(NOTED) == clinic.fetch(HOSTS_OWN) == [schema.HEAD]
    assert clinic.fetch("SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'checkpoint_store%idx'") == [3]
    clinic.setup()


def test_a_translate_map_of_the_hosts_does_not_move_the_tables(clinic: Any) -> None:
    """It renames the host's schemas, not the one that is named for our tables."""
    environment = clinic.folder / "migrations" / "env.py"
    translated = "NullPool, execution_options={'schema_translate_map': {'agents': 'elsewhere'}}"
    environment.write_text(environment.read_text().replace("poolclass=NullPool", f"poolclass={translated}"))

    clinic.drive("upgrade", "heads", x=Namespace(x=["checkpoint_store_schema=agents"]))

    (look,) = clinic.setup("agents")
    assert look.startswith("SELECT")


def test_a_failed_revision_leaves_no_note(clinic: Any) -> None:
    """The note is part of the revision's transaction."""
    clinic.execute("CREATE TABLE checkpoint_threads (id int)")

    with pytest.raises(Exception, match=r"another application.*checkpoint_threads\.thread_id"):
        clinic.drive("upgrade", "heads")

    assert clinic.fetch(NOTED) == clinic.fetch(HOSTS_OWN) == ["cs01_baseline"]


SETUP = """
import sys
from checkpoint_store import PostgresSaver

with PostgresSaver.from_conn_string(sys.argv[1]) as saver:
    saver.setup()
"""


async def test_pipeline_and_services_start_at_once(clinic: Any) -> None:
    """The host's `upgrade heads` and setup() in other processes wait for each other; all succeed."""
    await asyncio.gather(
        asyncio.to_thread(clinic.alembic, "upgrade", "heads"),
        *[asyncio.to_thread(clinic.python, "-c", SETUP, clinic.url) for _ in range(2)],
    )

    assert clinic.fetch(NOTED) == clinic.fetch(HOSTS_OWN) == [schema.HEAD]


async def test_nobody_else_migrates_while_an_index_is_built_online(clinic: Any, saver: PostgresSaver) -> None:
    """Outside the transaction the host's pipeline still holds the lock, and gives it back in the end."""
    await asyncio.to_thread(clinic.alembic, "upgrade", "cs02_pages")
    clinic.execute(
        "CREATE TABLE held (id int);"
        "INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint) VALUES ('t', '1', '{}')"
    )
    with psycopg.connect(clinic.url) as holding, psycopg.connect(clinic.url, autocommit=True) as watching:
        # CREATE INDEX CONCURRENTLY waits for this snapshot.
        holding.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holding.execute("SELECT * FROM held")
        upgrade = asyncio.create_task(asyncio.to_thread(clinic.alembic, "upgrade", "heads"))
        find = (
            "SELECT count(*) FROM pg_stat_progress_create_index"
            " WHERE phase LIKE 'waiting for old snapshots' AND datname = current_database()"
        )
        while watching.execute(find).fetchone() == (0,):
            assert not upgrade.done(), upgrade.result()
            await asyncio.sleep(0)
        with pytest.raises(errors.MigrationLocked):
            await asyncio.to_thread(saver.setup, timeout=0.1)
        holding.rollback()
        await upgrade
        here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        held = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND {here}"
        assert watching.execute(held).fetchone() == (0,)

    assert clinic.fetch(NOTED) == clinic.fetch(HOSTS_OWN) == [schema.HEAD]
    assert set(clinic.fetch("SELECT indisvalid FROM pg_index WHERE indrelid = 'checkpoints'::regclass")) == {True}


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_revision_goes_through_the_one_place(revision: str) -> None:
    """A revision that did not would leave no note under a host's env.py."""
    script = ScriptDirectory.from_config(migrations.config()).get_revision(revision)
    source = Path(script.path).read_text()

    assert "@upgrade_to(revision, down_revision)\ndef upgrade(" in source
    assert "@downgrade_from(revision, down_revision)\ndef downgrade(" in source
