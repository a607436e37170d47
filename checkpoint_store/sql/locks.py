"""The statements by which writers of one thread exclude each other; no I/O.

An advisory lock is identified by a number. Ours is a hash of the thread and of the name that the catalog has for the
schema of the `checkpoints` table: the same for all users of that table, however they name its schema, and another one
in every other schema. It is not made from the table's oid, which changes with a restore and with partitioning: then two
could hold the lock of one thread. Two threads may have the same number; then one waits for the other, which is
harmless.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from checkpoint_store.schema import Tables
from checkpoint_store.sql import expressions as ex

_CATALOG = sa.MetaData(schema="pg_catalog")
_CLASS = sa.Table("pg_class", _CATALOG, sa.Column("oid", pg.OID), sa.Column("relnamespace", pg.OID))
_NAMESPACE = sa.Table("pg_namespace", _CATALOG, sa.Column("oid", pg.OID), sa.Column("nspname", sa.Text))
_LOCKS = sa.Table(
    "pg_locks",
    _CATALOG,
    sa.Column("locktype", sa.Text),
    sa.Column("classid", pg.OID),
    sa.Column("objid", pg.OID),
    sa.Column("objsubid", sa.Integer),
    sa.Column("pid", sa.Integer),
    sa.Column("granted", sa.Boolean),
)
_LEVEL = sa.func.current_setting(ex.text_literal("transaction_isolation"), type_=sa.Text)

WORKER = "worker"
"""Selected in the place of an isolation level on a worker of a Citus cluster, whose locks exclude nobody elsewhere."""


def lock_number(t: Tables) -> sa.Select[Any]:
    """Select the number of a thread's lock, NULL if there is no such table; for distributed ones `_level` too.

    Binds: `thread_id`, `table` (the qualified name of `checkpoints`).
    """
    number = sa.func.hashtextextended(ex.param("thread_id").collate("C"), _seed("run"), type_=sa.BigInteger)
    selected = sa.select(number.label("number"))
    return selected.add_columns(_level(t)) if ex.is_distributed(t.checkpoints) else selected


def take_lock(_: Tables) -> sa.Select[Any]:
    """Try to take a lock for this session, and select whether it has it. Binds: `number`."""
    return sa.select(sa.func.pg_try_advisory_lock(ex.param("number", sa.BigInteger)))


def release_lock(_: Tables) -> sa.Select[Any]:
    """Release a lock, and select whether this session had it. Binds: `number`."""
    return sa.select(sa.func.pg_advisory_unlock(ex.param("number", sa.BigInteger)))


def take_lock_in_transaction(t: Tables) -> sa.Select[Any]:
    """Try to take a thread's lock until the end of the transaction.

    Selects its number, NULL if there is no such table, whether the transaction has it, and its isolation level. Binds:
    those of `lock_number`.
    """
    # With the OFFSET the number is computed once.
    lock = lock_number(t).offset(ex.ZERO).subquery("lock").c.number
    return sa.select(lock, sa.func.pg_try_advisory_xact_lock(lock), _level(t))


def take_locks_in_transaction(_: Tables) -> sa.Select[Any]:
    """Select those of some threads whose locks no other session has, and keep these until the end of the transaction.

    Binds: `thread_ids`, and `table`, the qualified name of `checkpoints`.
    """
    thread_id = sa.func.unnest(ex.array_param("thread_ids")).column_valued("thread_id")
    number = sa.func.hashtextextended(thread_id.collate("C"), _seed("run"), type_=sa.BigInteger)
    given = sa.select(thread_id, number.label("number")).offset(ex.ZERO).subquery("given")
    return sa.select(given.c.thread_id).where(sa.func.pg_try_advisory_xact_lock(given.c.number, type_=sa.Boolean))


def has_lock(_: Tables) -> sa.Select[Any]:
    """Select whether this session has a lock. Binds: `number`."""
    lock, halves = ex.param("number", sa.BigInteger), 4_294_967_295
    # As the view splits it: https://www.postgresql.org/docs/current/view-pg-locks.html
    upper = sa.cast(lock.op(">>")(ex.int_literal(32)).op("&")(ex.int_literal(halves)), pg.OID)
    lower = sa.cast(lock.op("&")(ex.int_literal(halves)), pg.OID)
    is_it = sa.and_(_LOCKS.c.classid == upper, _LOCKS.c.objid == lower, _LOCKS.c.objsubid == ex.ONE)
    is_ours = sa.and_(
        _LOCKS.c.pid == sa.func.pg_backend_pid(), _LOCKS.c.locktype == ex.text_literal("advisory"), _LOCKS.c.granted
    )
    return sa.select(sa.exists().where(is_it, is_ours))


def begin_session(_: Tables) -> sa.Select[Any]:
    """Change those of some settings that the server has for this session; fails on a standby.

    The locks of a standby exclude no writers, and a session of one would keep a lock through its promotion, while
    another session has the lock on the old primary.

    Binds: `names` and `values`, arrays of equal length.
    """
    new = ex.rows_of_binds(name=sa.Text, value=sa.Text)
    known = sa.func.current_setting(new.c.name, sa.true()).is_not(None)
    # A standby refuses this with the error for a write, which is transient.
    no_standby = sa.cast(sa.func.pg_current_xact_id(), sa.Text)
    return sa.select(sa.func.set_config(new.c.name, new.c.value, sa.false()), no_standby).where(known)


def session_id(_: Tables) -> sa.Select[Any]:
    """Select the id of the server's process that this session talks to."""
    return sa.select(sa.func.pg_backend_pid())


def lock_namespaces(t: Tables) -> sa.Select[Any]:
    """Wait until no other transaction is about to continue some namespaces, and exclude others until this one ends.

    Returns the transaction's isolation level, once for each. Binds: `table`, and parallel arrays `thread_ids` and
    `checkpoint_nss`.
    """
    new = ex.rows_of_binds(thread_id=sa.Text, checkpoint_ns=sa.Text)
    of_thread = sa.func.hashtextextended(new.c.thread_id.collate("C"), _seed("graph"), type_=sa.BigInteger)
    return _take_all(t, sa.func.hashtextextended(new.c.checkpoint_ns.collate("C"), of_thread))


def lock_removal(t: Tables) -> sa.Select[Any]:
    """Wait until no other transaction deletes rows of some threads, and exclude others until this one ends.

    It does not exclude transactions that only store, nor is it the lock of a run, which may delete while it holds that.

    Returns the transaction's isolation level, once for each. Binds: `thread_ids`, and `table`, the qualified name of
    `checkpoints`.
    """
    seed = _seed("removal")
    thread_id = sa.func.unnest(ex.array_param("thread_ids")).column_valued("thread_id")
    return _take_all(t, sa.func.hashtextextended(thread_id.collate("C"), seed))


def continuations(t: Tables) -> sa.Select[Any]:
    """Select for some checkpoints whether each continues the newest of its namespace, or is stored already.

    It has to be executed after `lock_namespaces`, in the same transaction: then its snapshot has everything that was
    stored before.

    A row is thread, namespace, id, parent, the newest id, and whether the checkpoint continues it. Binds: parallel
    arrays `thread_ids`, `checkpoint_nss`, `checkpoint_ids`, `parent_checkpoint_ids`.
    """
    c = t.checkpoints
    new = ex.rows_of_binds(**ex.key_types(c), parent_checkpoint_id=sa.Text)
    found = sa.select(c.c.checkpoint_id).where(ex.same_namespace(c, new)).order_by(c.c.checkpoint_id.desc())
    newest = found.limit(ex.ONE).correlate(new).lateral("newest")
    stored = c.alias("stored")
    is_stored = sa.exists().where(
        ex.same_namespace(stored, new),
        stored.c.checkpoint_id == new.c.checkpoint_id,
        stored.c.parent_checkpoint_id.is_not_distinct_from(new.c.parent_checkpoint_id),
    )
    is_next = sa.or_(newest.c.checkpoint_id.is_(None), new.c.checkpoint_id > newest.c.checkpoint_id)
    continues = sa.and_(newest.c.checkpoint_id.is_not_distinct_from(new.c.parent_checkpoint_id), is_next)
    return sa.select(*new.c, newest.c.checkpoint_id, sa.or_(is_stored, continues)).select_from(
        new.outerjoin(newest, sa.true())
    )


def _take_all(t: Tables, lock: sa.ColumnElement[int]) -> sa.Select[Any]:
    """Take locks, in one order so that no two transactions deadlock, and select the isolation level for each."""
    lock = lock.label("lock")
    locks = sa.select(lock).distinct().order_by(lock).offset(ex.ZERO).subquery("locks")
    return sa.select(_level(t), sa.func.pg_advisory_xact_lock(locks.c.lock))


def _level(t: Tables) -> sa.ColumnElement[str]:
    """Return the transaction's isolation level; for distributed tables `WORKER` on a server that has only shards."""
    if not ex.is_distributed(t.checkpoints):
        return _LEVEL
    group = sa.table("pg_dist_local_group", sa.column("groupid", sa.Integer), schema="pg_catalog").c.groupid
    return sa.case((sa.select(group == ex.ZERO).scalar_subquery(), _LEVEL), else_=ex.text_literal(WORKER))


def _seed(purpose: str) -> sa.ColumnElement[int]:
    """Return the seed of the hashes for locks of one purpose in one schema, NULL if there is no such table."""
    oid = sa.cast(sa.func.to_regclass(ex.param("table")), pg.OID)
    found = sa.select(_NAMESPACE.c.nspname.collate("C")).join(_CLASS, _CLASS.c.relnamespace == _NAMESPACE.c.oid)
    schema = found.where(_CLASS.c.oid == oid).scalar_subquery()
    return sa.func.hashtextextended(
        ex.text_literal(purpose), sa.func.hashtextextended(schema, ex.ZERO), type_=sa.BigInteger
    )
