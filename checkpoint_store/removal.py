"""Checkpoints are removed, with all that only they need, from many threads in one transaction.

Removers keep each other off by locks that those who store take no notice of. What is stored meanwhile is safe all the
same: what goes is chosen by id, and a blob or a page goes only if no checkpoint refers to it that is there once the
blob's or the thread's lock was had.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any

from checkpoint_store import operations
from checkpoint_store.executor import Executor, Row
from checkpoint_store.lineage import Lineage, Node, Rule, Trace, Victims, is_older
from checkpoint_store.report import SweepReport
from checkpoint_store.statements import Statements

Binds = dict[str, Any]

Key = tuple[str, str, str]
"""Thread, namespace and checkpoint."""


@dataclass
class Rest:
    """What is left to remove of a thread that had too much for one transaction."""

    lineage: Lineage
    nodes: Sequence[Node]
    """In an order in which they may go in parts; none if what goes last has to be chosen then."""


def find_next(db: Executor, sql: Statements, rule: Rule, after: str, most: int) -> Sequence[Row]:
    """Return the threads that follow one, and how many checkpoints they have, None if there is nothing to remove."""
    keep = 0 if rule.whole else rule.keep
    return db.fetch(sql.next_threads, {"after": after, "most": most, "keep": keep, "before": rule.before})


def find_given(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> Sequence[Row]:
    """Return those of some threads that have checkpoints, and how many."""
    return db.fetch(sql.given_threads, {"thread_ids": list(thread_ids)})


def find_by_run(db: Executor, sql: Statements, run_ids: Sequence[str]) -> Sequence[Row]:
    """Return the threads that some runs have left checkpoints in, and how many."""
    return db.fetch(sql.threads_of_runs, {"run_ids": list(run_ids)})


def find_writers(db: Executor, sql: Statements, after: str, most: int) -> Sequence[Row]:
    """Return the threads that follow one among those that have pending writes."""
    return db.fetch(sql.next_writers, {"after": after, "most": most})


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
    rows = db.fetch(sql.stray_writes, {"thread_ids": list(thread_ids), "before": before})
    keys = {(row[0], row[1], row[2]) for row in rows if is_older(row[2], before)}
    # A checkpoint of an old format finds its sends there even so.
    needed = db.fetch(sql.children, _binds(keys)) if keys else ()
    gone: dict[tuple[str, str], set[str]] = {}
    if needed and counting is not None:
        chosen = _choose(db, sql, counting, sorted({row[0] for row in needed}), None)
        gone = {(lineage.thread_id, graph): ids for lineage, victims in chosen for graph, ids in victims.items()}
    keys -= {(row[0], row[1], row[2]) for row in needed if set(row[3]) - gone.get((row[0], row[1]), set())}
    return sorted(keys)


def remove_strays(db: Executor, sql: Statements, keys: Sequence[Key]) -> SweepReport:
    """Delete the writes of checkpoints that aren't there."""
    operations.lock_threads(db, sql, sorted({key[0] for key in keys}))
    [((writes, size), _)] = db.fetch(sql.delete_checkpoints, _binds(keys))
    return SweepReport(writes=writes, bytes=size)


def count_strays(db: Executor, sql: Statements, keys: Sequence[Key]) -> SweepReport:
    """Return what `remove_strays` would delete."""
    [((writes, size), _)] = db.fetch(sql.count_checkpoints, _binds(keys))
    return SweepReport(writes=writes, bytes=size)


def delete_whole(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> SweepReport:
    """Delete everything stored for some threads."""
    (writes, checkpoints, blobs, pages), sizes = zip(*operations.delete_threads(db, sql, thread_ids), strict=True)
    return SweepReport(0, checkpoints, writes, blobs, pages, sum(sizes))


def remove(
    db: Executor, sql: Statements, rule: Rule, thread_ids: Sequence[str], most: int | None
) -> tuple[SweepReport, Rest | None]:
    """Remove from some threads what may go by a rule; of a single one so much at most, if that can be.

    Returns:
        What was removed, and what is left to remove.
    """
    operations.lock_threads(db, sql, thread_ids)
    chosen = _choose(db, sql, rule, thread_ids, most)
    if most is not None and len(chosen) == 1:
        [(lineage, victims)] = chosen
        nodes = lineage.in_order(victims)
        if len(nodes) < len(lineage) and (rule.whole or len(nodes) > most):
            first = nodes[:most] if lineage.can_be_split() else nodes
            return _take_part(db, sql, first), Rest(lineage, nodes[len(first) :])
    mended = [
        (*_key_of(node), lineage.heir(node, victims[node.checkpoint_ns]))
        for lineage, victims in chosen
        for node in lineage.orphans(victims)
    ]
    return _take_out(db, sql, _keys_of(chosen), mended), None


def remove_rest(db: Executor, sql: Statements, rest: Rest, most: int) -> tuple[SweepReport, Rest | None]:
    """Go on with a thread that had too much for one transaction.

    Returns:
        What was removed, and what is left to remove; none that is known if something was stored meanwhile that may
        need it: then it has to be chosen anew.
    """
    nodes = rest.nodes[:most]
    operations.lock_threads(db, sql, [nodes[0].thread_id])
    graphs = rest.lineage.graphs
    if delicate := [node for node in nodes if rest.lineage.is_delicate(node.checkpoint_ns)]:
        for _, graph, _, children in db.fetch(sql.children, _binds(map(_key_of, delicate))):
            if not graphs[graph].keys() >= set(children):
                return SweepReport(), replace(rest, nodes=())
    return _take_part(db, sql, nodes), replace(rest, nodes=rest.nodes[most:])


def count(db: Executor, sql: Statements, rule: Rule, thread_ids: Sequence[str]) -> SweepReport:
    """Return what `remove` would remove, all of it."""
    chosen = _choose(db, sql, rule, thread_ids, None)
    if not chosen:
        return SweepReport()
    binds = _binds(_keys_of(chosen))
    [((writes, write_bytes), (checkpoints, checkpoint_bytes))] = db.fetch(sql.count_checkpoints, binds)
    [(blobs, blob_bytes, shared)] = db.fetch(sql.count_blobs, binds)
    pages = page_bytes = 0
    if shared:
        [(pages, page_bytes)] = db.fetch(sql.count_pages, {**binds, "thread_ids": list(shared)})
    size = write_bytes + checkpoint_bytes + blob_bytes + page_bytes
    return SweepReport(len(chosen), checkpoints, writes, blobs, pages, size)


def _choose(
    db: Executor, sql: Statements, rule: Rule, thread_ids: Sequence[str], most: int | None
) -> list[tuple[Lineage, Victims]]:
    """Return the threads that have something to remove, and what."""
    rows = db.fetch(sql.lineage, {"thread_ids": list(thread_ids), "run_ids": list(rule.run_ids or ())})
    waiting = [Lineage(thread_id, nodes) for thread_id, nodes in groupby(map(Node._make, rows), _thread_of)]
    chosen: list[tuple[Lineage, Victims]] = []
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


def _inspect(db: Executor, sql: Statements, unsure: Sequence[tuple[Lineage, Sequence[Node]]]) -> None:
    """Find out what those depend on that stay though their parent goes."""
    if not unsure:
        return
    names = ("thread_id", "checkpoint_ns", "checkpoint_id")
    binds = _columns("node", names, (_key_of(node) for _, nodes in unsure for node in nodes))
    found = {(row[0], row[1], row[2]): row[3:] for row in db.fetch(sql.bare_channels, binds)}
    sought = [
        (lineage.thread_id, node.checkpoint_ns, channel)
        for lineage, nodes in unsure
        for node in nodes
        for is_old, bare in [found.get(_key_of(node), (False, None))]
        for channel in lineage.inspect(node, is_old, bare or ())
    ]
    if sought:
        lineages = {lineage.thread_id: lineage for lineage, _ in unsure}
        binds = _columns("sought", ("thread_id", "checkpoint_ns", "channel"), sought)
        for thread_id, graph, checkpoint_id, channel, *trace in db.fetch(sql.traces, binds):
            lineages[thread_id].trace(graph, checkpoint_id, channel, Trace._make(trace))


def _take_part(db: Executor, sql: Statements, nodes: Sequence[Node]) -> SweepReport:
    """Remove a part of a thread, as it is now: since it was looked at, others may have removed or added some."""
    keys = [_key_of(node) for node in nodes]
    binds = _binds(keys)
    parents: dict[tuple[str, str], str | None] = {
        (graph, one): parent for _, graph, one, parent in db.fetch(sql.parents, binds)
    }
    mended = []
    for thread_id, graph, lost, children in db.fetch(sql.children, binds):
        heir, seen = lost, set[str]()
        while (graph, heir) in parents and heir not in seen:
            seen.add(heir)
            heir = parents[graph, heir]
        mended += [(thread_id, graph, child, heir) for child in children if (graph, child) not in parents]
    return _take_out(db, sql, keys, mended)


def _take_out(
    db: Executor, sql: Statements, keys: Sequence[Key], mended: Sequence[tuple[str, str, str, str | None]]
) -> SweepReport:
    """Remove checkpoints and what only they need.

    Args:
        db: The executor.
        sql: The statements.
        keys: The checkpoints.
        mended: The keys of those that lose their parent, and their next one.
    """
    if not keys:
        return SweepReport()
    binds = _binds(keys)
    [((writes, write_bytes), (checkpoints, checkpoint_bytes))] = db.fetch(sql.delete_checkpoints, binds)
    if mended:
        names = ("thread_id", "checkpoint_ns", "checkpoint_id", "parent_id")
        db.fetch(sql.mend, _columns("mended", names, sorted(mended)))
    blobs = blob_bytes = pages = page_bytes = 0
    if db.fetch(sql.lock_blobs, binds)[0][0]:
        [(blobs, blob_bytes, shared)] = db.fetch(sql.delete_blobs, binds)
        pages, page_bytes = operations.delete_pages(db, sql, shared) if shared else (0, 0)
    size = write_bytes + checkpoint_bytes + blob_bytes + page_bytes
    return SweepReport(len({key[0] for key in keys}), checkpoints, writes, blobs, pages, size)


def _binds(keys: Iterable[Key]) -> Binds:
    """Return the keys of checkpoints as `statements.removing` wants them, in the order in which `store` locks them."""
    ids: list[str] = []
    graphs = []
    for graph, of_graph in groupby(sorted(keys), itemgetter(0, 1)):
        first = len(ids) + 1
        ids += [one for _, _, one in of_graph]
        graphs.append((*graph, first, len(ids)))
    return {**_columns("graph", ("thread_id", "checkpoint_ns", "first", "last"), graphs), "victim_ids": ids}


def _columns(prefix: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Binds:
    """Return rows as parallel arrays; their names as `clauses.rows_of_binds` has them."""
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return {f"{prefix}_{name}s": list(column) for name, column in zip(names, columns, strict=True)}


_thread_of = attrgetter("thread_id")


def _key_of(node: Node) -> Key:
    return node.thread_id, node.checkpoint_ns, node.checkpoint_id


def _keys_of(chosen: Sequence[tuple[Lineage, Victims]]) -> list[Key]:
    return [(lineage.thread_id, graph, one) for lineage, gone in chosen for graph in gone for one in gone[graph]]
