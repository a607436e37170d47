"""The statements by which writers of one thread exclude each other; no I/O.

An advisory lock is identified by a number. Ours is a hash of the thread and of the name that the catalog has for the
schema of the `checkpoints` table: the same for all users of that table, however they name its schema, and another one
in every other schema. It is not made from the table's oid, which changes with a restore and with partitioning: then two
could hold the lock of one thread. Two threads may have the same number; then one waits for the other, which is
harmless.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    and_,
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
from checkpoint_store.sql.expressions import (
    ONE,
    ZERO,
    array_param,
    int_literal,
    key_types,
    param,
    rows_of_binds,
    same_namespace,
    text_literal,
)

_CATALOG = MetaData(schema="pg_catalog")
_CLASS = Table("pg_class", _CATALOG, Column("oid", OID), Column("relnamespace", OID))
_NAMESPACE = Table("pg_namespace", _CATALOG, Column("oid", OID), Column("nspname", Text))
_LOCKS = Table(
    "pg_locks",
    _CATALOG,
    Column("locktype", Text),
    Column("classid", OID),
    Column("objid", OID),
    Column("objsubid", Integer),
    Column("pid", Integer),
    Column("granted", Boolean),
)


def lock_number(_: Tables) -> Select[Any]:
    """Select the number of a thread's lock, NULL if there is no such table.

    Binds: `thread_id`, `table` (the qualified name of `checkpoints`).
    """
    number = func.hashtextextended(param("thread_id").collate("C"), _seed("run"), type_=BigInteger)
    return select(number.label("number"))


def take_lock(_: Tables) -> Select[Any]:
    """Try to take a lock for this session, and select whether it has it. Binds: `number`."""
    return select(func.pg_try_advisory_lock(param("number", BigInteger)))


def release_lock(_: Tables) -> Select[Any]:
    """Release a lock, and select whether this session had it. Binds: `number`."""
    return select(func.pg_advisory_unlock(param("number", BigInteger)))


def take_lock_in_transaction(t: Tables) -> Select[Any]:
    """Try to take a thread's lock until the end of the transaction.

    Selects its number, NULL if there is no such table, whether the transaction has it, and its isolation level. Binds:
    those of `lock_number`.
    """
    # With the OFFSET the number is computed once.
    lock = lock_number(t).offset(ZERO).subquery("lock").c.number
    return select(lock, func.pg_try_advisory_xact_lock(lock), _level())


def has_lock(_: Tables) -> Select[Any]:
    """Select whether this session has a lock. Binds: `number`."""
    lock, halves = param("number", BigInteger), 4_294_967_295
    # As the view splits it: https://www.postgresql.org/docs/current/view-pg-locks.html
    upper = cast(lock.op(">>")(int_literal(32)).op("&")(int_literal(halves)), OID)
    lower = cast(lock.op("&")(int_literal(halves)), OID)
    is_it = and_(_LOCKS.c.classid == upper, _LOCKS.c.objid == lower, _LOCKS.c.objsubid == ONE)
    is_ours = and_(
        _LOCKS.c.pid == func.pg_backend_pid(), _LOCKS.c.locktype == text_literal("advisory"), _LOCKS.c.granted
    )
    return select(exists().where(is_it, is_ours))


def begin_session(_: Tables) -> Select[Any]:
    """Change those of some settings that the server has for this session; fails on a standby.

    The locks of a standby exclude no writers, and a session of one would keep a lock through its promotion, while
    another session has the lock on the old primary.

    Binds: `names` and `values`, arrays of equal length.
    """
    new = rows_of_binds(name=Text, value=Text)
    known = func.current_setting(new.c.name, true()).is_not(None)
    # A standby refuses this with the error for a write, which is transient.
    no_standby = cast(func.pg_current_xact_id(), Text)
    return select(func.set_config(new.c.name, new.c.value, false()), no_standby).where(known)


def session_id(_: Tables) -> Select[Any]:
    """Select the id of the server's process that this session talks to."""
    return select(func.pg_backend_pid())


def lock_namespaces(_: Tables) -> Select[Any]:
    """Wait until no other transaction is about to continue some namespaces, and exclude others until this one ends.

    Returns the transaction's isolation level, once for each. Binds: `table`, and parallel arrays `thread_ids` and
    `checkpoint_nss`.
    """
    new = rows_of_binds(thread_id=Text, checkpoint_ns=Text)
    of_thread = func.hashtextextended(new.c.thread_id.collate("C"), _seed("graph"), type_=BigInteger)
    return _take_all(func.hashtextextended(new.c.checkpoint_ns.collate("C"), of_thread))


def lock_removal(_: Tables) -> Select[Any]:
    """Wait until no other transaction deletes rows of some threads, and exclude others until this one ends.

    It does not exclude transactions that only store, nor is it the lock of a run, which may delete while it holds that.

    Returns the transaction's isolation level, once for each. Binds: `thread_ids`, and `table`, the qualified name of
    `checkpoints`.
    """
    thread_id = func.unnest(array_param("thread_ids")).column_valued("thread_id")
    return _take_all(func.hashtextextended(thread_id.collate("C"), _seed("removal")))


def continuations(t: Tables) -> Select[Any]:
    """Select for some checkpoints whether each continues the newest of its namespace, or is stored already.

    It has to be executed after `lock_namespaces`, in the same transaction: then its snapshot has everything that was
    stored before.

    A row is thread, namespace, id, parent, the newest id, and whether the checkpoint continues it. Binds: parallel
    arrays `thread_ids`, `checkpoint_nss`, `checkpoint_ids`, `parent_checkpoint_ids`.
    """
    c = t.checkpoints
    new = rows_of_binds(**key_types(c), parent_checkpoint_id=Text)
    newest = (
        select(c.c.checkpoint_id)
        .where(same_namespace(c, new))
        .order_by(c.c.checkpoint_id.desc())
        .limit(ONE)
        .correlate(new)
        .lateral("newest")
    )
    stored = c.alias("stored")
    is_stored = exists().where(
        same_namespace(stored, new),
        stored.c.checkpoint_id == new.c.checkpoint_id,
        stored.c.parent_checkpoint_id.is_not_distinct_from(new.c.parent_checkpoint_id),
    )
    is_next = or_(newest.c.checkpoint_id.is_(None), new.c.checkpoint_id > newest.c.checkpoint_id)
    continues = and_(newest.c.checkpoint_id.is_not_distinct_from(new.c.parent_checkpoint_id), is_next)
    return select(*new.c, newest.c.checkpoint_id, or_(is_stored, continues)).select_from(new.outerjoin(newest, true()))


def _take_all(lock: ColumnElement[int]) -> Select[Any]:
    """Take locks, in one order so that no two transactions deadlock, and select the isolation level for each."""
    lock = lock.label("lock")
    locks = select(lock).distinct().order_by(lock).offset(ZERO).subquery("locks")
    return select(_level(), func.pg_advisory_xact_lock(locks.c.lock))


def _seed(purpose: str) -> ColumnElement[int]:
    """Return the seed of the hashes for locks of one purpose in one schema, NULL if there is no such table."""
    oid = cast(func.to_regclass(param("table")), OID)
    schema = (
        select(_NAMESPACE.c.nspname.collate("C"))
        .join(_CLASS, _CLASS.c.relnamespace == _NAMESPACE.c.oid)
        .where(_CLASS.c.oid == oid)
        .scalar_subquery()
    )
    return func.hashtextextended(text_literal(purpose), func.hashtextextended(schema, ZERO), type_=BigInteger)


def _level() -> ColumnElement[str]:
    return func.current_setting(text_literal("transaction_isolation"), type_=Text)
