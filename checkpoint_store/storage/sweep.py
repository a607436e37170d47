"""What is to be removed, batch by batch: a generator of calls, each a transaction, that is sent their outcomes.

So it is the same for sync and async, and nothing here does any I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from checkpoint_store.sql.executor import Row
from checkpoint_store.storage import deletion
from checkpoint_store.storage.deletion_plan import Rule, first_id_of
from checkpoint_store.storage.report import Progress, SweepReport

BATCH_SIZE = 1_000
"""How many checkpoints go in one transaction: some 50 to 100 ms."""

_BATCH_THREADS = 256
"""How many threads they may be of. Each is a lock in PostgreSQL's table of locks, which has a few thousand places."""

_LOOK_THREADS = 1_000
"""How many threads are looked at at once for whether there is something to remove."""

_SETTLED = timedelta(days=1)
"""How old writes of a checkpoint are that isn't there and won't be: they may be stored before it is."""


class Call(NamedTuple):
    """An operation to run in a transaction."""

    operation: Callable[..., Any]
    args: tuple[Any, ...]


Work = Generator[Call, Any, SweepReport]
_Part = Generator[Call, Any, None]


class _Tally:
    """What was removed so far.

    Args:
        on_progress: Is told after each batch.
    """

    def __init__(self, on_progress: Progress | None = None) -> None:
        self.total = SweepReport()
        self._on_progress = on_progress

    def add(self, report: SweepReport) -> None:
        self.total = self.total.plus(report)
        if self._on_progress and any(report[1:]):
            self._on_progress(self.total)


def sweep(rule: Rule, batch_size: int, dry_run: bool, on_progress: Progress | None) -> Work:
    """Remove from all threads what may go by a rule, or count it.

    Writes that belong to no checkpoint go too, once they are old: a run has stored them in the background, after their
    checkpoint was removed. So does what is left of threads whose checkpoints or values were deleted by somebody's own
    SQL: a thread's first checkpoint is stored together with its values, so there never are any without one.

    Args:
        rule: What may go.
        batch_size: How many checkpoints go in one transaction.
        dry_run: Whether nothing is removed.
        on_progress: Called after each transaction with what was removed so far.
    """
    tally, after = _Tally(on_progress), ""
    while rows := (yield Call(deletion.find_next, (rule, after, _LOOK_THREADS))):
        after = rows[-1][0]
        for batch in _batches(((thread_id, size) for thread_id, size in rows if size is not None), batch_size):
            if dry_run:
                tally.add((yield Call(deletion.count, (rule, batch))))
            else:
                yield from _remove(rule, batch, batch_size, tally)
    after, settled = "", first_id_of(datetime.now(UTC) - _SETTLED)
    while rows := (yield Call(deletion.find_writers, (after, _LOOK_THREADS))):
        after = rows[-1][0]
        # Found without a lock first: nearly always there are none.
        threads = [thread_id for (thread_id,) in rows]
        strays = yield Call(deletion.find_strays, (threads, settled, rule if dry_run else None))
        for first in range(0, len(strays), _BATCH_THREADS):
            batch = strays[first : first + _BATCH_THREADS]
            tally.add((yield Call(deletion.count_strays if dry_run else deletion.remove_strays, (batch,))))
    after = ""
    while found := (yield Call(deletion.find_leftovers, (after, _LOOK_THREADS, rule.before))):
        after = found[-1][0]
        yield from _collect([thread_id for thread_id, is_leftover in found if is_leftover], dry_run, tally)
    return tally.total


def prune(rule: Rule, thread_ids: Sequence[str]) -> Work:
    """Remove from some threads what may go by a rule, from each of them at once; and what no checkpoint needs."""
    tally = _Tally()
    tally.add((yield from _remove_whole(rule, (yield Call(deletion.find_given, (thread_ids,))))))
    yield from _collect((yield Call(deletion.find_given_leftovers, (sorted(set(thread_ids)),))), False, tally)
    return tally.total


def delete_for_runs(run_ids: Sequence[str]) -> Work:
    """Remove the checkpoints of some runs, from each thread at once."""
    return (yield from _remove_whole(Rule(run_ids=run_ids), (yield Call(deletion.find_by_run, (run_ids,)))))


def delete_threads(thread_ids: Sequence[str]) -> Work:
    """Delete everything stored for some threads, each of them at once."""
    tally = _Tally()
    sizes = dict(map(tuple, (yield Call(deletion.find_given, (thread_ids,)))))
    for batch in _batches([(thread_id, sizes.get(thread_id, 0)) for thread_id in thread_ids], BATCH_SIZE):
        report = yield Call(deletion.delete_whole, (batch,))
        tally.add(report._replace(threads=len(sizes.keys() & set(batch))))
    return tally.total


def _collect(thread_ids: Sequence[str], dry_run: bool, tally: _Tally) -> _Part:
    """Remove what no checkpoint of some threads needs, or count it."""
    for first in range(0, len(thread_ids), _BATCH_THREADS):
        batch = thread_ids[first : first + _BATCH_THREADS]
        tally.add((yield Call(deletion.count_leftovers if dry_run else deletion.remove_leftovers, (batch,))))


def _remove_whole(rule: Rule, rows: Sequence[Row]) -> Work:
    tally = _Tally()
    for batch in _batches(rows, BATCH_SIZE):
        yield from _remove(rule, batch, None, tally)
    return tally.total


def _remove(rule: Rule, thread_ids: Sequence[str], most: int | None, tally: _Tally) -> _Part:
    """Remove from some threads what may go; from a single one so much at a time, if that can be."""
    report, rest = yield Call(deletion.remove, (rule, thread_ids, most))
    tally.add(report)
    while rest is not None:
        again = deletion.remove_rest, (rest, most)
        report, rest = yield Call(*(again if rest.parts else (deletion.remove, (rule, thread_ids, most))))
        tally.add(report._replace(threads=0))


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
