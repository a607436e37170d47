"""Checks that a transaction carries what an operation needs, and that what it stored is there."""

from __future__ import annotations

from sqlalchemy import Table

from checkpoint_store.errors import ThreadNotFound, WrongTransaction, short_repr
from checkpoint_store.sql.executor import Executor


def check_transaction(db: Executor, what: str, level: str) -> None:
    """Check that a transaction holds the locks just taken in it, and sees what others did before it had them.

    Args:
        db: The executor.
        what: What needs it, as the beginning of a sentence.
        level: The transaction's isolation level.

    Raises:
        WrongTransaction: If it doesn't.
    """
    check_holds(db, what)
    if level in ("repeatable read", "serializable"):
        raise WrongTransaction(
            f"{what} can't work in a transaction that is {level.upper()}: it does not see what others have stored "
            "since it began. Nothing was changed in it. Use READ COMMITTED: for the connection or session; or, where a "
            "listener of the engine's begins the saver's transactions as connections are checked out, for that engine."
        )


def check_holds(db: Executor, what: str) -> None:
    """Check that locks are held beyond the statement that takes them: there is a transaction.

    Raises:
        WrongTransaction: If there is none.
    """
    if not db.is_in_transaction:
        raise WrongTransaction(
            f"{what} can't work on a connection in AUTOCOMMIT: each statement is a transaction of its own, and none "
            "holds a lock for the next. Nothing was changed. Use a saver on the engine, or begin a transaction."
        )


def refusal(thread_id: str, table: Table, outcome: str | None = None) -> str:
    """Return how errors tell that a row could be stored without an error, and is not there.

    Args:
        thread_id: Whose row.
        table: Its table.
        outcome: What has become of the call; by default what does of a put.
    """
    outcome = (
        outcome
        or {
            "checkpoint_threads": "Nothing of the call was stored",
            "checkpoint_pages": "The value that needs it was stored, but can't be read",
            "checkpoints": "The checkpoint was not stored",
        }[table.name]
    )
    return (
        f"thread {short_repr(thread_id, 200)}: the database dropped a row of {table.name}, or hides it, without an "
        f"error. {outcome}. The reason is a BEFORE trigger that returns NULL, or a row-level security policy and "
        "another tenant that has used the thread id. Have the trigger return the row; give each tenant thread ids of "
        "its own."
    )


def not_found(thread_id: str) -> ThreadNotFound:
    """Return the error for a thread that must be there and isn't."""
    return ThreadNotFound(f"nothing is stored for the thread {short_repr(thread_id, 200)}")
