"""The copy of a thread under another id, made on the server."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from sqlalchemy import exc

from checkpoint_store.conninfo.driver_errors import diagnosis_of, raise_from
from checkpoint_store.errors import Refused, ThreadExists, short_repr
from checkpoint_store.sql.arrays import thread_binds
from checkpoint_store.sql.copy_thread import TABLES
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.delete_thread import delete_locked_threads
from checkpoint_store.storage.locks import check_holds, check_transaction, claim_threads, take_removal_lock
from checkpoint_store.storage.operation import Kind, operation
from checkpoint_store.storage.probes import are_placed
from checkpoint_store.storage.refusals import not_found


class _Misplaced(Refused):
    """Raised where Citus, of tables that it was not known to have distributed, has copied each as of another moment.

    It has the SQLSTATE of what Citus refuses, so that it is asked again whether it has distributed them.
    """

    sqlstate = "0A000"

    def __init__(self) -> None:
        super().__init__("Citus has distributed the tables meanwhile, so nothing was copied. Make the call again.")


@operation(Kind.WRITE, in_transaction=True)
def copy_thread(
    db: Executor, sql: Statements, copy: tuple[str, str], replace: bool, tried: dict[int, int] | None = None
) -> int:
    """Copy everything stored for a thread under another id; in a transaction. Returns the number of rows.

    Args:
        db: The executor.
        sql: The statements.
        copy: The ids of the thread and of its copy.
        replace: Whether what is stored for the target is deleted first.
        tried: The numbers of rows that this call has copied in earlier tries, by the epochs it gave the target: where
            the answer to a COMMIT was lost, the copy may be there. The call's own; None if it is never retried.

    Raises:
        ThreadNotFound: If there is nothing to copy.
        ThreadExists: If the target has something already, and is not to be replaced.
        Refused: If rows were dropped, or Citus has distributed the tables since it was asked: see `_Misplaced`.
    """
    source, target = copy
    binds = {"thread_id": source, "target_id": target}
    # Of two copies to one target the second waits, and finds the first.
    level = take_removal_lock(db, sql, [target])[0][0]
    if replace:
        check_transaction(db, "A copy with replace=True", level)
    else:
        # Also as of one moment long ago. A target that it does not see is not mixed with the copy: see `claim_threads`.
        check_holds(db, "A copy", level)
    if tried and (copied := _copied_before(db, sql, target, tried)):
        return copied
    _check_both(source, target, replace, *db.fetch(sql.stored_threads, binds)[0])
    if replace:
        delete_locked_threads(db, sql, [target])
    else:
        claim_threads(db, sql, [target])
    if sql.are_distributed:
        db.fetch(sql.allow_any_size, {})
    # A page cache that has pages of a thread which had this id before has them of another epoch.
    epoch = secrets.randbits(62)
    try:
        [(copies, stored)] = db.fetch(sql.copy_rows, {**binds, "epoch": epoch})
    except exc.IntegrityError as error:
        _raise_if_there(target, error)
        raise
    if copies != stored and not sql.are_distributed and are_placed(db, sql):
        raise _Misplaced
    _check_copied(target, copies, stored)
    copied = sum(copies)
    if not copied:  # deleted just now
        db.fetch(sql.delete_thread_rows, thread_binds([target]))
        raise not_found(source)
    if tried is not None:
        tried[epoch] = copied
    return copied


def _copied_before(db: Executor, sql: Statements, target: str, tried: Mapping[int, int]) -> int | None:
    """Return the number of rows that an earlier try has copied, None if there is no such copy.

    The rows say so, on whatever server: a standby that took over may have the copy or not. On the same server the lock
    says that the earlier transaction has ended.
    """
    return next(
        (tried[epoch] for (epoch,) in db.fetch(sql.thread_epoch, {"thread_id": target}) if epoch in tried), None
    )


def _check_both(source: str, target: str, replace: bool, is_stored: bool, is_taken: bool) -> None:
    """Check, before anything is deleted, that there is something to copy, and a place for it."""
    if not is_stored:
        raise not_found(source)
    if is_taken and not replace:
        raise ThreadExists(
            f"target_thread_id is {short_repr(target, 200)}, for which something is stored. "
            "Delete it first, choose another id, or pass replace=True."
        )


def _check_copied(target: str, copies: Sequence[int], stored: Sequence[int]) -> None:
    """Check that as many rows were made of each table as there are of the source."""
    for name, copied, count in zip(TABLES, copies, stored, strict=True):
        if copied < count:
            raise Refused(
                f"thread {short_repr(target, 200)}: the database dropped rows of {name} without an error, so it was "
                "not made, and nothing has changed. The reason is a trigger that returns NULL, or a rule: have it keep "
                "the row."
            )


def _raise_if_there(target: str, error: exc.IntegrityError) -> None:
    """Raise our error where it was a row of the target's that is there already, not a rule of the host's."""
    said = diagnosis_of(error)
    # Citus leaves the constraint out.
    if said.state == "23505" and (not said.constraint or said.constraint.endswith("_pkey")):
        exists = ThreadExists(
            f"target_thread_id is {short_repr(target, 200)}, for which something was stored while it was to be made. "
            "Stop what stores to it, or choose another id."
        )
        raise_from(exists, error)
