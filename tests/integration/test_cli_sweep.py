"""The command `sweep` for threads that have expired, and what it says about the room that it has made."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import create_engine

from checkpoint_store import PostgresSaver, SweepReport, partitioning
from checkpoint_store.cli import retention
from tests.integration.commands import Cli, Done
from tests.integration.histories import id_at

CHANCE = random.Random(5)
LINE = r"VACUUM makes about [\d.]+ k?B reusable \((.+)\); files shrink only by VACUUM FULL or pg_repack\n"


def store(saver: PostgresSaver, thread_id: str, *days: float, **metadata: Any) -> None:
    """Store a thread with checkpoints of these ages."""
    for age in days:
        config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        checkpoint: Any = {**empty_checkpoint(), "id": id_at(datetime.now(UTC) - timedelta(days=age), CHANCE)}
        saver.put(config, checkpoint, metadata, {})  # type: ignore[arg-type]


@pytest.fixture
def filled(url: str, sync_saver: PostgresSaver) -> str:
    """Its URL, with five threads."""
    store(sync_saver, "idle", 50, 40, plan="trial")
    store(sync_saver, "idle \x1b[31mred", 60, plan="trial")
    store(sync_saver, "pinned", 50, plan="trial", pinned=True)
    store(sync_saver, "paid", 50, plan="paid")
    store(sync_saver, "long", 400, 5, plan="paid")
    return url


def threads(url: str) -> set[str]:
    with psycopg.connect(url) as conn:
        return {row[0] for row in conn.execute("SELECT DISTINCT thread_id FROM checkpoints")}


def test_a_dry_run_lists_the_threads_that_a_sweep_then_deletes(run: Cli, filled: str) -> None:
    """By idle time and metadata, but for exempt ones; what is stored is printed as plain text."""
    options = ["--idle", "30d", "--filter", '{"plan": "trial"}', "--never", '{"pinned": true}']

    rehearsed = run("sweep", *options, "--dry-run")
    listed = json.loads(run("sweep", *options, "--dry-run", "--json").out)
    assert len(threads(filled)) == 5
    done = run("sweep", *options)

    header, *rows, total = rehearsed.out.splitlines()
    assert header.split() == ["THREAD", "UPDATED", "(UTC)", "CHECKPOINTS"]
    assert [row.split("  ")[0] for row in rows] == ["idle", r"idle \x1b[31mred"]
    assert total.startswith("would remove 3 checkpoints of 2 threads, ")
    assert listed["expired"] == ["idle", "idle \x1b[31mred"]
    assert (listed["threads"], listed["checkpoints"]) == (2, 3)
    assert done == Done(0, total.replace("would remove", "removed") + "\n", "")
    assert threads(filled) == {"pinned", "paid", "long"}


def test_a_hard_age_deletes_threads_in_use(run: Cli, filled: str) -> None:
    """And several rules of exemption go together."""
    never = ["--never", '{"pinned": true}', "--never", '{"plan": "paid"}']
    assert run("sweep", "--age", "300d", *never).out.startswith("removed 0 checkpoints of 0 threads")
    assert run("sweep", "--age", "300d").out.startswith("removed 2 checkpoints of 1 thread, ")
    assert threads(filled) == {"idle", "idle \x1b[31mred", "pinned", "paid"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "sweep needs --older-than or --keep-last, --idle or --age: without them everything stays"),
        (["--idle", "30"], "--idle must be a number with a unit: s, m, h, d or w, as in 30d or 1d12h, not '30'"),
        (["--age", "0d"], "--age must be more than zero"),
        (["--idle", "30d", "--keep-last", "3"], "--idle and --age delete whole threads: sweep with --older-than or"),
        (["--idle", "30d", "--spare-active"], "--spare-active needs --older-than"),
        (["--keep-last", "3", "--filter", "{}"], "--filter and --never need --idle or --age"),
        (["--older-than", "3d", "--never", "{}"], "--filter and --never need --idle or --age"),
        (["--idle", "30d", "--filter", "plan=trial"], "--filter must be a JSON object that the metadata contains"),
        (["--idle", "30d", "--never", "[1]"], "--never must be a JSON object that the metadata contains"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Cli, filled: str, arguments: list[str], says: str) -> None:
    """With exit code 2, before anything is deleted."""
    done = run("sweep", *arguments)

    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {says}")
    assert len(threads(filled)) == 5


def test_after_much_was_deleted_one_line_says_how_the_room_is_used(
    run: Cli, url: str, sync_saver: PostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And when autovacuum comes by its settings, also those of a table; a dry run says nothing of it."""
    monkeypatch.setattr(retention, "_MANY_ROWS", 10)
    for number in range(100):
        store(sync_saver, f"t{number:02}", 50, kept=number >= 30)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("VACUUM ANALYZE checkpoints")
        # 20 and 0.2 of 100 rows.
        conn.execute("ALTER TABLE checkpoints SET (autovacuum_vacuum_threshold = 20)")

    def swept(*arguments: str) -> str:
        found = re.fullmatch(LINE, run(*arguments).err)
        assert found is not None
        return found[1]

    assert run("sweep", "--idle", "30d", "--dry-run").err == ""
    assert run("prune", "t00", "t01").err == ""
    kept = ["--never", '{"kept": true}']
    assert swept("sweep", "--idle", "30d", *kept) == "autovacuum comes to checkpoints after 11 more dead rows"
    assert swept("sweep", "--idle", "30d") == "autovacuum is due"
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("ALTER TABLE checkpoints SET (autovacuum_enabled = false)")
    for number in range(100):
        store(sync_saver, f"t{number:02}", 50)
    assert swept("sweep", "--idle", "30d") == "autovacuum is off for checkpoints"


def test_the_room_in_partitions_is_that_of_their_table(
    run: Cli, url: str, sync_saver: PostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them has a threshold of its own, and autovacuum comes to each."""
    monkeypatch.setattr(retention, "_MANY_ROWS", 10)
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as conn:
        partitioning.partition(conn, partitions=4)
    engine.dispose()
    for number in range(300):
        store(sync_saver, f"t{number:03}", 50, kept=number >= 30)

    found = re.fullmatch(LINE, run("sweep", "--idle", "30d", "--never", '{"kept": true}').err)
    assert found is not None
    # 50 rows of each, beyond which they must be; nothing was analyzed yet.
    assert found[1] == "autovacuum comes to checkpoints after 171 more dead rows"
    assert re.fullmatch(LINE, run("sweep", "--idle", "30d").err)[1] == "autovacuum is due"  # type: ignore[index]


def test_a_bar_shows_how_many_threads_there_are_and_the_time_left(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal, on standard error; the number is counted while the sweep begins."""
    monkeypatch.setenv("CHECKPOINT_STORE_URL", filled)
    with psycopg.connect(filled) as conn:
        conn.execute("SELECT FROM checkpoints WHERE thread_id = 'paid' FOR UPDATE")
        leader, follower = pty.openpty()
        command = [sys.executable, "-m", "checkpoint_store", "sweep", "--idle", "30d", "--batch-size", "1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env={**os.environ, "COLUMNS": "80"}):
            os.close(follower)
            shown = b""
            while b" of 5 threads" not in shown:
                shown += os.read(leader, 1_000)
            conn.rollback()
            with suppress(OSError):
                while part := os.read(leader, 1_000):
                    shown += part
    os.close(leader)

    assert re.search(rb"[1-4] of 5 threads", shown)
    assert b" left" in shown
    assert threads(filled) == {"long"}


def test_a_report_counts_what_it_counted() -> None:
    """A sweep's position is not in it: two sweeps that find nothing are equal."""
    assert SweepReport._fields == ("threads", "checkpoints", "writes", "blobs", "pages", "bytes")
