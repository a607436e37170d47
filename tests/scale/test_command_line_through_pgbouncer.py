"""The command line through PgBouncer in transaction mode: every command works, and is told nothing of it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver

from checkpoint_store import PostgresSaver
from checkpoint_store.cli import main
from checkpoint_store.cli.commands import app

COMMANDS = [
    ["upgrade"],
    ["check"],
    ["doctor"],
    ["threads", "--count"],
    ["history", "one"],
    ["show", "one"],
    ["diff", "one", "{id}", "{id}"],
    ["stats"],
    ["stats", "one"],
    ["export", "one", "{file}"],
    ["import", "{file}", "--as", "three", "--replace"],
    ["copy", "one", "two", "--replace"],
    ["prune", "one", "two"],
    ["sweep", "--older-than", "30d"],
    ["pages", "share"],
    ["pages", "inline"],
    ["reencrypt"],
    ["delete", "--yes", "two"],
    ["downgrade", "cs02_pages", "--yes"],
    ["upgrade", "cs04_subgraphs"],
]

ADVISORY_LOCKS = """
SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def stored(saver: Any, thread: str) -> str:
    config: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
    checkpoint: Any = {**empty_checkpoint(), "channel_values": {"a": ["x"]}, "channel_versions": {"a": "1"}}
    saver.put(config, checkpoint, {"source": "loop", "step": 0}, {"a": "1"})
    return str(checkpoint["id"])


def test_no_command_is_left_out() -> None:
    """But those that have no database of ours to work on, or make one, or need Citus."""
    every = {command.name for command in app.registered_commands}

    assert every - {command for command, *_ in COMMANDS} == {"sql", "import-from", "demo", "distribute"}


def test_every_command_works_through_it_again_and_again(
    url: str, pooled_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A statement that one command prepared on a connection of the server's is not in the next one's way."""
    monkeypatch.setenv("CHECKPOINT_STORE_URL", pooled_url)
    monkeypatch.setenv("CHECKPOINT_STORE_KEYS", base64.b64encode(b"1" * 16).decode())
    with PostgresSaver.from_conn_string(url) as saver:
        checkpoint_id = stored(saver, "one")

    for _ in range(2):
        for command in COMMANDS:
            # As in a process of its own: asyncpg numbers its statements.
            monkeypatch.setattr(asyncpg.connection, "_uid", 0)
            code = main([argument.format(id=checkpoint_id, file=tmp_path / "one.jsonl") for argument in command])
            assert (code, capsys.readouterr().err) == (0, ""), command

    with psycopg.connect(url) as conn:
        assert conn.execute(ADVISORY_LOCKS).fetchone() == (0,)


def test_threads_are_imported_through_it(
    make_database: Callable[[], str],
    pooled: Callable[[str], str],
    pooled_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From a database behind one into another behind one, more than once."""
    source = make_database()
    with StockSaver.from_conn_string(source) as stock:
        stock.setup()
        for name in ("one", "two"):
            stored(stock, name)

    for _ in range(2):
        assert main(["import-from", pooled(source), "--url", pooled_url]) == 0, capsys.readouterr().err

    assert "2 threads there already" in capsys.readouterr().out
