"""The errors for rows that must be there and aren't."""

from __future__ import annotations

from sqlalchemy import Table

from checkpoint_store.errors import ThreadNotFound, short_repr
from checkpoint_store.sql.arrays import thread_binds
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.operation import Kind, operation

_SUGGESTED, _LOOKED_AT = 3, 20
"""The number of ids that an error names, and of those that are looked at for them."""


def refusal(thread_id: str, table: Table, outcome: str | None = None) -> str:
    """Return the message of errors for a row that was stored without an error and is not there.

    Args:
        thread_id: The thread.
        table: The row's table.
        outcome: The outcome of the call; by default that of a put.
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
    error = ThreadNotFound(f"nothing is stored for the thread {short_repr(thread_id, 200)}")
    error._thread_id = thread_id
    return error


@operation(Kind.READ)
def with_similar(db: Executor, sql: Statements, error: ThreadNotFound) -> ThreadNotFound:
    """Return the error of `not_found` with the ids of a few threads: those that begin so, or that it begins with.

    For a person who may see all threads: an application's error must not name those of others.
    """
    wanted = error._thread_id
    if wanted is None:
        return error
    # In the index's order, where ids that begin so need not come first.
    after = {"after": wanted, "limit": _LOOKED_AT}
    following = [row[0] for row in db.fetch(sql.next_threads_of("checkpoints"), after)]
    starts = [wanted[:end] for end in range(1, len(wanted))]
    shorter = sorted((row[0] for row in db.fetch(sql.checkpoint_counts, thread_binds(starts))), key=len, reverse=True)
    similar = [one for one in following if one.startswith(wanted)] + shorter
    if not similar:
        return error
    return ThreadNotFound(f"{error}; similar ids: {', '.join(short_repr(one, 200) for one in similar[:_SUGGESTED])}")
