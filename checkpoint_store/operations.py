"""One function per unit of work, on a `Connection`.

They are written in sync style: SQLAlchemy's greenlets run them on an async engine, a sync engine runs them as they are.
Each is one statement, so it is atomic on its own and needs no transaction around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection

from checkpoint_store.config import Key, Listing
from checkpoint_store.statements import Statement, Statements

Last = tuple[str, str, str]
"""Thread, namespace and id of the last row of a page."""

Row = Sequence[Any]


def put_checkpoint(conn: Connection, sql: Statements, binds: dict[str, Any]) -> None:
    """Store a checkpoint with the blobs that are new in it, or replace the one with its id."""
    _run(conn, sql.put_checkpoint, binds)


def put_writes(conn: Connection, sql: Statements, binds: dict[str, Any], replace: bool) -> None:
    """Store the pending writes of a task; those that are there already are replaced, or left as they are."""
    _run(conn, sql.replace_writes if replace else sql.add_writes, binds)


def get_checkpoint(conn: Connection, sql: Statements, key: Key) -> Row | None:
    """Return the checkpoint that a key names, or the newest of its thread and namespace, or None."""
    statement = sql.get_checkpoint if key.checkpoint_id else sql.get_latest
    rows = _run(conn, statement, key._asdict()).rows
    return rows[0] if rows else None


def list_page(conn: Connection, sql: Statements, listing: Listing, last: Last | None, size: int) -> Sequence[Row]:
    """Return the page of a listing that follows the row `last`, or its first: `size` checkpoints, fewer at the end."""
    binds = {name: value for name, value in listing._asdict().items() if value is not None and name != "limit"}
    conditions = frozenset(binds)
    if last is not None:
        conditions |= {"after_row"}
        binds.update(last_thread_id=last[0], last_checkpoint_ns=last[1], last_checkpoint_id=last[2])
    return _run(conn, sql.list_page(conditions), {**binds, "page_size": size}).rows


def delete_thread(conn: Connection, sql: Statements, thread_id: str) -> int:
    """Delete everything stored for a thread. Returns the number of checkpoints that were there."""
    return _run(conn, sql.delete_thread, {"thread_id": thread_id}).touched


def delta_history(conn: Connection, sql: Statements, key: Key, channels: Sequence[str]) -> Sequence[Row]:
    """Return the ancestors of a checkpoint with what they contribute to some channels."""
    return _run(conn, sql.delta_history, {**key._asdict(), "channels": list(channels)}).rows


def revisions(conn: Connection, sql: Statements) -> set[str]:
    """Return the revisions that the database is at."""
    return {row[0] for row in _run(conn, sql.revision, {}).rows}


class _Outcome(NamedTuple):
    rows: Sequence[Row]
    touched: int


def _run(conn: Connection, statement: Statement, binds: dict[str, Any]) -> _Outcome:
    """Execute a statement, straight on the driver's cursor where nobody could tell the difference."""
    sql, parameters = statement.sql(conn.dialect), statement.parameters(conn.dialect, binds)
    if _is_observed(conn):
        result = conn.exec_driver_sql(sql, parameters)
        return _Outcome(result.all() if result.returns_rows else [], result.rowcount)
    # An execution context and the result's metadata, made anew at every call, cost as much as a small statement.
    cursor = conn.connection.cursor()
    try:
        cursor.execute(sql, parameters)
        outcome = _Outcome([] if cursor.description is None else cursor.fetchall(), cursor.rowcount)
    except BaseException as error:
        # What Connection does itself: wraps the error, and gives up a connection that is lost or was interrupted.
        conn._handle_dbapi_exception(error, sql, parameters, cursor, None)
    cursor.close()
    return outcome


def _is_observed(conn: Connection) -> bool:
    """Tell whether a transaction, an event listener or a log has to know of what is executed."""
    return (
        conn.get_execution_options().get("isolation_level") != "AUTOCOMMIT"
        or conn.in_transaction()
        or conn._has_events
        or conn.engine._has_events
        or conn.dialect._has_events
        or conn._echo
    )
