"""Transient errors: after one of them the same call, made again, is likely to succeed.

The table is complete: an error that is not in it is never retried. Not in it are mistakes, which a retry would only
report later, and limits that somebody has set: on the time of a statement, a transaction or a lock, on the wait for a
connection of the pool. Their cause is load, and more tries would be more of it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from asyncpg.exceptions import InterfaceError, InternalClientError, TargetServerAttributeNotMatched
from sqlalchemy import exc

from checkpoint_store.conninfo.driver_errors import causes, driver_error, field, sqlstate_of


class TransientError(NamedTuple):
    """A kind of transient error."""

    reason: str
    """The cause, and why it is transient; fit for a log, since it quotes nothing of the server's message."""
    ends_connections: bool = True
    """Whether the connection it came from, and connections of the pool that are as old, are of no more use."""


PLAN_CHANGED = "0A000 RevalidateCachedQuery"
"""An SQLSTATE that covers other errors too, and the function in PostgreSQL that raises this one."""

LOST_WORKERS = (
    *("XX000 CheckRemoteTransactionsHealth", "XX000 ErrorIfPostCommitFailedShardPlacements"),
    *("XX000 MarkRemoteTransactionFailed", "XX000 ReportResultError", "58030 SendCopyDataToPlacement"),
)
"""The same of Citus, where the connection to a worker ended."""

TRANSIENT_ERRORS: Mapping[str | type[BaseException], TransientError] = MappingProxyType(
    {
        # By SQLSTATE, or its class: https://www.postgresql.org/docs/current/errcodes-appendix.html
        "08": TransientError("the connection was lost, or a proxy gave it up; another one may hold"),
        "25006": TransientError("the server only reads: it was demoted, or is a standby about to be promoted"),
        "25P03": TransientError("the transaction was idle for too long and was undone; it is begun again"),
        "40001": TransientError(
            "another transaction came first; repeated, this one sees its rows", ends_connections=False
        ),
        "40P01": TransientError(
            "two transactions waited for each other, and the server undid ours", ends_connections=False
        ),
        "53300": TransientError("the server has as many connections as it may; some will end"),
        "57P01": TransientError("the server shuts down, or an administrator ended the connection"),
        "57P02": TransientError("a process of the server crashed, so it starts anew"),
        "57P03": TransientError("the server starts, stops or recovers from a crash"),
        "57P05": TransientError("the connection was idle for longer than the server allows"),
        # asyncpg prepares it again by itself, psycopg never does.
        PLAN_CHANGED: TransientError(
            "a table was altered after the statement was prepared; another session prepares it"
        ),
        **dict.fromkeys(
            LOST_WORKERS,
            TransientError("the Citus coordinator lost a worker, which may be starting", ends_connections=False),
        ),
        # By class, for errors without an SQLSTATE, since no server has answered.
        ConnectionError: TransientError("the connection was refused or cut; the server may be starting"),
        FileNotFoundError: TransientError("the server's socket is not there; the server may be starting"),
        TimeoutError: TransientError("no answer while connecting; another attempt may reach another host"),
        socket.gaierror: TransientError("the host's name could not be resolved; a name may be moving"),
        TargetServerAttributeNotMatched: TransientError("no host of the URL takes writes; one may be about to"),
        InternalClientError: TransientError("the connection ended in the middle of asyncpg's protocol, as in a crash"),
        exc.OperationalError: TransientError(
            "libpq could not reach the server, or lost it; the server may be starting"
        ),
    }
)
"""The transient errors by SQLSTATE, by class of SQLSTATEs, or by class of exception."""

_UNREACHABLE = (
    *(errno.EADDRNOTAVAIL, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ETIMEDOUT),
)
"""Numbers of an `OSError` that means the same as a `ConnectionError`."""

_STATEMENT_POOLING = "not allowed in statement pooling mode"
"""PgBouncer's message, always in these words, with an SQLSTATE that covers other errors too."""

_ENDS_ONE = ("08", "25P03", "57P01", "57P02", "57P05")
"""SQLSTATEs of errors that end a connection and close its socket, as they do with all others that they end."""

_CLOSED = (ConnectionError, InterfaceError, InternalClientError)
"""Errors of a driver that has noticed that its socket is closed."""


def transient_error_of(error: BaseException) -> TransientError | None:
    """Return the transient error that an error of SQLAlchemy's, a driver's or the system's is, or None."""
    cause = driver_error(error)
    if is_statement_pooling(error):
        return None
    if state := _state(cause):
        return TRANSIENT_ERRORS.get(state) or TRANSIENT_ERRORS.get(state[:2])
    if isinstance(error, exc.OperationalError):
        # psycopg gives no SQLSTATE to errors that come before there is a connection, a refused login included.
        used_password = getattr(getattr(cause, "pgconn", None), "used_password", False)
        return None if used_password else TRANSIENT_ERRORS[exc.OperationalError]
    # The message of a driver that finds its connection closed, and SQLAlchemy's mark of the same.
    is_closed = isinstance(cause, InterfaceError) and "connection is closed" in str(cause)
    if is_closed or (isinstance(error, exc.DBAPIError) and error.connection_invalidated):
        return TRANSIENT_ERRORS["08"]
    if cause is not error and isinstance(cause, TimeoutError):
        return None  # of a statement, by a limit of the caller's
    # A host with several addresses, each with an error of its own, comes as one OSError without a number.
    is_several = type(cause) is OSError and cause.errno is None
    if is_several or (isinstance(cause, OSError) and cause.errno in _UNREACHABLE):
        return TRANSIENT_ERRORS[ConnectionError]
    return next((TRANSIENT_ERRORS[kind] for kind in type(cause).__mro__ if kind in TRANSIENT_ERRORS), None)


def is_statement_pooling(error: BaseException) -> bool:
    """Return whether PgBouncer has closed the connection because its statement mode has no transactions."""
    cause = driver_error(error)
    return sqlstate_of(cause) == "08P01" and _STATEMENT_POOLING in str(cause)


def ends_connections(error: BaseException) -> bool:
    """Return whether the connection that an error came from is of no more use, even if its driver has not noticed."""
    transient = transient_error_of(error)
    return transient is not None and transient.ends_connections and not _is_passed_on(driver_error(error))


def ends_all_connections(error: BaseException) -> bool:
    """Return whether the other connections of the pool are of no more use either, without their drivers' notice.

    Where a server stops, crashes or ends one connection, it closes the socket of each that it ends: that is noticed
    when a connection is taken from the pool. Not so where the server has changed, or the network is silent. It is asked
    of an error that `ends_connections`, or that a driver raises for a connection it has lost.
    """
    cause: BaseException | None = error.orig if isinstance(error, exc.StatementError) else error
    if state := _state(cause):
        is_silent = any(isinstance(each, OSError) and each.errno in _UNREACHABLE for each in causes(cause))
        return is_silent or not state.startswith(_ENDS_ONE)
    if isinstance(cause, _CLOSED) or isinstance(getattr(cause, "__cause__", None), _CLOSED):
        return False
    return "server closed the connection" not in str(cause)


def _is_passed_on(error: BaseException | None) -> bool:
    """Return whether an error is of another connection of the server's, to a worker of Citus or by a foreign table.

    One that ends ours is FATAL.
    """
    is_of_connection = _state(error).startswith(_ENDS_ONE)
    return is_of_connection and any(field(each, "severity_en") == "ERROR" for each in causes(error))


def is_conflict(error: BaseException | None) -> bool:
    """Return whether an error is transient and of a server that works, where transactions collide."""
    transient = None if error is None else transient_error_of(error)
    return transient is not None and not transient.ends_connections


def name_of(error: BaseException) -> str:
    """Return an error's SQLSTATE, or else its class, without its text."""
    cause = error.orig if isinstance(error, exc.StatementError) and error.orig else error
    return _state(cause) or type(cause).__name__


def _state(error: BaseException | None) -> str:
    """Return the SQLSTATE that the server gave, with the function that raised it where that tells the case."""
    state = sqlstate_of(error)
    raised_by = (f"{state} {field(each, 'server_source_function')}" for each in causes(error))
    return next((one for one in raised_by if one in TRANSIENT_ERRORS), state)
