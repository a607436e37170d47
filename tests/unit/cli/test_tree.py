"""A history is drawn as a person would: a chain straight down, forks to the side, subgraphs within their step."""

from __future__ import annotations

import random
from typing import Any

import pytest

from checkpoint_store.cli.clean import clean, counted, moment, short, size
from checkpoint_store.cli.tree import Entry, drawn
from checkpoint_store.storage.thread_list import time_of


def entry(name: str, parent: str | None = None, namespace: str = "", **options: Any) -> Entry:
    metadata = {"step": int(name[-1]), "source": "loop", **options.pop("metadata", {})}
    return Entry(namespace, name, parent, metadata, options.pop("added", 100), options.pop("tasks", 0), [*options])


def test_a_chain_goes_straight_down() -> None:
    """Oldest first, whatever order the rows come in; the newest is the latest."""
    entries = [entry("c3", "c2"), entry("c1", None), entry("c2", "c1", tasks=1), entry("c4", "c3", tasks=2)]

    assert drawn(entries) == [
        " 1 loop    c1                        -      100 B",
        " 2 loop    c2                        -      100 B",
        " 3 loop    c3                        -      100 B",
        " 4 loop    c4                        -      100 B  waiting: writes of 2 tasks, latest",
    ]


def test_forks_branch_off_and_subgraphs_stand_within() -> None:
    """The older branch first; a fork of a fork; two calls of a subgraph, one with a subgraph of its own."""
    at = {"parents": {"": "c1"}}
    inner = {"parents": {"": "c1", "a:1": "s1"}}
    entries = [
        entry("c0"),
        entry("c1", "c0"),
        entry("c2", "c1"),
        entry("c3", "c2"),
        entry("d2", "c1"),
        entry("d3", "d2"),
        entry("e3", "d2"),
        entry("s1", None, "a:1", metadata=at),
        entry("s2", "s1", "a:1", metadata=at),
        entry("u1", None, "a:1|b:2", metadata=inner),
        entry("t1", None, "z:22222222-3", metadata=at),
    ]

    assert [line[:18].rstrip() for line in drawn(entries)] == [
        " 0 loop         c0",
        " 1 loop         c1",
        "│ a (1)",
        "│  1 loop       s1",
        "│ │ b (2)",
        "│ │  1 loop     u1",
        "│  2 loop       s2",
        "│ z (22222222)",
        "│  1 loop       t1",
        "├─ 2 loop       c2",
        "│  3 loop       c3",
        "└─ 2 loop       d2",
        "  ├─ 3 loop     d3",
        "  └─ 3 loop     e3",
    ]


def test_a_parent_that_is_gone_is_told() -> None:
    """After a prune the oldest checkpoint names one that is not there."""
    assert drawn([entry("c2", "c1"), entry("c3", "c2")])[0].split("  ")[-1] == "its parent is not stored"


def test_marks_are_told() -> None:
    """Questions to a person and failed tasks."""
    (line,) = drawn([entry("c1", None, "", __interrupt__=1, __error__=1)])

    assert line.endswith("interrupt, error, latest")


def test_hostile_rows_are_drawn_harmlessly() -> None:
    """Escapes in every place a row has, parents of every kind, metadata that is no object."""
    evil = "\x1b[2J\u202e1"
    rows: list[list[Any]] = [
        [evil, evil, evil, '{"step": "\\u001b[1m", "source": ["x"], "parents": 5}', 1, 1, [evil]],
        ["", "a1", "a1", "[]", 1, 0, None],
        [f"{evil}|{evil}:{evil}", "b1", None, f'{{"parents": {{"{"x" * 9}": []}}}}', 1, 0, None],
    ]

    lines = drawn([Entry.of(row) for row in rows])

    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)


def test_a_long_thread_is_drawn() -> None:
    """Ten thousand steps, and a fork at each of the first hundred."""
    chain = [entry(f"{n:05}", f"{n - 1:05}" if n else None) for n in range(10_000)]
    forks = [entry(f"{n:05}", f"{n - 10_000:05}") for n in range(10_000, 10_100)]

    assert len(drawn([*chain, *forks])) == 10_100


def test_every_checkpoint_has_one_line() -> None:
    """Whatever their parents are: missing, later, themselves, in a circle, of another namespace."""
    chance = random.Random(0)
    names = [f"c{n}" for n in range(10)]
    spaces = ["", "a:1", "a:2", "a:1|b:1", "x"]
    for _ in range(200):
        entries = {}
        for _ in range(chance.randrange(1, 40)):
            namespace, name = chance.choice(spaces), chance.choice(names)
            parents = {space: chance.choice(names) for space in spaces if chance.random() < 0.5}
            parent = chance.choice([*names, None])
            entries[namespace, name] = entry(name, parent, namespace, metadata={"parents": parents})

        lines = drawn(list(entries.values()))

        assert len([line for line in lines if " 100 B" in line]) == len(entries)


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_951, "1.0 MB"), (17 * 10**9, "17.0 GB"),
     (10**19, "10000.0 PB")],
)  # fmt: skip
def test_sizes_are_for_people(count: int, told: str) -> None:
    """In powers of a thousand, as disks are sold."""
    assert size(count) == told


def test_ids_are_as_short_as_they_may_be() -> None:
    """Of LangGraph's ids the part that is a time, of others everything."""
    uuid = "1f0c4a3e-1234-6abc-8000-000000000000"
    assert short(uuid) == "1f0c4a3e-1234-6abc"
    assert short("a\x1b" * 20) == "a\\x1b" * 20
    assert short(None) == "-"
    assert moment(time_of(uuid)) == moment(time_of(uuid), precise=True)[:-4]
    assert (counted(1, "row"), counted(2000, "row")) == ("1 row", "2,000 rows")


def test_only_printable_characters_are_left() -> None:
    """What repr() would escape is escaped; everything else is as it was."""
    assert clean("plain, é🙂 [bold]") == "plain, é🙂 [bold]"
    assert clean("\x1b\x07\u202e\ud800\x9b\n") == "\\x1b\\x07\\u202e\\ud800\\x9b\\n"
    assert all(clean(chr(number)).isprintable() for number in range(0x3000))
