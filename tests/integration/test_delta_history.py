"""What delta channels are rebuilt from: the writes of a checkpoint's ancestors, back to the nearest stored value."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from checkpoint_store import AsyncPostgresSaver, PostgresSaver

Config = dict[str, Any]


def config(checkpoint_id: str | None = None, *, thread_id: str = "thread", namespace: str = "") -> Config:
    named = {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}
    return {"configurable": {key: value for key, value in named.items() if value is not None}}


class Tree:
    """Stores checkpoints as LangGraph does: a value stays, with its version, until its channel is written again."""

    def __init__(self, saver: BaseCheckpointSaver[str], thread_id: str = "thread", namespace: str = "") -> None:
        self.saver = saver
        self.of = {"thread_id": thread_id, "namespace": namespace}
        self.values: dict[str | None, dict[str, Any]] = {}
        self.versions: dict[str | None, dict[str, str]] = {}
        self.numbers = count(1)

    def add(self, identity: str, parent: str | None = None, *, written: Sequence[str] = (), **values: Any) -> Config:
        """Store a checkpoint.

        Args:
            identity: Its id.
            parent: Its parent's id.
            written: The delta channels that the step wrote: they get a version and no value.
            values: The values that are new in it.
        """
        new_versions = {channel: f"{next(self.numbers):032}.0" for channel in (*written, *values)}
        versions = self.versions[identity] = {**self.versions.get(parent, {}), **new_versions}
        kept = {
            channel: value
            for channel, value in self.values.get(parent, {}).items()
            # A snapshot is in the checkpoint that made it; that others still have it, only its version tells.
            if channel not in new_versions and not isinstance(value, _DeltaSnapshot)
        }
        self.values[identity] = {**kept, **values}
        checkpoint = {
            **empty_checkpoint(),
            "v": 4,
            "id": identity,
            "channel_values": self.values[identity],
            "channel_versions": versions,
        }
        return self.saver.put(config(parent, **self.of), checkpoint, {"source": "loop", "step": 1}, new_versions)

    def write(self, identity: str, *values: Any, channel: str = "log", task: str = "task", path: str = "") -> None:
        self.saver.put_writes(config(identity, **self.of), [(channel, value) for value in values], task, path)


@pytest.fixture
def tree(sync_saver: PostgresSaver) -> Tree:
    return Tree(sync_saver)


def history(saver: PostgresSaver, target: Config, channel: str = "log") -> dict[str, Any]:
    """What one channel's ancestors contribute, its writes without task and channel."""
    entry = saver.get_delta_channel_history(config=target, channels=[channel])[channel]
    return {**entry, "writes": [value for _, _, value in entry["writes"]]}


def test_writes_come_oldest_first_back_to_the_stored_value(sync_saver: PostgresSaver, tree: Tree) -> None:
    """The value's own checkpoint contributes its writes, the target does not: those are pending for the next step."""
    tree.add("1", log=["not sought"])
    tree.write("1", "before the value")
    tree.add("2", "1", log=["value"])
    tree.write("2", "a", "b")
    tree.add("3", "2", written=["log"])
    tree.write("3", "c")
    target = tree.add("4", "3", written=["log"])
    tree.write("4", "pending")

    assert history(sync_saver, target) == {"seed": ["value"], "writes": ["a", "b", "c"]}
    assert history(sync_saver, config("3")) == {"seed": ["value"], "writes": ["a", "b"]}
    assert history(sync_saver, config("2")) == {"seed": ["not sought"], "writes": ["before the value"]}
    assert history(sync_saver, config("1")) == {"writes": []}


@pytest.mark.parametrize("value", [["plain"], "inline", None, _DeltaSnapshot(["snapshot"])], ids=repr)
def test_a_value_is_found_where_it_is_still_current(sync_saver: PostgresSaver, tree: Tree, value: Any) -> None:
    """Steps that did not write the channel kept its version, and with it its value: the walk ends at the nearest."""
    tree.add("1", log=value)
    tree.add("2", "1", other=1)
    tree.add("3", "2", other=2)
    tree.write("3", "new")
    target = tree.add("4", "3", written=["log"])

    assert history(sync_saver, target) == {"seed": value, "writes": ["new"]}


@pytest.mark.parametrize(
    "value",
    [None, False, True, 0, 1.5, 1e16, "", "text", "nul\x00", [], ["blob"], {"a": {1}}, b"bytes", _DeltaSnapshot(["s"]),
     _DeltaSnapshot(None)],
    ids=repr,
)  # fmt: skip
def test_a_stored_value_of_any_kind_ends_the_walk(sync_saver: PostgresSaver, tree: Tree, value: Any) -> None:
    """Inline, be it null or false, as a blob, or as a snapshot with its mark inline: the seed has its type."""
    tree.add("1")
    tree.write("1", "too old")
    tree.add("2", "1", log=value)
    tree.write("2", "new")
    target = tree.add("3", "2", written=["log"])

    found = history(sync_saver, target)

    assert found == {"seed": value, "writes": ["new"]}
    assert type(found["seed"]) is type(value)


def test_without_a_stored_value_the_walk_ends_at_the_root(sync_saver: PostgresSaver, tree: Tree) -> None:
    """No seed then, which is not the same as a seed of None; a channel nobody wrote has no writes either."""
    tree.add("1")
    tree.write("1", "a")
    target = tree.add("2", "1")

    assert history(sync_saver, target) == {"writes": ["a"]}
    assert history(sync_saver, target, "unknown") == {"writes": []}
    assert sync_saver.get_delta_channel_history(config=target, channels=[]) == {}


def test_each_channel_has_its_own_end(sync_saver: PostgresSaver, tree: Tree) -> None:
    """Channels asked for together end at different depths, each with the writes since its own value."""
    tree.add("1", far=["far"])
    tree.write("1", "far 1", channel="far")
    tree.write("1", "near 1", channel="near", task="another")
    tree.add("2", "1", written=["far", "near"])
    tree.write("2", "far 2", channel="far")
    tree.add("3", "2", written=["far"], near=["near"])
    tree.write("3", "far 3", "far 3 too", channel="far")
    tree.write("3", "near 3", channel="near", task="another")
    tree.add("4", "3", written=["far", "near"])
    tree.write("4", "near 4", channel="near")
    tree.add("5", "4", written=["near"])

    found = sync_saver.get_delta_channel_history(config=config("5"), channels=["far", "near", "none"])

    assert found == {
        "far": {
            "seed": ["far"],
            "writes": [
                ("task", "far", "far 1"),
                ("task", "far", "far 2"),
                ("task", "far", "far 3"),
                ("task", "far", "far 3 too"),
            ],
        },
        "near": {"seed": ["near"], "writes": [("another", "near", "near 3"), ("task", "near", "near 4")]},
        "none": {"writes": []},
    }


def test_writes_of_a_step_come_in_the_order_of_their_tasks(sync_saver: PostgresSaver, tree: Tree) -> None:
    """By path, then task, then index, as LangGraph applies them; by code point, whatever the database's locale."""
    paths = ["", "A", "B", "_", "a", "b", "z", "~", "é", "\U0001f98a"]
    tree.add("1")
    for number, path in enumerate(reversed(paths)):
        tree.write("1", f"{path} 1", f"{path} 2", task=f"task {number}", path=path)
    tree.write("1", "second task", task="task B", path="a")
    tree.write("1", "first task", task="task A", path="a")
    target = tree.add("2", "1")

    written = history(sync_saver, target)["writes"]

    expected = [f"{path} {n}" for path in paths for n in (1, 2)]
    place = expected.index("a 2") + 1
    assert written == [*expected[:place], "first task", "second task", *expected[place:]]
    assert written == [value for _, _, value in sync_saver.get_tuple(config("1")).pending_writes]


def test_only_ancestors_count(sync_saver: PostgresSaver, tree: Tree) -> None:
    """Not siblings, not children, not another namespace or thread with the same ids."""
    for elsewhere in (Tree(sync_saver, "another"), Tree(sync_saver, "thread", "sub:1")):
        for identity, parent in (("1", None), ("2", "1"), ("3", "2")):
            elsewhere.add(identity, parent, log=["elsewhere"])
            elsewhere.write(identity, "elsewhere")
    tree.add("1")
    tree.write("1", "root")
    tree.add("2", "1", log=["sibling"])
    tree.write("2", "sibling")
    target = tree.add("3", "1")
    tree.add("4", "3")
    tree.write("4", "child")

    assert history(sync_saver, target) == {"writes": ["root"]}


def test_ids_need_not_grow_from_parent_to_child(sync_saver: PostgresSaver, tree: Tree) -> None:
    """Processes whose clocks disagree make such ids; the parents alone say who is an ancestor of whom."""
    tree.add("5", log=["value"])
    for identity, parent in (("9", "5"), ("1", "9"), ("7", "1"), ("3", "7")):
        tree.write(parent, f"after {parent}")
        tree.add(identity, parent, written=["log"])

    written = ["after 5", "after 9", "after 1", "after 7"]
    assert history(sync_saver, config("3")) == {"seed": ["value"], "writes": written}
    assert history(sync_saver, config("7")) == {"seed": ["value"], "writes": written[:-1]}
    # With no id the newest is meant, which is the greatest id.
    assert history(sync_saver, config()) == history(sync_saver, config("9"))


def test_missing_checkpoints_end_the_walk(sync_saver: PostgresSaver, tree: Tree) -> None:
    """A thread or target that is not there has no history; an ancestor that was pruned ends it."""
    tree.write("pruned", "unreachable")
    tree.add("2", "pruned")
    tree.write("2", "a")
    tree.add("3", "2")

    assert history(sync_saver, config("3")) == {"writes": ["a"]}
    assert history(sync_saver, config("2")) == {"writes": []}
    assert history(sync_saver, config("no such id")) == {"writes": []}
    assert history(sync_saver, config(thread_id="no such thread")) == {"writes": []}
    assert history(sync_saver, config("3", namespace="no such namespace")) == {"writes": []}


def test_a_circle_of_parents_is_walked_once(sync_saver: PostgresSaver, tree: Tree) -> None:
    """Ids made by hand can say that two checkpoints descend from each other; that is no reason never to return."""
    tree.add("1", "2")
    tree.add("2", "1")
    tree.write("1", "one")
    tree.write("2", "two")

    assert history(sync_saver, config("1")) == {"writes": ["one", "two"]}


def test_a_long_chain_is_walked_whole(sync_saver: PostgresSaver, tree: Tree, url: str) -> None:
    """Five thousand ancestors without a snapshot, ids descending: each contributes its write, in order."""
    length = 5_000
    tree.add(f"{length:05}")
    with psycopg.connect(url) as conn:
        conn.execute(
            """
            INSERT INTO checkpoints
                (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
            SELECT thread_id, checkpoint_ns, to_char(n, 'FM00000'), to_char(n + 1, 'FM00000'), checkpoint, metadata
            FROM checkpoints, generate_series(0, %s) n
            """,
            [length - 1],
        )
        conn.execute(
            """
            INSERT INTO checkpoint_writes
                (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
            SELECT thread_id, checkpoint_ns, checkpoint_id, 'task', '', 0, 'log', 'bytes', checkpoint_id::bytea
            FROM checkpoints
            """
        )

    written = history(sync_saver, config("00000"))["writes"]

    assert written == [b"%05d" % number for number in range(length, 0, -1)]


# --- against LangGraph's own walk ---

channels = ["messages", "files", "rare"]

# The in-memory saver of the oldest LangGraph that we work with takes a channel that holds None for one without a value,
# other than the definition that all savers inherit.
MODEL_PASSES_OVER_NONE = version("langgraph-checkpoint").startswith("4.1.")
values = st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=2) | st.lists(st.integers(0, 9), max_size=2)
stored_values = values | values.map(_DeltaSnapshot)
calls = st.lists(
    st.tuples(
        st.sampled_from(["task-1", "task-2", "task-3"]),
        st.sampled_from(["", "~__pregel_pull, a", "~__pregel_push, 1"]),
        st.lists(st.tuples(st.sampled_from(channels), values), max_size=3),
    ),
    max_size=3,
    unique_by=lambda call: call[0],
)


@dataclass
class Node:
    """A checkpoint to plant; `values` are stored with it, `calls` are its tasks and their pending writes."""

    identity: str
    parent: str | None
    values: dict[str, Any]
    calls: list[tuple[str, str, list[tuple[str, Any]]]]


@st.composite
def trees(draw: st.DrawFn) -> list[Node]:
    """Checkpoints in any order of ids, each with a parent or none or one that is missing, values, and writes."""
    ids = draw(st.permutations([f"{number:02}" for number in range(draw(st.integers(2, 9)))]))
    nodes = []
    for place, identity in enumerate(ids):
        # Mostly the one before, so that chains are long.
        parent = draw(st.sampled_from([None, "missing", *ids[:place], *ids[max(0, place - 1) : place] * 6]))
        stored = draw(st.dictionaries(st.sampled_from(channels), stored_values, max_size=1))
        nodes.append(Node(identity, parent, stored, draw(calls)))
    return nodes


def plant(saver: BaseCheckpointSaver[str], thread_id: str, nodes: list[Node]) -> None:
    tree = Tree(saver, thread_id)
    pending: dict[str | None, set[str]] = {}
    for node in nodes:
        written = pending.get(node.parent, set()) - node.values.keys()
        tree.add(node.identity, node.parent, written=sorted(written), **node.values)
        pending[node.identity] = {channel for _, _, writes in node.calls for channel, _ in writes}
        for task, path, writes in node.calls:
            saver.put_writes(config(node.identity, thread_id=thread_id), writes, task, path)


generated = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)


@settings(generated, max_examples=60)
@given(nodes=trees(), sought=st.lists(st.sampled_from([*channels, "unknown"]), min_size=1, max_size=3, unique=True))
def test_the_walk_is_langgraphs_own(sync_saver: PostgresSaver, nodes: list[Node], sought: list[str]) -> None:
    """From every checkpoint of a random tree: what the default implementation and the in-memory saver return."""
    thread_id, model = str(uuid.uuid4()), InMemorySaver()
    for saver in (sync_saver, model):
        plant(saver, thread_id, nodes)

    for target in [*(node.identity for node in nodes), "missing", None]:
        asked = {"config": config(target, thread_id=thread_id), "channels": sought}
        found = sync_saver.get_delta_channel_history(**asked)
        assert found == BaseCheckpointSaver.get_delta_channel_history(sync_saver, **asked)
        if not MODEL_PASSES_OVER_NONE:
            assert found == model.get_delta_channel_history(**asked)


@settings(generated, max_examples=40)
@given(nodes=trees(), sought=st.lists(st.sampled_from(channels), min_size=1, max_size=3, unique=True))
async def test_the_async_walk_is_langgraphs_own(
    saver: AsyncPostgresSaver, sync_saver: PostgresSaver, nodes: list[Node], sought: list[str]
) -> None:
    """The same from the async saver, on what the sync one stored."""
    thread_id = str(uuid.uuid4())
    plant(sync_saver, thread_id, nodes)

    for target in [*(node.identity for node in nodes), "missing", None]:
        asked = {"config": config(target, thread_id=thread_id), "channels": sought}
        found = await saver.aget_delta_channel_history(**asked)
        assert found == await BaseCheckpointSaver.aget_delta_channel_history(saver, **asked)
