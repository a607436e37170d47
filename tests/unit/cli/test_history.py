"""A history is drawn as a person would: a chain straight down, forks to the side, subgraphs within their step."""

from __future__ import annotations

import random
from typing import Any

from checkpoint_store.cli.entries import Entry, entries_of
from checkpoint_store.cli.history_tree import draw
from checkpoint_store.serde.records import Summary
from checkpoint_store.storage.read import History


def entry(name: str, parent: str | None = None, namespace: str = "", **options: Any) -> Entry:
    metadata = {"step": int(name[-1]), "source": "loop", **options.pop("metadata", {})}
    return Entry(namespace, name, parent, metadata, options.pop("added", 100), options.pop("tasks", 0), [*options])


def test_a_chain_goes_straight_down() -> None:
    """Oldest first, whatever order the rows come in; the newest is the latest."""
    entries = [entry("c3", "c2"), entry("c1", None), entry("c2", "c1", tasks=1), entry("c4", "c3", tasks=2)]

    assert draw(entries) == [
        " 1 loop    c1  -  100 B",
        " 2 loop    c2  -  100 B",
        " 3 loop    c3  -  100 B",
        " 4 loop    c4  -  100 B  waiting: writes of 2 tasks, latest",
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

    assert [line[:17].rstrip() for line in draw(entries)] == [
        " 0 loop        c0",
        " 1 loop        c1",
        "│ a (1)",
        "│  1 loop      s1",
        "│ │ b (2)",
        "│ │  1 loop    u1",
        "│  2 loop      s2",
        "│ z (22222222)",
        "│  1 loop      t1",
        "├─ 2 loop      c2",
        "│  3 loop      c3",
        "└─ 2 loop      d2",
        "  ├─ 3 loop    d3",
        "  └─ 3 loop    e3",
    ]


def test_a_parent_that_is_gone_is_told() -> None:
    """After a prune the oldest checkpoint names one that is not there."""
    assert draw([entry("c2", "c1"), entry("c3", "c2")])[0].split("  ")[-1] == "its parent is not stored"


def test_marks_are_told() -> None:
    """Questions to a person and failed tasks."""
    (line,) = draw([entry("c1", None, "", __interrupt__=1, __error__=1)])

    assert line.endswith("interrupt, error, latest")


def test_hostile_rows_are_drawn_harmlessly() -> None:
    """Escapes in every place a row has, parents of every kind, metadata that is no object."""
    evil = "\x1b[2J\u202e1"
    hostile = f'{{"{"x" * 9}": {{"__start__": [1]}}, "\\u001b[2J": 5, "__snapshot_bumps__": {{"a|b": []}}}}'
    more = (
        [evil],
        [evil, "~__pregel_push, x"],
        hostile,
        hostile,
        [evil],
        [evil, "join:a+b:c"],
        ["msgpack"] * 2,
        [b"\xc1", None],
    )
    rows = [
        Summary(evil, evil, evil, '{"step": "\\u001b[1m", "source": ["x"], "parents": 5}', 1, 1, [evil], *more),
        Summary("", "a1", "a1", "[]", 1, 0, None, None, None, "[]", "5", None, None, None, None),
        Summary(f"{evil}|{evil}:{evil}", "b1", None, f'{{"parents": {{"{"x" * 9}": []}}}}', 1, 0, None, *more),
    ]

    lines = draw(entries_of(History(rows, 3, rows, set())))

    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)


def test_a_long_thread_is_draw() -> None:
    """Ten thousand steps, and a fork at each of the first hundred."""
    chain = [entry(f"{n:05}", f"{n - 1:05}" if n else None) for n in range(10_000)]
    forks = [entry(f"{n:05}", f"{n - 10_000:05}") for n in range(10_000, 10_100)]

    assert len(draw([*chain, *forks])) == 10_100


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

        lines = draw(list(entries.values()))

        assert len([line for line in lines if " 100 B" in line]) == len(entries)
