"""The savers' methods that remove checkpoints: LangGraph's own, and retention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from inspect import isawaitable, iscoroutine
from typing import Any, TypedDict

from sqlalchemy.util import await_only, greenlet_spawn

from checkpoint_store.errors import InvalidOption, short_repr
from checkpoint_store.saver.base import BasePostgresSaver
from checkpoint_store.serde.arguments import callback, choice, flag, positive
from checkpoint_store.serde.keys import checked_thread_id, texts_of
from checkpoint_store.storage import sweep
from checkpoint_store.storage.checkpoint_time import first_id_within
from checkpoint_store.storage.deletion_plan import Rule
from checkpoint_store.storage.expiry import BeforeDelete, Expiration, Expiry, Keep
from checkpoint_store.storage.operation import Operation
from checkpoint_store.storage.sweep import BATCH_SIZE, Run, Sweep
from checkpoint_store.storage.sweep_report import Progress, SweepReport
from checkpoint_store.storage.thread_list import ThreadSummary

STRATEGIES = ("keep_latest", "delete")

Removal = Callable[[Run], SweepReport]


class SweepOptions(TypedDict, total=False):
    """The keyword options of `asweep`, but `dry_run`."""

    older_than: timedelta | None
    keep_last: int | None
    spare_active: bool
    expiry: Sequence[Expiry] | None
    keep: Keep | None
    before_delete: BeforeDelete | None
    batch_size: int
    on_progress: Progress | None


class RetentionMixin(BasePostgresSaver):
    """The methods that delete checkpoints, with everything that only they need."""

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> SweepReport:  # type: ignore[override]
        """Delete the checkpoints of runs with their pending writes, from each thread atomically.

        A checkpoint belongs to the run of the `run_id` in its metadata. Those of other runs read as before; one that
        loses its parent gets the nearest ancestor that is left. Checkpoints that their delta channels are rebuilt from
        stay.

        Args:
            run_ids: The runs. None of them should be going on.

        Returns:
            The numbers of rows and bytes that were deleted.

        Raises:
            InvalidConfig: If one can't be a run's id.
            WrongTransaction: If the transaction does not see what others have stored since it began, or there is none.
            NotSetUp: If the tables are missing.
            Unavailable: If the server can't be reached.
        """
        return await greenlet_spawn(sweep.delete_for_runs, self._run_awaiting, texts_of(run_ids, "run_ids"))

    def delete_for_runs(self, run_ids: Sequence[str]) -> SweepReport:  # type: ignore[override]
        """Delete the checkpoints of runs, as `adelete_for_runs`."""
        return sweep.delete_for_runs(self._backend.run_blocking, texts_of(run_ids, "run_ids"))

    async def aprune(  # type: ignore[override]
        self, thread_ids: Sequence[str], *, strategy: str = "keep_latest", keep: int = 1
    ) -> SweepReport:
        """Delete all but the newest checkpoints of threads, or the threads, each atomically.

        A checkpoint is kept whole: its pending writes, its values, and the checkpoints that its delta channels are
        rebuilt from. The checkpoints of a subgraph's call are deleted with the one that called it. Runs may be going
        on: none loses a write or its newest checkpoint.

        Args:
            thread_ids: The threads; they need not exist.
            strategy: "keep_latest", or "delete" for everything stored for the threads.
            keep: The number of checkpoints to keep of each namespace; for "keep_latest".

        Returns:
            The numbers of rows and bytes that were deleted.

        Raises:
            InvalidConfig: If an argument can't be used.
            WrongTransaction: If the transaction does not see what others have stored since it began, or there is none.
            NotSetUp: If the tables are missing.
            Unavailable: If the server can't be reached.
        """
        return await greenlet_spawn(_pruning(thread_ids, strategy, keep), self._run_awaiting)

    def prune(  # type: ignore[override]
        self, thread_ids: Sequence[str], *, strategy: str = "keep_latest", keep: int = 1
    ) -> SweepReport:
        """Delete all but the newest checkpoints of threads, or the threads, as `aprune`."""
        return _pruning(thread_ids, strategy, keep)(self._backend.run_blocking)

    async def asweep(
        self,
        *,
        older_than: timedelta | None = None,
        keep_last: int | None = None,
        spare_active: bool = False,
        expiry: Sequence[Expiry] | None = None,
        keep: Keep | None = None,
        before_delete: BeforeDelete | None = None,
        dry_run: bool = False,
        batch_size: int = BATCH_SIZE,
        on_progress: Progress | None = None,
    ) -> SweepReport:
        """Delete old checkpoints of all threads, or threads that have expired.

        A checkpoint stays if either asks for it: if it is younger than `older_than`, or one of the `keep_last` newest
        of its namespace. With `older_than` alone a whole thread is deleted once everything in it is older; as long as
        something is younger, the newest of each namespace stays.

        With `expiry` instead a thread is deleted completely or stays as it is. Of the rules the first whose filter a
        thread matches decides. A thread in which something was stored since it was looked at stays, and so does one
        whose `thread_lock` is held.

        Each batch is a transaction: after an interruption another call does the rest. Any number of sweeps, and runs,
        may be going on at the same time.

        Args:
            older_than: The age, by the time in the checkpoint's id. A checkpoint with no time in its id (LangGraph's
                are version 6 UUIDs, which have one) is never too old, and its thread is never deleted as a whole.
            keep_last: The number of checkpoints of each namespace that stay, whatever their age.
            spare_active: Whether threads that have anything younger than `older_than` are left alone.
            expiry: The rules by which whole threads are deleted, of `checkpoint_store.expiry`.
            keep: Called with each thread that has expired, which stays if the function returns True.
            before_delete: Called with the threads of each batch before it is deleted, outside of a transaction. If it
                raises, the sweep ends with its error, and they stay. It may be called again for a thread.
            dry_run: Whether checkpoints are only counted, not deleted; `before_delete` is not called then.
            batch_size: The number of checkpoints that are deleted in one transaction; a thread's are split only where
                those that are left can be read, and with `expiry` never.
            on_progress: Called after each batch with the report so far.

        Returns:
            The numbers of rows and bytes that were deleted, or would be.

        Raises:
            InvalidOption: If none of `older_than`, `keep_last` and `expiry` is given, or an option can't be used.
            WrongTransaction: If the transaction does not see what others have stored since it began, or there is none.
            NotSetUp: If the tables are missing.
            Unavailable: If the server can't be reached.
        """
        wanted = sweep_of(
            older_than=older_than,
            keep_last=keep_last,
            spare_active=spare_active,
            expiry=expiry,
            keep=keep,
            before_delete=before_delete,
            dry_run=dry_run,
            batch_size=batch_size,
            on_progress=on_progress,
        )
        return await self._asweep(wanted)

    def sweep(
        self,
        *,
        older_than: timedelta | None = None,
        keep_last: int | None = None,
        spare_active: bool = False,
        expiry: Sequence[Expiry] | None = None,
        keep: Callable[[ThreadSummary], bool] | None = None,
        before_delete: Callable[[list[ThreadSummary]], None] | None = None,
        dry_run: bool = False,
        batch_size: int = BATCH_SIZE,
        on_progress: Progress | None = None,
    ) -> SweepReport:
        """Delete old checkpoints of all threads, or threads that have expired, as `asweep`."""
        wanted = sweep_of(
            older_than=older_than,
            keep_last=keep_last,
            spare_active=spare_active,
            expiry=expiry,
            keep=keep,
            before_delete=before_delete,
            dry_run=dry_run,
            batch_size=batch_size,
            on_progress=on_progress,
        )
        return self._sweep(wanted)

    async def _asweep(self, wanted: Sweep) -> SweepReport:
        return await greenlet_spawn(sweep.sweep, self._run_awaiting, wanted, _awaited)

    def _sweep(self, wanted: Sweep) -> SweepReport:
        return sweep.sweep(self._backend.run_blocking, wanted, _not_awaited)

    def _run_awaiting(self, operation: Operation[..., Any], *args: Any) -> Any:
        return await_only(self._backend.run(operation, *args))


def _pruning(thread_ids: Sequence[str], strategy: str, keep: int) -> Removal:
    threads = [checked_thread_id(one, "an id in thread_ids") for one in texts_of(thread_ids, "thread_ids")]
    strategy = choice(strategy, "strategy", STRATEGIES)
    rule = Rule(keep=positive(keep, "keep"))
    if strategy == "keep_latest":
        return partial(sweep.prune, rule=rule, thread_ids=threads)
    if rule.keep != 1:
        raise InvalidOption(f"keep must be 1 with strategy 'delete', which keeps nothing, not {short_repr(keep)}")
    return partial(sweep.delete_threads, thread_ids=threads)


def sweep_of(
    *,
    older_than: timedelta | None = None,
    keep_last: int | None = None,
    spare_active: bool = False,
    expiry: Sequence[Expiry] | None = None,
    keep: Keep | None = None,
    before_delete: BeforeDelete | None = None,
    dry_run: bool = False,
    batch_size: int = BATCH_SIZE,
    on_progress: Progress | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Sweep:
    """Return the arguments of a sweep, checked; those of `asweep`, and `on_step` as in `Sweep`.

    Raises:
        InvalidOption: If one can't be used.
    """
    for name, value in {"keep": keep, "before_delete": before_delete, "on_progress": on_progress}.items():
        callback(value, name)
    is_by_age = older_than is not None or keep_last is not None or flag(spare_active, "spare_active")
    if expiry is not None and is_by_age:
        raise InvalidOption("expiry deletes whole threads; make a call of its own with older_than or keep_last")
    if expiry is None and (keep is not None or before_delete is not None):
        raise InvalidOption("keep and before_delete need expiry, which names the threads that they are called with")
    return Sweep(
        rule=Rule() if expiry is not None else _rule(older_than, keep_last, spare_active),
        expiration=None if expiry is None else Expiration.of(_rules(expiry)),
        keep=keep,
        before_delete=before_delete,
        dry_run=flag(dry_run, "dry_run"),
        batch_size=positive(batch_size, "batch_size"),
        on_progress=on_progress,
        on_step=on_step,
    )


def _rules(expiry: object) -> Sequence[Expiry]:
    if not isinstance(expiry, Sequence) or not expiry or not all(isinstance(rule, Expiry) for rule in expiry):
        raise InvalidOption(f"expiry must be a list of Expiry, at least one, not {short_repr(expiry)}")
    return expiry


def _rule(older_than: timedelta | None, keep_last: int | None, spare_active: bool) -> Rule:
    if older_than is None and keep_last is None:
        raise InvalidOption("sweep() needs older_than, keep_last or expiry: without them everything stays")
    if flag(spare_active, "spare_active") and older_than is None:
        raise InvalidOption("spare_active needs older_than, which decides whether a thread is active")
    number = 1 if keep_last is None else positive(keep_last, "keep_last")
    before = None if older_than is None else first_id_within(_age(older_than))
    return Rule(number, before, deletes_threads=keep_last is None, spares_active=spare_active)


def _age(older_than: object) -> timedelta:
    if not isinstance(older_than, timedelta):
        raise InvalidOption(f"older_than must be a timedelta, such as timedelta(days=30), not {short_repr(older_than)}")
    if older_than < timedelta(0):
        raise InvalidOption(f"older_than must be 0 or more, not {short_repr(older_than)}, a time to come")
    return older_than


def _awaited(outcome: Any) -> Any:
    return await_only(outcome) if isawaitable(outcome) else outcome


def _not_awaited(outcome: Any) -> Any:
    if isawaitable(outcome):
        if iscoroutine(outcome):
            outcome.close()  # it has not begun
        raise InvalidOption("keep and before_delete must be plain functions for sweep(); asweep() takes async ones")
    return outcome
