"""Removal from any number of threads, in batches, each of them in a transaction of its own.

It is plain code for sync and async: both hand in `run`, which runs an operation and waits for its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from operator import itemgetter
from typing import Any

from checkpoint_store.storage import delete_thread, deletion, leftovers, probes
from checkpoint_store.storage.checkpoint_time import first_id_of
from checkpoint_store.storage.deletion_plan import Rule
from checkpoint_store.storage.operation import Operation
from checkpoint_store.storage.sweep_report import Progress, SweepReport

BATCH_SIZE = 1_000
"""The number of checkpoints removed in one transaction: some 50 to 100 ms."""

_BATCH_THREADS = 256
"""The largest number of threads that they may be of. Each takes one of the few thousand places for locks."""

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
        self.total = SweepReport(*map(sum, zip(self.total, report, strict=True)))
        if self._on_progress and any(report[1:]):
            self._on_progress(self.total)

    def delete_by_rule(self, rule: Rule, batch_size: int) -> None:
        """Delete the checkpoints that a rule names from all threads."""
        for threads in self._looked_for(deletion.find_next_threads, rule):
            for batch in self.batches(threads, batch_size):
                if self._dry_run:
                    self.add(self._run(deletion.count_checkpoints, rule, batch))
                else:
                    self.delete(rule, batch, batch_size)

    def delete(self, rule: Rule, thread_ids: Sequence[str], limit: int | None) -> None:
        """Delete the checkpoints that a rule names from a batch of threads; of a single one in parts if possible."""
        report, remainder = self._run(deletion.delete_checkpoints, rule, thread_ids, limit)
        self.add(report)
        while remainder is not None:
            if remainder.parts:
                report, remainder = self._run(deletion.delete_part, remainder, limit)
            else:
                report, remainder = self._run(deletion.delete_checkpoints, rule, thread_ids, limit)
            self.add(report._replace(threads=0))

    def delete_orphaned_writes(self, counting: Rule | None) -> None:
        """Delete old writes that belong to no checkpoint."""
        settled = first_id_of(datetime.now(UTC) - _SETTLED)
        # Found without a lock first: nearly always there are none.
        for keys in self._looked_for(leftovers.find_orphaned_writes, settled, counting):
            self._in_slices(leftovers.count_orphaned_writes, leftovers.delete_orphaned_writes, keys, itemgetter(0))

    def delete_leftovers(self, thread_ids: Sequence[str]) -> None:
        """Delete the values and pages of some threads that no checkpoint needs."""
        self._in_slices(leftovers.count_leftovers, leftovers.delete_leftovers, thread_ids, str)

    def delete_all_leftovers(self, before: str | None) -> None:
        """Delete the values and pages of all threads that no checkpoint needs."""
        for thread_ids in self._looked_for(leftovers.find_next_leftovers, before):
            self.delete_leftovers(thread_ids)

    def batches(self, threads: Iterable[Sequence[Any]], limit: int) -> Iterator[list[str]]:
        """Put threads together that have a number of checkpoints at most; one that has more is alone.

        So is each where the tables are distributed: there a transaction is about one thread.
        """
        batch: list[str] = []
        count = 0
        for thread_id, size in threads:
            if batch and (count + size > limit or len(batch) == _BATCH_THREADS or self._is_distributed):
                yield batch
                batch, count = [], 0
            batch.append(thread_id)
            count += size
        if batch:
            yield batch

    @cached_property
    def _is_distributed(self) -> bool:
        """Whether a transaction is about one thread: asked when there are several, in the statement before."""
        return bool(self._run(probes.are_distributed))

    def _looked_for(self, find: Operation[..., Any], *args: Any) -> Iterator[Any]:
        after: str | None = ""
        while after is not None:
            after, found = self._run(find, after, *args)
            yield found

    def _in_slices(
        self,
        count: Operation[..., Any],
        delete: Operation[..., Any],
        items: Sequence[Any],
        thread_of: Callable[[Any], str],
    ) -> None:
        distributed = len(items) > 1 and self._is_distributed
        for part in deletion.parts_of(items, thread_of, distributed=distributed):
            for first in range(0, len(part), _BATCH_THREADS):
                self.add(self._run(count if self._dry_run else delete, part[first : first + _BATCH_THREADS]))


def sweep(run: Run, rule: Rule, batch_size: int, dry_run: bool, on_progress: Progress | None) -> SweepReport:
    """Delete what a rule names from all threads, or count it.

    Old writes that belong to no checkpoint are removed too: a run has stored them in the background, after their
    checkpoint was removed. So are the rest of threads after somebody's own SQL has deleted their checkpoints or
    values: a thread's first checkpoint is stored together with its values, so there are never values without one.

    Args:
        run: Runs an operation in a transaction of its own.
        rule: The checkpoints to remove.
        batch_size: The number of checkpoints removed in one transaction.
        dry_run: Whether nothing is removed.
        on_progress: Called after each transaction with what was removed so far.
    """
    removal = _Removal(run, on_progress, dry_run=dry_run)
    removal.delete_by_rule(rule, batch_size)
    removal.delete_orphaned_writes(rule if dry_run else None)
    removal.delete_all_leftovers(rule.before)
    return removal.total


def prune(run: Run, rule: Rule, thread_ids: Sequence[str]) -> SweepReport:
    """Delete what a rule names from some threads, each of them at once; and what no checkpoint needs."""
    removal = _Removal(run)
    # The sizes are for putting threads together.
    sizes = run(deletion.find_threads, rule, thread_ids) if len(thread_ids) != 1 else [(thread_ids[0], 0)]
    for batch in removal.batches(sizes, BATCH_SIZE):
        removal.delete(rule, batch, None)
    removal.delete_leftovers(run(leftovers.find_leftovers, sorted(set(thread_ids))))
    return removal.total


def delete_for_runs(run: Run, run_ids: Sequence[str]) -> SweepReport:
    """Delete the checkpoints of some runs, from each thread at once."""
    removal, rule = _Removal(run), Rule(run_ids=run_ids)
    for batch in removal.batches(run(deletion.find_threads, rule, ()), BATCH_SIZE):
        removal.delete(rule, batch, None)
    return removal.total


def delete_threads(run: Run, thread_ids: Sequence[str]) -> SweepReport:
    """Delete everything stored for some threads, each of them at once."""
    removal = _Removal(run)
    sizes = dict(map(tuple, run(deletion.find_threads, Rule(), thread_ids)))
    for batch in removal.batches([(thread_id, sizes.get(thread_id, 0)) for thread_id in thread_ids], BATCH_SIZE):
        report = run(delete_thread.delete_threads, batch)
        removal.add(report._replace(threads=len(sizes.keys() & set(batch))))
    return removal.total
