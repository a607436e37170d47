"""Alembic, driven from code: upgrade, downgrade, print the SQL, and try again where others were in the way."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Literal

from sqlalchemy import Connection, exc

from checkpoint_store.conninfo.driver_errors import diagnosis_of
from checkpoint_store.errors import MigrationError
from checkpoint_store.migrations.alembic_config import LOCK_TIMEOUT, config
from checkpoint_store.migrations.error_translation import END_THEM, LOCK_NOT_AVAILABLE, raise_failed, translate_errors
from checkpoint_store.migrations.lock import LOCK_SECONDS, Pause, migration_lock, process_lock
from checkpoint_store.migrations.lock_timeout import LockTimeout
from checkpoint_store.migrations.version_check import is_usable, stored_revisions
from checkpoint_store.schema import identifier
from checkpoint_store.sql.executor import is_in_transaction
from checkpoint_store.sql.statements import Statements

if TYPE_CHECKING:
    from alembic.config import Config

log = logging.getLogger(__name__)

Direction = Literal["upgrade", "downgrade"]

_CONFLICTS = frozenset({"23505", "40001", "40P01", "42701", "42710", "42P06", "42P07", "XX000"})
"""SQLSTATEs of DDL that meets that of others who do not take our lock, such as the stock saver's setup().

An object exists that did not when the statement began, even with IF NOT EXISTS (the catalog's unique indexes say so, or
"tuple concurrently updated"), or two transactions wait for each other.
"""
_MAX_CONFLICTS = 6
"""The number of conflicts in a row that may be chance."""
_FIRST_WAIT = 0.5
"""Less than `deadlock_timeout`: where two wait for each other it is the migration that gives way, and tries again."""


@translate_errors()
def upgrade(
    conn: Connection,
    schema: str | None = None,
    *,
    revision: str = "head",
    timeout: float = LOCK_SECONDS,
    pause: Pause = time.sleep,
) -> None:
    """Migrate up to a revision; a schema that is missing is created.

    Args:
        conn: The connection. In a transaction the migrations become part of it; otherwise each revision commits itself.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
        revision: The revision to migrate to, as Alembic names it.
        timeout: The time to wait for others that migrate the same schema or are using its tables, in seconds.
        pause: A function that sleeps for a number of seconds.

    Raises:
        MigrationLocked: If another has held the lock, or transactions have used the tables, past the deadline.
        MigrationError: If a revision fails; it has been rolled back.
    """
    _migrate("upgrade", conn, schema, revision, timeout=timeout, pause=pause)


@translate_errors()
def downgrade(
    conn: Connection,
    schema: str | None = None,
    *,
    revision: str = "base",
    timeout: float = LOCK_SECONDS,
    pause: Pause = time.sleep,
) -> None:
    """Undo the migrations down to a revision; to `base` it drops the tables, with every checkpoint in them.

    Tables that were there before the first revision or that the stock saver has set up, and the schema, stay.

    Args:
        conn: The connection, as for `upgrade`.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
        revision: The revision to go back to, as Alembic names it.
        timeout: The time to wait for others that migrate the same schema or are using its tables, in seconds.
        pause: A function that sleeps for a number of seconds.

    Raises:
        MigrationLocked: If another has held the lock, or transactions have used the tables, past the deadline.
        MigrationError: If a revision fails; it has been rolled back.
    """
    _migrate("downgrade", conn, schema, revision, timeout=timeout, pause=pause)


def offline_sql(schema: str | None = None, *, revision: str = "head") -> str:
    """Return the SQL that brings an empty database, or one of the stock saver's, to a revision.

    Args:
        schema: The PostgreSQL schema, which the SQL creates if it is missing, or None for the `search_path`'s.
        revision: The revision to migrate to, as Alembic names it.
    """
    from alembic import command

    alembic_config = config(schema)
    alembic_config.output_buffer = io.StringIO()
    with process_lock(), _naming_revisions(alembic_config, f"SQL to {revision!r}"):
        command.upgrade(alembic_config, revision, sql=True)
    return alembic_config.output_buffer.getvalue()


def upgrade_to_head(conn: Connection, sql: Statements, timeout: LockTimeout, pause: Pause = time.sleep) -> None:
    """Migrate to head unless the database is there; concurrent calls wait for the first, and find it done.

    In a transaction the migrations become part of it, and so does the lock; otherwise each revision commits itself.

    Raises:
        MigrationLocked: If another has held the lock, or transactions have used the tables, past the deadline.
        MigrationError: If a revision fails; it has been rolled back.
    """
    schema = sql.tables.schema
    with migration_lock(conn, schema, timeout.left, pause):
        if not is_usable(stored_revisions(conn, sql)):
            _run_alembic("upgrade", conn, schema, "head", timeout)
            stored_revisions(conn, sql)  # logs a warning of an encoding that can't hold every text


def retry_conflicts(attempt: Callable[[LockTimeout], None], timeout: float, pause: Pause) -> None:
    """Call a function that migrates, again where others were in its way, until the deadline.

    When the function raises it has undone what it had begun.
    """
    deadline, seconds, conflicts = time.monotonic() + timeout, _FIRST_WAIT, 0
    while True:
        try:
            return attempt(LockTimeout(deadline, min(seconds, max(deadline - time.monotonic(), 0))))
        except MigrationError as error:
            state = diagnosis_of(error.__cause__ or error).state
            conflicts += state in _CONFLICTS
            is_chance = state == LOCK_NOT_AVAILABLE or (state in _CONFLICTS and conflicts < _MAX_CONFLICTS)
            if not is_chance or time.monotonic() > deadline:
                raise
            log.warning("%s Trying again until the timeout.", str(error).removesuffix(END_THEM))
        pause(0.1 * 2**conflicts * random.uniform(0.5, 1.5))
        seconds *= 2


@contextlib.contextmanager
def without_translate_map(conn: Connection) -> Iterator[None]:
    """Suspend a host's `schema_translate_map`: the schemas that it renames are the host's."""
    before = conn.get_execution_options().get("schema_translate_map")
    conn.execution_options(schema_translate_map=None)
    try:
        yield
    finally:
        conn.execution_options(schema_translate_map=before)


def _migrate(
    direction: Direction, conn: Connection, schema: str | None, revision: str, *, timeout: float, pause: Pause
) -> None:
    attempt = partial(_run_alembic, direction, conn, schema, revision)
    with migration_lock(conn, schema, timeout, pause):
        if conn.in_transaction():
            attempt(LockTimeout.of_one_attempt(timeout))  # a transaction that has failed can't be repeated here
        else:
            retry_conflicts(attempt, timeout, pause)


def _run_alembic(
    direction: Direction, conn: Connection, schema: str | None, revision: str, timeout: LockTimeout
) -> None:
    from alembic import command

    in_transaction = conn.in_transaction()
    # Rolled back to it, a caller's transaction can ask who was in the way. In AUTOCOMMIT there is none on the server.
    has_savepoint = in_transaction and is_in_transaction(conn.connection.driver_connection)
    alembic_config = config(schema)
    alembic_config.attributes.update({"connection": conn, LOCK_TIMEOUT: timeout})
    action = f"migration to {revision!r}"
    try:
        with (
            _naming_revisions(alembic_config, action),
            without_translate_map(conn),
            conn.begin_nested() if has_savepoint else contextlib.nullcontext(),
        ):
            getattr(command, direction)(alembic_config, revision)
    except exc.DBAPIError as error:
        schema_too = "" if schema is None else f", and the schema {identifier(schema)} if it is missing"
        hint = (
            ""
            if direction == "downgrade"
            else (
                f"Run `alembic upgrade head` before deploying, with a role that may create tables{schema_too}; "
                "then setup() needs no such right."
            )
        )
        raise_failed(
            *(error, action, conn, schema),
            in_transaction=in_transaction,
            to_savepoint=has_savepoint,
            snapshots=True,
            hint=hint,
        )


@contextlib.contextmanager
def _naming_revisions(alembic_config: Config, action: str) -> Iterator[None]:
    """Raise `MigrationError` where Alembic refuses; for a revision that does not exist it names those that do."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    try:
        yield
    except CommandError as error:
        names = [script.revision for script in ScriptDirectory.from_config(alembic_config).walk_revisions()]
        known = f". Revisions are {', '.join(reversed(names))}" if "locate revision" in str(error) else ""
        raise MigrationError(f"{action} can't be run: {error}{known}") from error
