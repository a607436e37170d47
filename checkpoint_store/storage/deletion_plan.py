"""The plan by which checkpoints of a thread are deleted: those that a rule names, but for those that others need.

A rule names checkpoints that no caller asks for any longer. Of these stay nevertheless:

- the ancestors that delta channels of a checkpoint which stays are rebuilt from: back to the nearest that has the value
  of a channel, those that wrote to it and that one. The ancestors in between contribute nothing.
- the parent that has the sends of a checkpoint that stays (format before 4); and a parent that would be replaced by an
  ancestor that has sends too, which are for another child.

Nothing in the database says which channels are delta channels. LangGraph counts their updates in the metadata of its
checkpoints, and marks their snapshots. Where it did neither, the rows show it: a task wrote to the channel, the next
checkpoint has another version of it, and no value.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from checkpoint_store.sql.arrays import array_binds, thread_binds
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.read import TASKS
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.checkpoint_time import is_older

Key = tuple[str, str, str]
"""Thread, namespace and checkpoint."""

Reparented = tuple[str, str, str, str | None]
"""Thread, namespace and checkpoint, and its new parent."""

CheckpointIds = dict[str, set[str]]
"""By namespace."""


class Node(NamedTuple):
    """A checkpoint, as `sql.delete_candidates.candidates` selects it; it begins with its key."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None
    is_of_run: bool
    """Whether it is of one of the rule's runs."""
    callers: str | None
    """For the call of a subgraph, as JSON: the checkpoint in each graph above that it was called from, by namespace."""
    counted: Sequence[str] | None
    """The delta channels that LangGraph has counted for it."""


class Trace(NamedTuple):
    """The trace of a channel in a checkpoint."""

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
    """The checkpoints that no caller asks for any longer."""

    keep: int = 1
    """The number of checkpoints that stay of each namespace, the newest."""
    before: str | None = None
    """Checkpoints younger than this id stay, and so do those without a time; None if age doesn't matter."""
    deletes_threads: bool = False
    """Whether a thread that has no such checkpoint is deleted altogether."""
    spares_active: bool = False
    """Whether a thread that has any such checkpoint is left alone."""
    run_ids: Sequence[str] | None = None
    """Runs whose checkpoints are deleted instead, if given, whatever else they are."""


class DeletionPlan:
    """The checkpoints of one thread, those of them to delete, and the known facts about their channels.

    Args:
        thread_id: The thread.
        nodes: Its checkpoints, by namespace, oldest first, in the database's order.
    """

    def __init__(self, thread_id: str, nodes: Iterable[Node]) -> None:
        self.thread_id = thread_id
        self.graphs: dict[str, dict[str, Node]] = {}
        for node in nodes:
            self.graphs.setdefault(node.checkpoint_ns, {})[node.checkpoint_id] = node
        self.to_delete: CheckpointIds = {}
        """The checkpoints to delete, see `choose`."""
        self._inspected: dict[tuple[str, str], bool] = {}
        """Whether those find their sends among their parents' writes."""
        self._sought: dict[str, set[str]] = {}
        self._traces: dict[tuple[str, str], dict[str, Trace]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.graphs.values()))

    def choose(self, rule: Rule, limit: int | None) -> list[Node]:
        """Choose the checkpoints to delete by a rule.

        Args:
            rule: The rule.
            limit: The number of checkpoints that can be deleted at once; None for any number.

        Returns:
            The checkpoints that lose their parent and have not been inspected. Unless there are none, too many are
            chosen: inspect these and choose again.
        """
        # Of a thread that is deleted altogether, but not at once, the newest go last and with all they depend on: a run
        # that comes back to the thread meanwhile finds those or nothing.
        first = replace(rule, deletes_threads=False) if limit is not None and len(self) > limit else rule
        self.to_delete = self._chosen(first) or self._chosen(rule)
        return [node for node in self.reparented() if (node.checkpoint_ns, node.checkpoint_id) not in self._inspected]

    def reparented(self) -> list[Node]:
        """Return the checkpoints that stay and lose their parent."""
        return [
            node
            for graph, ids in self.to_delete.items()
            for node in self.graphs[graph].values()
            if node.parent_id in ids and node.checkpoint_id not in ids
        ]

    def new_parent(self, node: Node) -> str | None:
        """Return the nearest ancestor that stays of a checkpoint that loses its parent; None if there is none."""
        return self._nearest_left(node, self.to_delete[node.checkpoint_ns])

    def inspect(self, node: Node, is_old: bool, without_value: Iterable[str]) -> list[str]:
        """Record facts about a checkpoint that loses its parent.

        Args:
            node: The checkpoint.
            is_old: Whether it finds its sends among its parent's writes.
            without_value: The channels that it has a version of, or its parent's tasks wrote to, but no value.

        Returns:
            The channels that have to be traced through its graph now.
        """
        self._inspected[node.checkpoint_ns, node.checkpoint_id] = is_old
        wanted = {*without_value, *self._counted(node.checkpoint_ns), *([TASKS] if is_old else [])}
        sought = self._sought.setdefault(node.checkpoint_ns, set())
        new = wanted - sought
        sought |= new
        return sorted(new)

    def trace(self, graph: str, checkpoint_id: str, channel: str, trace: Trace) -> None:
        """Record the trace of a channel in a checkpoint."""
        self._traces.setdefault((graph, channel), {})[checkpoint_id] = trace

    def needs_ancestors(self, graph: str) -> bool:
        """Return whether checkpoints of a graph depend on earlier ones."""
        return bool(self._sought.get(graph))

    def in_order(self) -> list[Node]:
        """Return the checkpoints to delete in an order that can be divided: calls before callers, children first."""
        ordered: list[Node] = []
        for graph in sorted(self.to_delete, key=_depth, reverse=True):
            generations = self._generations(graph)
            nodes = [self.graphs[graph][one] for one in self.to_delete[graph]]
            ordered += sorted(nodes, key=lambda node: generations[node.checkpoint_id], reverse=True)
        return ordered

    def can_be_divided(self) -> bool:
        """Return whether it may be carried out in parts: not if there are sends, which belong to the next parent."""
        sends = [traces.values() for (_, channel), traces in self._traces.items() if channel == TASKS]
        return not any(trace.is_written for traces in sends for trace in traces)

    def _chosen(self, rule: Rule) -> CheckpointIds:
        active = self._is_active(rule)
        if active and rule.spares_active:
            return {}
        if rule.deletes_threads and not active:
            return {graph: set(nodes) for graph, nodes in self.graphs.items()}
        chosen: CheckpointIds = {}
        # A graph comes after those above it: a call is deleted with the checkpoint that called it.
        for graph in sorted(self.graphs, key=_depth):
            if ids := self._named(graph, rule, chosen):
                self._spare(graph, ids)
                chosen[graph] = ids
        return {graph: ids for graph, ids in chosen.items() if ids}

    def _is_active(self, rule: Rule) -> bool:
        nodes = (node for nodes in self.graphs.values() for node in nodes.values())
        return rule.before is not None and any(not is_older(node.checkpoint_id, rule.before) for node in nodes)

    def _named(self, graph: str, rule: Rule, chosen: CheckpointIds) -> set[str]:
        """Return the checkpoints of a graph that a rule names."""
        nodes = list(self.graphs[graph].values())
        if rule.run_ids is not None:
            return {node.checkpoint_id for node in nodes if node.is_of_run}
        keep = 0 if self._has_ended(nodes[-1], chosen) else rule.keep
        return {
            node.checkpoint_id
            for node in nodes[: max(0, len(nodes) - keep)]
            if rule.before is None or is_older(node.checkpoint_id, rule.before)
        }

    def _has_ended(self, newest: Node, chosen: CheckpointIds) -> bool:
        """Return whether a graph is the call of a checkpoint to delete.

        A caller that isn't there may yet be stored: a call's checkpoints are sometimes stored before their caller.
        """
        callers = json.loads(newest.callers) if newest.callers else None
        if not isinstance(callers, dict):
            return False
        above = newest.checkpoint_ns
        while above:
            above = above.rpartition("|")[0]
            if above in callers:
                return callers[above] in chosen.get(above, ())
        return False

    def _spare(self, graph: str, ids: set[str]) -> None:
        """Take the checkpoints that others need out of those to delete."""
        if not self.needs_ancestors(graph):
            return
        deltas = self._deltas(graph)
        before = None
        while before != len(ids):
            before = len(ids)
            self._spare_contributions(graph, ids, deltas)
            self._spare_sends(graph, ids)

    def _spare_contributions(self, graph: str, ids: set[str], deltas: set[str]) -> None:
        nodes = self.graphs[graph]
        traces = {channel: self._traces.get((graph, channel), {}) for channel in deltas}

        def lacking(one: str, among: Iterable[str]) -> set[str]:
            return {channel for channel in among if not traces[channel].get(one, _NOTHING).is_stored}

        sought: dict[str, set[str]] = {}
        waiting = [(node.parent_id, lacking(one, deltas)) for one, node in nodes.items() if one not in ids]
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
            if one in ids and (left != new or any(traces[channel].get(one, _NOTHING).is_written for channel in left)):
                ids.remove(one)
                left |= lacking(one, deltas)
            waiting.append((nodes[one].parent_id, left))

    def _spare_sends(self, graph: str, ids: set[str]) -> None:
        nodes, traces = self.graphs[graph], self._traces.get((graph, TASKS), {})
        waiting = [nodes[one] for (of, one), is_old in self._inspected.items() if of == graph and is_old]
        while waiting:
            node = waiting.pop()
            if node.checkpoint_id not in ids and node.parent_id is not None and node.parent_id in ids:
                new_parent = self._nearest_left(node, ids)
                if any(traces.get(one, _NOTHING).is_written for one in (node.parent_id, new_parent or "")):
                    ids.remove(node.parent_id)
                    waiting.append(nodes[node.parent_id])

    def _nearest_left(self, node: Node, ids: set[str]) -> str | None:
        nodes = self.graphs[node.checkpoint_ns]
        one, seen = node.parent_id, set[str]()
        while one in ids and one not in seen:
            seen.add(one)
            one = nodes[one].parent_id
        return one if one in nodes and one not in ids else None

    def _counted(self, graph: str) -> set[str]:
        """Return the delta channels that LangGraph has counted."""
        return {channel for node in self.graphs[graph].values() for channel in node.counted or ()}

    def _deltas(self, graph: str) -> set[str]:
        counted = self._counted(graph)
        # A channel that LangGraph has counted elsewhere but not here has a snapshot here.
        is_delta = self._has_snapshot if counted else self._is_delta
        return counted | {channel for channel in self._sought[graph] - counted - {TASKS} if is_delta(graph, channel)}

    def _has_snapshot(self, graph: str, channel: str) -> bool:
        return any(trace.is_snapshot for trace in self._traces.get((graph, channel), {}).values())

    def _is_delta(self, graph: str, channel: str) -> bool:
        """Return whether tasks write to a channel and it has no value then; True without a sign of either.

        A fork leaves open whether the channel was written at all: the writes are those of one child.
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
                # Written, it has a value; or its value is gone though no task wrote.
                is_ordinary |= here.is_stored if there.is_written else there.is_stored and not here.is_stored
        return not is_ordinary

    def _generations(self, graph: str) -> dict[str, int]:
        """Return the distance of each checkpoint from the first of its line."""
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


def _depth(graph: str) -> int:
    return graph.count("|") + bool(graph)


def plans_for(
    db: Executor, sql: Statements, rule: Rule, thread_ids: Sequence[str], limit: int | None
) -> list[DeletionPlan]:
    """Return the plans of those of some threads that have something to delete.

    Args:
        db: The executor.
        sql: The statements.
        rule: The rule.
        thread_ids: The threads.
        limit: See `DeletionPlan.choose`.
    """
    rows = db.fetch(sql.candidates, {**thread_binds(thread_ids), "run_ids": list(rule.run_ids or ())})
    nodes_of = groupby(map(Node._make, rows), attrgetter("thread_id"))
    waiting = [DeletionPlan(thread_id, nodes) for thread_id, nodes in nodes_of]
    chosen: list[DeletionPlan] = []
    while waiting:
        unsure = []
        for plan in waiting:
            if unknown := plan.choose(rule, limit):
                unsure.append((plan, unknown))
            elif plan.to_delete:
                chosen.append(plan)
        if unsure:
            _inspect(db, sql, unsure)
        waiting = [plan for plan, _ in unsure]
    return chosen


def _inspect(db: Executor, sql: Statements, unsure: Sequence[tuple[DeletionPlan, Sequence[Node]]]) -> None:
    """Record the facts on which the checkpoints depend that lose their parent."""
    keys: list[Key] = [node[:3] for _, nodes in unsure for node in nodes]
    threads = thread_binds([plan.thread_id for plan, _ in unsure])
    binds = {**threads, **array_binds(("thread_id", "checkpoint_ns", "checkpoint_id"), keys, "node_")}
    found = {(row[0], row[1], row[2]): row[3:] for row in db.fetch(sql.channels_without_value, binds)}
    sought = [
        (plan.thread_id, node.checkpoint_ns, channel)
        for plan, nodes in unsure
        for node in nodes
        for is_old, without_value in [found.get(node[:3], (False, None))]
        for channel in plan.inspect(node, is_old, without_value or ())
    ]
    if sought:
        plans = {plan.thread_id: plan for plan, _ in unsure}
        binds = {**threads, **array_binds(("thread_id", "checkpoint_ns", "channel"), sought, "sought_")}
        for thread_id, graph, checkpoint_id, channel, *trace in db.fetch(sql.traces, binds):
            plans[thread_id].trace(graph, checkpoint_id, channel, Trace._make(trace))


def keys_of(plans: Iterable[DeletionPlan]) -> tuple[list[Key], list[Reparented]]:
    """Return the checkpoints to delete of several plans, and those that lose their parent, with their new ones."""
    keys = [(plan.thread_id, graph, one) for plan in plans for graph, ids in plan.to_delete.items() for one in ids]
    return keys, [(*node[:3], plan.new_parent(node)) for plan in plans for node in plan.reparented()]
