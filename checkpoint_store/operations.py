"""One function per unit of work, on a `Connection`.

They are written in sync style: SQLAlchemy's greenlets run them on an async engine, a sync engine runs them as they are.
Each is one statement, so it is atomic on its own and needs no transaction around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, CursorResult, Row

from checkpoint_store.config import Key, Listing
from checkpoint_store.statements import Statement, Statements

Last = tuple[str, str, str]
"""Thread, namespace and id of the last row of a page."""


def put_checkpoint(conn: Connection, sql: Statements, binds: dict[str, Any]) -> None:
    """Store a checkpoint with the blobs that are new in it, or replace the one with its id."""
    _run(conn, sql.put_checkpoint, binds)


def put_writes(conn: Connection, sql: Statements, binds: dict[str, Any], replace: bool) -> None:
    """Store the pending writes of a task; those that are there already are replaced, or left as they are."""
    _run(conn, sql.replace_writes if replace else sql.add_writes, binds)


def get_checkpoint(conn: Connection, sql: Statements, key: Key) -> Row[Any] | None:
    """Return the checkpoint that a key names, or the newest of its thread and namespace, or None."""
    statement = sql.get_checkpoint if key.checkpoint_id else sql.get_latest
    return _run(conn, statement, key._asdict()).first()


def list_page(conn: Connection, sql: Statements, listing: Listing, last: Last | None, size: int) -> Sequence[Row[Any]]:
    """Return the page of a listing that follows the row `last`, or its first: `size` checkpoints, fewer at the end."""
    binds = {name: value for name, value in listing._asdict().items() if value is not None and name != "limit"}
    conditions = frozenset(binds)
    if last is not None:
        conditions |= {"after_row"}
        binds.update(last_thread_id=last[0], last_checkpoint_ns=last[1], last_checkpoint_id=last[2])
    return _run(conn, sql.list_page(conditions), {**binds, "page_size": size}).all()


def delete_thread(conn: Connection, sql: Statements, thread_id: str) -> int:
    """Delete everything stored for a thread. Returns the number of checkpoints that were there."""
    return _run(conn, sql.delete_thread, {"thread_id": thread_id}).rowcount


def delta_history(conn: Connection, sql: Statements, key: Key, channels: Sequence[str]) -> Sequence[Row[Any]]:
    """Return the ancestors of a checkpoint with what they contribute to some channels."""
    return _run(conn, sql.delta_history, {**key._asdict(), "channels": list(channels)}).all()


def revisions(conn: Connection, sql: Statements) -> set[str]:
    """Return the revisions that the database is at."""
    return set(_run(conn, sql.revision, {}).scalars())


def _run(conn: Connection, statement: Statement, binds: dict[str, Any]) -> CursorResult[Any]:
    return conn.exec_driver_sql(statement.sql(conn.dialect), statement.parameters(conn.dialect, binds))
