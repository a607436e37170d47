"""The errors for rows that must be there and aren't."""

from __future__ import annotations

from sqlalchemy import Table

from checkpoint_store.errors import ThreadNotFound, short_repr


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
    return ThreadNotFound(f"nothing is stored for the thread {short_repr(thread_id, 200)}")
