"""The locks on a thread: of a run, of removals, of its pages; and the checks that a transaction holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from checkpoint_store.errors import SET_UP, NotSetUp, Refused, UnusableConnection, WrongTransaction
from checkpoint_store.sql.arrays import thread_binds
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.locks import WORKER
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.operation import Kind, operation

T = TypeVar("T")


@operation(Kind.PROBE)
def lock_number(db: Executor, sql: Statements, thread_id: str) -> int:
    """Return the number of a thread's run lock.

    Raises:
        NotSetUp: If the tables are missing.
        UnusableConnection: If the lock would exclude only those who connect to this worker.
    """
    table = sql.checkpoints_name
    [row] = db.fetch(sql.lock_number, {"thread_id": thread_id, "table": table})
    if row[-1] == WORKER:
        raise _on_worker("A thread's lock")
    number: int | None = row[0]
    return _known_table(number, table)


@operation(Kind.PROBE)
def take_lock(db: Executor, sql: Statements, number: int) -> bool:
    """Try to take a lock for the session. Returns whether no other session has it."""
    return bool(db.fetch(sql.take_lock, {"number": number})[0][0])


@operation(Kind.PROBE)
def drop_lock(db: Executor, sql: Statements, number: int) -> bool:
    """Release a lock of the session. Returns whether the session had it."""
    return bool(db.fetch(sql.release_lock, {"number": number})[0][0])


@operation(Kind.READ, in_transaction=True)
def take_lock_in_transaction(db: Executor, sql: Statements, thread_id: str) -> int | None:
    """Try to take a thread's lock until the transaction ends. Returns its number, None if another session has it.

    Raises:
        NotSetUp: If the tables are missing.
        WrongTransaction: If there is no transaction, or one that does not see what the lock's last holder has stored.
    """
    table = sql.checkpoints_name
    number, taken, level = db.fetch(sql.take_lock_in_transaction, {"thread_id": thread_id, "table": table})[0]
    _known_table(number, table)
    check_transaction(db, "thread_lock()", level)
    return number if taken else None


def take_free_locks(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> list[str]:
    """Take those of some threads' locks that no other session has until the transaction ends. Returns these threads."""
    binds = {"thread_ids": list(thread_ids), "table": sql.checkpoints_name}
    return [row[0] for row in db.fetch(sql.take_locks_in_transaction, binds)]


@operation(Kind.PROBE)
def has_lock(db: Executor, sql: Statements, number: int) -> bool:
    """Return whether the session has a lock."""
    return bool(db.fetch(sql.has_lock, {"number": number})[0][0])


def _known_table(answer: T | None, table: str) -> T:
    if answer is None:
        raise NotSetUp(f'table "{table}" does not exist. {SET_UP}')
    return answer


def begin_session(db: Executor, sql: Statements, settings: Mapping[str, str]) -> None:
    """Change those of some settings of the session that the server knows."""
    db.fetch(sql.begin_session, {"names": list(settings), "values": list(settings.values())})


@operation(Kind.PROBE)
def session_id(db: Executor, sql: Statements) -> int:
    """Return the id of the session's server process."""
    return db.fetch(sql.session_id, {})[0][0]  # type: ignore[no-any-return]


def lock_threads(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> list[str]:
    """Keep others from removing anything of some threads and storing pages of them. Returns those that have pages."""
    lock_removal(db, sql, thread_ids)
    return lock_pages(db, sql, thread_ids)


def lock_removal(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> None:
    """Keep others from removing anything of some threads, until the transaction ends; puts take no notice.

    Raises:
        WrongTransaction: If it does not see what others have stored, and so would remove what that needs.
        UnusableConnection: If others don't notice the lock.
        Refused: If Citus has distributed the tables since the threads were put together.
    """
    if sql.are_distributed and len(thread_ids) > 1:
        raise Refused(
            "Citus has distributed the tables while this call was under way, and they are now removed from by one "
            "thread after the other. This step has changed nothing; make the call again."
        )
    if rows := take_removal_lock(db, sql, thread_ids):
        check_transaction(db, "A removal", rows[0][0])


@operation(Kind.READ, in_transaction=True)
def check_removal(db: Executor, sql: Statements) -> None:
    """Check, before work that ends with a removal, that a removal would not be refused.

    Raises:
        WrongTransaction: If it would be.
    """
    lock_removal(db, sql, [""])  # no thread's id


def take_removal_lock(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> Sequence[Row]:
    """Take the lock that keeps removals of a thread apart, until the transaction ends. Returns the isolation level."""
    return db.fetch(sql.lock_removal, {"thread_ids": list(thread_ids), "table": sql.checkpoints_name})


def lock_pages(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> list[str]:
    """Keep others from storing pages of some threads until the transaction ends. Returns those that have pages."""
    return [row[0] for row in db.fetch(sql.lock_threads, thread_binds(thread_ids))]


def claim_threads(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> None:
    """Keep others from storing pages of some threads until the transaction ends, also of those that have none yet."""
    db.fetch(sql.insert_thread_rows, thread_binds(thread_ids))
    lock_pages(db, sql, thread_ids)


def check_transaction(db: Executor, what: str, level: str) -> None:
    """Check that a transaction holds the locks just taken in it, and sees what others did before it had them.

    Args:
        db: The executor.
        what: The work that needs it, as the beginning of a sentence.
        level: The transaction's isolation level.

    Raises:
        WrongTransaction: If it doesn't hold them, or doesn't see that.
        UnusableConnection: If others don't notice them.
    """
    check_holds(db, what, level)
    if level in ("repeatable read", "serializable"):
        raise WrongTransaction(
            f"{what} can't work in a transaction that is {level.upper()}: it does not see what others have stored "
            "since it began. Nothing was changed in it. Use READ COMMITTED: for the connection or session; or, where a "
            "listener of the engine's begins the saver's transactions as connections are checked out, for that engine."
        )


def check_holds(db: Executor, what: str, level: str) -> None:
    """Check that locks are held beyond the statement that takes them, there is a transaction, and exclude all others.

    Raises:
        WrongTransaction: If there is none.
        UnusableConnection: If others don't notice them.
    """
    if level == WORKER:
        raise _on_worker(what)
    if not db.is_in_transaction:
        raise WrongTransaction(
            f"{what} can't work on a connection in AUTOCOMMIT: each statement is a transaction of its own, and none "
            "holds a lock for the next. Nothing was changed. Use a saver on the engine, or begin a transaction."
        )


def _on_worker(what: str) -> UnusableConnection:
    return UnusableConnection(
        f"{what} can't work on a worker of a Citus cluster: locks exclude only those who connect to the same node. "
        "Nothing was changed. Make the saver on an engine that connects to the coordinator."
    )
