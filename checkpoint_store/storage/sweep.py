"""Removal from any number of threads, in batches, each of them in a transaction of its own.

It is plain code for sync and async: both hand in `run`, which runs an operation and waits for its result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from operator import itemgetter
from typing import Any

from checkpoint_store.errors import UnreadableValue
from checkpoint_store.storage import delete_thread, deletion, expiry, leftovers, locks, probes
from checkpoint_store.storage.checkpoint_time import first_id_of
from checkpoint_store.storage.deletion_plan import Rule
from checkpoint_store.storage.expiry import BeforeDelete, Expiration, ExpiredThread, Keep
from checkpoint_store.storage.operation import Operation
from checkpoint_store.storage.sweep_report import Progress, SweepReport
from checkpoint_store.storage.thread_list import ThreadSummary

log = logging.getLogger("checkpoint_store")

BATCH_SIZE = 1_000
"""The number of checkpoints removed in one transaction: some 50 to 100 ms."""

_BATCH_THREADS = 256
"""The largest number of threads that they may be of. Each takes one of the few thousand places for locks."""

_SETTLED = timedelta(days=1)
"""The age from which on writes without a checkpoint are orphaned: they may be stored before their checkpoint is."""


Run = Callable[..., Any]
"""Runs an operation, given with its arguments, in a transaction of its own, and returns its result."""

Finish = Callable[[Any], Any]
"""Waits for what a caller's function returned, if that is to be awaited."""


@dataclass(frozen=True)
class Sweep:
    """The arguments of a sweep: either a rule for checkpoints, or the expiry of whole threads."""

    rule: Rule = field(default_factory=Rule)
    expiration: Expiration | None = None
    keep: Keep | None = None
    before_delete: BeforeDelete | None = None
    dry_run: bool = False
    batch_size: int = BATCH_SIZE
    on_progress: Progress | None = None
    on_step: Callable[[int], None] | None = None
    """Called before each transaction with the number of threads that were looked at; what it raises ends the sweep."""


class _Removal:
    """The batches of one call: they are run, their reports added up.

    Args:
        run: Runs an operation in a transaction of its own.
        wanted: The arguments of a sweep.
    """

    def __init__(self, run: Run, wanted: Sweep = Sweep()) -> None:
        self.total = SweepReport()
        self._run_next = run
        self._on_progress = wanted.on_progress
        self._on_step = wanted.on_step
        self._dry_run = wanted.dry_run
        self._looked_at = 0

    def add(self, report: SweepReport) -> None:
        """Add the report of a batch to the total."""
        self.total = SweepReport(*map(sum, zip(self.total, report, strict=True)))
        if self._on_progress and any(report[1:]):
            self._on_progress(self.total)

    def delete_expired(self, expiration: Expiration, wanted: Sweep, finish: Finish) -> None:
        """Delete the threads that have expired, each completely, with the caller's functions about them."""
        if wanted.before_delete and not self._dry_run:
            self._run(locks.check_removal)
        for found in self._looked_for(expiry.find_next_expired, expiration):
            summaries = _summaries(found, wanted, finish)
            threads = {one.thread_id: one for one in found if summaries is None or one.thread_id in summaries}
            self._looked_at += len(found) - len(threads)
            sizes = [(one.thread_id, one.checkpoints) for one in threads.values()]
            for batch in self.batches(sizes, wanted.batch_size):
                if self._dry_run:
                    self.add(self._run(deletion.count_checkpoints, Rule(deletes_threads=True), batch))
                    continue
                if wanted.before_delete and summaries is not None:
                    finish(wanted.before_delete([summaries[thread_id] for thread_id in batch]))
                self.add(self._run(expiry.delete_expired, expiration, [threads[thread_id] for thread_id in batch]))

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
                self._looked_at += len(batch)
                batch, count = [], 0
            batch.append(thread_id)
            count += size
        if batch:
            yield batch
            self._looked_at += len(batch)

    @cached_property
    def _is_distributed(self) -> bool:
        """Whether a transaction is about one thread: asked when there are several, in the statement before."""
        return bool(self._run(probes.are_distributed))

    def _run(self, operation: Operation[..., Any], *args: Any) -> Any:
        if self._on_step is not None:
            self._on_step(self._looked_at)
        return self._run_next(operation, *args)

    def _looked_for(self, find: Operation[..., Any], *args: Any) -> Iterator[Any]:
        after: str | None = ""
        while after is not None:
            after, *count, found = self._run(find, after, *args)
            # Those with something to delete are counted batch by batch.
            self._looked_at += sum(count) - len(found) if count else 0
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


def _summaries(found: Sequence[ExpiredThread], wanted: Sweep, finish: Finish) -> dict[str, ThreadSummary] | None:
    """Return the threads to delete as the caller's functions take them; None for all if there are no such functions."""
    if wanted.keep is None and wanted.before_delete is None:
        return None
    summaries: dict[str, ThreadSummary] = {}
    for one in found:
        try:
            summary = one.summary()
        except UnreadableValue as error:
            log.warning("the sweep keeps a thread that has expired: %s", error)
            continue
        if wanted.keep is None or not finish(wanted.keep(summary)):
            summaries[one.thread_id] = summary
    return summaries


def sweep(run: Run, wanted: Sweep, finish: Finish) -> SweepReport:
    """Delete from all threads what a sweep is to delete, or count it.

    Old writes that belong to no checkpoint are removed too: a run has stored them in the background, after their
    checkpoint was removed. So are the rest of threads after somebody's own SQL has deleted their checkpoints or
    values: a thread's first checkpoint is stored together with its values, so there are never values without one.

    Args:
        run: Runs an operation in a transaction of its own.
        wanted: The arguments.
        finish: Waits for what a caller's function returned.
    """
    removal, rule = _Removal(run, wanted), wanted.rule
    if wanted.expiration is None:
        removal.delete_by_rule(rule, wanted.batch_size)
    else:
        removal.delete_expired(wanted.expiration, wanted, finish)
    removal.delete_orphaned_writes(rule if wanted.dry_run and wanted.expiration is None else None)
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
