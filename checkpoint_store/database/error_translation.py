"""What an error of the server's or the driver's means, in our words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from asyncpg import PostgresError
from asyncpg.exceptions import ClientConfigurationError, InterfaceError, InternalClientError
from sqlalchemy import exc

from checkpoint_store.conninfo.driver_errors import Diagnosis, diagnosis_of, driver_error
from checkpoint_store.conninfo.transient_errors import (
    TRANSIENT_ERRORS,
    is_conflict,
    is_statement_pooling,
    transient_error_of,
)
from checkpoint_store.database.fair_queue import CheckoutTimeout
from checkpoint_store.database.pool import full_of_others
from checkpoint_store.errors import (
    SET_UP,
    AccessDenied,
    CheckpointStoreError,
    InvalidOption,
    InvalidURL,
    LimitReached,
    NotSetUp,
    Refused,
    Unavailable,
    UnstorableValue,
    WrongTransaction,
)
from checkpoint_store.migrations.privileges import access_denied
from checkpoint_store.schema import Tables

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_NO_TABLES = {"42P01": "undefined_table", "42703": "undefined_column", "3F000": "invalid_schema_name"}
_NO_RIGHT = "42501"  # insufficient_privilege
_WHO_AND_HOW = {_NO_RIGHT: "insufficient_privilege", "42704": "undefined_object"}
"""What a URL may have wrong: a database that its user may not connect to, a parameter that the server doesn't know."""
_NO_SUCH_PREPARED = {"26000": "invalid_sql_statement_name", "42P05": "duplicate_prepared_statement"}
_NO_SERVER = ("08", "28", "3D000", "53300", "57P0")
"""Connection exceptions, refused logins, no such database, too many connections, server shutting down or starting."""

FOREIGN = (
    exc.SQLAlchemyError,
    PostgresError,
    InterfaceError,
    InternalClientError,
    OSError,
    UnicodeError,
    CheckoutTimeout,
)
"""What comes from below us, to be told in our words; beside what the dialect's driver raises."""

_ADVICE = "Check that the server runs, and that the URL and the login are right."
_UNSEEN = "What it says is in the server's log; it is not shown here, since it may quote values."
_NO_GRANT = (
    "A GRANT does not help: the table's policies have to let the row pass for this role, and for what your listeners "
    "set on the connection."
)
_TRANSACTION_MODE = (
    "This happens where a pooler lends each transaction another server connection: use "
    'from_conn_string(..., pooler="transaction"), or make the engine with **checkpoint_store.url.pooler_options().'
)
_STATEMENT_MODE = (
    "The pooler lends each statement another server connection, so that there are no transactions. Set its pool_mode "
    'to transaction, and use pooler="transaction"; or to session.'
)
_NO_SECOND = "Use saver.bind(session), which needs no second connection, or give the saver an engine of its own."
_GONE = (
    "the connection of the transaction was lost, and with it everything done in it. Roll it back, and run it again, as "
    "a whole."
)
_LOST = ("08", "57P01", "57P02", "57P05")
"""What ends a connection that was there."""
_ENDED = " Your transaction can only be rolled back now: do that first."

Meaning = tuple[type[CheckpointStoreError], str]

_MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        # By SQLSTATE, or its class. What transactions do wrong comes before, and so does what passes by itself.
        "22": (UnstorableValue, "the database can't hold a value. {unseen}"),
        "22021": (UnstorableValue, "the database's encoding lacks a character of a value. {utf8}"),
        "22P05": (UnstorableValue, "the database's encoding lacks a character of a value. {utf8}"),
        "25": (WrongTransaction, "the transaction can't carry the call. Use one that is READ WRITE and not aborted."),
        "25006": (
            WrongTransaction,
            "the transaction is READ ONLY. Use one that may write, or a saver on an engine.",
        ),
        "25P02": (
            WrongTransaction,
            "the transaction is aborted by an error before this call. Roll it back, or to a savepoint, and begin anew.",
        ),
        "25P03": (
            LimitReached,
            "idle_in_transaction_session_timeout has ended the session. Hold a transaction for less long.",
        ),
        "25P04": (
            LimitReached,
            "transaction_timeout has ended the session. Raise it for the role, or make the transaction shorter.",
        ),
        "40": (WrongTransaction, "the server has undone the transaction. Roll it back and run it again, as a whole."),
        "40002": (Refused, "{hurdle} refused the statement. {unseen}"),
        "53": (Unavailable, "the server lacks a resource. Look at its machine and its log."),
        "53100": (Unavailable, "the server's disk is full. Make room, or have old checkpoints deleted and vacuumed."),
        "53200": (Unavailable, "the server is out of memory. Look at its settings, work_mem for one, and its machine."),
        "53400": (LimitReached, "a limit in the server's configuration was reached, such as temp_file_limit."),
        "54": (LimitReached, "a limit that PostgreSQL has built in was reached."),
        "54000": (UnstorableValue, "a value, or a name, is larger than PostgreSQL can store there."),
        "55": (Refused, "the server can't do that as the tables are now."),
        "55006": (Unavailable, "an object in the database is in use. Try again."),
        "55P03": (
            LimitReached,
            "lock_timeout has ended the wait for a lock. Find out who holds it (pg_stat_activity, pg_locks), or raise "
            "the limit for the role.",
        ),
        "57014": (
            LimitReached,
            "by statement_timeout, or by whoever called pg_cancel_backend. Raise the limit for the role, the session "
            "or the URL, or find out what the statement waited for.",
        ),
        "58": (Unavailable, "the server's system failed. Look into its log."),
        "72": (Unavailable, "what the statement was to read is gone by now. Try again."),
        # What hosts have of their own.
        **dict.fromkeys(
            ("02", "09", "20", "21", "23", "27", "2F", "38", "39", "44", "HV", "P0"),
            (Refused, "{hurdle} refused the statement. {unseen}"),
        ),
        "42704": (
            Refused,
            "a policy, constraint or trigger asks for what is not there, such as a setting that listeners make.",
        ),
        "42": (CheckpointStoreError, "the server does not take the statement; the tables are not as we made them."),
        "XX": (CheckpointStoreError, "the server failed. Look into its log; it may be a defect, or damaged data."),
    }
)
"""What SQLSTATEs mean: the class of our error, and what it says and advises."""

_OF_A_FUNCTIONS_OWN = ("08", "25", "40", "53", "57", "58", "55P03")
"""What goes wrong in a trigger's function, but is no fault of it."""


def explain(
    error: BaseException,
    where: str,
    t: Tables,
    *,
    callers: bool = False,
    tried: float = 0.0,
    role: Callable[[], str | None] = lambda: None,
    kept: int = 0,
) -> CheckpointStoreError:
    """Return our error for one of the driver's.

    Args:
        error: One of `FOREIGN`.
        where: How messages name the database.
        t: The tables, for messages about rights.
        callers: Whether it came in a transaction of the caller's, who then wants to know what has ended it.
        tried: For how long, in seconds, the call was made again.
        role: Returns the role that lacks a right, where that can be known.
        kept: How many connections, and so all of the pool, the application has, and no call of ours.
    """
    said = diagnosis_of(error)
    state = said.state
    message = said.message or (f"the server said {said.name}" if state else type(driver_error(error)).__name__)
    ended = _ENDED if callers else ""
    cause = driver_error(error)
    if isinstance(error, (exc.TimeoutError, CheckoutTimeout)):
        told = f"{where}: no connection became free in time ({message})"
        return Unavailable(f"{told}. {full_of_others(kept)} {_NO_SECOND}" if kept else told)
    if isinstance(error, exc.StatementError) and isinstance(error.orig, TimeoutError):
        return Unavailable(
            f"{where}: the statement took longer than the engine's command_timeout allows. "
            "Raise it, in the engine or the URL, or find out what the statement waited for."
        )
    if said.in_function and not state.startswith(_OF_A_FUNCTIONS_OWN):
        return Refused(f"{where}: {_hurdle(said)} refused the statement ({said.name}). {_UNSEEN}{ended}")
    if state in _NO_TABLES:
        return NotSetUp(f"{message}.{ended} {SET_UP}")
    if said.is_by_policy:
        return Refused(f"{where}: {message}.{ended} {_NO_GRANT}")
    if isinstance(cause, ClientConfigurationError) or (state in _WHO_AND_HOW and _is_connecting(error)):
        return (AccessDenied if state == _NO_RIGHT else InvalidURL)(f"{where}: {message}")
    if state == _NO_RIGHT:
        return access_denied(f"{message}.{ended}".removesuffix("."), t.schema, role())
    if state in _NO_SUCH_PREPARED or is_statement_pooling(error):
        return InvalidOption(
            f"{where}: {message}. {_TRANSACTION_MODE if state in _NO_SUCH_PREPARED else _STATEMENT_MODE}"
        )
    fault = None if callers else transient_error_of(error)
    if fault and tried:
        advice = "" if is_conflict(error) else f" {_ADVICE}"
        return Unavailable(
            f"{where}: {message}. Tried again for {round(tried, 3):g} s (retry_timeout): {fault.reason}.{advice}"
        )
    if fault and is_conflict(error):
        return Unavailable(f"{where}: {message}: {fault.reason}. Try again, or set retry_timeout.")
    # psycopg gives no state to what comes from libpq: nobody listens there, or the login was refused.
    lost = isinstance(error, exc.DBAPIError) and (
        error.connection_invalidated or (isinstance(error, exc.OperationalError) and not state)
    )
    is_limit = state in ("25P03", "25P04")
    is_closed = lost or state.startswith(_LOST) or (callers and transient_error_of(error) == TRANSIENT_ERRORS["08"])
    if callers and not is_limit and not said.in_function and is_closed and not _is_connecting(error):
        # What a driver says that finds its connection closed is about its own classes.
        return Unavailable(f"{where}: {message + ': ' if state.startswith('57P') else ''}{_GONE}")
    if not is_limit and (fault or lost or state.startswith(_NO_SERVER) or isinstance(error, OSError)):
        return Unavailable(f"{where}: {message}. {_ADVICE}")
    return _by_state(error, said, f"{where}: ", message, ended)


def _by_state(error: BaseException, said: Diagnosis, where: str, message: str, ended: str) -> CheckpointStoreError:
    """Return our error for one that the server has a code for, or for one that nobody foresaw."""
    state = said.state
    if not state:
        return _without_state(error, where, message, ended)
    keys = (state, state[:4], state[:2])
    kind, words = next(
        (_MEANINGS[key] for key in keys if key in _MEANINGS), (CheckpointStoreError, "the call has failed.")
    )
    told = words.format(
        hurdle=_hurdle(said), unseen=_UNSEEN, utf8="Make the database with ENCODING 'UTF8', or store other text."
    )
    quoted = f"{message} ({state})" if said.message else said.name
    return kind(f"{where}{quoted}: {told}{ended if kind is not WrongTransaction else ''}")


def _without_state(error: BaseException, where: str, message: str, ended: str) -> CheckpointStoreError:
    """Return our error for one that no server has sent."""
    cause = driver_error(error)
    if isinstance(cause, UnicodeEncodeError):
        return UnstorableValue(
            f"{where}the connection's encoding, {cause.encoding}, lacks a character of a value. Make the database with "
            f"ENCODING 'UTF8', or store other text.{ended}"
        )
    if isinstance(error, exc.InvalidRequestError):
        return WrongTransaction(f"{where}{message}")
    if isinstance(error, exc.DataError) or type(cause).__name__ == "DataError":
        return UnstorableValue(f"{where}the driver can't send a value to PostgreSQL. {_UNSEEN}{ended}")
    return CheckpointStoreError(f"{where}{message}{'.' + ended if ended else ''}")


def _is_connecting(error: BaseException) -> bool:
    return not isinstance(error, exc.DBAPIError) or error.statement is None


def _hurdle(said: Diagnosis) -> str:
    """Name what has refused a row, as far as the server has."""
    of_table = f' of table "{said.table}"' if said.table else ""
    if said.in_function:
        return f"the database's function {said.function}" if said.function else "a function of the database's"
    if said.constraint:
        return f'the constraint "{said.constraint}"{of_table}'
    if said.column:
        return f'the column "{said.column}"{of_table}'
    return "a rule of the database's"
