"""Translation of the server's and the driver's errors into the package's."""

from __future__ import annotations

from collections.abc import Callable

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
from checkpoint_store.database.checkout import full_of_others
from checkpoint_store.database.semaphore import CheckoutTimeout
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
_USER_AND_PARAMETERS = {_NO_RIGHT: "insufficient_privilege", "42704": "undefined_object"}
"""Mistakes of a URL: a database that its user may not connect to, a parameter that the server doesn't know."""
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
"""Errors to be translated, beside those that the dialect's driver raises."""

CHECK_SERVER = "Check that the server runs, and that the URL and the login are right."
"""The way out that `Unavailable` names where no connection could be made."""

_UNSEEN = "Its message is in the server's log; it is not shown here, since it may quote values."
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
"""Errors that end a connection."""
_ENDED = " Your transaction can only be rolled back now: do that first."

_MEANINGS: dict[str, tuple[type[CheckpointStoreError], str]] = {
    # By SQLSTATE, or its class. Transient errors, and lost transactions, are translated before.
    "0A000": (
        CheckpointStoreError,
        "the server does not support it. Where it has Citus, connections must not have "
        "plan_cache_mode=force_generic_plan.",
    ),
    "22": (UnstorableValue, "the database can't hold a value. {unseen}"),
    "22021": (UnstorableValue, "the database's encoding lacks a character of a value. {utf8}"),
    "22P05": (UnstorableValue, "the database's encoding lacks a character of a value. {utf8}"),
    "25": (WrongTransaction, "the transaction can't carry the call. Use one that is READ WRITE and not aborted."),
    "25006": (WrongTransaction, "the transaction is READ ONLY. Use one that may write, or a saver on an engine."),
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
    "40002": (Refused, "{rule} refused the statement. {unseen}"),
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
    "72": (Unavailable, "the snapshot that the statement was to read is too old. Try again."),
    # Constraints, triggers and policies of the host's.
    **dict.fromkeys(
        ("02", "09", "20", "21", "23", "27", "2F", "38", "39", "44", "HV", "P0"),
        (Refused, "{rule} refused the statement. {unseen}"),
    ),
    "42704": (
        Refused,
        "a policy, constraint or trigger names an object that does not exist, such as a setting that listeners make.",
    ),
    "42": (CheckpointStoreError, "the server does not take the statement; the tables are not as we made them."),
    "XX": (CheckpointStoreError, "the server failed. Look into its log; it may be a defect, or damaged data."),
}
"""The meaning of SQLSTATEs: the class of our error, and its message and advice."""

_NOT_OF_FUNCTION = ("08", "25", "40", "53", "57", "58", "55P03")
"""Errors in a trigger's function that it has not caused."""


def translate(
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
        where: The name of the database in messages.
        t: The tables, for messages about rights.
        callers: Whether it came in a transaction of the caller's; the message then includes the consequence for that.
        tried: For how long, in seconds, the call was retried.
        role: Returns the role that lacks a right, if that can be known.
        kept: The size of the pool, if the application has all of its connections, and no call of ours has one.
    """
    failure = _Failure(error, where, callers=callers)
    return (
        _of_time_limit(failure, kept)
        or _of_function(failure)
        or _of_tables_and_rights(failure, t, role)
        or _of_pooler(failure)
        or _of_transient_error(failure, tried)
        or _of_lost_connection(failure)
        or (_of_state(failure) if failure.state else _without_state(failure))
    )


class _Failure:
    """An error to be translated, with its diagnosis."""

    def __init__(self, error: BaseException, where: str, *, callers: bool) -> None:
        self.error = error
        self.where = where
        self.callers = callers
        self.cause = driver_error(error)
        self.diagnosis = diagnosis_of(error)
        self.state = self.diagnosis.state
        unsaid = f"the server said {self.diagnosis.name}" if self.state else type(self.cause).__name__
        self.message = self.diagnosis.message or unsaid
        self.ended = _ENDED if callers else ""
        """The end of a message: the consequence for the transaction."""
        self.transient = transient_error_of(error)
        self.is_idle_limit = self.state in ("25P03", "25P04")
        self.is_connecting = not isinstance(error, exc.DBAPIError) or error.statement is None
        # psycopg gives no state to errors of libpq's: no server listens there, or the login was refused.
        self.is_lost = isinstance(error, exc.DBAPIError) and (
            error.connection_invalidated or (isinstance(error, exc.OperationalError) and not self.state)
        )


def _of_time_limit(failure: _Failure, kept: int) -> CheckpointStoreError | None:
    """Translate the end of a wait: for a connection of the pool, or for a statement."""
    error, where = failure.error, failure.where
    if isinstance(error, (exc.TimeoutError, CheckoutTimeout)):
        text = f"{where}: no connection became free in time ({failure.message})"
        return Unavailable(f"{text}. {full_of_others(kept)} {_NO_SECOND}" if kept else text)
    if isinstance(error, exc.StatementError) and isinstance(error.orig, TimeoutError):
        return Unavailable(
            f"{where}: the statement took longer than the engine's command_timeout allows. "
            "Raise it, in the engine or the URL, or find out what the statement waited for."
        )
    return None


def _of_function(failure: _Failure) -> CheckpointStoreError | None:
    """Translate an error of a function of the database's, such as a trigger's."""
    diagnosis = failure.diagnosis
    if not diagnosis.in_function or diagnosis.state.startswith(_NOT_OF_FUNCTION):
        return None
    return Refused(
        f"{failure.where}: {_rule(diagnosis)} refused the statement ({diagnosis.name}). {_UNSEEN}{failure.ended}"
    )


def _of_tables_and_rights(failure: _Failure, t: Tables, role: Callable[[], str | None]) -> CheckpointStoreError | None:
    """Translate missing tables, missing rights, and a URL that the server or the driver does not accept."""
    state, where, message = failure.state, failure.where, failure.message
    if state in _NO_TABLES:
        return NotSetUp(f"{message}.{failure.ended} {SET_UP}")
    if failure.diagnosis.is_by_policy:
        return Refused(f"{where}: {message}.{failure.ended} {_NO_GRANT}")
    is_of_url = state in _USER_AND_PARAMETERS and failure.is_connecting
    if is_of_url or isinstance(failure.cause, ClientConfigurationError):
        return (AccessDenied if state == _NO_RIGHT else InvalidURL)(f"{where}: {message}")
    if state == _NO_RIGHT:
        return access_denied(f"{message}.{failure.ended}".removesuffix("."), t.schema, role())
    return None


def _of_pooler(failure: _Failure) -> CheckpointStoreError | None:
    """Translate the errors of a pooler that lends each transaction, or each statement, another server connection."""
    if failure.state in _NO_SUCH_PREPARED:
        return InvalidOption(f"{failure.where}: {failure.message}. {_TRANSACTION_MODE}")
    if is_statement_pooling(failure.error):
        return InvalidOption(f"{failure.where}: {failure.message}. {_STATEMENT_MODE}")
    return None


def _of_transient_error(failure: _Failure, tried: float) -> CheckpointStoreError | None:
    """Translate a transient error that retries did not get past, or a conflict that was not retried."""
    transient, where, message = failure.transient, failure.where, failure.message
    if transient is None or failure.callers:
        return None
    in_conflict = is_conflict(failure.error)
    if tried:
        advice = "" if in_conflict else f" {CHECK_SERVER}"
        return Unavailable(
            f"{where}: {message}. Tried again for {round(tried, 3):g} s (retry_timeout): {transient.reason}.{advice}"
        )
    if in_conflict:
        return Unavailable(f"{where}: {message}: {transient.reason}. Try again, or set retry_timeout.")
    return None


def _of_lost_connection(failure: _Failure) -> CheckpointStoreError | None:
    """Translate a connection that was lost or could not be made."""
    state, where, message = failure.state, failure.where, failure.message
    if failure.is_idle_limit:
        return None
    is_closed = failure.is_lost or state.startswith(_LOST) or failure.transient == TRANSIENT_ERRORS["08"]
    if failure.callers and is_closed and not failure.diagnosis.in_function and not failure.is_connecting:
        # A driver that finds its connection closed says something about its own classes.
        return Unavailable(f"{where}: {message + ': ' if state.startswith('57P') else ''}{_GONE}")
    is_transient = failure.transient is not None and not failure.callers
    if is_transient or failure.is_lost or state.startswith(_NO_SERVER) or isinstance(failure.error, OSError):
        return Unavailable(f"{where}: {message}. {CHECK_SERVER}")
    return None


def _of_state(failure: _Failure) -> CheckpointStoreError:
    """Translate an error by its SQLSTATE."""
    diagnosis, state = failure.diagnosis, failure.state
    kind, words = next(
        (_MEANINGS[key] for key in (state, state[:4], state[:2]) if key in _MEANINGS),
        (CheckpointStoreError, "the call has failed."),
    )
    text = words.format(
        rule=_rule(diagnosis), unseen=_UNSEEN, utf8="Make the database with ENCODING 'UTF8', or store other text."
    )
    quoted = f"{failure.message} ({state})" if diagnosis.message else diagnosis.name
    return kind(f"{failure.where}: {quoted}: {text}{failure.ended if kind is not WrongTransaction else ''}")


def _without_state(failure: _Failure) -> CheckpointStoreError:
    """Translate an error that no server has sent."""
    where, cause, ended = failure.where, failure.cause, failure.ended
    if isinstance(cause, UnicodeEncodeError):
        return UnstorableValue(
            f"{where}: the connection's encoding, {cause.encoding}, lacks a character of a value. Make the database "
            f"with ENCODING 'UTF8', or store other text.{ended}"
        )
    if isinstance(failure.error, exc.InvalidRequestError):
        return WrongTransaction(f"{where}: {failure.message}")
    if isinstance(failure.error, exc.DataError) or type(cause).__name__ == "DataError":
        return UnstorableValue(f"{where}: the driver can't send a value to PostgreSQL. {_UNSEEN}{ended}")
    return CheckpointStoreError(f"{where}: {failure.message}{'.' + ended if ended else ''}")


def _rule(diagnosis: Diagnosis) -> str:
    """Return the name of the constraint, column or function that has refused a row, as far as the server says it."""
    of_table = f' of table "{diagnosis.table}"' if diagnosis.table else ""
    if diagnosis.in_function:
        return f"the database's function {diagnosis.function}" if diagnosis.function else "a function of the database's"
    if diagnosis.constraint:
        return f'the constraint "{diagnosis.constraint}"{of_table}'
    if diagnosis.column:
        return f'the column "{diagnosis.column}"{of_table}'
    return "a rule of the database's"
