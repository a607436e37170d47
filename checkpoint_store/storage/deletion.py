"""Deletion of checkpoints, with all that only they need, from many threads in one transaction.

Deletions from one thread exclude each other by a lock that puts take no notice of. What is stored meanwhile is safe all
the same: checkpoints are chosen by id, and a blob or a page is deleted only if none of the checkpoints that are there
once its lock is held refers to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, TypeVar

from checkpoint_store.sql.arrays import array_binds, thread_binds
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import locks, shared_pages
from checkpoint_store.storage.deletion_plan import DeletionPlan, Key, Node, Reparented, Rule, keys_of, plans_for
from checkpoint_store.storage.operation import Kind, operation
from checkpoint_store.storage.sweep_report import Size, SweepReport, report_of

Binds = dict[str, Any]
T = TypeVar("T")

LOOK_THREADS = 1_000
"""The number of threads that one statement searches for something to delete."""

_BLOBS = 2
"""The number of blobs looked at in one transaction, for each checkpoint that would be deleted in one."""


class Part(NamedTuple):
    """Checkpoints that are deleted in one transaction."""

    nodes: Sequence[Node]
    keeps_blobs: bool = False
    """Whether their values stay for now, because others of their graph are deleted later."""


class UnusedBlobs(NamedTuple):
    """The blobs of a graph that nothing refers to once its parts that keep blobs are deleted."""

    graph: tuple[str, str]
    after: tuple[str, str] | None = None
    """The channel and version that were looked at last; None before the first."""


@dataclass
class Remainder:
    """The part of a plan that is left: the thread had too much for one transaction."""

    plan: DeletionPlan
    parts: Sequence[Part | UnusedBlobs]
    """In an order in which they may be deleted; none if the last have to be chosen anew."""
    new_parents: Mapping[Key, str | None]
    """The checkpoints that stay and lose their parent, with the nearest of their ancestors that is still there."""


@operation(Kind.READ)
def find_threads(db: Executor, sql: Statements, rule: Rule, thread_ids: Sequence[str]) -> Sequence[Row]:
    """Return the threads that have checkpoints of a rule's runs, or else those of some threads that have any.

    Returns:
        Their ids and numbers of checkpoints.
    """
    if rule.run_ids is not None:
        return db.fetch(sql.threads_of_runs, {"run_ids": list(rule.run_ids)})
    return db.fetch(sql.checkpoint_counts, {"thread_ids": list(thread_ids)})


@operation(Kind.READ)
def find_next_threads(db: Executor, sql: Statements, after: str, rule: Rule) -> tuple[str | None, int, Sequence[Row]]:
    """Look at the threads that follow one for checkpoints to delete.

    Returns:
        Where to go on, the number of threads, and the ids and numbers of checkpoints of those that may have any.
    """
    keep = 0 if rule.deletes_threads else rule.keep
    rows = db.fetch(sql.next_threads, {"after": after, "limit": LOOK_THREADS, "keep": keep, "before": rule.before})
    return next_after(rows), len(rows), [row for row in rows if row[1] is not None]


@operation(Kind.READ)
def count_threads(db: Executor, sql: Statements) -> int:
    """Return the number of threads that `find_next_threads` looks at."""
    count: int = db.fetch(sql.thread_count, {"after": "", "limit": 2**31 - 1})[0][0]
    return count


def next_after(rows: Sequence[Row]) -> str | None:
    """Return the thread after which to look on; None if there are no more than these rows, one for each."""
    return rows[-1][0] if len(rows) >= LOOK_THREADS else None


def parts_of(items: Iterable[T], thread_of: Callable[[T], str], *, distributed: bool) -> Iterator[list[T]]:
    """Divide what is sorted by thread into parts for one statement each: where tables are distributed, by thread."""
    return (list(part) for _, part in groupby(items, thread_of if distributed else lambda _: ""))


@operation(Kind.WRITE, in_transaction=True)
def delete_checkpoints(
    db: Executor, sql: Statements, rule: Rule, thread_ids: Sequence[str], limit: int | None
) -> tuple[SweepReport, Remainder | None]:
    """Delete the checkpoints that a rule names from some threads.

    Args:
        db: The executor.
        sql: The statements.
        rule: The rule.
        thread_ids: The threads.
        limit: The number of checkpoints to delete of a single thread, if its plan can be divided.

    Returns:
        The report, and what is left to delete.
    """
    locks.lock_removal(db, sql, thread_ids)
    plans = plans_for(db, sql, rule, thread_ids, limit)
    remainder = None
    if limit is not None and len(plans) == 1:
        [plan] = plans
        nodes = plan.in_order()
        if limit < len(plan) > len(nodes) and (rule.deletes_threads or len(nodes) > limit):
            if plan.can_be_divided():
                new_parents = {node[:3]: node.parent_id for node in plan.reparented()}
                # To find that out took long enough for a transaction.
                return SweepReport(threads=1), Remainder(plan, _parts(nodes, limit), new_parents)
            remainder = Remainder(plan, (), {})
    keys, reparented = keys_of(plans)
    return _delete(db, sql, keys, reparented), remainder


@operation(Kind.WRITE, in_transaction=True)
def delete_part(db: Executor, sql: Statements, remainder: Remainder, limit: int) -> tuple[SweepReport, Remainder]:
    """Delete the next part of a plan, as it is now: since it was made, others may have deleted some.

    Returns:
        The report, and what is left to delete; without parts if a checkpoint was stored meanwhile that may need them:
        then they have to be chosen anew.
    """
    part, *others = remainder.parts
    plan = remainder.plan
    locks.lock_removal(db, sql, [plan.thread_id])
    if isinstance(part, UnusedBlobs):
        report, further = _delete_unused_blobs(db, sql, part, limit * _BLOBS)
        return report, replace(remainder, parts=[*further, *others])
    if needed := [node[:3] for node in part.nodes if plan.needs_ancestors(node.checkpoint_ns)]:
        for _, graph, _, children in db.fetch(sql.children, key_binds(needed)):
            if not plan.graphs[graph].keys() >= set(children):
                return SweepReport(), replace(remainder, parts=())
    keys = [node[:3] for node in part.nodes]
    if not part.keeps_blobs:
        return _delete(db, sql, keys, _reparented(db, sql, keys)), replace(remainder, parts=others)
    reparented, new_parents = _reparented_by_plan(db, sql, remainder, keys)
    report = _delete(db, sql, keys, reparented, keeps_blobs=True)
    # Not in place: the transaction may have to be repeated.
    return report, replace(remainder, parts=others, new_parents={**remainder.new_parents, **new_parents})


def delete_whole_threads(db: Executor, sql: Statements, sizes: Mapping[str, int]) -> SweepReport:
    """Delete all checkpoints of threads, under their removal locks, of those that have as many as is given."""
    plans = plans_for(db, sql, Rule(deletes_threads=True), sorted(sizes), None) if sizes else []
    keys, _ = keys_of([plan for plan in plans if len(plan) == sizes[plan.thread_id]])
    return _delete(db, sql, keys, ())


@operation(Kind.READ)
def count_checkpoints(db: Executor, sql: Statements, rule: Rule, thread_ids: Sequence[str]) -> SweepReport:
    """Return the report that `delete_checkpoints` would make, without a limit."""
    plans = plans_for(db, sql, rule, thread_ids, None)
    if not plans:
        return SweepReport()
    binds = key_binds(keys_of(plans)[0])
    [(writes, checkpoints)] = db.fetch(sql.count_checkpoints, binds)
    [blobs] = db.fetch(sql.count_blobs, binds)
    pages: Size = (0, 0)
    if paged := [row[0] for row in db.fetch(sql.paged_threads, thread_binds([plan.thread_id for plan in plans]))]:
        [pages] = db.fetch(sql.count_pages, {**binds, **thread_binds(paged)})
    return report_of(len(plans), checkpoints=checkpoints, writes=writes, blobs=blobs, pages=pages)


def _parts(nodes: Sequence[Node], limit: int) -> list[Part | UnusedBlobs]:
    """Divide the checkpoints to delete of a thread, in order, into parts of a number of checkpoints at most.

    The blobs that are deleted with a part show only when all that is left of its graph is looked at. In a graph that
    makes several parts they are deleted after all checkpoints but one: a sweep that was interrupted comes back for it.
    """
    parts: list[Part | UnusedBlobs] = []
    small: list[Node] = []
    for _, of_graph in groupby(nodes, attrgetter("checkpoint_ns")):
        here = list(of_graph)
        # Before anything of a graph, all of those that it has called: else nothing would show that these have ended.
        if small and len(small) + len(here) > limit:
            parts.append(Part(small))
            small = []
        if len(here) > limit:
            *first, last = here
            parts += [Part(first[place : place + limit], True) for place in range(0, len(first), limit)]
            parts.append(UnusedBlobs((last.thread_id, last.checkpoint_ns)))
            here = [last]
        small += here
    return [*parts, Part(small)]


def _delete_unused_blobs(
    db: Executor, sql: Statements, part: UnusedBlobs, limit: int
) -> tuple[SweepReport, Sequence[UnusedBlobs]]:
    """Look at a number of blobs, and delete those that nothing refers to. Returns the report, and where to go on."""
    graph = dict(zip(("thread_id", "checkpoint_ns"), part.graph, strict=True))
    if part.after is None:
        # While there is no lock that others would notice.
        db.fetch(sql.mark_dead_entries, graph)
        return SweepReport(), [part._replace(after=("", ""))]
    after = dict(zip(("after_channel", "after_version"), part.after, strict=True))
    found = db.fetch(sql.next_blob, {**graph, **after, "limit": limit})
    if not found:
        return SweepReport(), ()
    upto = found[0][0], found[0][1]
    binds = {**graph, **after, **dict(zip(("upto_channel", "upto_version"), upto, strict=True))}
    blobs: Size = (0, 0)
    if db.fetch(sql.lock_blob_range, binds)[0][0]:
        [blobs] = db.fetch(sql.delete_blob_range, binds)
    return report_of(blobs=blobs), [part._replace(after=upto)]


def _reparented(db: Executor, sql: Statements, keys: Sequence[Key]) -> list[Reparented]:
    """Return the checkpoints that lose their parent when some are deleted, and their new ones."""
    parents = _parents(db, sql, keys)
    return [
        (thread_id, graph, child, _new_parent(parents, graph, lost))
        for thread_id, graph, lost, children in db.fetch(sql.children, key_binds(keys))
        for child in children
        if (graph, child) not in parents
    ]


def _reparented_by_plan(
    db: Executor, sql: Statements, remainder: Remainder, keys: Sequence[Key]
) -> tuple[list[Reparented], dict[Key, str | None]]:
    """Return the same of one graph by its plan: to look at all of the graph for each part would take ages.

    Returns:
        The checkpoints that lose their parent, and the nearest of their ancestors that is there now.
    """
    parents = _parents(db, sql, keys)
    [(thread_id, graph)] = {key[:2] for key in keys}
    losing = [key for key, parent in remainder.new_parents.items() if key[1] == graph and (graph, parent) in parents]
    found = _parents(db, sql, losing)
    new_parents = {(thread_id, graph, one): _new_parent(parents, graph, lost) for (_, one), lost in found.items()}
    return [(*key, parent) for key, parent in new_parents.items() if parent != found[key[1:]]], new_parents


def _parents(db: Executor, sql: Statements, keys: Sequence[Key]) -> dict[tuple[str, str], str | None]:
    """Return the parents of those checkpoints of a thread that are there, by namespace and id."""
    return {(row[1], row[2]): row[3] for row in db.fetch(sql.parents, key_binds(keys))} if keys else {}


def _new_parent(parents: Mapping[tuple[str, str], str | None], graph: str, lost: str | None) -> str | None:
    """Return the first of a checkpoint and its ancestors that isn't among those to delete."""
    seen = set[str | None]()
    while (graph, lost) in parents and lost not in seen:
        seen.add(lost)
        lost = parents[graph, lost]  # type: ignore[index]
    return lost


def _delete(
    db: Executor, sql: Statements, keys: Sequence[Key], reparented: Sequence[Reparented], *, keeps_blobs: bool = False
) -> SweepReport:
    """Delete checkpoints, their writes, and unless `keeps_blobs` the blobs and pages that only they need."""
    if not keys:
        return SweepReport()
    binds = key_binds(keys)
    threads = sorted({key[0] for key in keys})
    # From here on puts of pages wait, not while the checkpoints were chosen.
    paged = [] if keeps_blobs else locks.lock_pages(db, sql, threads)
    [(writes, checkpoints)] = db.fetch(sql.delete_checkpoints, binds)
    if reparented:
        names = ("thread_id", "checkpoint_ns", "checkpoint_id", "parent_id")
        db.fetch(sql.reparent, {**thread_binds(threads), **array_binds(names, sorted(reparented), "reparented_")})
    blobs = (0, 0) if keeps_blobs else delete_blobs(db, sql, binds)
    # A sweep that was interrupted may have left some whose blobs are gone.
    pages = shared_pages.delete_pages(db, sql, paged) if paged else (0, 0)
    return report_of(len(threads), checkpoints=checkpoints, writes=writes, blobs=blobs, pages=pages)


def delete_blobs(db: Executor, sql: Statements, binds: Binds) -> Size:
    """Delete the blobs of some graphs that no checkpoint refers to; in a transaction."""
    return db.fetch(sql.delete_blobs, binds)[0] if db.fetch(sql.lock_blobs, binds)[0][0] else (0, 0)


def key_binds(keys: Iterable[Key]) -> Binds:
    """Return the binds of checkpoints' keys for `sql.delete`, in the order in which `store` locks them."""
    ids: list[str] = []
    graphs: list[tuple[str, str, int, int]] = []
    for graph, of_graph in groupby(sorted(keys), itemgetter(0, 1)):
        first = len(ids) + 1
        ids += [one for _, _, one in of_graph]
        graphs.append((*graph, first, len(ids)))
    return graph_binds(graphs, ids)


def graph_binds(graphs: Sequence[tuple[str, str, int, int]], ids: Sequence[str]) -> Binds:
    """Return the binds of graphs, each with its range in the array of the ids of checkpoints to delete."""
    names = ("thread_id", "checkpoint_ns", "first", "last")
    threads = thread_binds(sorted({graph[0] for graph in graphs}))
    return {**threads, **array_binds(names, graphs, "namespace_"), "checkpoint_ids": ids}
