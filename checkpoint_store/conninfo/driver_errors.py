"""What SQLAlchemy, a driver or the system has raised, as the cause of an error of ours: brief, and without a value.

The server quotes rows in details, in contexts, and in many a message; a trigger's message is its author's; SQLAlchemy
prints the parameters. So a cause is made anew: of the same class, with the SQLSTATE and the names of tables, columns
and constraints, but with a message only where that is one of PostgreSQL's own with nothing but names in it.
"""

from __future__ import annotations

import copy
import re
from typing import Any, NamedTuple, NoReturn

from asyncpg import PostgresError, PostgresWarning
from asyncpg.exceptions import DataError, InterfaceError
from sqlalchemy import exc

from checkpoint_store.errors import CheckpointStoreError

_NAMES_ONLY = ("08", "0A", "25", "26", "28", "2B", "3B", "3D", "3F", "40", "42", "44", "53", "54", "55", "57", "58")
"""Classes of SQLSTATEs whose messages, where they are PostgreSQL's own, quote names and settings but no values."""

# In the words of asyncpg, and of psycopg. Details, hints, contexts and queries are not among them.
_KEPT = {
    "severity": "severity",
    "severity_en": "severity_nonlocalized",
    "sqlstate": "sqlstate",
    "schema_name": "schema_name",
    "table_name": "table_name",
    "column_name": "column_name",
    "data_type_name": "datatype_name",
    "constraint_name": "constraint_name",
    "server_source_filename": "source_file",
    "server_source_line": "source_line",
    "server_source_function": "source_function",
}

_KEPT_NAMES = {theirs: ours for ours, theirs in _KEPT.items()}

# The innermost function; statements, which contexts quote too, may have values in them. Blocks without a name are those
# of our migrations.
_FUNCTION = re.compile(r'^(?:PL/\w+|SQL) function "?([\w.$]+)"?', re.MULTILINE)


class Diagnosis(NamedTuple):
    """What an error of the server's says that is fit to be shown."""

    state: str = ""
    """Its SQLSTATE; empty where no server has spoken."""
    message: str = ""
    """Its message, in one line; empty where that may have values in it."""
    table: str | None = None
    column: str | None = None
    constraint: str | None = None
    in_function: bool = False
    """Whether it comes from a function of the database's, such as a trigger's."""
    function: str | None = None
    """The name of that."""
    source: str | None = None
    """The function in PostgreSQL's own code that has raised it."""

    @property
    def name(self) -> str:
        """The SQLSTATE with what PostgreSQL calls it."""
        kind = type(PostgresError).get_message_class_for_sqlstate(self.state).__name__
        told = "" if kind == "UnknownPostgresError" else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).lower()
        return f"{self.state} {told}".strip()

    @property
    def is_by_policy(self) -> bool:
        """Whether a policy, or a view's WITH CHECK OPTION, does not let a row pass, where no right is missing."""
        return self.state == "42501" and self.source == "ExecWithCheckOptions"


def driver_error(error: BaseException) -> BaseException:
    """Return the driver's own error, or the system's, of one that SQLAlchemy has wrapped once or twice."""
    cause = error.orig if isinstance(error, exc.StatementError) and error.orig is not None else error
    is_adapted = type(cause).__module__.startswith("sqlalchemy.") and not isinstance(cause, exc.SQLAlchemyError)
    return cause.__cause__ if is_adapted and cause.__cause__ is not None else cause


def diagnosis_of(error: BaseException) -> Diagnosis:
    """Return what the server has said.

    Args:
        error: SQLAlchemy's, the driver's or the system's.
    """
    raw = driver_error(error)
    state = ""
    cause: BaseException | None = raw
    while cause is not None:  # the server's last words, which asyncpg has as the cause of a lost connection
        state, cause = getattr(cause, "sqlstate", None) or state, cause.__cause__
    if not state:
        return Diagnosis("", _first_line(raw) if _is_plain(error, raw) else "")
    fields = {ours: getattr(raw, ours, None) or _told_by_psycopg(raw, theirs) for ours, theirs in _KEPT.items()}
    context = getattr(raw, "context", None) or _told_by_psycopg(raw, "context") or ""
    source = fields["server_source_function"]
    function = _FUNCTION.search(context)
    in_block = function is not None and function.group(1) == "inline_code_block"
    in_function = (source == "exec_stmt_raise" or function is not None) and not in_block
    message = ""
    if in_block and source == "exec_stmt_raise":
        message = ". ".join(filter(None, [_first_line(raw), _hint(raw)]))
    elif state.startswith(_NAMES_ONLY) and not in_function and (in_block or not context):
        message = _first_line(raw)
    return Diagnosis(
        state,
        message,
        fields["table_name"],
        fields["column_name"],
        fields["constraint_name"],
        in_function,
        function.group(1) if function else None,
        source,
    )


def brief(error: BaseException) -> BaseException | None:
    """Return an error without values, traceback and context of its own; None where it can't be had so.

    Args:
        error: SQLAlchemy's, a driver's or the system's.
    """
    try:
        return _brief(error)
    except Exception:
        return None


def chain(ours: Exception, error: BaseException) -> NoReturn:
    """Raise an error with another one as its cause, briefly."""
    try:
        raise ours from brief(error)
    finally:
        ours.__context__ = None  # the same error as it was, values and all


def unfrozen(error: PostgresWarning) -> exc.DBAPIError:
    """Return an error whose SQLSTATE is a warning's, as a trigger may raise: asyncpg's takes no attributes."""
    told: Any = PostgresError(*error.args)
    told.__dict__.update(vars(error))
    return exc.DBAPIError(None, None, told, hide_parameters=True)


def clear(ours: CheckpointStoreError) -> None:
    """Make brief what an error of ours has as its cause already."""
    cause = ours.__cause__
    if cause is not None and not isinstance(cause, CheckpointStoreError) and is_foreign(cause):
        ours.__cause__ = brief(cause)
    if ours.__context__ is not None and is_foreign(ours.__context__):
        ours.__suppress_context__ = True
        ours.__context__ = None


def is_foreign(error: BaseException) -> bool:
    """Tell whether an error is SQLAlchemy's or a driver's."""
    return type(error).__module__.partition(".")[0] in ("sqlalchemy", "asyncpg", "psycopg")


def _brief(error: BaseException) -> BaseException:
    again: Any
    if isinstance(error, exc.DBAPIError):
        orig = None if error.orig is None else _brief(error.orig)
        again = type(error)(None, None, orig, True, error.connection_invalidated)  # type: ignore[arg-type]
        return again  # type: ignore[no-any-return]
    if isinstance(error, exc.StatementError):
        orig = None if error.orig is None else _brief(error.orig)
        text = f"({type(orig).__module__}.{type(orig).__qualname__}) {orig}"
        return exc.StatementError(text, None, None, orig, hide_parameters=True)
    said = diagnosis_of(error)
    if is_foreign(error) and not isinstance(error, exc.SQLAlchemyError):
        again = type(error).__new__(type(error))
        again.args = (said.message or said.name or "a value was not accepted",)
        again.__dict__.update(_kept(error))
        if error.__cause__ is not None and is_foreign(error.__cause__):
            again.__cause__ = _brief(error.__cause__)  # asyncpg's own, of what SQLAlchemy has made of it
            if "orig" in vars(error):
                again.orig = again.__cause__
        return again  # type: ignore[no-any-return]
    if isinstance(error, UnicodeError):
        return UnicodeError("a character that the encoding lacks")
    again = copy.copy(error)
    again.__dict__.pop("__notes__", None)
    # Of a session, which quotes what has ended its transaction.
    again.args = tuple(arg.partition(" Original exception was:")[0] if type(arg) is str else arg for arg in again.args)
    return again  # type: ignore[no-any-return]


def _kept(error: BaseException) -> dict[str, Any]:
    """Return what a driver's error keeps of its attributes."""
    there = vars(error)
    kept = {name: there[name] for name in (*_KEPT, "pgcode") if name in there}
    if "detail" in there:  # a message of asyncpg's asks for it
        kept |= {name: None for name in ("detail", "hint") if name in there}
    if "_info" in there:
        kept |= {"_info": _info(there["_info"]), "_encoding": there["_encoding"], "_pgconn": None}
    said = diagnosis_of(error)
    if said.in_function:  # a RAISE names what it likes
        own = ("schema_name", "table_name", "column_name", "data_type_name", "constraint_name")
        kept = {name: value for name, value in kept.items() if name not in own}
        if isinstance(info := kept.get("_info"), dict):
            kept["_info"] = {
                field: value for field, value in info.items() if _KEPT_NAMES[field.name.lower()] not in own
            }
    if said.message:
        kept |= {name: there[name] for name in ("message",) if name in there}
    return kept


def _info(info: Any) -> Any:
    """Return psycopg's fields of an answer, as it keeps them where it has to pickle an error."""
    if info is None:
        return None
    from psycopg.pq import DiagnosticField

    kept = [field for field in DiagnosticField if field.name.lower() in _KEPT.values()]
    return {field: info.get(field) if isinstance(info, dict) else info.error_field(field) for field in kept}


def _told_by_psycopg(error: BaseException, field: str) -> str | None:
    told: str | None = getattr(getattr(error, "diag", None), field, None)
    return told


def _hint(error: BaseException) -> str:
    return (getattr(error, "hint", None) or _told_by_psycopg(error, "message_hint") or "").removesuffix(".")


def _is_plain(error: BaseException, raw: BaseException) -> bool:
    """Tell whether a message that no server has sent is without values: of the network, of a driver's state."""
    if isinstance(raw, (DataError, UnicodeError)):
        return False
    if type(raw).__module__.partition(".")[0] == "psycopg":
        return any(kind.__name__ in ("OperationalError", "InterfaceError") for kind in type(raw).__mro__)
    if isinstance(error, exc.StatementError):
        return isinstance(raw, (OSError, InterfaceError)) or is_foreign(raw)
    return True


def _first_line(error: BaseException) -> str:
    primary = _told_by_psycopg(error, "message_primary") or (isinstance(error, PostgresError) and error.args[:1])
    if primary:
        # A name in it may have lines of its own.
        return "\\n".join(str(primary if isinstance(primary, str) else primary[0]).splitlines())
    text = str(error).partition(" Original exception was:")[0]
    lines = text.rpartition("Error'>: ")[2].splitlines()  # as SQLAlchemy 2.0 has asyncpg's
    return lines[0] if lines else type(error).__name__
