"""`checkpoint-store stats`: its numbers of rows, which no table is read for."""

from __future__ import annotations

import json
import time
from typing import Any

import psycopg
import pytest
from psycopg import sql

from checkpoint_store import PostgresSaver
from checkpoint_store.cli import main


def rows(url: str, capsys: pytest.CaptureFixture[str]) -> dict[str, int | None]:
    """Return the numbers that the command prints, by table."""
    capsys.readouterr()
    assert main(["stats", "--json", "--url", url]) == 0
    return {name: table["rows"] for name, table in json.loads(capsys.readouterr().out)["tables"].items()}


def assert_rows(url: str, capsys: pytest.CaptureFixture[str], number: int) -> None:
    """Check the tables of checkpoints and blobs; a session that was closed may take a moment to end."""
    until = time.monotonic() + 10
    while (found := rows(url, capsys))["checkpoint_blobs"] != number and time.monotonic() < until:
        time.sleep(0.1)
    assert (found["checkpoints"], found["checkpoint_blobs"]) == (number, number)


def test_rows_are_those_of_now(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """After changes since the last VACUUM, by sessions that have ended, which report them at once."""
    with psycopg.connect(url, autocommit=True) as conn:
        for table in ("checkpoints", "checkpoint_blobs"):
            # Autovacuum must not come in between.
            conn.execute(sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = false)").format(sql.Identifier(table)))
        conn.execute("VACUUM ANALYZE checkpoints")
        with PostgresSaver.from_conn_string(url) as saver:
            for number in range(20):
                config: Any = {"configurable": {"thread_id": f"t{number}", "checkpoint_ns": ""}}
                checkpoint: Any = {"v": 4, "id": "1", "ts": "", "channel_values": {"m": ["x"]}, "versions_seen": {}}
                saver.put(config, {**checkpoint, "channel_versions": {"m": "1"}}, {}, {"m": "1"})

        assert_rows(url, capsys, 20)

        conn.execute("VACUUM ANALYZE checkpoints, checkpoint_blobs")
        with PostgresSaver.from_conn_string(url) as saver:
            for number in range(15):
                saver.delete_thread(f"t{number}")

        assert_rows(url, capsys, 5)


def test_rows_that_the_server_has_not_counted_are_not_known(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A dash, not a zero."""
    assert set(rows(url, capsys).values()) <= {None}
    assert main(["stats", "--url", url]) == 0
    assert " -  " in capsys.readouterr().out
