"""Which checkpoints of a thread may go, and which have to stay for the sake of those that stay; no I/O.

A rule says which checkpoints nobody asks for any longer. Of those stay, all the same:

- what the delta channels of one that stays are rebuilt from: of its ancestors, back to the nearest that has the value
  of a channel, those that wrote to it and that one. What is in between contributes nothing.
- the parent that has the sends of one that stays (format before 4); and a parent whose place would be taken by one that
  has sends too, which are for another child.

Nothing in the database says which channels are delta channels. LangGraph counts their updates in the metadata of its
checkpoints, and marks their snapshots. Where it did neither, the rows tell: a task wrote to the channel, the next
checkpoint has another version of it, and no value.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from checkpoint_store.sql.read import TASKS

_UUID6 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-6[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

# Where the time in a UUID begins (https://www.rfc-editor.org/rfc/rfc9562#section-5.1).
_BEGINNING = datetime(1582, 10, 15, tzinfo=UTC)

Victims = dict[str, set[str]]
"""Checkpoint ids by namespace."""


class Node(NamedTuple):
    """A checkpoint, as `statements.delete_candidates.candidates` selects it."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None
    is_of_run: bool
    """Whether it is of one of the rule's runs."""
    callers: str | None
    """Of a subgraph's call, as JSON: the checkpoint of each graph above that it was called from, by namespace."""
    counted: Sequence[str] | None
    """The delta channels that LangGraph has counted for it."""


class Trace(NamedTuple):
    """What a checkpoint has of a channel."""

    version: str | None
    is_stored: bool
    """Whether it has a value, inline or as a blob."""
    is_snapshot: bool
    """Whether that is LangGraph's snapshot of a delta channel."""
    is_written: bool
    """Whether tasks that followed it wrote to the channel."""


_NOTHING = Trace(None, False, False, False)


@dataclass(frozen=True)
class Rule:
    """Which checkpoints nobody asks for any longer."""

    keep: int = 1
    """How many stay of each namespace, the newest."""
    before: str | None = None
    """What is younger than this id stays, and so does what can't be dated; None if age doesn't matter."""
    whole: bool = False
    """Whether a thread that has nothing of that kind goes altogether."""
    spares_active: bool = False
    """Whether a thread that has anything of that kind is left alone."""
    run_ids: Sequence[str] | None = None
    """If they are given, their checkpoints go instead, whatever else they are."""


class DeletionPlan:
    """The checkpoints of one thread, and what is known of their channels.

    Args:
        thread_id: The thread.
        nodes: Its checkpoints, by namespace, oldest first, in the database's order.
    """

    def __init__(self, thread_id: str, nodes: Iterable[Node]) -> None:
        self.thread_id = thread_id
        self.graphs: dict[str, dict[str, Node]] = {}
        for node in nodes:
            self.graphs.setdefault(node.checkpoint_ns, {})[node.checkpoint_id] = node
        self._inspected: dict[tuple[str, str], bool] = {}
        """Whether those find their sends among their parents' writes."""
        self._sought: dict[str, set[str]] = {}
        self._traces: dict[tuple[str, str], dict[str, Trace]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.graphs.values()))

    def victims(self, rule: Rule) -> Victims:
        """Return what may go by a rule; before everything was inspected it may be too much."""
        active = self._is_active(rule)
        if active and rule.spares_active:
            return {}
        if rule.whole and not active:
            return {graph: set(nodes) for graph, nodes in self.graphs.items()}
        victims: Victims = {}
        # A graph comes after those above it: what was called goes with the checkpoint that called it.
        for graph in sorted(self.graphs, key=_depth):
            if gone := self._unwanted(graph, rule, victims):
                self._spare(graph, gone)
                victims[graph] = gone
        return {graph: gone for graph, gone in victims.items() if gone}

    def orphans(self, victims: Victims) -> list[Node]:
        """Return those that stay though their parent goes."""
        return [
            node
            for graph, gone in victims.items()
            for node in self.graphs[graph].values()
            if node.parent_id in gone and node.checkpoint_id not in gone
        ]

    def uninspected(self, victims: Victims) -> list[Node]:
        """Return those of them whose channels nobody has looked at."""
        return [
            node for node in self.orphans(victims) if (node.checkpoint_ns, node.checkpoint_id) not in self._inspected
        ]

    def inspect(self, node: Node, is_old: bool, bare: Iterable[str]) -> list[str]:
        """Take note of one of them.

        Args:
            node: The checkpoint.
            is_old: Whether it finds its sends among its parent's writes.
            bare: The channels that it has a version of, or its parent's tasks wrote to, but no value.

        Returns:
            The channels that have to be traced through its graph now.
        """
        self._inspected[node.checkpoint_ns, node.checkpoint_id] = is_old
        wanted = {*bare, *self._counted(node.checkpoint_ns), *([TASKS] if is_old else [])}
        sought = self._sought.setdefault(node.checkpoint_ns, set())
        new = wanted - sought
        sought |= new
        return sorted(new)

    def trace(self, graph: str, checkpoint_id: str, channel: str, trace: Trace) -> None:
        """Take note of what a checkpoint has of a channel."""
        self._traces.setdefault((graph, channel), {})[checkpoint_id] = trace

    def is_delicate(self, graph: str) -> bool:
        """Tell whether checkpoints of a graph depend on earlier ones."""
        return bool(self._sought.get(graph))

    def in_order(self, victims: Victims) -> list[Node]:
        """Return what goes so that it can go in parts: a call before what called it, a child before its parent."""
        ordered: list[Node] = []
        for graph in sorted(victims, key=_depth, reverse=True):
            generations = self._generations(graph)
            nodes = [self.graphs[graph][one] for one in victims[graph]]
            ordered += sorted(nodes, key=lambda node: generations[node.checkpoint_id], reverse=True)
        return ordered

    def can_be_split(self) -> bool:
        """Tell whether what goes may go in parts: not where there are sends, which are of whoever is the parent."""
        sends = [traces.values() for (_, channel), traces in self._traces.items() if channel == TASKS]
        return not any(trace.is_written for traces in sends for trace in traces)

    def _is_active(self, rule: Rule) -> bool:
        nodes = (node for nodes in self.graphs.values() for node in nodes.values())
        return rule.before is not None and any(not is_older(node.checkpoint_id, rule.before) for node in nodes)

    def _unwanted(self, graph: str, rule: Rule, victims: Victims) -> set[str]:
        nodes = list(self.graphs[graph].values())
        if rule.run_ids is not None:
            return {node.checkpoint_id for node in nodes if node.is_of_run}
        keep = 0 if self._has_ended(nodes[-1], victims) else rule.keep
        return {
            node.checkpoint_id
            for node in nodes[: max(0, len(nodes) - keep)]
            if rule.before is None or is_older(node.checkpoint_id, rule.before)
        }

    def _has_ended(self, newest: Node, victims: Victims) -> bool:
        """Tell whether a graph is the call of a checkpoint that goes.

        One that isn't there may yet be stored: what was called is sometimes stored before what called it.
        """
        callers = json.loads(newest.callers) if newest.callers else None
        if not isinstance(callers, dict):
            return False
        above = newest.checkpoint_ns
        while above:
            above = above.rpartition("|")[0]
            if above in callers:
                return callers[above] in victims.get(above, ())
        return False

    def _spare(self, graph: str, gone: set[str]) -> None:
        """Take out of those that go what others need."""
        if not self.is_delicate(graph):
            return
        deltas = self._deltas(graph)
        before = None
        while before != len(gone):
            before = len(gone)
            self._spare_contributions(graph, gone, deltas)
            self._spare_sends(graph, gone)

    def _spare_contributions(self, graph: str, gone: set[str], deltas: set[str]) -> None:
        nodes = self.graphs[graph]
        traces = {channel: self._traces.get((graph, channel), {}) for channel in deltas}

        def lacking(one: str, among: Iterable[str]) -> set[str]:
            return {channel for channel in among if not traces[channel].get(one, _NOTHING).is_stored}

        sought: dict[str, set[str]] = {}
        waiting = [(node.parent_id, lacking(one, deltas)) for one, node in nodes.items() if one not in gone]
        while waiting:
            one, channels = waiting.pop()
            if one is None or one not in nodes:
                continue
            known = sought.setdefault(one, set())
            new = channels - known
            if not new:
                continue
            known |= new
            left = lacking(one, new)
            if one in gone and (left != new or any(traces[channel].get(one, _NOTHING).is_written for channel in left)):
                gone.remove(one)
                left |= lacking(one, deltas)
            waiting.append((nodes[one].parent_id, left))

    def _spare_sends(self, graph: str, gone: set[str]) -> None:
        nodes, traces = self.graphs[graph], self._traces.get((graph, TASKS), {})
        waiting = [nodes[one] for (of, one), is_old in self._inspected.items() if of == graph and is_old]
        while waiting:
            node = waiting.pop()
            if node.checkpoint_id not in gone and node.parent_id is not None and node.parent_id in gone:
                heir = self.heir(node, gone)
                if any(traces.get(one, _NOTHING).is_written for one in (node.parent_id, heir or "")):
                    gone.remove(node.parent_id)
                    waiting.append(nodes[node.parent_id])

    def heir(self, orphan: Node, gone: set[str]) -> str | None:
        """Return the nearest ancestor that stays of one whose parent goes; None if there is none."""
        nodes = self.graphs[orphan.checkpoint_ns]
        one, seen = orphan.parent_id, set[str]()
        while one in gone and one not in seen:
            seen.add(one)
            one = nodes[one].parent_id
        return one if one in nodes and one not in gone else None

    def _counted(self, graph: str) -> set[str]:
        """The delta channels that LangGraph has left a note of."""
        return {channel for node in self.graphs[graph].values() for channel in node.counted or ()}

    def _deltas(self, graph: str) -> set[str]:
        counted = self._counted(graph)
        # What LangGraph has counted elsewhere but not here, it has a snapshot of here.
        is_delta = self._has_snapshot if counted else self._is_delta
        return counted | {channel for channel in self._sought[graph] - counted - {TASKS} if is_delta(graph, channel)}

    def _has_snapshot(self, graph: str, channel: str) -> bool:
        return any(trace.is_snapshot for trace in self._traces.get((graph, channel), {}).values())

    def _is_delta(self, graph: str, channel: str) -> bool:
        """Tell whether tasks write to a channel and it has no value then; without a sign of either, that it is so.

        What a fork leaves open is whether it was written at all: the writes are those of one child.
        """
        nodes, traces = self.graphs[graph], self._traces.get((graph, channel), {})
        children = Counter(node.parent_id for node in nodes.values())
        is_ordinary = False
        for node in nodes.values():
            here = traces.get(node.checkpoint_id, _NOTHING)
            if here.is_snapshot:
                return True
            there = traces.get(node.parent_id or "", _NOTHING)
            if here.version is not None and here.version != there.version:
                if there.is_written and not here.is_stored and children[node.parent_id] == 1:
                    return True
                # Written, it has a value; or its value is gone though nobody wrote.
                is_ordinary |= here.is_stored if there.is_written else there.is_stored and not here.is_stored
        return not is_ordinary

    def _generations(self, graph: str) -> dict[str, int]:
        """How far each checkpoint is from the first of its line."""
        nodes, generations = self.graphs[graph], dict[str, int]()
        for start in nodes:
            line: dict[str, None] = {}  # in order; a circle of parents is walked once
            one = start
            while one in nodes and one not in generations and one not in line:
                line[one] = None
                one = nodes[one].parent_id or ""
            generation = generations.get(one, 0)
            for one in reversed(line):
                generation += 1
                generations[one] = generation
        return generations


def first_id_of(moment: datetime) -> str:
    """Return the least id that a checkpoint made at a moment may have."""
    ticks = (moment - _BEGINNING) // timedelta(microseconds=1) * 10
    digits = f"{min(max(ticks, 0), 16**15 - 1):015x}"
    return f"{digits[:8]}-{digits[8:12]}-6{digits[12:]}-8000-000000000000"


def _depth(graph: str) -> int:
    return graph.count("|") + bool(graph)


def is_older(checkpoint_id: str, than: str) -> bool:
    """Tell whether a checkpoint is older than an id; one that can't be dated is not."""
    return checkpoint_id < than and _UUID6.fullmatch(checkpoint_id) is not None
