"""Distribution on a server without Citus: it is refused, and nothing else notices."""

from __future__ import annotations

import json

import psycopg
import pytest
from sqlalchemy import Connection, NullPool, create_engine, make_url

from checkpoint_store import distribution, migrations
from checkpoint_store.cli import main
from checkpoint_store.errors import MigrationError, NotSetUp


def connection(url: str) -> Connection:
    """A connection of a host's."""
    return create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool).connect()


def test_it_is_refused_by_name(url: str, empty_url: str) -> None:
    """So is the SQL; a database that is not at head is named first."""
    refusal = "this database has no extension citus; run CREATE EXTENSION citus here and on each worker"
    with connection(url) as conn:
        with pytest.raises(MigrationError, match=refusal):
            distribution.distribute(conn)
        assert not conn.in_transaction()
        assert distribution.current(conn) is None
        migrations.check(conn)
    with psycopg.connect(url, autocommit=True) as direct, pytest.raises(psycopg.Error, match=refusal):
        direct.execute(distribution.sql())
    with connection(empty_url) as conn, pytest.raises(NotSetUp, match="were never set up"):
        distribution.distribute(conn)


def test_the_commands(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`distribute` fails, `--sql` asks no database, and `check` has nothing to say of nodes."""
    assert main(["distribute", "--url", url]) == 1
    assert "no extension citus" in capsys.readouterr().err
    assert main(["distribute", "--sql", "--schema", "agents"]) == 0
    assert capsys.readouterr().out == distribution.sql("agents") + "\n"
    assert main(["check", "--url", url]) == 0
    assert "distributed" not in capsys.readouterr().out
    assert main(["check", "--json", "--url", url]) == 0
    assert json.loads(capsys.readouterr().out)["distribution"] is None
