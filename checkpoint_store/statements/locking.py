"""The statements by which writers of one thread keep out of each other's way; no I/O.

Advisory locks go by a number. Ours are hashes of the thread with the oid of the `checkpoints` table: the same for all
who use that table, whatever they call its schema, and others in every other schema. Two threads may have one number;
then one waits for the other, which does no harm.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    exists,
    false,
    func,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import OID

from checkpoint_store.schema import Tables
from checkpoint_store.statements.clauses import given, key, number, rows_of_binds, same_graph


def lock_number() -> Select[Any]:
    """Select the number that a thread's lock goes by, NULL if there is no such table.

    Binds: `thread_id`, `table` (the qualified name of `checkpoints`).
    """
    return select(_of_thread(given("thread_id")))


def take_lock() -> Select[Any]:
    """Try to take a lock for this session: whether nobody else has it. Binds: `number`."""
    return select(func.pg_try_advisory_lock(bindparam("number", type_=BigInteger)))


def drop_lock() -> Select[Any]:
    """Give a lock back: whether this session had it. Binds: `number`."""
    return select(func.pg_advisory_unlock(bindparam("number", type_=BigInteger)))


def take_lock_in_transaction() -> Select[Any]:
    """Try to take a thread's lock until the end of the transaction.

    Selects whether nobody else has it, NULL if there is no such table, and when the transaction began. Binds: those of
    `lock_number`.
    """
    return select(func.pg_try_advisory_xact_lock(_of_thread(given("thread_id"))), _began())


def transaction() -> Select[Any]:
    """Select when the transaction began."""
    return select(_began())


def begin_session() -> Select[Any]:
    """Change what settings of this session the server has.

    Binds: `names` and `values`, arrays of equal length.
    """
    new = rows_of_binds(name=Text, value=Text)
    known = func.current_setting(new.c.name, true()).is_not(None)
    return select(func.set_config(new.c.name, new.c.value, false())).where(known)


def session_id() -> Select[Any]:
    """Select the id of the server's process that this session talks to."""
    return select(func.pg_backend_pid())


def lock_graphs() -> Select[Any]:
    """Wait until nobody else is about to continue some namespaces, and keep others from it until the transaction ends.

    Returns when the transaction began and its isolation level, once for each. Binds: `table`, and as arrays
    `thread_ids` and `checkpoint_nss`.
    """
    new = rows_of_binds(thread_id=Text, checkpoint_ns=Text)
    lock = _of_graph(new.c.thread_id, new.c.checkpoint_ns).label("lock")
    # Everybody takes them in one order.
    locks = select(lock).distinct().order_by(lock).offset(number(0)).subquery("locks")
    return select(
        _began(), func.current_setting(key("transaction_isolation")), func.pg_advisory_xact_lock(locks.c.lock)
    )


def continuations(t: Tables) -> Select[Any]:
    """Select for some checkpoints whether each continues the newest of its namespace, or is stored already as it is.

    To be executed after `lock_graphs`, in the same transaction: its snapshot then has all that was stored before.

    Returns thread, namespace, id, parent, the newest id, whether the checkpoint continues it, and when the transaction
    began. Binds, as arrays: `thread_ids`, `checkpoint_nss`, `checkpoint_ids`, `parent_checkpoint_ids`.
    """
    c = t.checkpoints
    new = rows_of_binds(thread_id=Text, checkpoint_ns=Text, checkpoint_id=Text, parent_checkpoint_id=Text)
    newest = (
        select(c.c.checkpoint_id)
        .where(same_graph(c, new))
        .order_by(c.c.checkpoint_id.desc())
        .limit(number(1))
        .correlate(new)
        .lateral("newest")
    )
    stored = c.alias("stored")
    is_stored = exists().where(
        same_graph(stored, new),
        stored.c.checkpoint_id == new.c.checkpoint_id,
        stored.c.parent_checkpoint_id.is_not_distinct_from(new.c.parent_checkpoint_id),
    )
    is_next = or_(newest.c.checkpoint_id.is_(None), new.c.checkpoint_id > newest.c.checkpoint_id)
    continues = and_(newest.c.checkpoint_id.is_not_distinct_from(new.c.parent_checkpoint_id), is_next)
    return select(*new.c, newest.c.checkpoint_id, or_(is_stored, continues), _began()).select_from(
        new.outerjoin(newest, true())
    )


def _of_thread(thread_id: ColumnElement[str]) -> ColumnElement[int]:
    return func.hashtextextended(thread_id.collate("C"), _oid())


def _of_graph(thread_id: ColumnElement[str], checkpoint_ns: ColumnElement[str]) -> ColumnElement[int]:
    # The negative keeps it apart from the threads' locks.
    return func.hashtextextended(
        checkpoint_ns.collate("C"), func.hashtextextended(thread_id.collate("C"), -_oid()), type_=BigInteger
    )


def _oid() -> ColumnElement[int]:
    return cast(cast(func.to_regclass(given("table")), OID), BigInteger)


def _began() -> ColumnElement[str]:
    return cast(func.transaction_timestamp(), Text)
