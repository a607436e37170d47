"""Removal from any number of threads, in batches, each of them in a transaction of its own.

It is plain code for sync and async: both hand in `run`, which runs an operation and waits for its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from checkpoint_store.storage import deletion
from checkpoint_store.storage.deletion_plan import Rule, first_id_of
from checkpoint_store.storage.report import Progress, SweepReport

BATCH_SIZE = 1_000
"""The number of checkpoints removed in one transaction: some 50 to 100 ms."""

_BATCH_THREADS = 256
"""The largest number of threads that they may be of. Each takes one of the few thousand places for locks."""

_LOOK_THREADS = 1_000
"""The number of threads that one statement searches for something to remove."""

_SETTLED = timedelta(days=1)
"""The age from which on writes without a checkpoint are orphaned: they may be stored before their checkpoint is."""


Run = Callable[..., Any]
"""Runs an operation, given with its arguments, in a transaction of its own, and returns its result."""


class _Removal:
    """The batches of one call: they are run, their reports added up.

    Args:
        run: Runs an operation in a transaction of its own.
        on_progress: Called with the total after each batch that has removed something.
        dry_run: Whether nothing is removed, only counted.
    """

    def __init__(self, run: Run, on_progress: Progress | None = None, *, dry_run: bool = False) -> None:
        self.total = SweepReport()
        self._run = run
        self._on_progress = on_progress
        self._dry_run = dry_run

    def add(self, report: SweepReport) -> None:
        """Add the report of a batch to the total."""
        self.total = self.total.plus(report)
        if self._on_progress and any(report[1:]):
            self._on_progress(self.total)

    def remove_by_rule(self, rule: Rule, batch_size: int) -> None:
        """Remove what a rule names, from all threads."""
        after = ""
        while rows := self._run(deletion.find_next, rule, after, _LOOK_THREADS):
            after = rows[-1][0]
            for batch in _batches(((thread_id, size) for thread_id, size in rows if size is not None), batch_size):
                if self._dry_run:
                    self.add(self._run(deletion.count, rule, batch))
                else:
                    self.remove(rule, batch, batch_size)

    def remove(self, rule: Rule, thread_ids: Sequence[str], most: int | None) -> None:
        """Remove what a rule names from a batch of threads; of a single thread in parts, if it can be divided."""
        report, rest = self._run(deletion.remove, rule, thread_ids, most)
        self.add(report)
        while rest is not None:
            if rest.parts:
                report, rest = self._run(deletion.remove_rest, rest, most)
            else:
                report, rest = self._run(deletion.remove, rule, thread_ids, most)
            self.add(report._replace(threads=0))

    def remove_orphaned_writes(self, counting: Rule | None) -> None:
        """Remove old writes that belong to no checkpoint."""
        after, settled = "", first_id_of(datetime.now(UTC) - _SETTLED)
        while rows := self._run(deletion.find_writers, after, _LOOK_THREADS):
            after = rows[-1][0]
            # Found without a lock first: nearly always there are none.
            keys = self._run(deletion.find_strays, [thread_id for (thread_id,) in rows], settled, counting)
            self._in_slices(deletion.count_strays, deletion.remove_strays, keys)

    def remove_all_leftovers(self, before: str | None) -> None:
        """Remove from all threads what no checkpoint needs."""
        after = ""
        while found := self._run(deletion.find_leftovers, after, _LOOK_THREADS, before):
            after = found[-1][0]
            self.remove_leftovers([thread_id for thread_id, is_leftover in found if is_leftover])

    def remove_leftovers(self, thread_ids: Sequence[str]) -> None:
        """Remove what no checkpoint of some threads needs."""
        self._in_slices(deletion.count_leftovers, deletion.remove_leftovers, thread_ids)

    def _in_slices(self, count: Any, remove: Any, items: Sequence[Any]) -> None:
        for first in range(0, len(items), _BATCH_THREADS):
            self.add(self._run(count if self._dry_run else remove, items[first : first + _BATCH_THREADS]))


def sweep(run: Run, rule: Rule, batch_size: int, dry_run: bool, on_progress: Progress | None) -> SweepReport:
    """Remove what a rule names from all threads, or count it.

    Old writes that belong to no checkpoint are removed too: a run has stored them in the background, after their
    checkpoint was removed. So is what is left of threads after somebody's own SQL has deleted their checkpoints or
    values: a thread's first checkpoint is stored together with its values, so there are never values without one.

    Args:
        run: Runs an operation in a transaction of its own.
        rule: The checkpoints to remove.
        batch_size: The number of checkpoints removed in one transaction.
        dry_run: Whether nothing is removed.
        on_progress: Called after each transaction with what was removed so far.
    """
    removal = _Removal(run, on_progress, dry_run=dry_run)
    removal.remove_by_rule(rule, batch_size)
    removal.remove_orphaned_writes(rule if dry_run else None)
    removal.remove_all_leftovers(rule.before)
    return removal.total


def prune(run: Run, rule: Rule, thread_ids: Sequence[str]) -> SweepReport:
    """Remove what a rule names from some threads, each of them at once; and what no checkpoint needs."""
    removal = _Removal(run)
    # The sizes are for putting threads together.
    sizes = run(deletion.find_given, thread_ids) if len(thread_ids) != 1 else [(thread_ids[0], 0)]
    for batch in _batches(sizes, BATCH_SIZE):
        removal.remove(rule, batch, None)
    removal.remove_leftovers(run(deletion.find_given_leftovers, sorted(set(thread_ids))))
    return removal.total


def delete_for_runs(run: Run, run_ids: Sequence[str]) -> SweepReport:
    """Remove the checkpoints of some runs, from each thread at once."""
    removal = _Removal(run)
    for batch in _batches(run(deletion.find_by_run, run_ids), BATCH_SIZE):
        removal.remove(Rule(run_ids=run_ids), batch, None)
    return removal.total


def delete_threads(run: Run, thread_ids: Sequence[str]) -> SweepReport:
    """Delete everything stored for some threads, each of them at once."""
    removal = _Removal(run)
    sizes = dict(map(tuple, run(deletion.find_given, thread_ids)))
    for batch in _batches([(thread_id, sizes.get(thread_id, 0)) for thread_id in thread_ids], BATCH_SIZE):
        report = run(deletion.delete_whole, batch)
        removal.add(report._replace(threads=len(sizes.keys() & set(batch))))
    return removal.total


def _batches(threads: Iterable[Sequence[Any]], limit: int) -> Iterator[list[str]]:
    """Put threads together that have a number of checkpoints at most; one that has more is alone."""
    batch: list[str] = []
    count = 0
    for thread_id, size in threads:
        if batch and (count + size > limit or len(batch) == _BATCH_THREADS):
            yield batch
            batch, count = [], 0
        batch.append(thread_id)
        count += size
    if batch:
        yield batch
