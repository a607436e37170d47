"""One function per unit of work, on an `Executor`.

They are written in sync style: SQLAlchemy's greenlets run them on an async engine, a sync engine runs them as they are.
Where it doesn't say otherwise each is one statement, so it is atomic on its own and needs no transaction around it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import exc

from checkpoint_store.conninfo.driver_errors import diagnosis_of, raise_from
from checkpoint_store.errors import (
    Refused,
    ThreadExists,
    ThreadNotFound,
    short_repr,
)
from checkpoint_store.schema import qualified
from checkpoint_store.sql import copy_thread as copying
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.checks import check_holds, check_transaction
from checkpoint_store.storage.locks import lock_pages, lock_removal, take_removal_lock
from checkpoint_store.storage.operation import Kind, operation


def delete_threads(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> Sequence[tuple[int, int]]:
    """Delete everything stored for some threads; in a transaction.

    Returns:
        How many rows that were, and their bytes: of writes, checkpoints, blobs and pages.
    """
    lock_removal(db, sql, thread_ids)
    return _delete(db, sql, thread_ids)


def _delete(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> Sequence[tuple[int, int]]:
    """Delete everything stored for some threads that nobody else removes anything of; in a transaction."""
    claim_threads(db, sql, thread_ids)
    # Once more, for what was stored by whoever the first time had to wait for: it had found a blob there.
    rows = [db.fetch(sql.delete_threads, {"thread_ids": list(thread_ids)})[0] for _ in range(2)]
    return [(one[0] + more[0], one[1] + more[1]) for one, more in zip(*rows, strict=True)]


def claim_threads(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> None:
    """Keep others from storing pages of some threads, also of those that have none yet; in a transaction."""
    db.fetch(sql.insert_thread_rows, {"thread_ids": list(thread_ids)})
    lock_pages(db, sql, thread_ids)


@operation(Kind.WRITE, in_transaction=True, thread_of=lambda thread_id: thread_id)
def delete_thread(db: Executor, sql: Statements, thread_id: str) -> None:
    """Delete everything stored for a thread; in a transaction."""
    delete_threads(db, sql, [thread_id])


@operation(Kind.WRITE, in_transaction=True)
def copy_thread(
    db: Executor, sql: Statements, copy: tuple[str, str], replace: bool, tried: dict[int, int] | None = None
) -> int:
    """Copy everything stored for a thread under another id; in a transaction. Returns how many rows.

    Args:
        db: The executor.
        sql: The statements.
        copy: The ids of the thread and of its copy.
        replace: Whether what is stored for the target is deleted first.
        tried: How many rows this call has copied in earlier tries, by the epochs it gave the target: where the answer
            to a COMMIT was lost, the copy may be there. The call's own; None if it is never made again.

    Raises:
        ThreadNotFound: If there is nothing to copy.
        ThreadExists: If the target has something already, and is not to be replaced.
    """
    source, target = copy
    binds = {"thread_id": source, "target_id": target}
    # Of two copies to one target the second waits, and finds the first.
    level = take_removal_lock(db, sql, [target])[0][0]
    if replace:
        check_transaction(db, "A copy with replace=True", level)
    else:
        # Also as of one moment long ago. A target that it does not see is not mixed with the copy: see `claim_threads`.
        check_holds(db, "A copy")
    if tried:
        # The rows tell, on whatever server: a standby that took over may have the copy or not. Where it is the same
        # server, the lock tells that the earlier transaction has ended.
        for (epoch,) in db.fetch(sql.thread_epoch, {"thread_id": target}):
            if epoch in tried:
                return tried[epoch]
    is_stored, is_taken = db.fetch(sql.stored_threads, binds)[0]
    # Before anything is deleted: what a caller's own transaction has begun stays whole.
    if not is_stored:
        raise not_found(source)
    if is_taken and not replace:
        raise ThreadExists(
            f"target_thread_id is {short_repr(target, 200)}, for which something is stored. "
            "Delete it first, choose another id, or pass replace=True."
        )
    if replace:
        _delete(db, sql, [target])
    else:
        claim_threads(db, sql, [target])
    # Whoever remembers pages of a thread that had this id before remembers them of another epoch.
    epoch = secrets.randbits(62)
    try:
        [(copies, stored)] = db.fetch(sql.copy_rows, {**binds, "epoch": epoch})
    except exc.IntegrityError as error:
        _raise_if_there(target, error)
        raise
    _check_copied(target, copies, stored)
    copied = sum(copies)
    if not copied:  # deleted just now
        db.fetch(sql.delete_thread_rows, {"thread_ids": [target]})
        raise not_found(source)
    if tried is not None:
        tried[epoch] = copied
    return copied


def _check_copied(target: str, copies: Sequence[int], stored: Sequence[int]) -> None:
    """Check that as many rows were made of each table as there are of the source."""
    for name, copied, count in zip(copying.TABLES, copies, stored, strict=True):
        if copied < count:
            raise Refused(
                f"thread {short_repr(target, 200)}: the database dropped rows of {name} without an error, so it was "
                "not made, and nothing has changed. The reason is a trigger that returns NULL, or a rule: have it keep "
                "the row."
            )


def _raise_if_there(target: str, error: exc.IntegrityError) -> None:
    """Raise our error where it was a row of the target's that is there already, not a rule of the host's."""
    said = diagnosis_of(error)
    if said.state == "23505" and (said.constraint or "").endswith("_pkey"):
        exists = ThreadExists(
            f"target_thread_id is {short_repr(target, 200)}, for which something was stored while it was to be made. "
            "Stop what stores to it, or choose another id."
        )
        raise_from(exists, error)


def not_found(thread_id: str) -> ThreadNotFound:
    """Return the error for a thread that has to be there and isn't."""
    return ThreadNotFound(f"nothing is stored for the thread {short_repr(thread_id, 200)}")


@operation(Kind.READ, may_lag=lambda *_: True)
def list_threads(db: Executor, sql: Statements, conditions: frozenset[str], binds: dict[str, Any]) -> Row:
    """Return the next part of a list of threads, as `statements.threads` has it."""
    return db.fetch(sql.list_threads(conditions), binds)[0]


@operation(Kind.READ, name="get_thread_stats", thread_of=lambda thread_id: thread_id, may_lag=lambda _: True)
def thread_stats(db: Executor, sql: Statements, thread_id: str) -> tuple[Sequence[Row], Sequence[Row]]:
    """Return what a thread occupies, by table and by channel."""
    binds = {"thread_id": thread_id}
    return db.fetch(sql.thread_tables, binds), db.fetch(sql.thread_channels, binds)


@operation(Kind.READ)
def largest_threads(db: Executor, sql: Statements, most: int) -> Sequence[Row]:
    """Return the threads that have most, their checkpoints and bytes; reads every row."""
    return db.fetch(sql.largest_threads, {"limit": most})


@operation(Kind.READ)
def table_sizes(db: Executor, sql: Statements) -> Sequence[Row]:
    """Return about how many rows the tables have, and what they occupy on disk."""
    names = {qualified(name, sql.tables.schema): name for name in (t.name for t in sql.tables.metadata.sorted_tables)}
    rows = db.fetch(sql.table_sizes, {"names": list(names)})
    return sorted(((names[name], rows, size) for name, rows, size in rows), key=itemgetter(2), reverse=True)


@operation(Kind.READ, thread_of=lambda thread_id: thread_id)
def take_inventory(db: Executor, sql: Statements, thread_id: str) -> Sequence[Row]:
    """Return the checkpoints of a thread, and of each the tasks that have pending writes, with their number."""
    return db.fetch(sql.inventory, {"thread_id": thread_id})
