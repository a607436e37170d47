"""One function per unit of work, on an `Executor`.

They are written in sync style: SQLAlchemy's greenlets run them on an async engine, a sync engine runs them as they are.
Each is one statement, so it is atomic on its own and needs no transaction around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from checkpoint_store.config import Key, Listing
from checkpoint_store.executor import Executor, Row
from checkpoint_store.statements import Statements

Last = tuple[str, str, str]
"""Thread, namespace and id of the last row of a page."""


def put_checkpoint(db: Executor, sql: Statements, binds: dict[str, Any]) -> None:
    """Store a checkpoint with the blobs that are new in it, or replace the one with its id."""
    db.fetch(sql.put_checkpoint, binds)


def put_writes(db: Executor, sql: Statements, binds: dict[str, Any], replace: bool) -> None:
    """Store the pending writes of a task; those that are there already are replaced, or left as they are."""
    db.fetch(sql.replace_writes if replace else sql.add_writes, binds)


def get_checkpoint(db: Executor, sql: Statements, key: Key) -> Row | None:
    """Return the checkpoint that a key names, or the newest of its thread and namespace, or None."""
    statement = sql.get_checkpoint if key.checkpoint_id else sql.get_latest
    rows = db.fetch(statement, key._asdict())
    return rows[0] if rows else None


def list_page(db: Executor, sql: Statements, listing: Listing, last: Last | None, size: int) -> Sequence[Row]:
    """Return the page of a listing that follows the row `last`, or its first: `size` checkpoints, fewer at the end."""
    binds = {name: value for name, value in listing._asdict().items() if value is not None and name != "limit"}
    conditions = frozenset(binds)
    if last is not None:
        conditions |= {"after_row"}
        binds.update(last_thread_id=last[0], last_checkpoint_ns=last[1], last_checkpoint_id=last[2])
    return db.fetch(sql.list_page(conditions), {**binds, "page_size": size})


def delete_thread(db: Executor, sql: Statements, thread_id: str) -> None:
    """Delete everything stored for a thread."""
    db.fetch(sql.delete_thread, {"thread_id": thread_id})


def delta_history(db: Executor, sql: Statements, key: Key, channels: Sequence[str]) -> Sequence[Row]:
    """Return the ancestors of a checkpoint with what they contribute to some channels."""
    return db.fetch(sql.delta_history, {**key._asdict(), "channels": list(channels)})


def revisions(db: Executor, sql: Statements) -> set[str]:
    """Return the revisions that the database is at."""
    return {row[0] for row in db.fetch(sql.revision, {})}
