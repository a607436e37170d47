"""A host's autogenerate proposes nothing about our tables, whether its MetaData has them or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from langgraph.checkpoint.postgres.base import MIGRATIONS as STOCK_MIGRATIONS
from sqlalchemy import (
    Column,
    Connection,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    NullPool,
    Table,
    Text,
    create_engine,
    make_url,
    select,
)
from sqlalchemy.orm import DeclarativeBase

from checkpoint_store import migrations, schema
from checkpoint_store.schema import Tables


@pytest.fixture
def conn(empty_url: str) -> Iterator[Connection]:
    engine = create_engine(make_url(empty_url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with engine.connect() as conn:
        yield conn


def proposals(conn: Connection, metadata: MetaData, **options: Any) -> list[tuple[str, str]]:
    """What autogenerate would write down, as verb and name."""
    context = MigrationContext.configure(conn, opts={"compare_server_default": True, **options})
    found = []
    for proposal in compare_metadata(context, metadata):
        verb, thing = (proposal[0][0], proposal[0]) if isinstance(proposal, list) else (proposal[0], proposal[1])
        found.append((verb, str(getattr(thing, "name", thing))))
    conn.rollback()
    return sorted(found)


def hosts_own(metadata: MetaData) -> MetaData:
    """A MetaData with a table of the host's, which the database has too."""
    Table("orders", metadata, Column("id", Integer, primary_key=True))
    return metadata


def set_up(conn: Connection, postgres_schema: str | None, *, is_adopted: bool = False) -> None:
    conn.exec_driver_sql("CREATE TABLE orders (id serial PRIMARY KEY)")
    if is_adopted:
        conn.exec_driver_sql(f'SET search_path = "{postgres_schema or "public"}"')
        if postgres_schema:
            conn.exec_driver_sql(f'CREATE SCHEMA "{postgres_schema}"')
        for version, migration in enumerate(STOCK_MIGRATIONS):
            conn.exec_driver_sql(migration.replace("CONCURRENTLY", ""))
            conn.exec_driver_sql(f"INSERT INTO checkpoint_migrations VALUES ({version})")
        conn.exec_driver_sql("RESET search_path")
    conn.commit()
    migrations.upgrade(conn, postgres_schema)


@pytest.mark.parametrize("is_adopted", [False, True])
@pytest.mark.parametrize("postgres_schema", [None, "agents"])
def test_without_the_tables_in_its_metadata(conn: Connection, postgres_schema: str | None, is_adopted: bool) -> None:
    """No table, version table or index of ours is to be dropped, and none of the stock saver's."""
    set_up(conn, postgres_schema, is_adopted=is_adopted)
    host = hosts_own(MetaData())
    options = {"include_schemas": postgres_schema is not None}

    assert proposals(conn, host, **options, include_object=migrations.not_ours) == []

    dropped = {name for verb, name in proposals(conn, host, **options) if verb == "remove_table"}
    assert dropped >= {*(table.name for table in schema.tables.all), schema.VERSION_TABLE}, "the hook has nothing to do"


@pytest.mark.parametrize("include_schemas", [False, True])
@pytest.mark.parametrize("postgres_schema", [None, "agents"])
def test_with_the_tables_in_its_metadata(conn: Connection, postgres_schema: str | None, include_schemas: bool) -> None:
    """Nothing is to be created or changed either, before the pipeline has migrated as after."""
    host = hosts_own(MetaData(naming_convention={"pk": "pk_%(table_name)s", "ix": "ix_%(column_0_label)s"}))
    Tables(postgres_schema, metadata=host)
    options = {"include_schemas": include_schemas}
    with_hook = {**options, "include_object": migrations.not_ours}

    set_up_later = proposals(conn, host, **with_hook)
    set_up(conn, postgres_schema)

    assert set_up_later == [("add_table", "orders")]
    assert proposals(conn, host, **with_hook) == []
    if include_schemas or postgres_schema is None:
        # Even without the hook: what Tables() describes is what the revisions have made.
        assert proposals(conn, host, **options) == [("remove_table", schema.VERSION_TABLE)]


def test_a_database_that_is_older_than_the_library(conn: Connection) -> None:
    """What a later revision of ours adds is for that revision to add, not for one of the host's."""
    host = hosts_own(MetaData())
    Tables(metadata=host)
    conn.exec_driver_sql("CREATE TABLE orders (id serial PRIMARY KEY)")
    conn.commit()
    migrations.upgrade(conn, revision="cs01_baseline")

    assert proposals(conn, host, include_object=migrations.not_ours) == []


def test_a_hosts_table_of_the_same_name_elsewhere(conn: Connection) -> None:
    """Tables are known by their key, not by their name alone: the host's own are still compared."""
    set_up(conn, "agents")
    conn.exec_driver_sql("CREATE SCHEMA game; CREATE TABLE game.checkpoints (level int)")
    conn.exec_driver_sql("CREATE TABLE checkpoint_migrations (id int)")
    host = hosts_own(MetaData())
    Table("checkpoint_threads", host, Column("name", Text), schema="game")
    conn.commit()

    assert proposals(conn, host, include_schemas=True, include_object=migrations.not_ours) == [
        ("add_table", "checkpoint_threads"),
        ("remove_table", "checkpoint_migrations"),
        ("remove_table", "checkpoints"),
    ]


def test_many_schemas_at_once(conn: Connection) -> None:
    """A tenant per schema, and in the default one too."""
    conn.exec_driver_sql("CREATE TABLE orders (id serial PRIMARY KEY)")
    conn.commit()
    for name in (None, "one", "The Second"):
        migrations.upgrade(conn, name)

    host = hosts_own(MetaData())
    assert proposals(conn, host, include_schemas=True, include_object=migrations.not_ours) == []


def test_beside_a_rule_of_the_hosts_own(conn: Connection) -> None:
    """The hook is a function that says yes or no, so two of them are an `and`."""
    set_up(conn, None)
    conn.exec_driver_sql("CREATE TABLE legacy (id int)")
    conn.commit()

    def include_object(*asked: Any) -> bool:
        return migrations.not_ours(*asked) and asked[1] != "legacy"

    assert proposals(conn, hosts_own(MetaData()), include_object=include_object) == []


def test_a_default_schema_of_the_hosts_metadata_is_not_ours(conn: Connection) -> None:
    """Tables() with no schema are those that the search_path finds, whatever the host's MetaData has by default."""
    host = MetaData(schema="shop")
    ours, theirs = Tables(metadata=host), Tables("agents", metadata=MetaData(schema="shop"))

    assert {table.schema for table in ours.all} == {None}
    assert {table.schema for table in theirs.all} == {"agents"}
    assert ours.metadata is host


def test_foreign_keys_of_the_hosts_are_compared(conn: Connection) -> None:
    """A host's table that refers to checkpoints is the host's, and so is its foreign key."""
    host = hosts_own(MetaData())
    ours = Tables("agents", metadata=host)
    keys = ["thread_id", "checkpoint_ns", "checkpoint_id"]
    columns = [Column(key, Text) for key in keys]
    Table(
        "articles",
        host,
        Column("id", Integer, primary_key=True),
        *columns,
        ForeignKeyConstraint(keys, [ours.checkpoints.c[key] for key in keys], ondelete="CASCADE"),
    )
    set_up(conn, "agents")
    conn.exec_driver_sql(
        "CREATE TABLE articles (id serial PRIMARY KEY, thread_id text, checkpoint_ns text, checkpoint_id text)"
    )
    conn.commit()
    hook = {"include_object": migrations.not_ours}
    (proposal,) = proposals(conn, host, **hook)
    assert proposal[0] == "add_fk"

    conn.exec_driver_sql(
        "ALTER TABLE articles ADD FOREIGN KEY (thread_id, checkpoint_ns, checkpoint_id)"
        " REFERENCES agents.checkpoints ON DELETE CASCADE"
    )
    conn.commit()
    assert proposals(conn, host, **hook) == []


def test_a_mapped_class_on_the_tables() -> None:
    """A host's ORM can have them too; only the column `metadata` needs another name."""

    class Base(DeclarativeBase):
        pass

    ours = Tables("agents", metadata=Base.metadata)

    class Checkpoint(Base):
        __table__ = ours.checkpoints
        details = ours.checkpoints.c["metadata"]

    statement = select(Checkpoint.thread_id, Checkpoint.details).where(Checkpoint.checkpoint_ns == "")
    assert 'SELECT "agents".checkpoints.thread_id, "agents".checkpoints.metadata' in str(statement)
