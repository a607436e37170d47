"""Checkpoints are removed, with all that only they need, from many threads in one transaction.

Removers keep each other off by locks that those who store take no notice of. What is stored meanwhile is safe all the
same: what goes is chosen by id, and a blob or a page goes only if no checkpoint refers to it that is there once the
blob's or the thread's lock was had.

The work is a generator of calls, each a transaction, that gets their outcomes: so it is the same for sync and async.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from checkpoint_store import operations
from checkpoint_store.executor import Executor, Row
from checkpoint_store.lineage import Lineage, Node, Rule, Trace
from checkpoint_store.report import Progress, SweepReport
from checkpoint_store.statements import Statements

BATCH_SIZE = 1_000
"""How many checkpoints go in one transaction: some 50 to 100 ms."""

_BATCH_THREADS = 256
"""How many threads they may be of. Each is a lock in PostgreSQL's table of locks, which has a few thousand places."""

_LOOK_THREADS = 1_000
"""How many threads are looked at at once for whether there is something to remove."""

Binds = dict[str, Any]


class Call(NamedTuple):
    """An operation to run in a transaction."""

    operation: Callable[..., Any]
    args: tuple[Any, ...]


Work = Generator[Call, Any, SweepReport]


def sweep(rule: Rule, batch_size: int, dry_run: bool, on_progress: Progress | None) -> Work:
    """Remove from all threads what may go by a rule, or count it.

    Args:
        rule: What may go.
        batch_size: How many checkpoints go in one transaction; more only where some depend on each other.
        dry_run: Whether nothing is removed.
        on_progress: Called after each transaction with what was removed so far.
    """
    done, after = SweepReport(), ""
    while rows := (yield Call(_find_next, (rule, after, _LOOK_THREADS))):
        after = rows[-1][0]
        for batch in _batches(((thread_id, size) for thread_id, size in rows if size is not None), batch_size):
            reports = _counting(rule, batch) if dry_run else _removing(rule, batch, batch_size)
            done = yield from _telling(reports, done, on_progress)
    return done


def prune(rule: Rule, thread_ids: Sequence[str]) -> Work:
    """Remove from some threads what may go by a rule, from each of them at once."""
    rows = yield Call(_find_given, (thread_ids,))
    return (yield from _remove_whole(rule, rows))


def delete_for_runs(run_ids: Sequence[str]) -> Work:
    """Remove the checkpoints of some runs, from each thread at once."""
    rows = yield Call(_find_by_run, (run_ids,))
    return (yield from _remove_whole(Rule(run_ids=run_ids), rows))


def delete_threads(thread_ids: Sequence[str]) -> Work:
    """Delete everything stored for some threads, each of them at once."""
    done = SweepReport()
    sizes = dict(map(tuple, (yield Call(_find_given, (thread_ids,)))))
    for batch in _batches(((thread_id, sizes.get(thread_id, 0)) for thread_id in thread_ids), BATCH_SIZE):
        done = done.plus((yield Call(_delete, (batch,))))
    return done


def _remove_whole(rule: Rule, rows: Sequence[Row]) -> Work:
    done = SweepReport()
    for batch in _batches(rows, BATCH_SIZE):
        done = yield from _telling(_removing(rule, batch, None), done, None)
    return done


def _batches(threads: Iterable[Sequence[Any]], most: int) -> Iterator[list[str]]:
    """Put threads together that have so many checkpoints at most; one that has more is alone."""
    batch: list[str] = []
    count = 0
    for thread_id, size in threads:
        if batch and (count + size > most or len(batch) == _BATCH_THREADS):
            yield batch
            batch, count = [], 0
        batch.append(thread_id)
        count += size
    if batch:
        yield batch


def _telling(
    reports: Generator[Call | SweepReport, Any, None], done: SweepReport, on_progress: Progress | None
) -> Work:
    """Pass on the calls of a generator, and add up what it reports in between."""
    answer = None
    while True:
        try:
            step = reports.send(answer)
        except StopIteration:
            return done
        if isinstance(step, Call):
            answer = yield step
            continue
        done, answer = done.plus(step), None
        if on_progress:
            on_progress(done)


def _counting(rule: Rule, thread_ids: Sequence[str]) -> Generator[Call | SweepReport, Any, None]:
    yield (yield Call(_count, (rule, thread_ids)))


def _removing(rule: Rule, thread_ids: Sequence[str], most: int | None) -> Generator[Call | SweepReport, Any, None]:
    """Remove from some threads what may go; from a single one so much at a time, if that can be."""
    is_first = True
    rest: Rest | None = None
    while True:
        report, rest = yield Call(_remove, (rule, thread_ids, most))
        yield report if is_first else report._replace(threads=0)
        if rest is None:
            return
        is_first = False
        while rest is not None:
            report, rest = yield Call(_remove_rest, (rest, most))
            yield report._replace(threads=0)


# --- the operations ---


@dataclass
class Rest:
    """What is left to remove of a thread that had too much for one transaction."""

    lineage: Lineage
    nodes: Sequence[Node]
    """In an order in which they may go in parts."""


def _find_next(db: Executor, sql: Statements, rule: Rule, after: str, most: int) -> Sequence[Row]:
    """Return the threads that follow one, and how many checkpoints they have, None if there is nothing to remove."""
    keep = 0 if rule.whole else rule.keep
    return db.fetch(sql.next_threads, {"after": after, "most": most, "keep": keep, "before": rule.before})


def _find_given(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> Sequence[Row]:
    return db.fetch(sql.given_threads, {"thread_ids": list(thread_ids)})


def _find_by_run(db: Executor, sql: Statements, run_ids: Sequence[str]) -> Sequence[Row]:
    return db.fetch(sql.threads_of_runs, {"run_ids": list(run_ids)})


def _delete(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> SweepReport:
    (writes, checkpoints, blobs, pages), sizes = zip(*operations.delete_threads(db, sql, thread_ids), strict=True)
    return SweepReport(len(thread_ids) if checkpoints else 0, checkpoints, writes, blobs, pages, sum(sizes))


def _remove(
    db: Executor, sql: Statements, rule: Rule, thread_ids: Sequence[str], most: int | None
) -> tuple[SweepReport, Rest | None]:
    """Remove from some threads what may go by a rule; of a single one so much at most, if that can be.

    Returns:
        What was removed, and what is left to remove.
    """
    operations.lock_threads(db, sql, thread_ids)
    chosen = _chosen(db, sql, rule, thread_ids, most)
    if most is not None and len(chosen) == 1:
        [(lineage, nodes)] = chosen
        if most < len(nodes) < len(lineage) and lineage.can_be_split():
            return _take_out(db, sql, nodes[:most]), Rest(lineage, nodes[most:])
    return _take_out(db, sql, [node for _, nodes in chosen for node in nodes]), None


def _remove_rest(db: Executor, sql: Statements, rest: Rest, most: int) -> tuple[SweepReport, Rest | None]:
    """Go on with a thread that had too much for one transaction.

    Returns:
        What was removed, and what is left to remove; nothing of either if something was stored meanwhile that may need
        what was to be removed.
    """
    nodes = rest.nodes[:most]
    operations.lock_threads(db, sql, [nodes[0].thread_id])
    graphs = rest.lineage.graphs
    if delicate := [node for node in nodes if rest.lineage.is_delicate(node.checkpoint_ns)]:
        for _, graph, _, children in db.fetch(sql.children, _binds(delicate)):
            if not graphs[graph].keys() >= set(children):
                return SweepReport(), None
    return _take_out(db, sql, nodes), Rest(rest.lineage, rest.nodes[most:]) if len(rest.nodes) > most else None


def _count(db: Executor, sql: Statements, rule: Rule, thread_ids: Sequence[str]) -> SweepReport:
    """Return what `_remove` would remove, all of it."""
    nodes = [node for _, nodes in _chosen(db, sql, rule, thread_ids, None) for node in nodes]
    if not nodes:
        return SweepReport()
    binds = _binds(nodes)
    [(writes, write_bytes)] = db.fetch(sql.count_writes, binds)
    [(checkpoints, checkpoint_bytes)] = db.fetch(sql.count_checkpoints, binds)
    [(blobs, blob_bytes, shared)] = db.fetch(sql.count_blobs, binds)
    pages = page_bytes = 0
    if shared:
        [(pages, page_bytes)] = db.fetch(sql.count_pages, {**binds, "thread_ids": list(shared)})
    size = write_bytes + checkpoint_bytes + blob_bytes + page_bytes
    return SweepReport(len({node.thread_id for node in nodes}), checkpoints, writes, blobs, pages, size)


def _chosen(
    db: Executor, sql: Statements, rule: Rule, thread_ids: Sequence[str], most: int | None
) -> list[tuple[Lineage, list[Node]]]:
    """Return the threads that have something to remove, and what: in an order in which it may go in parts."""
    rows = db.fetch(sql.lineage, {"thread_ids": list(thread_ids), "run_ids": list(rule.run_ids or ())})
    lineages = {thread_id: Lineage(nodes) for thread_id, nodes in groupby(map(Node._make, rows), _thread_of)}
    # Of a thread that goes altogether, but not at once, the newest goes last and with all it depends on: who comes back
    # to the thread meanwhile finds that or nothing.
    rules = {
        thread_id: replace(rule, whole=False) if most is not None and len(lineage) > most else rule
        for thread_id, lineage in lineages.items()
    }
    _inspect(db, sql, lineages, rules)
    chosen = []
    for thread_id, lineage in lineages.items():
        if victims := lineage.victims(rules[thread_id]) or lineage.victims(rule):
            chosen.append((lineage, lineage.in_order(victims)))
    return chosen


def _inspect(db: Executor, sql: Statements, lineages: Mapping[str, Lineage], rules: Mapping[str, Rule]) -> None:
    """Find out what those that stay depend on."""
    names = ("thread_id", "checkpoint_ns", "checkpoint_id")
    while nodes := [
        node
        for thread_id, lineage in lineages.items()
        for node in lineage.uninspected(lineage.victims(rules[thread_id]))
    ]:
        bare = {
            tuple(key): channels
            for *key, channels in db.fetch(sql.bare_channels, _columns("node", names, (node[:3] for node in nodes)))
        }
        sought = [
            (node.thread_id, node.checkpoint_ns, channel)
            for node in nodes
            for channel in lineages[node.thread_id].inspect(node, bare.get(node[:3], ()))
        ]
        if sought:
            binds = _columns("sought", ("thread_id", "checkpoint_ns", "channel"), sought)
            for thread_id, graph, checkpoint_id, channel, *trace in db.fetch(sql.traces, binds):
                lineages[thread_id].trace(graph, checkpoint_id, channel, Trace._make(trace))


def _take_out(db: Executor, sql: Statements, nodes: Sequence[Node]) -> SweepReport:
    if not nodes:
        return SweepReport()
    binds = _binds(nodes)
    [(writes, size)] = db.fetch(sql.delete_writes, binds)
    gone: dict[tuple[str, str], dict[str, str | None]] = {}
    for thread_id, graph, checkpoint_id, parent_id, bytes_ in db.fetch(sql.delete_checkpoints, binds):
        gone.setdefault((thread_id, graph), {})[checkpoint_id] = parent_id
        size += bytes_
    _mend(db, sql, gone, binds)
    db.fetch(sql.lock_blobs, binds)
    [(blobs, blob_bytes, shared)] = db.fetch(sql.delete_blobs, binds)
    pages, page_bytes = operations.delete_pages(db, sql, shared) if shared else (0, 0)
    checkpoints = sum(map(len, gone.values()))
    threads = len({thread_id for thread_id, _ in gone})
    return SweepReport(threads, checkpoints, writes, blobs, pages, size + blob_bytes + page_bytes)


def _mend(
    db: Executor, sql: Statements, gone: Mapping[tuple[str, str], Mapping[str, str | None]], binds: Binds
) -> None:
    """Give those that have lost their parent the nearest ancestor that is there."""
    mended = []
    for thread_id, graph, lost, children in db.fetch(sql.children, binds):
        parents = gone.get((thread_id, graph), {})
        seen = set()
        heir = lost
        while heir in parents and heir not in seen:
            seen.add(heir)
            heir = parents[heir]
        mended += [(thread_id, graph, child, None if heir in seen else heir) for child in children]
    if mended:
        names = ("thread_id", "checkpoint_ns", "checkpoint_id", "parent_id")
        db.fetch(sql.mend, _columns("mended", names, sorted(mended)))


def _binds(nodes: Iterable[Node]) -> Binds:
    """Return the keys of checkpoints, in the order in which `store` locks them, and of the graphs that they are of."""
    keys = sorted(node[:3] for node in nodes)
    return {
        **_columns("victim", ("thread_id", "checkpoint_ns", "checkpoint_id"), keys),
        **_columns("graph", ("thread_id", "checkpoint_ns"), dict.fromkeys(key[:2] for key in keys)),
    }


def _columns(prefix: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Binds:
    """Return rows as parallel arrays; their names as `clauses.rows_of_binds` has them."""
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return {f"{prefix}_{name}s": list(column) for name, column in zip(names, columns, strict=True)}


_thread_of = attrgetter("thread_id")
