"""The recipes of docs/how-to/host-alembic.md, from the built wheel, on fresh databases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from checkpoint_store import schema

OURS = sorted([*(table.name for table in schema.tables.all), schema.VERSION_TABLE])
TABLES = "SELECT tablename::text FROM pg_tables WHERE schemaname = '{}' ORDER BY 1"
HEAD = f"{schema.HEAD} (head)"
NO_CHANGES = "No new upgrade operations detected.\n"


def is_one_look(statements: list[str]) -> bool:
    """Tell whether setup() has found the tables at head: it looked, and did nothing."""
    (only,) = statements
    return only.startswith("SELECT ") and f"{schema.VERSION_TABLE}.version_num" in only


def test_separate_two_chains_in_one_pipeline(host_of: Callable[[str], Any]) -> None:
    """Recipe (a): a section of the host's ini file points into the package; neither chain sees the other."""
    host = host_of("bookshop")

    host.alembic("upgrade", "head")
    host.alembic("-n", "checkpoint_store", "upgrade", "head")

    assert host.fetch(TABLES.format("public")) == sorted(["alembic_version", "orders", *OURS])
    assert host.fetch("SELECT version_num FROM alembic_version") == ["0001_orders"]
    assert host.fetch(f"SELECT version_num FROM {schema.VERSION_TABLE}") == [schema.HEAD]
    assert is_one_look(host.setup())
    assert host.alembic("check") == NO_CHANGES

    host.alembic("-n", "checkpoint_store", "downgrade", "base")
    assert host.fetch(TABLES.format("public")) == ["alembic_version", schema.VERSION_TABLE, "orders"]


def test_separate_from_an_ini_file_of_its_own_and_in_a_schema(host_of: Callable[[str], Any]) -> None:
    """Recipe (a) with a file of three lines beside the host's, and the tables in a schema."""
    host = host_of("bookshop")
    (host.folder / "checkpoint_store.ini").write_text(
        "[alembic]\nscript_location = checkpoint_store:_alembic\ncheckpoint_store_schema = agents\n"
    )
    host.alembic("-c", "checkpoint_store.ini", "upgrade", "head")
    host.alembic("upgrade", "head")

    assert host.fetch(TABLES.format("agents")) == OURS
    assert host.fetch(TABLES.format("public")) == ["alembic_version", "orders"]
    assert is_one_look(host.setup("agents"))


def test_merged_one_chain_of_two_branches(host_of: Callable[[str], Any]) -> None:
    """Recipe (b): the host's `upgrade heads` runs our revisions too; the branch goes up and down by its label."""
    host = host_of("clinic")

    host.alembic("upgrade", "heads")

    assert host.fetch(TABLES.format("public")) == sorted(["alembic_version", "appointments", *OURS])
    assert sorted(host.alembic("current").split("\n")) == ["", "0001_appointments (head)", HEAD]
    assert is_one_look(host.setup())
    assert host.alembic("check") == NO_CHANGES

    host.alembic("downgrade", "checkpoint_store@base")
    assert host.fetch(TABLES.format("public")) == ["alembic_version", "appointments", schema.VERSION_TABLE]
    assert host.fetch("SELECT version_num FROM alembic_version") == ["0001_appointments"]
    host.alembic("upgrade", "checkpoint_store@head")
    assert is_one_look(host.setup())


def test_merged_as_sql(host_of: Callable[[str], Any]) -> None:
    """Recipe (b) offline: what `upgrade heads --sql` prints brings both to head, in a schema that it makes."""
    host = host_of("clinic")

    with psycopg.connect(host.url) as conn:
        conn.execute(host.alembic("-x", "checkpoint_store_schema=100% agents", "upgrade", "heads", "--sql"))

    assert host.fetch(TABLES.format("100% agents")) == OURS
    assert sorted(host.alembic("current").split("\n")) == ["", "0001_appointments (head)", HEAD]
    assert is_one_look(host.setup("100% agents"))


def test_tables_in_the_hosts_own_metadata(host_of: Callable[[str], Any]) -> None:
    """Recipe (c): a foreign key to the checkpoints, a join in a report, and nothing for autogenerate to propose."""
    host = host_of("newsroom")

    host.alembic("upgrade", "heads")

    assert host.fetch(TABLES.format("agents")) == OURS
    assert host.fetch(TABLES.format("newsroom")) == ["alembic_version", "articles"]
    assert is_one_look(host.setup("agents"))
    assert host.alembic("check") == NO_CHANGES
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        host.execute("INSERT INTO newsroom.articles VALUES (1, 'x', 't', '', 'missing')")
    host.execute("INSERT INTO newsroom.articles VALUES (1, 'x', 't', '', '1')")
    report = "import newsroom; from sqlalchemy.dialects import postgresql as p; "
    report += "print(newsroom.steps_by_article().compile(dialect=p.dialect()))"
    assert host.fetch(host.python("-c", report, cwd=host.folder)) == [("x", 1)]
    host.execute("DELETE FROM agents.checkpoints")
    assert host.fetch("SELECT thread_id FROM newsroom.articles") == [None]


@pytest.mark.parametrize(("name", "postgres_schema"), [("bookshop", None), ("newsroom", "agents")])
def test_autogenerate_still_sees_what_is_the_hosts(
    host_of: Callable[[str], Any], name: str, postgres_schema: str | None
) -> None:
    """The hook hides our tables, not the host's: a column in a model that the database lacks is proposed."""
    host = host_of(name)
    host.alembic("upgrade", "heads")
    host.setup(postgres_schema)
    model = host.folder / f"{name}.py"
    key = "(primary_key=True)\n"
    model.write_text(model.read_text().replace(key, f"{key}    note: Mapped[str | None]\n"))

    proposed = host.alembic("check", fails=True)

    assert proposed.count("add_column") == 1
    assert "Column('note'" in proposed
    assert "remove" not in proposed
