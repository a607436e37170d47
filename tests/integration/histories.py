"""Random histories of threads as LangGraph stores them, and by the book what a removal has to leave of them."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.serde.types import TASKS, _DeltaSnapshot

DELTAS = ("messages", "files")
"""The channels that are stored as what each step adds."""

Key = tuple[str, str, str]
"""Thread, namespace and checkpoint."""


@dataclass(eq=False)
class Checkpoint:
    """A stored checkpoint."""

    key: Key
    parent: str | None
    made: datetime
    version: int
    run_id: str | None
    caller: Key | None
    """Of a subgraph's call: the checkpoint that it was called from."""
    values: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    counters: dict[str, list[int]] = field(default_factory=dict)
    is_noted: bool = False
    """Whether the counters are in its metadata."""
    written: set[str] = field(default_factory=set)
    """What tasks that followed it wrote to."""
    children: int = 0

    @property
    def config(self) -> dict[str, Any]:
        names = ("thread_id", "checkpoint_ns", "checkpoint_id")
        return {"configurable": dict(zip(names, self.key, strict=True))}


class Histories:
    """Makes random threads, and knows what is in them.

    Args:
        saver: Where they are stored.
        chance: What decides.
    """

    def __init__(self, saver: BaseCheckpointSaver[str], chance: random.Random) -> None:
        self.saver, self.chance = saver, chance
        self.checkpoints: dict[Key, Checkpoint] = {}
        self._snapshots: set[tuple[str, str, str, str | None]] = set()
        self._numbers = itertools.count(1)
        self._now = datetime.now(UTC) - timedelta(days=60)

    def grow(self, threads: int, steps: int) -> None:
        """Add threads of about so many steps each."""
        for thread_id in (f"thread-{next(self._numbers)}" for _ in range(threads)):
            # Whether LangGraph leaves notes of delta channels; older formats knew none.
            style = self.chance.choice(["counted", "counted", "bare", "old"])
            self._graph(thread_id, "", self.chance.randint(1, steps), style, None)

    def more(self, thread_id: str, steps: int) -> None:
        """Go on with a thread, in a run of its own."""
        here = [one for key, one in self.checkpoints.items() if key[:2] == (thread_id, "")]
        style = "old" if here and here[-1].version < 4 else "counted" if here and here[-1].counters else "bare"
        self._graph(thread_id, "", steps, style, None)

    def _graph(self, thread_id: str, graph: str, steps: int, style: str, caller: Checkpoint | None) -> None:
        run_id = f"run-{self.chance.randint(1, 6)}"
        for _ in range(steps):
            here = [one for key, one in self.checkpoints.items() if key[:2] == (thread_id, graph)]
            parent = None
            if here and self.chance.random() < 0.97:
                parent = here[-1] if self.chance.random() < 0.85 else self.chance.choice(here)
            if self.chance.random() < 0.2:
                run_id = f"run-{self.chance.randint(1, 6)}"
            made = self._step((thread_id, graph), parent, style, run_id, caller)
            depth = graph.count("|") + bool(graph)
            if depth < 2 and self.chance.random() < 0.15:
                call = f"{graph}|" if graph else ""
                self._graph(thread_id, f"{call}call:{uuid.UUID(int=self.chance.getrandbits(128))}", 3, style, made)
            if not graph and self.chance.random() < 0.1:
                self._graph(thread_id, "memory", 1, style, made)
        last = [one for key, one in self.checkpoints.items() if key[:2] == (thread_id, graph)][-1:]
        if last and self.chance.random() < 0.5 and not last[0].children:
            self._write(last[0], style)  # a step that was not finished

    def _step(
        self,
        graph: tuple[str, str],
        parent: Checkpoint | None,
        style: str,
        run_id: str | None,
        caller: Checkpoint | None,
    ) -> Checkpoint:
        is_fork = parent is not None and parent.children > 0
        if parent is not None and not parent.written and not is_fork and self.chance.random() < 0.9:
            self._write(parent, style)
        self._now += timedelta(hours=self.chance.randint(1, 30))
        made = self._now if self.chance.random() < 0.95 else self._now - timedelta(hours=50)
        identity = id_at(made, self.chance)
        missing = id_at(made - timedelta(days=1), self.chance) if self.chance.random() < 0.05 else None
        before = parent or Checkpoint(("", "", ""), None, made, 4, None, None)
        new = Checkpoint(
            (*graph, identity),
            parent.key[2] if parent else missing,
            made,
            1 if style == "old" else 4,
            run_id if self.chance.random() < 0.9 else None,
            caller and caller.key,
            {name: value for name, value in before.values.items() if not isinstance(value, _DeltaSnapshot)},
            dict(before.versions),
            {name: list(count) for name, count in before.counters.items()},
        )
        fresh = {} if parent else {"__start__": self._version()}
        for channel in ("kept", "count", "flag"):
            if channel in before.written and not is_fork:
                new.values[channel] = {"kept": self._text, "count": lambda: 7, "flag": lambda: True}[channel]()
                fresh[channel] = self._version()
        # Whose value is gone after the next step.
        if "mood" in before.written and not is_fork:
            new.values["mood"] = self._text()
            fresh["mood"] = self._version()
        elif new.values.pop("mood", None) is not None:
            fresh["mood"] = self._version()
        for channel in DELTAS if style != "old" else ():
            count = new.counters.setdefault(channel, [0, 0])
            count[1] += 1
            if channel in before.written:
                count[0] += 1
                fresh[channel] = self._version()
            # A fork begins with the value, for the writes that are there belong to another child.
            if (channel in before.written and is_fork) or (channel in new.versions and self.chance.random() < 0.15):
                new.values[channel] = _DeltaSnapshot([self._text()])
                fresh[channel] = self._version()
                count[:] = [0, 0]
        new.counters = {name: count for name, count in new.counters.items() if count != [0, 0]}
        new.versions |= fresh
        snapshots = [name for name, value in new.values.items() if isinstance(value, _DeltaSnapshot)]
        self._snapshots |= {(*graph, name, fresh[name]) for name in snapshots}
        self._put(new, fresh, style)
        if parent is not None:
            parent.children += 1
        return new

    def _put(self, new: Checkpoint, fresh: dict[str, str], style: str) -> None:
        metadata: dict[str, Any] = {"source": "loop", "step": 1, "parents": {}}
        if new.caller is not None:
            caller = self.checkpoints[new.caller]
            above = dict([caller.key[1:]])
            if caller.caller is not None:
                above |= dict([caller.caller[1:]])
            metadata["parents"] = above
        if new.run_id is not None:
            metadata["run_id"] = new.run_id
        if style == "counted" and new.counters:
            new.is_noted = True
            metadata["counters_since_delta_snapshot"] = new.counters
        config = {"configurable": {"thread_id": new.key[0], "checkpoint_ns": new.key[1]}}
        if new.parent is not None:
            config["configurable"]["checkpoint_id"] = new.parent
        checkpoint: Any = {
            "v": new.version,
            "id": new.key[2],
            "ts": new.made.isoformat(),
            "channel_values": dict(new.values),
            "channel_versions": new.versions,
            "versions_seen": {},
            "updated_channels": None,
        }
        self.saver.put(config, checkpoint, metadata, fresh)
        self.checkpoints[new.key] = new

    def _write(self, after: Checkpoint, style: str) -> None:
        channels = ["kept", "count", "flag", "mood", "branch:to:next", *(DELTAS if style != "old" else [TASKS])]
        for task in range(self.chance.randint(1, 2)):
            chosen = self.chance.sample(channels, self.chance.randint(1, len(channels)))
            writes = [(channel, [self._text()]) for channel in chosen]
            identity = str(uuid.UUID(int=self.chance.getrandbits(128)))
            self.saver.put_writes(after.config, writes, identity, f"~__pregel_pull, {task}")
            after.written |= set(chosen)

    def _text(self) -> str:
        text = self.chance.choice(["short", "a longer text ", "a page of text "])
        return text * self.chance.choice([1, 3, 100 if self.chance.random() < 0.3 else 5]) + str(next(self._numbers))

    def _version(self) -> str:
        return f"{next(self._numbers):032}.{self.chance.random():016}"

    # --- what is there to be read ---

    def ids(self, thread_id: str, graph: str) -> list[str]:
        """The checkpoints of a graph, the oldest first."""
        return sorted(key[2] for key in self.checkpoints if key[:2] == (thread_id, graph))

    def graphs(self) -> list[tuple[str, str]]:
        """The threads and their namespaces, those that call before those that are called."""
        return sorted({key[:2] for key in self.checkpoints}, key=lambda graph: (graph[1].count("|"), graph))

    def read(self) -> dict[Key, tuple[CheckpointTuple, dict[str, Any]]]:
        """Everything that a saver returns of each checkpoint: itself, its writes, and what it is rebuilt from."""
        return {key: self._read(one) for key, one in self.checkpoints.items()}

    def _read(self, one: Checkpoint) -> tuple[CheckpointTuple, dict[str, Any]]:
        found = self.saver.get_tuple(one.config)
        assert found is not None, one.key
        sought = [channel for channel in DELTAS if channel not in found.checkpoint["channel_values"]]
        return found, dict(self.saver.get_delta_channel_history(config=one.config, channels=sought))

    # --- what has to be left, by the book ---

    def left_by_rule(
        self,
        *,
        keep: int = 1,
        cutoff: datetime | None = None,
        deletes_threads: bool = False,
        spare_active: bool = False,
    ) -> set[Key]:
        """What is left if all but the newest of each graph may go, or what is too old, or what is both."""
        left: set[Key] = set()
        young = {key for key, one in self.checkpoints.items() if cutoff is not None and one.made >= cutoff}
        active = {thread_id for thread_id, _, _ in young}
        for thread_id, graph in self.graphs():
            keys = [(thread_id, graph, one) for one in self.ids(thread_id, graph)]
            if deletes_threads and thread_id not in active:
                continue
            if spare_active and thread_id in active:
                left |= set(keys)
                continue
            caller = self.checkpoints[keys[-1]].caller
            has_ended = ":" in graph and caller in self.checkpoints and caller not in left
            newest = [] if has_ended else keys[-keep:]
            left |= self._with_needed({*newest, *(young & set(keys))})
        return left

    def left_without_runs(self, run_ids: set[str]) -> set[Key]:
        """What is left if the checkpoints of some runs may go."""
        return self._with_needed({key for key, one in self.checkpoints.items() if one.run_id not in run_ids})

    def _with_needed(self, left: set[Key]) -> set[Key]:
        while needed := {key for one in left for key in self._needed(one, left)} - left:
            left |= needed
        return left

    def _needed(self, key: Key, left: set[Key]) -> Iterator[Key]:
        one = self.checkpoints[key]
        sought = {channel for channel in DELTAS if not self._has_value(one, channel)}
        for above in self._ancestors(key):
            ancestor = self.checkpoints[above]
            stored = {channel for channel in sought if self._has_value(ancestor, channel)}
            if stored or sought & ancestor.written:
                yield above
            sought -= stored
        parent = (*key[:2], one.parent or "")
        if one.version < 4 and parent in self.checkpoints:
            heirs = [above for above in self._ancestors(key) if above in left]
            if any(TASKS in self.checkpoints[above].written for above in (parent, *heirs[:1])):
                yield parent

    def _has_value(self, one: Checkpoint, channel: str) -> bool:
        return channel in one.values or (*one.key[:2], channel, one.versions.get(channel)) in self._snapshots

    def _ancestors(self, key: Key) -> Iterator[Key]:
        parent = self.checkpoints[key].parent
        while parent is not None and (*key[:2], parent) in self.checkpoints:
            above = (*key[:2], parent)
            yield above
            parent = self.checkpoints[above].parent

    def forget(self, left: set[Key]) -> None:
        """Take note of what is left, and whose parents are others now."""
        parents = {}
        for key in left:
            one = self.checkpoints[key]
            is_stored = (*key[:2], one.parent) in self.checkpoints
            heirs = [above[2] for above in self._ancestors(key) if above in left]
            parents[key] = heirs[0] if heirs else None if is_stored else one.parent
        self.checkpoints = {key: one for key, one in self.checkpoints.items() if key in left}
        for key, parent in parents.items():
            self.checkpoints[key].parent = parent


def unreachable(url: str) -> dict[str, int]:
    """How many rows of each table nothing leads to."""
    with psycopg.connect(url) as conn:
        counts = {name: conn.execute(query).fetchone() for name, query in UNREACHABLE.items()}
    return {name: row[0] for name, row in counts.items() if row and row[0]}


UNREACHABLE = {
    "writes": """
        SELECT count(*) FROM checkpoint_writes w WHERE NOT EXISTS (
            SELECT FROM checkpoints c WHERE (c.thread_id, c.checkpoint_ns, c.checkpoint_id)
            = (w.thread_id, w.checkpoint_ns, w.checkpoint_id))
    """,
    "blobs": """
        SELECT count(*) FROM checkpoint_blobs b WHERE NOT EXISTS (
            SELECT FROM checkpoints c WHERE (c.thread_id, c.checkpoint_ns) = (b.thread_id, b.checkpoint_ns)
            AND c.checkpoint -> 'channel_versions' ->> b.channel = b.version)
    """,
    "pages": """
        SELECT count(*) FROM checkpoint_pages p WHERE NOT EXISTS (
            SELECT FROM checkpoint_blobs b WHERE b.thread_id = p.thread_id AND b.type = 'pages'
            AND position(p.digest IN b.blob) > 0)
    """,
    "threads": """
        SELECT count(*) FROM checkpoint_threads t WHERE NOT EXISTS (
            SELECT FROM checkpoint_pages p WHERE p.thread_id = t.thread_id)
    """,
}


def id_at(moment: datetime, chance: random.Random) -> str:
    """A version 6 UUID of a moment, as LangGraph makes checkpoint ids."""
    ticks = (moment - datetime(1582, 10, 15, tzinfo=UTC)) // timedelta(microseconds=1) * 10
    digits = f"{ticks:015x}"
    return f"{digits[:8]}-{digits[8:12]}-6{digits[12:]}-8{chance.getrandbits(12):03x}-{chance.getrandbits(48):012x}"
