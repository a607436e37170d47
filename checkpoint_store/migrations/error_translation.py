"""Translation of the server's errors on a caller's connection into errors of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NoReturn

from sqlalchemy import Connection, exc

from checkpoint_store.conninfo.driver_errors import diagnosis_of, raise_from
from checkpoint_store.conninfo.transient_errors import transient_error_of
from checkpoint_store.errors import MigrationError, Unavailable
from checkpoint_store.migrations.lock_timeout import LOCK_NOT_AVAILABLE, tables_in_use
from checkpoint_store.migrations.privileges import INSUFFICIENT_PRIVILEGE


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Translate the server's errors for a caller that has passed a connection.

    Raises:
        Unavailable: If the connection was lost, or a transient error has kept it from succeeding.
        MigrationError: If it was any other error.
    """
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
    snapshots: bool = False,
    hint: str = "",
) -> NoReturn:
    """Raise our error for DDL that has failed, as for `tables_in_use`, with a hint for a role that lacks a right.

    Raises:
        DBAPIError: If the connection was lost: `translate_errors` translates it.
        MigrationLocked: If transactions have used the tables past the deadline.
        MigrationError: If it was any other error.
    """
    if error.connection_invalidated:
        raise error
    state = diagnosis_of(error).state
    if state == LOCK_NOT_AVAILABLE:
        raise_from(tables_in_use(action, conn, schema, in_transaction=in_transaction, snapshots=snapshots), error)
    advice = hint if state == INSUFFICIENT_PRIVILEGE else ""
    raise_from(MigrationError(f"{action} failed and was rolled back: {reason_of(error)}. {advice}".rstrip()), error)


def reason_of(error: exc.DBAPIError) -> str:
    """Return the server's message, or the name of its error where the message may contain values."""
    diagnosis = diagnosis_of(error)
    return diagnosis.message or diagnosis.name or "the driver has failed"
