"""One function per unit of work, on an `Executor`.

They are written in sync style: SQLAlchemy's greenlets run them on an async engine, a sync engine runs them as they are.
Where it doesn't say otherwise each is one statement, so it is atomic on its own and needs no transaction around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from checkpoint_store.errors import (
    SET_UP,
    NotSetUp,
)
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.checks import check_transaction
from checkpoint_store.storage.operation import Kind, operation
from checkpoint_store.storage.probes import checkpoints_of

T = TypeVar("T")


@operation(Kind.READ)
def lock_number(db: Executor, sql: Statements, thread_id: str) -> int:
    """Return the number that a thread's lock goes by.

    Raises:
        NotSetUp: If the tables are missing.
    """
    table = checkpoints_of(sql)
    number: int | None = db.fetch(sql.lock_number, {"thread_id": thread_id, "table": table})[0][0]
    return _known_table(number, table)


@operation(Kind.READ)
def take_lock(db: Executor, sql: Statements, number: int) -> bool:
    """Try to take a lock for the session; tells whether nobody else has it."""
    return bool(db.fetch(sql.take_lock, {"number": number})[0][0])


@operation(Kind.READ)
def drop_lock(db: Executor, sql: Statements, number: int) -> bool:
    """Give a lock of the session back; tells whether it had it."""
    return bool(db.fetch(sql.release_lock, {"number": number})[0][0])


@operation(Kind.READ, in_transaction=True)
def take_lock_in_transaction(db: Executor, sql: Statements, thread_id: str) -> int | None:
    """Try to take a thread's lock until the transaction ends; returns its number, or None if somebody else has it.

    Raises:
        NotSetUp: If the tables are missing.
        WrongTransaction: If there is no transaction, or one that does not see what the last to have the lock has done.
    """
    table = checkpoints_of(sql)
    number, taken, level = db.fetch(sql.take_lock_in_transaction, {"thread_id": thread_id, "table": table})[0]
    _known_table(number, table)
    check_transaction(db, "thread_lock()", level)
    return number if taken else None


@operation(Kind.READ)
def has_lock(db: Executor, sql: Statements, number: int) -> bool:
    """Tell whether the session has a lock."""
    return bool(db.fetch(sql.has_lock, {"number": number})[0][0])


def _known_table(answer: T | None, table: str) -> T:
    if answer is None:
        raise NotSetUp(f'table "{table}" does not exist. {SET_UP}')
    return answer


def begin_session(db: Executor, sql: Statements, settings: Mapping[str, str]) -> None:
    """Change what settings of the session the server knows."""
    db.fetch(sql.begin_session, {"names": list(settings), "values": list(settings.values())})


@operation(Kind.READ)
def session_id(db: Executor, sql: Statements) -> int:
    """Return the id of the server's process that the session talks to."""
    return db.fetch(sql.session_id, {})[0][0]  # type: ignore[no-any-return]


def lock_threads(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> list[str]:
    """Keep others from removing anything of some threads, and from storing pages of them; in a transaction.

    Returns:
        Which of them have pages.
    """
    lock_removal(db, sql, thread_ids)
    return lock_pages(db, sql, thread_ids)


def lock_removal(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> None:
    """Keep others from removing anything of some threads; in a transaction. Those who store don't notice.

    Raises:
        WrongTransaction: If it does not see what others have stored: what that needs would be removed.
    """
    if rows := take_removal_lock(db, sql, thread_ids):
        check_transaction(db, "A removal", rows[0][0])


@operation(Kind.READ, in_transaction=True)
def check_removal(db: Executor, sql: Statements) -> None:
    """Check, before work that ends with a removal, that this one would not be refused; in a transaction.

    Raises:
        WrongTransaction: If it would be.
    """
    lock_removal(db, sql, [""])  # no thread's id


def take_removal_lock(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> Sequence[Row]:
    """Take the lock that keeps removals of a thread apart, until the transaction ends."""
    return db.fetch(sql.lock_removal, {"thread_ids": list(thread_ids), "table": checkpoints_of(sql)})


def lock_pages(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> list[str]:
    """Keep others from storing pages of some threads; in a transaction. Returns which of them have pages."""
    return [row[0] for row in db.fetch(sql.lock_threads, {"thread_ids": list(thread_ids)})]


def claim_threads(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> None:
    """Keep others from storing pages of some threads, also of those that have none yet; in a transaction."""
    db.fetch(sql.insert_thread_rows, {"thread_ids": list(thread_ids)})
    lock_pages(db, sql, thread_ids)
