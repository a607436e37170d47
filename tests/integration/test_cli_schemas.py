"""Tables in a schema that a command was not told of: it names them, and a second, empty set is noticed."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest
from psycopg import sql

from checkpoint_store import PostgresSaver
from checkpoint_store.cli import main


@pytest.fixture
def agents(empty_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """A database whose tables are in the schema `agents`, with a thread."""
    monkeypatch.setenv("CHECKPOINT_STORE_URL", empty_url)
    with PostgresSaver.from_conn_string(empty_url, schema="agents") as saver:
        saver.setup()
        config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        checkpoint: Any = {"v": 4, "id": "1", "ts": "", "channel_values": {}, "channel_versions": {}}
        saver.put(config, checkpoint, {}, {})
    with psycopg.connect(empty_url, autocommit=True) as conn:
        conn.execute("ANALYZE agents.checkpoints")
    capsys.readouterr()
    return empty_url


@pytest.mark.parametrize(
    "command",
    [["check"], ["check", "--json"], ["threads"], ["stats"], ["history", "t"], ["delete", "--yes", "t"]],
    ids=" ".join,
)
def test_a_command_names_the_schema_that_has_tables(
    agents: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the advice to set up, which would make a second, empty set."""
    assert main(command) == 3

    said = capsys.readouterr().err
    assert "the tables were never set up" in said
    assert 'There are tables in schema "agents": add --schema agents. To set up new ones here, run' in said
    assert said.endswith("`checkpoint-store upgrade`.\n")
    assert main([*command, "--schema", "agents"]) == 0


def test_the_schema_that_a_command_is_told_of_has_none(agents: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt name; the command to set up has it."""
    assert main(["threads", "--schema", "agent"]) == 3

    said = capsys.readouterr().err
    assert 'There are tables in schema "agents": add --schema agents.' in said
    assert "run `checkpoint-store upgrade --schema agent`." in said


def test_many_schemas_are_counted(agents: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each tenant has one; that with checkpoints is named first."""
    for tenant in range(6):
        assert main(["upgrade", "--schema", f"a tenant {tenant}"]) == 0
    capsys.readouterr()

    assert main(["threads"]) == 3

    said = capsys.readouterr().err
    assert 'There are tables in 7 schemas, such as "agents", "a tenant 0", "a tenant 1": add --schema agents.' in said


def test_a_schema_that_the_role_may_not_use_is_not_named(agents: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It could do nothing there."""
    role = sql.Identifier(f"reader {uuid.uuid4().hex}")
    with psycopg.connect(agents, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE ROLE {}").format(role))
        database = sql.Identifier(conn.info.dbname)
        conn.execute(sql.SQL("ALTER DATABASE {} SET role = {}").format(database, role))
        try:
            assert main(["threads"]) == 3
        finally:
            conn.execute(sql.SQL("ALTER DATABASE {} RESET role").format(database))
            conn.execute(sql.SQL("DROP ROLE {}").format(role))

    said = capsys.readouterr().err
    assert "the tables were never set up" in said
    assert "agents" not in said


def test_upgrade_says_that_another_schema_has_tables(agents: str, capsys: pytest.CaptureFixture[str]) -> None:
    """After it has worked, in one line, as long as the tables that it has upgraded are empty."""
    assert main(["upgrade"]) == 0
    done = capsys.readouterr()
    assert done.out.startswith("at ")
    assert done.err == 'there are tables in schema "agents" too; --schema agents names those\n'

    assert main(["upgrade", "--schema", "agents"]) == 0
    assert capsys.readouterr().err == ""


def test_doctor_warns_of_an_empty_set_beside_one_with_checkpoints(
    agents: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the empty one alone."""
    assert main(["upgrade"]) == 0
    assert main(["doctor"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert 'warning schemas: the tables here have no checkpoints, while those in schema "agents" have some.' in said
    assert "checkpoint-store doctor --schema agents" in said

    assert main(["doctor", "--schema", "agents"]) == 0
    assert "ok schemas: tables of the same names are in" in " ".join(capsys.readouterr().out.split())
