"""What goes wrong in production and passes by itself: after it the same call, made again, is likely to succeed.

The table is the whole truth: what is not in it is never tried again. Such are mistakes, which would only be told later,
and limits that somebody has set: on the time of a statement, a transaction or a lock, on the wait for a connection of
the pool. Behind those there is load, and more tries would be more of it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from asyncpg.exceptions import InterfaceError, InternalClientError, TargetServerAttributeNotMatched
from sqlalchemy import exc


class TransientError(NamedTuple):
    """Something that passes."""

    reason: str
    """What has happened, and why it passes; fit for a log, since nothing of the server's own words is in it."""
    ends_connections: bool
    """Whether the connection it was met on, and those of the pool that are as old, are of no more use."""


_ENDS, _STAYS = True, False

PLAN_CHANGED = "0A000 RevalidateCachedQuery"
"""An SQLSTATE that covers more, and the function in PostgreSQL that tells this case from the others."""

TRANSIENT_ERRORS: Mapping[str | type[BaseException], TransientError] = MappingProxyType(
    {
        # By SQLSTATE, or its class: https://www.postgresql.org/docs/current/errcodes-appendix.html
        "08": TransientError("the connection was lost, or a proxy gave it up; another one may hold", _ENDS),
        "25006": TransientError("the server only reads: it was demoted, or is a standby about to be promoted", _ENDS),
        "25P03": TransientError("the transaction was idle for too long and was undone; it is begun again", _ENDS),
        "40001": TransientError("another transaction came first; repeated, this one sees its rows", _STAYS),
        "40P01": TransientError("two transactions waited for each other, and the server undid ours", _STAYS),
        "53300": TransientError("the server has as many connections as it may; some will end", _ENDS),
        "57P01": TransientError("the server shuts down, or an administrator ended the connection", _ENDS),
        "57P02": TransientError("a process of the server crashed, so it starts anew", _ENDS),
        "57P03": TransientError("the server starts, stops or recovers from a crash", _ENDS),
        "57P05": TransientError("the connection was idle for longer than the server allows", _ENDS),
        # asyncpg prepares it again by itself, psycopg never does.
        PLAN_CHANGED: TransientError(
            "a table was altered after the statement was prepared; another session prepares it", _ENDS
        ),
        # By class, for what has no SQLSTATE because no server was there to give it.
        ConnectionError: TransientError("the connection was refused or cut; the server may be starting", _ENDS),
        FileNotFoundError: TransientError("the server's socket is not there; the server may be starting", _ENDS),
        TimeoutError: TransientError("no answer while connecting; another attempt may reach another host", _ENDS),
        socket.gaierror: TransientError("the host's name could not be resolved; a name may be moving", _ENDS),
        TargetServerAttributeNotMatched: TransientError("no host of the URL takes writes; one may be about to", _ENDS),
        InternalClientError: TransientError(
            "the connection ended in the middle of asyncpg's protocol, as in a crash", _ENDS
        ),
        exc.OperationalError: TransientError(
            "libpq could not reach the server, or lost it; the server may be starting", _ENDS
        ),
    }
)
"""What passes: by SQLSTATE, by class of SQLSTATEs, or by class of exception."""

_UNREACHABLE = frozenset(
    {
        errno.EADDRNOTAVAIL,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)
"""Numbers of an `OSError` that is a `ConnectionError` but for its class."""

_STATEMENT_POOLING = "not allowed in statement pooling mode"
"""What PgBouncer says, always in these words, with an SQLSTATE that covers more."""


_ENDS_ONE = ("08", "25P03", "57P01", "57P02", "57P05")
"""SQLSTATEs of what ends a connection so that its socket is closed, as are those of others that it ends."""


def transient_error_of(error: BaseException) -> TransientError | None:
    """Tell whether an error is of those that pass, and which.

    Args:
        error: SQLAlchemy's, asyncpg's or the system's.
    """
    cause = error.orig if isinstance(error, exc.StatementError) else error
    if cause is not None and type(cause).__module__.startswith("sqlalchemy."):
        cause = cause.__cause__ or cause  # asyncpg's, which SQLAlchemy has given the class of a DBAPI's
    if is_statement_pooling(error):
        return None
    if state := _state(cause):
        return TRANSIENT_ERRORS.get(state) or TRANSIENT_ERRORS.get(state[:2])
    if isinstance(error, exc.OperationalError):
        # psycopg gives no SQLSTATE to what happens before there is a connection, a refused login included.
        asked = getattr(getattr(cause, "pgconn", None), "used_password", False)
        return None if asked else TRANSIENT_ERRORS[exc.OperationalError]
    # What a driver says that finds its connection closed, and what SQLAlchemy makes of that.
    closed = isinstance(cause, InterfaceError) and "connection is closed" in str(cause)
    if closed or (isinstance(error, exc.DBAPIError) and error.connection_invalidated):
        return TRANSIENT_ERRORS["08"]
    if cause is not error and isinstance(cause, TimeoutError):
        return None  # of a statement, by a limit of the caller's
    # A host with several addresses, each with a failure of its own, comes as one OSError without a number.
    several = type(cause) is OSError and cause.errno is None
    if several or (isinstance(cause, OSError) and cause.errno in _UNREACHABLE):
        return TRANSIENT_ERRORS[ConnectionError]
    return next((TRANSIENT_ERRORS[kind] for kind in type(cause).__mro__ if kind in TRANSIENT_ERRORS), None)


def is_statement_pooling(error: BaseException) -> bool:
    """Tell whether PgBouncer has hung up because in its statement mode there are no transactions."""
    cause = error.orig if isinstance(error, exc.StatementError) and error.orig else error
    return _state(cause) == "08P01" and _STATEMENT_POOLING in str(cause)


def ends_connections(error: BaseException) -> bool:
    """Tell whether the connection an error was met on is of no more use, whatever the driver thinks of it."""
    fault = transient_error_of(error)
    return fault is not None and fault.ends_connections


def ends_all_connections(error: BaseException) -> bool:
    """Tell whether the other connections of the pool are of no more use either, and nothing has told their drivers.

    Where a server stops, crashes or ends one connection, it closes the socket of each that it ends: that is noticed
    when a connection is taken from the pool. Not so where the server has changed, or the network is silent.

    Args:
        error: One that `ends_connections`, or that a driver raises for a connection it has lost.
    """
    cause: BaseException | None = error.orig if isinstance(error, exc.StatementError) else error
    if state := _state(cause):
        silent = False
        while cause is not None:
            silent = silent or (isinstance(cause, OSError) and cause.errno in _UNREACHABLE)
            cause = cause.__cause__
        return silent or not state.startswith(_ENDS_ONE)
    if isinstance(cause, (ConnectionError, InterfaceError, InternalClientError)):
        return False
    adapted = getattr(cause, "__cause__", None)
    if isinstance(adapted, (ConnectionError, InterfaceError, InternalClientError)):
        return False
    return "server closed the connection" not in str(cause)


def is_conflict(error: BaseException | None) -> bool:
    """Tell whether an error is of a server that works, where transactions have got in each other's way."""
    fault = None if error is None else transient_error_of(error)
    return fault is not None and not fault.ends_connections


def name_of(error: BaseException) -> str:
    """Name an error without its text: by SQLSTATE, or by class."""
    cause = error.orig if isinstance(error, exc.StatementError) and error.orig else error
    return _state(cause) or type(cause).__name__


def _state(error: BaseException | None) -> str:
    """Return the SQLSTATE the server gave, which a driver that tells of its lost connection has as the cause."""
    state = ""
    while error is not None:
        state = getattr(error, "sqlstate", None) or state
        # In asyncpg's words, or in psycopg's.
        diagnosis = getattr(error, "diag", None)
        function = getattr(error, "server_source_function", None) or getattr(diagnosis, "source_function", None)
        if f"{state} {function}" == PLAN_CHANGED:
            return PLAN_CHANGED
        error = error.__cause__
    return state
