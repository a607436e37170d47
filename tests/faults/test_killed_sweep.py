"""A sweep that is killed: what is left is whole, and the next sweep leaves what an undisturbed one would have."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from checkpoint_store import PostgresSaver
from checkpoint_store.expiry import Expiry
from checkpoint_store.serde import pages
from checkpoint_store.storage.sweep_report import SweepReport
from tests.conftest import SERVER, database
from tests.integration.histories import Histories, Key, unreachable

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="nothing can be killed here")

# Says what was removed after each transaction, and is killed by whoever reads it.
SWEEP = """
import sys
from datetime import timedelta
from checkpoint_store import PostgresSaver
from checkpoint_store.expiry import Expiry

with PostgresSaver.from_conn_string(sys.argv[1]) as saver:
    saver.sweep(**eval(sys.argv[2]), on_progress=lambda report: print(report.checkpoints, flush=True))
"""

ROWS = (
    "SELECT checkpoints::text FROM checkpoints",
    "SELECT checkpoint_writes::text FROM checkpoint_writes",
    "SELECT checkpoint_blobs::text FROM checkpoint_blobs",
    "SELECT checkpoint_pages::text FROM checkpoint_pages",
    "SELECT thread_id FROM checkpoint_threads",
)


def contents(url: str) -> list[list[Any]]:
    """All that is stored, but for how often pages of a thread were collected."""
    with psycopg.connect(url) as conn:
        return [sorted(conn.execute(query)) for query in ROWS]


def killed(url: str, options: dict[str, Any], batches: int, seconds: float) -> None:
    """Sweep in another process, and kill it so many seconds after it has said that so many batches are through."""
    command = [sys.executable, "-c", SWEEP, url, repr(options).replace("datetime.", "")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(batches):
            process.stdout.readline()
        time.sleep(seconds)
        process.kill()


def check_what_is_left(saver: PostgresSaver, made: Histories, before: dict[Key, Any]) -> None:
    """Everything that is there, whether it stays or is still to go, reads as it did."""
    left = Histories(saver, random.Random(0))
    keys = [tuple(one.config["configurable"].values()) for one in saver.list(None)]
    left.checkpoints = {key: made.checkpoints[key] for key in keys}
    for key, (now, history) in left.read().items():
        was, rebuilt = before[key]
        assert (now._replace(parent_config=None), history) == (was._replace(parent_config=None), rebuilt), key
        parent = now.parent_config and now.parent_config["configurable"]["checkpoint_id"]
        assert parent is None or (*key[:2], parent) in keys or (*key[:2], parent) not in before, key


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("share_pages", [False, True])
def test_a_sweep_that_was_killed_is_finished_by_another(
    url: str, share_pages: bool, kills: int, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """At random points, in batches of any size: forks, subgraphs, delta channels, shared values."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 0)
    chance, interrupted = random.Random(kills), 0
    with PostgresSaver.from_conn_string(url, share_pages=share_pages) as saver:
        made = Histories(saver, chance)
        made.grow(threads=4, steps=60)
        before = made.read()
    server_url, name = os.environ[SERVER], urlsplit(url).path.removeprefix("/")
    for _ in range(kills):
        days = timedelta(days=chance.randint(1, 50), minutes=17)
        rules: list[dict[str, Any]] = [
            {"keep_last": chance.randint(1, 4)},
            {"older_than": days},
            {"expiry": [Expiry(age=days, quiet=timedelta(microseconds=1))]},
        ]
        rule = chance.choice(rules)
        options = {**rule, "batch_size": chance.choice([1, 2, 5, 50])}
        with database(server_url, name) as calm, database(server_url, name) as disturbed:
            batches: list[SweepReport] = []
            with PostgresSaver.from_conn_string(calm) as saver:
                whole = saver.sweep(**options, on_progress=batches.append)
            killed(disturbed, options, chance.randint(1, max(1, len(batches) - 1)), chance.random() * 0.005)
            with PostgresSaver.from_conn_string(disturbed) as saver:
                check_what_is_left(saver, made, before)
                rest = saver.sweep(**options)
            interrupted += rest != SweepReport() and rest != whole
            assert contents(disturbed) == contents(calm), options
            assert unreachable(disturbed) == {}
    record_property("interrupted", interrupted)
    assert interrupted >= kills / 2
