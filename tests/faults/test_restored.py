"""A backup is restored on a running server, under processes that go on: what they are told after it is there."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import create_engine, make_url

from checkpoint_store import PostgresSaver, embedded, schema
from checkpoint_store.errors import UnreadableValue
from tests.conftest import REPOSITORY
from tests.faults.bed import PATIENCE_SECONDS
from tests.faults.writing import config_of, value

TABLES = [*[table.name for table in schema.tables.all], schema.VERSION_TABLE]
WRITERS = [["plain", "bound", "psycopg"], ["pipeline", "psycopg pipeline", "sync"]]
ENOUGH = 4
"""How often each of them has to have stored something before a round goes on."""


def program(name: str, *arguments: str, script: str | None = None) -> str:
    """Run a program of PostgreSQL's; raises what it says if it fails."""
    command = [embedded._program(name), *arguments]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def in_one_transaction(url: str, script: str) -> None:
    program("psql", url, "--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1", script=script)


def clean(url: str, dump: Path) -> None:
    """Drop all tables and make them anew."""
    program("pg_restore", "--clean", "--if-exists", "--single-transaction", f"--dbname={url}", str(dump))


def database(url: str, dump: Path) -> None:
    """Restore a database beside it, and give that its name."""
    name = urlsplit(url).path.removeprefix("/")
    beside = urlsplit(url)._replace(path=f"/{name}_beside").geturl()
    with psycopg.connect(urlsplit(url)._replace(path="/postgres").geturl(), autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}_beside" TEMPLATE template0')
        program("pg_restore", f"--dbname={beside}", str(dump))
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        admin.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", (name,))
        admin.execute(f'ALTER DATABASE "{name}" RENAME TO "{name}_old"')
        admin.execute(f'ALTER DATABASE "{name}_beside" RENAME TO "{name}"')
        admin.execute(f'DROP DATABASE "{name}_old"')


def tables(url: str, dump: Path) -> None:
    """Put the tables elsewhere, and make them anew in their place."""
    moves = "".join(f"ALTER TABLE {name} SET SCHEMA moved_away;" for name in TABLES)
    made = program("pg_restore", "--file=-", str(dump))
    in_one_transaction(url, f"CREATE SCHEMA moved_away; {moves}\n{made}\nDROP SCHEMA moved_away CASCADE;")


def truncate(url: str, dump: Path) -> None:
    """Empty the tables, and fill them."""
    rows = program("pg_restore", "--data-only", "--file=-", str(dump))
    in_one_transaction(url, f"TRUNCATE {', '.join(TABLES)};\n{rows}")


def delete(url: str, dump: Path) -> None:
    """Delete all rows, table by table in any order, and put others there."""
    rows = program("pg_restore", "--data-only", "--file=-", str(dump))
    deletions = "".join(f"DELETE FROM {name};" for name in random.sample(TABLES, len(TABLES)))
    in_one_transaction(url, f"{deletions}\n{rows}")


WAYS: list[Callable[[str, Path], None]] = [clean, database, tables, truncate, delete]


class Writing:
    """Processes that write, and what they have noted."""

    def __init__(self, url: str, home: Path) -> None:
        self.files = [home / f"{number}" for number in range(len(WRITERS))]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.faults.writing", url, str(file), *kinds],
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )
            for file, kinds in zip(self.files, WRITERS, strict=True)
        ]

    def told(self, since: float) -> list[dict[str, Any]]:
        """What was stored by calls made since a moment."""
        lines = [line for file in self.files if file.exists() for line in file.read_text().splitlines(keepends=True)]
        notes = [json.loads(line) for line in lines if line.endswith("\n")]
        return [note for note in notes if note.get("begun", 0) >= since]

    def goes_on(self) -> list[dict[str, Any]]:
        """Wait until each kind has stored something some times more; returns what was stored since."""
        since, deadline = time.monotonic(), time.monotonic() + PATIENCE_SECONDS
        while True:
            told = self.told(since)
            counts = Counter(note["kind"] for note in told)
            if all(counts[kind] >= ENOUGH for kinds in WRITERS for kind in kinds):
                return told
            assert all(process.poll() is None for process in self.processes)
            if time.monotonic() > deadline:
                lines = [file.read_text().splitlines()[-3:] for file in self.files]
                raise TimeoutError(f"{counts}, {lines}")
            time.sleep(0.05)


@contextmanager
def writing(url: str, home: Path) -> Iterator[Writing]:
    started = Writing(url, home)
    try:
        yield started
    finally:
        for process in started.processes:
            process.kill()
            process.wait()


def lost(url: str, told: list[dict[str, Any]]) -> list[str]:
    """What a process that remembers nothing does not find, or can't read."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    saver, missing = PostgresSaver(engine), []
    for note in told:
        try:
            found = saver.get(config_of(note["thread"], note["id"]))
        except UnreadableValue as error:
            missing.append(f"{note['kind']}: {error}")
            continue
        if found is None or found["channel_values"]["messages"] != value(note["thread"], note["count"]):
            missing.append(f"{note['kind']}: {note['id']}")
    engine.dispose()
    return missing


@pytest.mark.parametrize("rounds", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_nothing_is_lost_that_was_told_after_a_restore(
    url: str, tmp_path: Path, way: Callable[[str, Path], None], rounds: int
) -> None:
    """Two processes store growing lists in six ways; whichever way a dump is restored, no page is missing."""
    with writing(url, tmp_path) as writers:
        for number in range(rounds):
            writers.goes_on()
            dump = tmp_path / f"{number}.dump"
            program("pg_dump", "--format=custom", f"--file={dump}", url)
            writers.goes_on()
            for _ in range(10):
                try:
                    way(url, dump)
                    break
                except RuntimeError as error:  # as an operator would: once more
                    if "deadlock detected" not in str(error):
                        raise
            told = writers.goes_on()
            assert lost(url, told) == []
