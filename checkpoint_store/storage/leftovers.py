"""Leftovers of deletions: writes that belong to no checkpoint, and values and pages that no checkpoint needs."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from checkpoint_store.sql.arrays import thread_binds
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import locks, shared_pages
from checkpoint_store.storage.checkpoint_time import is_older
from checkpoint_store.storage.deletion import (
    LOOK_THREADS,
    Binds,
    delete_blobs,
    graph_binds,
    key_binds,
    next_after,
    parts_of,
)
from checkpoint_store.storage.deletion_plan import Key, Rule, keys_of, plans_for
from checkpoint_store.storage.operation import Kind, operation
from checkpoint_store.storage.sweep_report import SweepReport, report_of


@operation(Kind.READ)
def find_orphaned_writes(
    db: Executor, sql: Statements, after: str, before: str, counting: Rule | None
) -> tuple[str | None, Sequence[Key]]:
    """Look at the threads that follow one for old writes that belong to no checkpoint.

    Args:
        db: The executor.
        sql: The statements.
        after: The thread that they follow.
        before: The id that the missing checkpoints are older than.
        counting: The rule of a dry run, by which checkpoints would have been deleted by then.

    Returns:
        Where to go on, and the keys of the missing checkpoints.
    """
    writers = db.fetch(sql.next_writers, {"after": after, "limit": LOOK_THREADS})
    rows = db.fetch(sql.orphaned_writes, {"thread_ids": [row[0] for row in writers], "before": before})
    keys = sorted((row[0], row[1], row[2]) for row in rows if is_older(row[2], before))
    parts = parts_of(keys, itemgetter(0), distributed=sql.are_distributed)
    needed = {key for part in parts for key in _needed(db, sql, part, counting)}
    return next_after(writers), sorted({*keys} - needed)


def _needed(db: Executor, sql: Statements, keys: Sequence[Key], counting: Rule | None) -> set[Key]:
    """Return those of some missing checkpoints that have children: one of an old format finds its sends there."""
    needed = db.fetch(sql.children, key_binds(keys))
    deleted: set[Key] = set()
    if needed and counting is not None:
        plans = plans_for(db, sql, counting, sorted({row[0] for row in needed}), None)
        deleted = set(keys_of(plans)[0])
    return {(row[0], row[1], row[2]) for row in needed if {(row[0], row[1], child) for child in row[3]} - deleted}


@operation(Kind.WRITE, in_transaction=True)
def delete_orphaned_writes(db: Executor, sql: Statements, keys: Sequence[Key]) -> SweepReport:
    """Delete the writes of checkpoints that aren't there."""
    locks.lock_removal(db, sql, sorted({key[0] for key in keys}))
    return report_of(writes=db.fetch(sql.delete_checkpoints, key_binds(keys))[0][0])


@operation(Kind.READ)
def count_orphaned_writes(db: Executor, sql: Statements, keys: Sequence[Key]) -> SweepReport:
    """Return the report that `delete_orphaned_writes` would make."""
    return report_of(writes=db.fetch(sql.count_checkpoints, key_binds(keys))[0][0])


@operation(Kind.READ)
def find_next_leftovers(
    db: Executor, sql: Statements, after: str, before: str | None
) -> tuple[str | None, Sequence[str]]:
    """Look at the threads that follow one for values and pages that no checkpoint needs.

    Args:
        db: The executor.
        sql: The statements.
        after: The thread that they follow.
        before: An id that their writes are older than; None if age doesn't matter.

    Returns:
        Where to go on, and the threads that have any.
    """
    rows = db.fetch(sql.next_leftovers, {"after": after, "limit": LOOK_THREADS, "before": before})
    if sql.are_distributed:
        return next_after(rows), _find_distributed(db, sql, [row[0] for row in rows], before)
    return next_after(rows), [thread_id for thread_id, is_leftover in rows if is_leftover]


@operation(Kind.READ)
def find_leftovers(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> Sequence[str]:
    """Return those of some threads that have something that no checkpoint needs."""
    if sql.are_distributed:
        return _find_distributed(db, sql, thread_ids, None)
    return [thread_id for (thread_id,) in db.fetch(sql.leftover_threads, {"thread_ids": list(thread_ids)})]


def _find_distributed(db: Executor, sql: Statements, thread_ids: Sequence[str], before: str | None) -> Sequence[str]:
    # What else goes on in the database only the coordinator knows.
    if not thread_ids or not db.fetch(sql.sees_all, {})[0][0]:
        return ()
    return sorted(row[0] for row in db.fetch(sql.leftover_threads, {"thread_ids": list(thread_ids), "before": before}))


@operation(Kind.WRITE, in_transaction=True)
def delete_leftovers(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> SweepReport:
    """Delete the values and pages of some threads that no checkpoint needs; others may store meanwhile."""
    locks.lock_removal(db, sql, thread_ids)
    locks.claim_threads(db, sql, thread_ids)
    blobs = delete_blobs(db, sql, _graph_binds(db, sql, thread_ids))
    return report_of(blobs=blobs, pages=shared_pages.delete_pages(db, sql, thread_ids))


@operation(Kind.READ)
def count_leftovers(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> SweepReport:
    """Return the report that `delete_leftovers` would make."""
    binds = _graph_binds(db, sql, thread_ids)
    [blobs] = db.fetch(sql.count_blobs, binds)
    return report_of(blobs=blobs, pages=db.fetch(sql.count_pages, binds)[0])


def _graph_binds(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> Binds:
    """Return the binds of all graphs that threads have values of, without a checkpoint to delete."""
    graphs = sorted(map(tuple, db.fetch(sql.blob_namespaces, thread_binds(thread_ids))))
    binds = graph_binds([(thread_id, checkpoint_ns, 1, 0) for thread_id, checkpoint_ns in graphs], [])
    return {**binds, **thread_binds(thread_ids)}
