"""Threads found by their age and size."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver

from checkpoint_store import PostgresSaver
from checkpoint_store.cli import main
from checkpoint_store.cli.arguments import bytes_of
from checkpoint_store.cli.text import size
from checkpoint_store.errors import InvalidOption
from checkpoint_store.storage.checkpoint_time import first_id_of
from tests.integration.commands import Done

AGES = {f"t{days:03}": timedelta(days=days) for days in range(1, 201)}
"""Threads that were last used so many days ago."""


Threads = Callable[..., Done]


@pytest.fixture
def threads(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Threads:
    """Runs `threads` on `url`."""

    def threads(*options: str, url: str = url) -> Done:
        monkeypatch.setenv("CHECKPOINT_STORE_URL", url)
        code = main(["threads", *options])
        return Done(code, *capsys.readouterr())

    return threads


def store(saver: Any, thread: str, checkpoint_id: str, value: object = "x", namespace: str = "") -> None:
    config: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": namespace}}
    checkpoint: Any = {"v": 4, "id": checkpoint_id, "ts": "", "channel_values": {"a": value}}
    checkpoint.update(channel_versions={"a": checkpoint_id}, versions_seen={})
    saver.put(config, checkpoint, {"step": 1, "source": "loop"}, checkpoint["channel_versions"])


def ids(done: Done) -> list[str]:
    assert done.code == 0, done.err
    return [one["thread_id"] for one in json.loads(done.out)["threads"]]


def kilobytes(count: int) -> list[str]:
    """A value that takes so many kB, however it is compressed."""
    return [random.Random(count).randbytes(count * 1000).hex()]


@pytest.fixture
def aged(sync_saver: PostgresSaver) -> None:
    """Threads of all `AGES`, one without a time in its id, one without a root checkpoint."""
    now = datetime.now(UTC)
    for thread, age in AGES.items():
        store(sync_saver, thread, first_id_of(now - age - timedelta(days=400)))
        store(sync_saver, thread, first_id_of(now - age - timedelta(minutes=1)))
    store(sync_saver, "a-timeless", "0001")
    store(sync_saver, "a-subgraph", first_id_of(now - timedelta(days=300)), namespace="sub:1")


@pytest.mark.usefixtures("aged")
def test_an_age_is_shown_and_is_a_filter(threads: Threads) -> None:
    """By the newest checkpoint of the root graph; what has no time is not old."""
    rows = [line.split() for line in threads("--limit", "2", "--prefix", "t").out.splitlines()]
    assert rows[0] == ["THREAD", "CHECKPOINT", "UPDATED", "(UTC)", "AGE", "STEP", "SOURCE", "SIZE"]
    assert rows[1][0] == "t001"
    assert rows[1][4:8] == ["1", "d", "1", "loop"]

    old = [f"t{days:03}" for days in range(150, 201)]
    assert ids(threads("--older-than", "150d", "--limit", "0", "--json")) == old
    assert ids(threads("--older-than", "150d", "--limit", "0", "--json", "--order", "thread_id")) == old
    assert ids(threads("--older-than", "21w3d", "--limit", "3", "--json")) == old[:3]
    assert ids(threads("--older-than", "150d", "--limit", "3", "--json", "--order", "thread_id")) == old[:3]
    assert ids(threads("--older-than", "150d", "--prefix", "t19", "--limit", "0", "--json")) == old[-11:-1]
    assert ids(threads("--older-than", "900d", "--json")) == []


@pytest.mark.usefixtures("aged")
@pytest.mark.parametrize("order", ["newest", "thread_id"])
def test_old_threads_are_listed_page_by_page(threads: Threads, order: str) -> None:
    """A cursor goes on in a filtered list, and no thread is met twice."""
    found: list[str] = []
    options = ["--older-than", "100d", "--order", order, "--limit", "30", "--json"]
    done = threads(*options)
    while cursor := json.loads(done.out)["next_cursor"]:
        found += ids(done)
        done = threads(*options, "--cursor", cursor)

    assert [*found, *ids(done)] == [f"t{days:03}" for days in range(100, 201)]


def test_sizes_are_those_of_stats(threads: Threads, sync_saver: PostgresSaver) -> None:
    """In all tables, with pages and subgraphs; and no size is read where none is asked for."""
    for number, count in enumerate([1, 30, 300]):
        store(sync_saver, f"{count} kB", first_id_of(datetime.now(UTC) - timedelta(hours=number + 1)), kilobytes(count))
    store(sync_saver, "30 kB", "1f000000-0000-6000-8000-000000000000", kilobytes(10), namespace="sub:1")

    listed = json.loads(threads("--json").out)["threads"]

    assert [one["thread_id"] for one in listed] == ["1 kB", "30 kB", "300 kB"]
    assert [one["bytes"] for one in listed] == [sync_saver.get_thread_stats(one["thread_id"]).bytes for one in listed]
    assert [one["bytes"] for one in json.loads(threads("--json", "--no-size").out)["threads"]] == [None] * 3
    assert "SIZE" not in threads("--no-size").out
    assert threads().out.splitlines()[1].endswith(f"  {size(listed[0]['bytes'])}")


def test_large_threads_are_found(threads: Threads, sync_saver: PostgresSaver) -> None:
    """Wherever they are in the list, also a page at a time, and together with other filters."""
    now = datetime.now(UTC)
    for number in range(300):
        large = number % 100 == 99
        store(sync_saver, f"t{number:03}", first_id_of(now - timedelta(hours=number)), kilobytes(50 if large else 1))

    assert ids(threads("--larger-than", "90kB", "--json")) == ["t099", "t199", "t299"]
    assert ids(threads("--larger-than", "0.09MB", "--json", "--order", "thread_id", "-n", "1")) == ["t099"]
    first = threads("--larger-than", "90000", "-n", "2", "--json")
    assert ids(first) == ["t099", "t199"]
    cursor = json.loads(first.out)["next_cursor"]
    assert ids(threads("--larger-than", "90kB", "-n", "2", "--json", "--cursor", cursor)) == ["t299"]
    assert ids(threads("--larger-than", "90kB", "--older-than", "5d", "--json")) == ["t199", "t299"]
    assert ids(threads("--larger-than", "1GB", "--json")) == []
    assert "SIZE" in threads("--larger-than", "90kB", "--no-size").out


def test_threads_of_the_stock_saver_have_age_and_size(threads: Threads, make_database: Callable[[], str]) -> None:
    """On tables that were never adopted."""
    stock = make_database()
    with StockSaver.from_conn_string(stock) as saver:
        saver.setup()
        store(saver, "large", first_id_of(datetime.now(UTC) - timedelta(days=3)), kilobytes(100))
        store(saver, "small", first_id_of(datetime.now(UTC) - timedelta(days=2)))

    assert ids(threads("--larger-than", "100kB", "--json", url=stock)) == ["large"]
    assert ids(threads("--older-than", "60h", "--json", url=stock)) == ["large"]
    done = threads(url=stock)
    assert [line.split()[4:6] for line in done.out.splitlines()[1:]] == [["2", "d"], ["3", "d"]]
    assert done.err.count("\n") == 1
    with psycopg.connect(stock) as conn:
        assert conn.execute("SELECT to_regclass('checkpoint_pages')").fetchone() == (None,)


def test_there_is_one_hint_at_most(threads: Threads, make_database: Callable[[], str]) -> None:
    """The next page is more urgent than what an upgrade would add."""
    stock = make_database()
    with StockSaver.from_conn_string(stock) as saver:
        saver.setup()
        for number in range(3):
            store(saver, f"t{number}", first_id_of(datetime.now(UTC) - timedelta(days=number)))

    assert threads("-n", "2", url=stock).err.startswith("there may be more: --cursor ")
    assert threads("-n", "2", url=stock).err.count("\n") == 1
    assert threads("-n", "5", url=stock).err.startswith("the tables are those of langgraph-checkpoint-postgres")
    assert threads("--prefix", "nobody").err == ""


@pytest.mark.parametrize(
    "options",
    [
        ["--older-than", "soon"],
        ["--older-than", "0d"],
        ["--larger-than", "huge"],
        ["--larger-than", "-1MB"],
        ["--larger-than", "10MiB"],
        ["--order", "size"],
        ["--filter", "[]"],
        ["--limit", "-1"],
    ],
)
def test_what_makes_no_sense_is_misuse(threads: Threads, options: list[str]) -> None:
    """In a line that names the option and what it must be."""
    done = threads(*options)

    assert (done.code, done.out) == (2, "")
    assert options[0] in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "count"),
    [("10MB", 10**7), ("1.5 gb", 15 * 10**8), ("500kB", 500_000), ("17", 17), ("17B", 17), (" 2TB ", 2 * 10**12)],
)
def test_a_size_has_a_unit(text: str, count: int) -> None:
    """Powers of a thousand, as they are printed."""
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "MB", "1e3", "10 000", "1,5MB", "∞", "1" * 16])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    """With an example."""
    with pytest.raises(InvalidOption, match="as in 10MB"):
        bytes_of(text)


def test_metadata_that_python_cannot_hold_keeps_no_other_thread_off_the_list(
    threads: Threads, sync_saver: PostgresSaver, url: str
) -> None:
    """Nor does metadata that is nested deeply, or fill the screen; an age before all times finds nothing."""
    for thread in ("large", "deep", "plain"):
        store(sync_saver, thread, first_id_of(datetime.now(UTC)))
    with psycopg.connect(url) as conn:
        update = "UPDATE checkpoints SET metadata = %s::jsonb WHERE thread_id = %s"
        conn.execute(update, (f'{{"step": {"7" * 5000}}}', "large"))
        conn.execute(update, (f'{{"step": {"[" * 900}{"]" * 900}}}', "deep"))

    listing = threads()
    assert listing.code == 0
    assert max(map(len, listing.out.splitlines())) < 100
    listed = {one["thread_id"]: one["metadata"] for one in json.loads(threads("--json").out)["threads"]}
    assert listed.keys() == {"large", "deep", "plain"}
    assert listed["large"] == {}
    assert listed["plain"]["source"] == "loop"
    assert ids(threads("--json", "--older-than", "99999999w99999999d")) == []
