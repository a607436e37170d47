"""What an error of the server's or the driver's means, in our words."""

from __future__ import annotations

import asyncio

from asyncpg import PostgresError
from asyncpg.exceptions import ClientConfigurationError, InterfaceError, InternalClientError
from sqlalchemy import exc

from checkpoint_store.errors import SET_UP, InvalidOption, InvalidURL, NotSetUp, Unavailable
from checkpoint_store.faults import fault_of, is_conflict
from checkpoint_store.migrations import access_denied
from checkpoint_store.schema import Tables
from checkpoint_store.turns import TurnTimeout

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_NO_TABLES = {"42P01": "undefined_table", "42703": "undefined_column", "3F000": "invalid_schema_name"}
_NO_RIGHT = "42501"  # insufficient_privilege
_NO_SETTING = "42704"  # undefined_object, which an unknown parameter in a URL turns out to be
_NO_SUCH_PREPARED = {"26000": "invalid_sql_statement_name", "42P05": "duplicate_prepared_statement"}
_NO_SERVER = ("08", "28", "3D000", "53300", "57P0")
"""Connection exceptions, refused logins, no such database, too many connections, server shutting down or starting."""

FOREIGN = (
    exc.SQLAlchemyError,
    PostgresError,
    InterfaceError,
    InternalClientError,
    OSError,
    asyncio.TimeoutError,
    TurnTimeout,
)
"""What comes from below us, to be told in our words."""

_ADVICE = "Check that the server runs, and that the URL and the login are right."


def explain(
    error: BaseException, where: str, t: Tables, *, callers: bool = False, tried: float = 0.0
) -> Exception | None:
    """Return our error for one of the driver's, or None where that one says it best.

    Args:
        error: One of `FOREIGN`.
        where: How messages name the database.
        t: The tables, for messages about rights.
        callers: Whether it came in a transaction of the caller's, who then wants to know what has ended it.
        tried: For how long, in seconds, the call was made again.
    """
    cause = error.orig if isinstance(error, exc.StatementError) else error
    state = getattr(cause, "sqlstate", None) or ""
    text = str(cause).rpartition("Error'>: ")[2]
    if t.schema and t.schema.splitlines() != [t.schema]:
        text = text.replace(t.schema, repr(t.schema)[1:-1])  # the message has lines of its own
    message = (text.splitlines() or [type(cause).__name__])[0]
    ended = " Your transaction can only be rolled back now: do that first." if callers else ""
    if state in _NO_TABLES:
        return NotSetUp(f"{message}.{ended} {SET_UP}")
    if state == _NO_RIGHT:
        return access_denied(f"{message}.{ended}".removesuffix("."), t.schema)
    if (
        isinstance(error, ClientConfigurationError)
        or isinstance(getattr(cause, "__cause__", None), ClientConfigurationError)
        or (state == _NO_SETTING and "configuration" in message)
    ):
        return InvalidURL(f"{where}: {message}")
    if state in _NO_SUCH_PREPARED:
        return InvalidOption(
            f"{where}: {message}. This happens where a pooler lends each transaction another server connection: "
            'use from_conn_string(..., pooler="transaction"), or make the engine with '
            "**checkpoint_store.url.pooler_options()."
        )
    if isinstance(error, (exc.TimeoutError, TurnTimeout)):
        return Unavailable(f"{where}: no connection became free in time ({message})")
    if isinstance(error, exc.StatementError) and isinstance(error.orig, asyncio.TimeoutError):
        return Unavailable(f"{where}: the statement took longer than the engine's command_timeout allows")
    fault = None if callers else fault_of(error)
    if fault and tried:
        advice = "" if is_conflict(error) else f" {_ADVICE}"
        return Unavailable(f"{where}: {message}. Tried again for {tried:g} s (retry_timeout): {fault.reason}.{advice}")
    if fault and is_conflict(error):
        return Unavailable(f"{where}: {message}: {fault.reason}. Try again, or set retry_timeout.")
    # psycopg gives no state to what comes from libpq: nobody listens there, or the login was refused.
    lost = isinstance(error, exc.DBAPIError) and (
        error.connection_invalidated or (isinstance(error, exc.OperationalError) and not state)
    )
    if fault or lost or state.startswith(_NO_SERVER) or isinstance(error, (OSError, asyncio.TimeoutError)):
        return Unavailable(f"{where}: {message}. {_ADVICE}")
    return None
