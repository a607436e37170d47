"""Translation of the server's errors on a caller's connection into errors of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NoReturn

from sqlalchemy import Connection, exc

from checkpoint_store.conninfo.driver_errors import diagnosis_of, raise_from
from checkpoint_store.conninfo.transient_errors import transient_error_of
from checkpoint_store.errors import MigrationError, MigrationLocked, Unavailable
from checkpoint_store.migrations.lock_timeout import blocking_transactions
from checkpoint_store.migrations.privileges import INSUFFICIENT_PRIVILEGE, advice_on_ddl

LOCK_NOT_AVAILABLE = "55P03"
"""The SQLSTATE of a lock that was waited for past `lock_timeout`."""
END_THEM = " End them, then try again."
"""The advice of `MigrationLocked` about transactions."""


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Translate the server's errors for a caller that has passed a connection: `Unavailable`, or `MigrationError`."""
    try:
        yield
    except exc.DBAPIError as error:
        if error.connection_invalidated or transient_error_of(error) is not None:
            raise_from(Unavailable(f"the server could not be asked: {reason_of(error)}"), error)
        raise_from(MigrationError(f"the server could not be asked, or has refused: {reason_of(error)}"), error)


def raise_failed(
    error: exc.DBAPIError,
    action: str,
    conn: Connection,
    schema: str | None,
    *,
    in_transaction: bool,
    to_savepoint: bool = False,
    snapshots: bool = False,
    hint: str = "",
) -> NoReturn:
    """Raise our error for DDL that has failed, with a hint for a role that lacks a right.

    Where a table's lock was not free in time it names those who had it, unless the transaction is the caller's and was
    not rolled back to a savepoint: then no statement can run in it any more. For a connection that was lost the error
    itself goes on to `translate_errors`.
    """
    if error.connection_invalidated:
        raise error
    state, blocking = diagnosis_of(error).state, ""
    if state == LOCK_NOT_AVAILABLE:
        if not in_transaction:
            conn.rollback()
        if not in_transaction or to_savepoint:
            blocking = blocking_transactions(conn, schema, snapshots=snapshots)
        if not in_transaction:
            conn.rollback()
        locked = f"{action} waits for transactions that are using the tables: {blocking or 'see pg_stat_activity'}."
        raise_from(MigrationLocked(f"{locked} What it had begun was rolled back.{END_THEM}"), error)
    advice = ""
    if state == INSUFFICIENT_PRIVILEGE:
        advice = " ".join(filter(None, [hint, "" if in_transaction else advice_on_ddl(conn, schema)]))
    raise_from(MigrationError(f"{action} failed and was rolled back: {reason_of(error)}. {advice}".rstrip()), error)


def reason_of(error: exc.DBAPIError) -> str:
    """Return the server's message, or the name of its error where the message may contain values."""
    diagnosis = diagnosis_of(error)
    return diagnosis.message or diagnosis.name or "the driver has failed"
