"""Checkpoints are removed, with all that only they need, from many threads in one transaction.

Removers keep each other off by locks that those who store take no notice of. What is stored meanwhile is safe all the
same: what goes is chosen by id, and a blob or a page goes only if no checkpoint refers to it that is there once the
blob's or the thread's lock was had.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from checkpoint_store.sql.arrays import array_binds
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import locks, shared_pages, threads
from checkpoint_store.storage.deletion_plan import DeletionPlan, Node, Rule, Trace, Victims, is_older
from checkpoint_store.storage.operation import Kind, operation
from checkpoint_store.storage.report import SweepReport

Binds = dict[str, Any]

Key = tuple[str, str, str]
"""Thread, namespace and checkpoint."""

Mended = tuple[str, str, str, "str | None"]
"""Thread, namespace and checkpoint, and the parent that it gets."""

_BLOBS = 2
"""How many blobs are looked at in one transaction, for each checkpoint that would go in one."""


class Part(NamedTuple):
    """Checkpoints that go in one transaction."""

    nodes: Sequence[Node]
    is_lean: bool = False
    """Whether their values stay for the time being, because others of their graph go later."""


class Leftovers(NamedTuple):
    """The values of a graph that nothing refers to once its lean parts are gone."""

    graph: tuple[str, str]
    after: tuple[str, str] | None = None
    """The channel and version that were looked at last; None before the first."""


@dataclass
class Rest:
    """What is left to remove of a thread that had too much for one transaction."""

    lineage: DeletionPlan
    parts: Sequence[Part | Leftovers]
    """In an order in which they may go; none if what goes last has to be chosen then."""
    heirs: Mapping[Key, str | None]
    """Those that stay though their parent goes, and who is the nearest of their ancestors that is still there."""


@operation(Kind.READ)
def find_next(db: Executor, sql: Statements, rule: Rule, after: str, most: int) -> Sequence[Row]:
    """Return the threads that follow one, and how many checkpoints they have, None if there is nothing to remove."""
    keep = 0 if rule.whole else rule.keep
    return db.fetch(sql.next_threads, {"after": after, "limit": most, "keep": keep, "before": rule.before})


@operation(Kind.READ)
def find_given(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> Sequence[Row]:
    """Return those of some threads that have checkpoints, and how many."""
    return db.fetch(sql.checkpoint_counts, {"thread_ids": list(thread_ids)})


@operation(Kind.READ)
def find_by_run(db: Executor, sql: Statements, run_ids: Sequence[str]) -> Sequence[Row]:
    """Return the threads that some runs have left checkpoints in, and how many."""
    return db.fetch(sql.threads_of_runs, {"run_ids": list(run_ids)})


@operation(Kind.READ)
def find_writers(db: Executor, sql: Statements, after: str, most: int) -> Sequence[Row]:
    """Return the threads that follow one among those that have pending writes."""
    return db.fetch(sql.next_writers, {"after": after, "limit": most})


@operation(Kind.READ)
def find_strays(
    db: Executor, sql: Statements, thread_ids: Sequence[str], before: str, counting: Rule | None = None
) -> Sequence[Key]:
    """Return the keys of the checkpoints that there are writes of, but that aren't there, as far as they are older.

    Args:
        db: The executor.
        sql: The statements.
        thread_ids: The threads to look at.
        before: An id that they are older than.
        counting: The rule that will have been applied by then, where it wasn't.
    """
    rows = db.fetch(sql.orphaned_writes, {"thread_ids": list(thread_ids), "before": before})
    keys = {(row[0], row[1], row[2]) for row in rows if is_older(row[2], before)}
    # A checkpoint of an old format finds its sends there even so.
    needed = db.fetch(sql.children, _binds(keys)) if keys else ()
    gone: dict[tuple[str, str], set[str]] = {}
    if needed and counting is not None:
        chosen = _choose(db, sql, counting, sorted({row[0] for row in needed}), None)
        gone = {(lineage.thread_id, graph): ids for lineage, victims in chosen for graph, ids in victims.items()}
    keys -= {(row[0], row[1], row[2]) for row in needed if set(row[3]) - gone.get((row[0], row[1]), set())}
    return sorted(keys)


@operation(Kind.WRITE, in_transaction=True)
def remove_strays(db: Executor, sql: Statements, keys: Sequence[Key]) -> SweepReport:
    """Delete the writes of checkpoints that aren't there."""
    locks.lock_removal(db, sql, sorted({key[0] for key in keys}))
    [((writes, size), _)] = db.fetch(sql.delete_checkpoints, _binds(keys))
    return SweepReport(writes=writes, bytes=size)


@operation(Kind.READ)
def count_strays(db: Executor, sql: Statements, keys: Sequence[Key]) -> SweepReport:
    """Return what `remove_strays` would delete."""
    [((writes, size), _)] = db.fetch(sql.count_checkpoints, _binds(keys))
    return SweepReport(writes=writes, bytes=size)


@operation(Kind.READ)
def find_leftovers(
    db: Executor, sql: Statements, after: str, most: int, before: str | None
) -> Sequence[tuple[str, bool]]:
    """Return the threads that follow one, and of each whether something is left of it that no checkpoint needs.

    Args:
        db: The executor.
        sql: The statements.
        after: The thread that they follow.
        most: How many to look at.
        before: An id that their writes are older than; None if age doesn't matter.
    """
    rows = db.fetch(sql.next_leftovers, {"after": after, "limit": most, "before": before})
    return [(thread_id, is_leftover) for thread_id, is_leftover in rows]


@operation(Kind.READ)
def find_given_leftovers(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> Sequence[str]:
    """Return those of some threads of which something is left that no checkpoint needs."""
    return [thread_id for (thread_id,) in db.fetch(sql.leftover_threads, {"thread_ids": list(thread_ids)})]


@operation(Kind.WRITE, in_transaction=True)
def remove_leftovers(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> SweepReport:
    """Delete the values and pages of some threads that no checkpoint needs; others may store meanwhile."""
    locks.lock_removal(db, sql, thread_ids)
    threads.claim_threads(db, sql, thread_ids)
    binds = _whole_graphs(db, sql, thread_ids)
    blobs = blob_bytes = 0
    if db.fetch(sql.lock_blobs, binds)[0][0]:
        [(blobs, blob_bytes)] = db.fetch(sql.delete_blobs, binds)
    pages, page_bytes = shared_pages.delete_pages(db, sql, thread_ids)
    return SweepReport(blobs=blobs, pages=pages, bytes=blob_bytes + page_bytes)


@operation(Kind.READ)
def count_leftovers(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> SweepReport:
    """Return what `remove_leftovers` would delete."""
    binds = _whole_graphs(db, sql, thread_ids)
    [(blobs, blob_bytes)] = db.fetch(sql.count_blobs, binds)
    [(pages, page_bytes)] = db.fetch(sql.count_pages, {**binds, "thread_ids": list(thread_ids)})
    return SweepReport(blobs=blobs, pages=pages, bytes=blob_bytes + page_bytes)


def _whole_graphs(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> Binds:
    """Return all graphs that threads have values of as `statements.removing` wants them; no checkpoint of them goes."""
    graphs = sorted(map(tuple, db.fetch(sql.blob_namespaces, {"thread_ids": list(thread_ids)})))
    names = ("thread_id", "checkpoint_ns", "first", "last")
    return {**array_binds(names, [(*graph, 1, 0) for graph in graphs], "namespace_"), "checkpoint_ids": []}


@operation(Kind.WRITE, in_transaction=True)
def delete_whole(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> SweepReport:
    """Delete everything stored for some threads."""
    (writes, checkpoints, blobs, pages), sizes = zip(*threads.delete_threads(db, sql, thread_ids), strict=True)
    return SweepReport(0, checkpoints, writes, blobs, pages, sum(sizes))


@operation(Kind.WRITE, in_transaction=True)
def remove(
    db: Executor, sql: Statements, rule: Rule, thread_ids: Sequence[str], most: int | None
) -> tuple[SweepReport, Rest | None]:
    """Remove from some threads what may go by a rule; of a single one so much at most, if that can be.

    Returns:
        What was removed, and what is left to remove.
    """
    locks.lock_removal(db, sql, thread_ids)
    chosen = _choose(db, sql, rule, thread_ids, most)
    rest = None
    if most is not None and len(chosen) == 1:
        [(lineage, victims)] = chosen
        nodes = lineage.in_order(victims)
        if most < len(lineage) > len(nodes) and (rule.whole or len(nodes) > most):
            if lineage.can_be_split():
                heirs = {_key_of(node): node.parent_id for node in lineage.orphans(victims)}
                # To find that out took long enough for a transaction.
                return SweepReport(threads=1), Rest(lineage, _parts(nodes, most), heirs)
            rest = Rest(lineage, (), {})
    mended = [
        (*_key_of(node), lineage.heir(node, victims[node.checkpoint_ns]))
        for lineage, victims in chosen
        for node in lineage.orphans(victims)
    ]
    return _take_out(db, sql, _keys_of(chosen), mended), rest


@operation(Kind.WRITE, in_transaction=True)
def remove_rest(db: Executor, sql: Statements, rest: Rest, most: int) -> tuple[SweepReport, Rest | None]:
    """Go on with a thread that had too much for one transaction.

    Returns:
        What was removed, and what is left to remove; none that is known if something was stored meanwhile that may
        need it: then it has to be chosen anew.
    """
    part, lineage = rest.parts[0], rest.lineage
    locks.lock_removal(db, sql, [lineage.thread_id])
    nodes = part.nodes if isinstance(part, Part) else ()
    if delicate := [node for node in nodes if lineage.is_delicate(node.checkpoint_ns)]:
        for _, graph, _, children in db.fetch(sql.children, _binds(map(_key_of, delicate))):
            if not lineage.graphs[graph].keys() >= set(children):
                return SweepReport(), replace(rest, parts=())
    return _take_first(db, sql, rest, most)


@operation(Kind.READ)
def count(db: Executor, sql: Statements, rule: Rule, thread_ids: Sequence[str]) -> SweepReport:
    """Return what `remove` would remove, all of it."""
    chosen = _choose(db, sql, rule, thread_ids, None)
    if not chosen:
        return SweepReport()
    binds = _binds(_keys_of(chosen))
    [((writes, write_bytes), (checkpoints, checkpoint_bytes))] = db.fetch(sql.count_checkpoints, binds)
    [(blobs, blob_bytes)] = db.fetch(sql.count_blobs, binds)
    pages = page_bytes = 0
    threads = {"thread_ids": [lineage.thread_id for lineage, _ in chosen]}
    if paged := [thread_id for (thread_id,) in db.fetch(sql.paged_threads, threads)]:
        [(pages, page_bytes)] = db.fetch(sql.count_pages, {**binds, "thread_ids": paged})
    size = write_bytes + checkpoint_bytes + blob_bytes + page_bytes
    return SweepReport(len(chosen), checkpoints, writes, blobs, pages, size)


def _choose(
    db: Executor, sql: Statements, rule: Rule, thread_ids: Sequence[str], most: int | None
) -> list[tuple[DeletionPlan, Victims]]:
    """Return the threads that have something to remove, and what."""
    rows = db.fetch(sql.candidates, {"thread_ids": list(thread_ids), "run_ids": list(rule.run_ids or ())})
    waiting = [DeletionPlan(thread_id, nodes) for thread_id, nodes in groupby(map(Node._make, rows), _thread_of)]
    chosen: list[tuple[DeletionPlan, Victims]] = []
    while waiting:
        unsure = []
        for lineage in waiting:
            # Of a thread that goes altogether, but not at once, the newest goes last and with all it depends on: who
            # comes back to the thread meanwhile finds that or nothing.
            first = replace(rule, whole=False) if most is not None and len(lineage) > most else rule
            victims = lineage.victims(first) or lineage.victims(rule)
            if unknown := lineage.uninspected(victims):
                unsure.append((lineage, unknown))
            elif victims:
                chosen.append((lineage, victims))
        _inspect(db, sql, unsure)
        waiting = [lineage for lineage, _ in unsure]
    return chosen


def _inspect(db: Executor, sql: Statements, unsure: Sequence[tuple[DeletionPlan, Sequence[Node]]]) -> None:
    """Find out what those depend on that stay though their parent goes."""
    if not unsure:
        return
    names = ("thread_id", "checkpoint_ns", "checkpoint_id")
    binds = array_binds(names, (_key_of(node) for _, nodes in unsure for node in nodes), "node_")
    found = {(row[0], row[1], row[2]): row[3:] for row in db.fetch(sql.channels_without_value, binds)}
    sought = [
        (lineage.thread_id, node.checkpoint_ns, channel)
        for lineage, nodes in unsure
        for node in nodes
        for is_old, bare in [found.get(_key_of(node), (False, None))]
        for channel in lineage.inspect(node, is_old, bare or ())
    ]
    if sought:
        lineages = {lineage.thread_id: lineage for lineage, _ in unsure}
        binds = array_binds(("thread_id", "checkpoint_ns", "channel"), sought, "sought_")
        for thread_id, graph, checkpoint_id, channel, *trace in db.fetch(sql.traces, binds):
            lineages[thread_id].trace(graph, checkpoint_id, channel, Trace._make(trace))


def _parts(nodes: Sequence[Node], most: int) -> list[Part | Leftovers]:
    """Divide what goes of a thread, in order, into parts of so many checkpoints at most.

    What blobs go with a part shows only when all that is left of its graph is looked at. Of a graph that makes several
    parts the blobs go when all its checkpoints are gone, but for one: whoever is interrupted comes back for that.
    """
    parts: list[Part | Leftovers] = []
    small: list[Node] = []
    for _, of_graph in groupby(nodes, attrgetter("checkpoint_ns")):
        here = list(of_graph)
        # Before anything of a graph, all of those that it has called: else nobody would know that these have ended.
        if small and len(small) + len(here) > most:
            parts.append(Part(small))
            small = []
        if len(here) > most:
            *first, last = here
            parts += [Part(first[place : place + most], is_lean=True) for place in range(0, len(first), most)]
            parts.append(Leftovers((last.thread_id, last.checkpoint_ns)))
            here = [last]
        small += here
    return [*parts, Part(small)]


def _take_first(db: Executor, sql: Statements, rest: Rest, most: int) -> tuple[SweepReport, Rest]:
    """Remove the first part of what is left, as it is now: since it was chosen, others may have removed some."""
    part, *others = rest.parts
    if isinstance(part, Leftovers):
        report, further = _take_leftovers(db, sql, part, most * _BLOBS)
        return report, replace(rest, parts=[*further, *others])
    keys = [_key_of(node) for node in part.nodes]
    if not part.is_lean:
        return _take_out(db, sql, keys, _mended(db, sql, keys)), replace(rest, parts=others)
    mended, heirs = _mended_by_lineage(db, sql, rest, keys)
    report = _take_out(db, sql, keys, mended, is_lean=True)
    # Not in place: the transaction may have to be repeated.
    return report, replace(rest, parts=others, heirs={**rest.heirs, **heirs})


def _take_leftovers(
    db: Executor, sql: Statements, part: Leftovers, most: int
) -> tuple[SweepReport, Sequence[Leftovers]]:
    """Remove those of so many blobs that nothing refers to. Returns what was removed, and where to go on."""
    graph = dict(zip(("thread_id", "checkpoint_ns"), part.graph, strict=True))
    if part.after is None:
        # While there is no lock that others would notice.
        db.fetch(sql.mark_dead_entries, graph)
        return SweepReport(), [part._replace(after=("", ""))]
    after = dict(zip(("after_channel", "after_version"), part.after, strict=True))
    found = db.fetch(sql.next_blob, {**graph, **after, "limit": most})
    if not found:
        return SweepReport(), ()
    upto = found[0][0], found[0][1]
    binds = {**graph, **after, **dict(zip(("upto_channel", "upto_version"), upto, strict=True))}
    blobs = size = 0
    if db.fetch(sql.lock_blob_range, binds)[0][0]:
        [(blobs, size)] = db.fetch(sql.delete_blob_range, binds)
    return SweepReport(blobs=blobs, bytes=size), [part._replace(after=upto)]


def _mended(db: Executor, sql: Statements, keys: Sequence[Key]) -> list[Mended]:
    """Return the checkpoints whose parents go, and their next ones."""
    binds = _binds(keys)
    parents = _parents(db, sql, keys)
    return [
        (thread_id, graph, child, _heir(parents, graph, lost))
        for thread_id, graph, lost, children in db.fetch(sql.children, binds)
        for child in children
        if (graph, child) not in parents
    ]


def _mended_by_lineage(
    db: Executor, sql: Statements, rest: Rest, keys: Sequence[Key]
) -> tuple[list[Mended], dict[Key, str | None]]:
    """Return the same of a graph of which it is known who stays, to look at all of it for each part would take ages.

    Returns:
        Those that lose their parent, and who of their ancestors is there now.
    """
    parents = _parents(db, sql, keys)
    [(thread_id, graph)] = {key[:2] for key in keys}
    losing = [key for key, heir in rest.heirs.items() if key[1] == graph and (graph, heir) in parents]
    found = _parents(db, sql, losing)
    heirs = {(thread_id, graph, one): _heir(parents, graph, parent) for (_, one), parent in found.items()}
    return [(*key, heir) for key, heir in heirs.items() if heir != found[key[1:]]], heirs


def _parents(db: Executor, sql: Statements, keys: Sequence[Key]) -> dict[tuple[str, str], str | None]:
    """Return the parents of those checkpoints of a thread that are there, by namespace and id."""
    return {(row[1], row[2]): row[3] for row in db.fetch(sql.parents, _binds(keys))} if keys else {}


def _heir(parents: Mapping[tuple[str, str], str | None], graph: str, lost: str | None) -> str | None:
    """Return the first of the ancestors of one that isn't among those that go."""
    seen = set[str | None]()
    while (graph, lost) in parents and lost not in seen:
        seen.add(lost)
        lost = parents[graph, lost]  # type: ignore[index]
    return lost


def _take_out(
    db: Executor,
    sql: Statements,
    keys: Sequence[Key],
    mended: Sequence[Mended],
    *,
    is_lean: bool = False,
) -> SweepReport:
    """Remove checkpoints and what only they need.

    Args:
        db: The executor.
        sql: The statements.
        keys: The checkpoints.
        mended: Those that lose their parent.
        is_lean: Whether their values stay for the time being.
    """
    if not keys:
        return SweepReport()
    binds = _binds(keys)
    threads = sorted({key[0] for key in keys})
    # Who stores pages waits from here on, not while it was chosen what goes.
    paged = [] if is_lean else locks.lock_pages(db, sql, threads)
    [((writes, write_bytes), (checkpoints, checkpoint_bytes))] = db.fetch(sql.delete_checkpoints, binds)
    if mended:
        names = ("thread_id", "checkpoint_ns", "checkpoint_id", "parent_id")
        db.fetch(sql.reparent, array_binds(names, sorted(mended), "reparented_"))
    blobs = blob_bytes = pages = page_bytes = 0
    if not is_lean:
        if db.fetch(sql.lock_blobs, binds)[0][0]:
            [(blobs, blob_bytes)] = db.fetch(sql.delete_blobs, binds)
        # Whoever was interrupted may have left some whose blobs are gone.
        if paged:
            pages, page_bytes = shared_pages.delete_pages(db, sql, paged)
    size = write_bytes + checkpoint_bytes + blob_bytes + page_bytes
    return SweepReport(len(threads), checkpoints, writes, blobs, pages, size)


def _binds(keys: Iterable[Key]) -> Binds:
    """Return the keys of checkpoints as `statements.removing` wants them, in the order in which `store` locks them."""
    ids: list[str] = []
    graphs = []
    for graph, of_graph in groupby(sorted(keys), itemgetter(0, 1)):
        first = len(ids) + 1
        ids += [one for _, _, one in of_graph]
        graphs.append((*graph, first, len(ids)))
    return {**array_binds(("thread_id", "checkpoint_ns", "first", "last"), graphs, "namespace_"), "checkpoint_ids": ids}


_thread_of = attrgetter("thread_id")


def _key_of(node: Node) -> Key:
    return node.thread_id, node.checkpoint_ns, node.checkpoint_id


def _keys_of(chosen: Sequence[tuple[DeletionPlan, Victims]]) -> list[Key]:
    return [(lineage.thread_id, graph, one) for lineage, gone in chosen for graph in gone for one in gone[graph]]
