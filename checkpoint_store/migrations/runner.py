"""Alembic, driven from code: bring the tables to head, say where they are, print the SQL, tell them from a host's.

What takes a `Connection` is called through `run_sync` on an async one: `await conn.run_sync(migrations.check)`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Table, exc, func, select

from checkpoint_store.conninfo.driver_errors import chain, diagnosis_of
from checkpoint_store.conninfo.transient_errors import transient_error_of
from checkpoint_store.errors import SET_UP, AccessDenied, MigrationError, NotSetUp, Unavailable
from checkpoint_store.migrations.lock import (
    LOCK_SECONDS,
    NOT_AVAILABLE,
    PATIENCE,
    Patience,
    in_turn,
    in_use,
    locked,
    patience_of,
)
from checkpoint_store.schema import HEAD, STOCK_TABLE, VERSION_TABLE, Tables, identifier, qualified
from checkpoint_store.sql.executor import ConnectionExecutor, Executor
from checkpoint_store.sql.statements import Statements, statements_of
from checkpoint_store.storage import probes
from checkpoint_store.storage.operation import Kind, operation

if TYPE_CHECKING:
    from alembic.config import Config


log = logging.getLogger(__name__)

SCHEMA_OPTION = "checkpoint_store_schema"
"""How Alembic's configuration names the PostgreSQL schema: an option of the ini file, or one of `config.attributes`."""

_NO_RIGHT = "42501"  # insufficient_privilege

_CONFLICTS = frozenset({"23505", "40001", "40P01", "42701", "42710", "42P06", "42P07", "XX000"})
"""How DDL fails beside that of others who take no lock of ours, such as the stock saver's setup().

Something is there that was not when the statement began, even with IF NOT EXISTS (the catalog's unique indexes say so,
or "tuple concurrently updated"), or two wait for each other.
"""
_MOST_CONFLICTS = 6
"""How often that may be by chance."""
_FIRST_WAIT = 0.5
"""Less than `deadlock_timeout`: where two wait for each other it is the migration that gives way, and tries again."""

_KEYS = {table.name: {column.name for column in table.primary_key} for table in Tables().all} | {
    VERSION_TABLE: {"version_num"},
    STOCK_TABLE: {"v"},
}


def script_location() -> Path:
    """Return the folder of env.py and the revisions: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "_alembic"
    return packaged if packaged.is_dir() else package.parent / "alembic"


def config(schema: str | None = None) -> Config:
    """Return an Alembic configuration of our migrations, for `alembic.command`.

    Args:
        schema: The PostgreSQL schema to migrate, or None for the `search_path`'s.
    """
    from alembic.config import Config

    made = Config()
    made.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    made.attributes[SCHEMA_OPTION] = schema
    return made


def schema_option(config: Config) -> str | None:
    """Return the schema that an Alembic configuration file names, if any."""
    # Since Alembic 1.16 also from pyproject.toml.
    read = getattr(config, "get_alembic_option", config.get_main_option)
    return read(SCHEMA_OPTION) or None


def is_head(revisions: set[str]) -> bool:
    """Tell whether a database at these revisions is what this version of the library works on."""
    return HEAD in revisions


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Tell what the server says to who calls with a connection of theirs in our words.

    Raises:
        Unavailable: If the connection was lost, or what passes by itself has kept it from succeeding.
        MigrationError: If it was anything else.
    """
    try:
        yield
    except exc.DBAPIError as error:
        if error.connection_invalidated or transient_error_of(error) is not None:
            chain(Unavailable(f"the server could not be asked: {_reason(error)}"), error)
        chain(MigrationError(f"the server could not be asked, or has refused: {_reason(error)}"), error)


@told()
def current(conn: Connection, schema: str | None = None) -> str | None:
    """Return the revision that the tables are at, or None if they were never migrated.

    Args:
        conn: A connection to the database, in a transaction or not.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
    """
    return min(_revisions(conn, statements_of(schema)), default=None)


@told()
def check(conn: Connection, schema: str | None = None) -> None:
    """Raise unless the tables are what this version works on, or newer; for readiness probes.

    It takes no lock and needs no right but to read `checkpoint_store_version`.

    Args:
        conn: A connection to the database, in a transaction or not.
        schema: The PostgreSQL schema, or None for the `search_path`'s.

    Raises:
        NotSetUp: If the tables are missing or older; the message says at which revision they are.
        AccessDenied: If the role may not read the revision.
    """
    theirs = conn.in_transaction()
    try:
        revisions = _revisions(conn, statements_of(schema))
    except exc.DBAPIError as error:
        if diagnosis_of(error).state != _NO_RIGHT:
            raise
        denied = access_denied(_reason(error), schema, None if theirs else _role(conn))
        chain(denied, error)
    _judge(revisions, schema)


@operation(Kind.READ)
def check_revisions(db: Executor, sql: Statements) -> None:
    """Do what `check` does, as an operation."""
    _judge(probes.revisions(db, sql), sql.tables.schema)


@told()
def upgrade(
    conn: Connection,
    schema: str | None = None,
    *,
    revision: str = "head",
    timeout: float = LOCK_SECONDS,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Migrate up to a revision; a schema that is missing is made.

    Args:
        conn: Where to run. In a transaction the migrations become part of it; otherwise each revision commits itself.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
        revision: How far, as Alembic names it.
        timeout: How long to wait for others that migrate the same schema or are using its tables, in seconds.
        pause: Sleeps for so many seconds.

    Raises:
        MigrationLocked: If another has held the lock, or transactions have used the tables, past the deadline.
        MigrationError: If a revision fails; it has been rolled back.
    """
    from alembic import command

    with locked(conn, schema, timeout, pause):
        _insist_on(conn, partial(_alembic, command.upgrade, conn, schema, revision), timeout, pause)


@told()
def downgrade(
    conn: Connection,
    schema: str | None = None,
    *,
    revision: str = "base",
    timeout: float = LOCK_SECONDS,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Undo the migrations down to a revision; to `base` it drops the tables, with every checkpoint in them.

    Tables that were there before the first revision or that the stock saver has set up, and the schema, stay.

    Args:
        conn: Where to run, as for `upgrade`.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
        revision: How far, as Alembic names it.
        timeout: How long to wait for others that migrate the same schema or are using its tables, in seconds.
        pause: Sleeps for so many seconds.

    Raises:
        MigrationLocked: If another has held the lock, or transactions have used the tables, past the deadline.
        MigrationError: If a revision fails; it has been rolled back.
    """
    from alembic import command

    with locked(conn, schema, timeout, pause):
        _insist_on(conn, partial(_alembic, command.downgrade, conn, schema, revision), timeout, pause)


def offline_sql(schema: str | None = None, *, revision: str = "head") -> str:
    """Return the SQL that brings an empty database, or one of the stock saver's, to a revision.

    Args:
        schema: The PostgreSQL schema, which the SQL makes if it is missing, or None for the `search_path`'s.
        revision: How far, as Alembic names it.
    """
    from alembic import command

    made = config(schema)
    made.output_buffer = io.StringIO()
    with in_turn():
        command.upgrade(made, revision, sql=True)
    return made.output_buffer.getvalue()


def grants(role: str, schema: str | None = None) -> str:
    """Return the SQL that gives a role what savers need, and `check`, and `setup()` where nothing is left to migrate.

    Args:
        role: The database role of the running service; it needs no right to create anything.
        schema: The PostgreSQL schema of the tables. With None the role must have USAGE on the `search_path`'s, as
            every role has on `public` unless that was revoked.
    """
    to = identifier(role)
    tables = ", ".join(qualified(table.name, schema) for table in Tables(schema).all)
    usage = [] if schema is None else [f"GRANT USAGE ON SCHEMA {identifier(schema)} TO {to};"]
    return "\n".join(
        [
            *usage,
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {to};",
            f"GRANT SELECT ON {qualified(VERSION_TABLE, schema)} TO {to};",
        ]
    )


def not_ours(item: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:  # noqa: ARG001
    """Keep our tables out of a host's autogenerate: its `include_object`, or a part of one.

    They are known by name and key columns, in whichever schema, so that a host's own `checkpoints` elsewhere is still
    compared. They are left out whether the host's MetaData has them or not, and with them their columns and indexes.

    Args:
        item: What Alembic asks about.
        name: Its name.
        kind: Its kind.
        reflected: Whether it is from the database.
        compare_to: What it would be compared to, if anything.

    Returns:
        Whether it is the host's, or nobody's.
    """
    if not isinstance(item, Table):
        return True
    columns = {column.name for column in item.columns}
    whole = re.sub(r"_p\d+$", "", item.name)  # of a partition, as `partitioning` names them
    return not columns >= _KEYS.get(whole, columns | {""})


def bring_to_head(
    conn: Connection, sql: Statements, patience: Patience, pause: Callable[[float], None] = time.sleep
) -> None:
    """Migrate to head unless the database is there; whoever else has the same in mind waits, and finds it done.

    Args:
        conn: Where to run. In a transaction the migrations become part of it, and so does the lock; otherwise each
            revision commits itself.
        sql: The statements of the schema.
        patience: How long to wait for others.
        pause: Sleeps for so many seconds.

    Raises:
        MigrationLocked: If another has held the lock, or transactions have used the tables, past the deadline.
        MigrationError: If a revision fails; it has been rolled back.
    """
    from alembic import command

    schema = sql.tables.schema
    with locked(conn, schema, patience.left, pause):
        revisions = _revisions(conn, sql)
        if is_head(revisions):
            return
        if revisions and not revisions <= _known():
            log.warning("%s; left as it is", _newer(revisions))
            return
        _alembic(command.upgrade, conn, schema, "head", patience)
        _revisions(conn, sql)  # which warns of what may be wrong


def insist(attempt: Callable[[Patience], None], timeout: float, pause: Callable[[float], None]) -> None:
    """Call what migrates, and again where others were in its way, until the deadline.

    Args:
        attempt: What to call; it has undone what it had begun when it raises.
        timeout: The seconds until the deadline.
        pause: Sleeps for so many seconds.
    """
    deadline, seconds, conflicts = time.monotonic() + timeout, _FIRST_WAIT, 0
    while True:
        try:
            return attempt(Patience(deadline, min(seconds, max(deadline - time.monotonic(), 0))))
        except MigrationError as error:
            state = diagnosis_of(error.__cause__ or error).state
            conflicts += state in _CONFLICTS
            is_chance = state == NOT_AVAILABLE or (state in _CONFLICTS and conflicts < _MOST_CONFLICTS)
            if not is_chance or time.monotonic() > deadline:
                raise
            log.warning("%s Trying again.", error)
        pause(0.1 * 2**conflicts * random.uniform(0.5, 1.5))
        seconds *= 2


@contextlib.contextmanager
def untranslated(conn: Connection) -> Iterator[None]:
    """Keep a host's `schema_translate_map` off our tables for a while: what it renames are the host's."""
    theirs = conn.get_execution_options().get("schema_translate_map")
    conn.execution_options(schema_translate_map=None)
    try:
        yield
    finally:
        conn.execution_options(schema_translate_map=theirs)


def access_denied(message: str, schema: str | None, role: str | None) -> AccessDenied:
    """Return the error for a right that is missing, with the SQL that gives it.

    Args:
        message: What was denied.
        schema: The PostgreSQL schema of the tables.
        role: The role that lacks it; None where that is not known, as in a transaction that the error has ended.
    """
    statements = grants(role or "app", schema).replace("\n", " ")
    stands_for = "" if role else ', where "app" stands for the one that lacks it (SELECT current_user)'
    return AccessDenied(f"{message}. A role that owns the tables can give the right{stands_for}: {statements}")


def _insist_on(
    conn: Connection, attempt: Callable[[Patience], None], timeout: float, pause: Callable[[float], None]
) -> None:
    if conn.in_transaction():
        attempt(patience_of(timeout))  # what has failed in it can't be made again
    else:
        insist(attempt, timeout, pause)


def _alembic(
    command: Callable[..., None], conn: Connection, schema: str | None, revision: str, patience: Patience
) -> None:
    from alembic.util import CommandError

    theirs = conn.in_transaction()
    made = config(schema)
    made.attributes["connection"] = conn
    made.attributes[PATIENCE] = patience
    try:
        with untranslated(conn):
            command(made, revision)
    except CommandError as error:
        raise MigrationError(f"migration to {revision!r} can't be run: {error}") from error
    except exc.DBAPIError as error:
        if error.connection_invalidated:
            raise
        state = diagnosis_of(error).state
        if state == NOT_AVAILABLE:
            chain(in_use(f"migration to {revision!r}", conn, schema, theirs=theirs, snapshots=True), error)
        schema_too = "" if schema is None else f", and the schema {identifier(schema)} if it is missing"
        hint = (
            f" Run `alembic upgrade head` before deploying, with a role that may create tables{schema_too}; "
            "then setup() needs no such right."
            if state == _NO_RIGHT
            else ""
        )
        chain(MigrationError(f"migration to {revision!r} failed and was rolled back: {_reason(error)}.{hint}"), error)


def _reason(error: exc.DBAPIError) -> str:
    said = diagnosis_of(error)
    return said.message or said.name or "the driver has failed"


def _role(conn: Connection) -> str | None:
    """Return the role that a connection works as; what it has failed with is rolled back."""
    with contextlib.suppress(exc.SQLAlchemyError):
        conn.rollback()
        return str(conn.scalar(select(func.current_user())))
    return None


def _judge(revisions: set[str], schema: str | None) -> None:
    if is_head(revisions):
        return
    if revisions and not revisions <= _known():
        log.warning("%s", _newer(revisions))
        return
    where = "" if schema is None else f" in schema {identifier(schema)}"
    found = f"are at revision {min(revisions)}" if revisions else "were never set up"
    raise NotSetUp(f"the tables{where} {found}; this version needs {HEAD}. {SET_UP}")


def _newer(revisions: set[str]) -> str:
    return f"the database is at revision {min(revisions)}, which is newer than this library"


def _revisions(conn: Connection, sql: Statements) -> set[str]:
    theirs = conn.in_transaction()
    # Looked for first, since selecting from a table that is missing would end a caller's transaction.
    known = conn.dialect.has_table(conn, VERSION_TABLE, schema=sql.tables.schema)
    revisions = probes.revisions(ConnectionExecutor(conn), sql) if known else set()
    if not theirs:
        conn.rollback()
    return revisions


def _known() -> set[str]:
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}
