"""Errors of SQLAlchemy, a driver or the system: their diagnosis, and copies without values as causes of ours.

The server quotes rows in details, in contexts, and in many messages; a trigger's message is its author's; SQLAlchemy
prints the parameters. So a cause is a new error of the same class, with the SQLSTATE and the names of tables, columns
and constraints, but with a message only where that is one of PostgreSQL's own that contains nothing but names.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from asyncpg import PostgresError, PostgresWarning
from asyncpg.exceptions import DataError, InterfaceError
from sqlalchemy import exc

from checkpoint_store.errors import CheckpointStoreError

_NAMES_ONLY = ("08", "0A", "25", "26", "28", "2B", "3B", "3D", "3F", "40", "42", "44", "53", "54", "55", "57", "58")
"""Classes of SQLSTATEs with messages that, where they are PostgreSQL's own, quote names and settings but no values."""

# By asyncpg's names, and by psycopg's. Details, hints, contexts and queries are not among them.
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
_OF_A_RAISE = {"schema_name", "table_name", "column_name", "data_type_name", "constraint_name"}
"""Fields that a RAISE in a function sets to any text."""

# The innermost function; statements, which contexts quote too, may have values in them. Blocks without a name are those
# of our migrations.
_FUNCTION = re.compile(r'^(?:PL/\w+|SQL) function "?([\w.$]+)"?', re.MULTILINE)


class Diagnosis(NamedTuple):
    """The fields of a server's error that are fit to be shown."""

    state: str = ""
    """Its SQLSTATE; empty where no server has answered."""
    message: str = ""
    """Its message, in one line; empty where that may have values in it."""
    table: str | None = None
    column: str | None = None
    constraint: str | None = None
    in_function: bool = False
    """Whether it comes from a function of the database's, such as a trigger's."""
    function: str | None = None
    """The name of that function."""
    source: str | None = None
    """The function in PostgreSQL's own code that has raised it."""

    @property
    def name(self) -> str:
        """The SQLSTATE with PostgreSQL's name for it."""
        kind = type(PostgresError).get_message_class_for_sqlstate(self.state).__name__
        words = "" if kind == "UnknownPostgresError" else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).lower()
        return f"{self.state} {words}".strip()

    @property
    def is_by_policy(self) -> bool:
        """Whether a policy, or a view's WITH CHECK OPTION, does not let a row pass, where no right is missing."""
        return self.state == "42501" and self.source == "ExecWithCheckOptions"


def driver_error(error: BaseException) -> BaseException:
    """Return the driver's own error, or the system's, of one that SQLAlchemy has wrapped once or twice."""
    cause = error.orig if isinstance(error, exc.StatementError) and error.orig is not None else error
    is_adapted = type(cause).__module__.startswith("sqlalchemy.") and not isinstance(cause, exc.SQLAlchemyError)
    return cause.__cause__ if is_adapted and cause.__cause__ is not None else cause


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes: asyncpg has the server's last answer as the cause of a lost connection."""
    while error is not None:
        yield error
        error = error.__cause__


def sqlstate_of(error: BaseException | None) -> str:
    """Return the SQLSTATE of a driver's error, or the innermost of its causes; empty where no server has answered."""
    states = [state for each in causes(error) if (state := getattr(each, "sqlstate", None))]
    return states[-1] if states else ""


def field(error: BaseException, name: str) -> str | None:
    """Return a field of the server's answer, by asyncpg's name for it, from an error of asyncpg's or psycopg's."""
    value: str | None = getattr(error, name, None)
    return value or getattr(getattr(error, "diag", None), _KEPT.get(name, name), None)


def diagnosis_of(error: BaseException) -> Diagnosis:
    """Return the diagnosis of an error of SQLAlchemy's, the driver's or the system's."""
    raw = driver_error(error)
    state = sqlstate_of(raw)
    if not state:
        return Diagnosis("", _first_line(raw) if _is_plain(error, raw) else "")
    context = field(raw, "context") or ""
    source = field(raw, "server_source_function")
    function = _FUNCTION.search(context)
    in_block = function is not None and function.group(1) == "inline_code_block"
    in_function = (source == "exec_stmt_raise" or function is not None) and not in_block
    message = ""
    if in_block and source == "exec_stmt_raise":
        hint = field(raw, "hint") or field(raw, "message_hint") or ""
        message = ". ".join(filter(None, [_first_line(raw), hint.removesuffix(".")]))
    elif state.startswith(_NAMES_ONLY) and not in_function and (in_block or not context):
        message = _first_line(raw)
    return Diagnosis(
        state,
        message,
        field(raw, "table_name"),
        field(raw, "column_name"),
        field(raw, "constraint_name"),
        in_function,
        function.group(1) if function else None,
        source,
    )


def without_values(error: BaseException) -> BaseException | None:
    """Return a copy of an error without values, traceback and context; None where none can be made."""
    try:
        return _copy(error)
    except Exception:
        return None


def raise_from(ours: Exception, error: BaseException) -> NoReturn:
    """Raise an error with a copy of another one, without values, as its cause."""
    try:
        raise ours from without_values(error)
    finally:
        ours.__context__ = None  # the other one itself, values included


def error_of_warning(error: PostgresWarning) -> exc.DBAPIError:
    """Return an error with a warning's SQLSTATE, as a trigger may raise it: asyncpg's warning takes no attributes."""
    raised: Any = PostgresError(*error.args)
    raised.__dict__.update(vars(error))
    return exc.DBAPIError(None, None, raised, hide_parameters=True)


def remove_values(ours: CheckpointStoreError) -> None:
    """Replace the cause of an error of ours by a copy without values."""
    cause = ours.__cause__
    if cause is not None and not isinstance(cause, CheckpointStoreError) and is_from_driver(cause):
        ours.__cause__ = without_values(cause)
    if ours.__context__ is not None and is_from_driver(ours.__context__):
        ours.__suppress_context__ = True
        ours.__context__ = None


def is_from_driver(error: BaseException) -> bool:
    """Return whether an error is SQLAlchemy's or a driver's."""
    return type(error).__module__.partition(".")[0] in ("sqlalchemy", "asyncpg", "psycopg")


def _copy(error: BaseException) -> BaseException:
    copied: Any
    if isinstance(error, exc.StatementError):
        orig = None if error.orig is None else _copy(error.orig)
        if isinstance(error, exc.DBAPIError):
            copied = type(error)(None, None, orig, True, error.connection_invalidated)  # type: ignore[arg-type]
            return copied  # type: ignore[no-any-return]
        text = f"({type(orig).__module__}.{type(orig).__qualname__}) {orig}"
        return exc.StatementError(text, None, None, orig, hide_parameters=True)
    if is_from_driver(error) and not isinstance(error, exc.SQLAlchemyError):
        return _copy_of_driver_error(error)
    if isinstance(error, UnicodeError):
        return UnicodeError("a character that the encoding lacks")
    copied = copy.copy(error)
    copied.__dict__.pop("__notes__", None)
    # Of a session, which quotes the error that has ended its transaction.
    copied.args = tuple(_without_quote(arg) if type(arg) is str else arg for arg in copied.args)
    return copied  # type: ignore[no-any-return]


def _copy_of_driver_error(error: BaseException) -> BaseException:
    diagnosis = diagnosis_of(error)
    copied: Any = type(error).__new__(type(error))
    copied.args = (diagnosis.message or diagnosis.name or "a value was not accepted",)
    copied.__dict__.update(_kept_attributes(error, diagnosis))
    if error.__cause__ is not None and is_from_driver(error.__cause__):
        copied.__cause__ = _copy(error.__cause__)  # asyncpg's own, of SQLAlchemy's adapted one
        if "orig" in vars(error):
            copied.orig = copied.__cause__
    return copied  # type: ignore[no-any-return]


def _kept_attributes(error: BaseException, diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the attributes of a driver's error that its copy keeps."""
    attributes = vars(error)
    names = {name: psycopg for name, psycopg in _KEPT.items() if not (diagnosis.in_function and name in _OF_A_RAISE)}
    kept = {name: attributes[name] for name in (*names, "pgcode") if name in attributes}
    if "detail" in attributes:  # asyncpg's `__str__` reads it
        kept |= {name: None for name in ("detail", "hint") if name in attributes}
    if "_info" in attributes:
        info = _psycopg_fields(attributes["_info"], set(names.values()))
        kept |= {"_info": info, "_encoding": attributes["_encoding"], "_pgconn": None}
    if diagnosis.message and "message" in attributes:
        kept["message"] = attributes["message"]
    return kept


def _psycopg_fields(info: Any, names: set[str]) -> Any:
    """Return psycopg's fields of an answer, in the form in which it pickles them."""
    if info is None:
        return None
    from psycopg.pq import DiagnosticField

    kept = [each for each in DiagnosticField if each.name.lower() in names]
    return {each: info.get(each) if isinstance(info, dict) else info.error_field(each) for each in kept}


def _is_plain(error: BaseException, raw: BaseException) -> bool:
    """Return whether a message that no server has sent is without values: of the network, of a driver's state."""
    if isinstance(raw, (DataError, UnicodeError)):
        return False
    if type(raw).__module__.partition(".")[0] == "psycopg":
        return any(kind.__name__ in ("OperationalError", "InterfaceError") for kind in type(raw).__mro__)
    if isinstance(error, exc.StatementError):
        return isinstance(raw, (OSError, InterfaceError)) or is_from_driver(raw)
    return True


def _first_line(error: BaseException) -> str:
    primary = field(error, "message_primary") or (isinstance(error, PostgresError) and error.args and error.args[0])
    if primary:
        # A name in it may have lines of its own.
        return "\\n".join(str(primary).splitlines())
    lines = _without_quote(str(error)).rpartition("Error'>: ")[2].splitlines()  # as SQLAlchemy 2.0 has asyncpg's
    return lines[0] if lines else type(error).__name__


def _without_quote(message: str) -> str:
    return message.partition(" Original exception was:")[0]
