"""Alembic, driven from code: bring a database to head, say where it is, print the SQL.

Alembic keeps its `context` in a module global, so only one migration may run in a process at a time, and only one in a
database, whatever the number of processes: a mutex sees to the first, an advisory lock to the second.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Select, exc, func, select
from sqlalchemy.schema import CreateSchema

from checkpoint_store import operations
from checkpoint_store.errors import MigrationError, MigrationLocked
from checkpoint_store.executor import Ordinary
from checkpoint_store.schema import HEAD, VERSION_TABLE, Tables
from checkpoint_store.statements import Statements

if TYPE_CHECKING:
    from alembic.config import Config

log = logging.getLogger(__name__)

STOCK_INDEXES = {
    "checkpoints_thread_id_idx",
    "checkpoint_blobs_thread_id_idx",
    "checkpoint_writes_thread_id_idx",
}
"""Indexes of the stock saver. We make none of them: each repeats the first column of a primary key."""

LOCK_SECONDS = 60.0
"""How long to wait for another process that migrates the same database."""

_POLL_SECONDS = 0.05

_mutex = threading.Lock()


def _renew_mutex() -> None:
    global _mutex  # noqa: PLW0603 - the thread that held it is not in this process
    _mutex = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_mutex)


def script_location() -> Path:
    """Return the folder of env.py and the revisions: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).parent
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
    made.attributes["schema"] = schema
    return made


def is_head(revisions: set[str]) -> bool:
    """Tell whether a database at these revisions is what this version of the library works on."""
    return HEAD in revisions


def current(conn: Connection, schema: str | None = None) -> str | None:
    """Return the revision a database is at, or None if it was never migrated.

    Args:
        conn: A connection to it, in a transaction or not.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
    """
    revisions = _revisions(conn, Statements(Tables(schema)))
    return min(revisions, default=None)


def upgrade(conn: Connection, schema: str | None = None, *, revision: str = "head") -> None:
    """Run the migrations up to a revision on a connection; the caller holds `locked`.

    Args:
        conn: Where to run them. In a transaction they become part of it; otherwise each revision commits itself.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
        revision: How far, as Alembic names it.

    Raises:
        MigrationError: If a revision fails; it has been rolled back.
    """
    from alembic import command

    theirs = conn.in_transaction()
    if schema is not None and not conn.dialect.has_schema(conn, schema):
        conn.execute(CreateSchema(schema, if_not_exists=True))
    if not theirs:
        conn.commit()
    _alembic(command.upgrade, conn, schema, revision)


def downgrade(conn: Connection, schema: str | None = None, *, revision: str = "base") -> None:
    """Undo the migrations down to a revision; the caller holds `locked`.

    Args:
        conn: Where to run them, as for `upgrade`.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
        revision: How far, as Alembic names it.

    Raises:
        MigrationError: If a revision fails; it has been rolled back.
    """
    from alembic import command

    _alembic(command.downgrade, conn, schema, revision)


def offline_sql(schema: str | None = None, *, revision: str = "head") -> str:
    """Return the SQL that brings an empty database, or one of the stock saver's, to a revision.

    Args:
        schema: The PostgreSQL schema, or None for the `search_path`'s.
        revision: How far, as Alembic names it.
    """
    from alembic import command

    made = config(schema)
    made.output_buffer = io.StringIO()
    with _mutex:
        command.upgrade(made, revision, sql=True)
    return made.output_buffer.getvalue()


def bring_to_head(
    conn: Connection, sql: Statements, timeout: float, pause: Callable[[float], None] = time.sleep
) -> None:
    """Migrate to head unless the database is there; whoever else has the same in mind waits, and finds it done.

    Args:
        conn: Where to run. In a transaction the migrations become part of it, and so does the lock; otherwise each
            revision commits itself.
        sql: The statements of the schema.
        timeout: How long to wait for others, in seconds.
        pause: Sleeps for so many seconds.

    Raises:
        MigrationLocked: If another has held the lock past the deadline.
        MigrationError: If a revision fails; it has been rolled back.
    """
    schema = sql.tables.schema
    with locked(conn, schema, timeout, pause):
        revisions = _revisions(conn, sql)
        if is_head(revisions):
            return
        if revisions and not revisions <= _known():
            log.warning(
                "the database is at revision %s, which is newer than this library; left as it is", min(revisions)
            )
            return
        upgrade(conn, schema)


@contextlib.contextmanager
def locked(
    conn: Connection, schema: str | None, timeout: float = LOCK_SECONDS, pause: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """Be the only one that migrates, in this process and in the database.

    Args:
        conn: In a transaction the lock lasts until its end; otherwise until the end of the block.
        schema: The PostgreSQL schema.
        timeout: How long to wait, in seconds.
        pause: Sleeps for so many seconds.

    Raises:
        MigrationLocked: If another has held the lock past the deadline.
    """
    deadline = time.monotonic() + timeout
    while not _mutex.acquire(blocking=False):
        _wait(deadline, pause, "another thread of this process")
    try:
        theirs = conn.in_transaction()
        key = lock_key(schema)
        take = func.pg_try_advisory_xact_lock if theirs else func.pg_try_advisory_lock
        # Poll instead of blocking: a waiting lock holds a snapshot, and CREATE INDEX CONCURRENTLY waits for those.
        while not _answer(conn, select(take(key)), theirs):
            _wait(deadline, pause, "another process")
        try:
            yield
        finally:
            if not theirs and not conn.invalidated:
                conn.rollback()
                _answer(conn, select(func.pg_advisory_unlock(key)), theirs)
    finally:
        _mutex.release()


def lock_key(schema: str | None) -> int:
    """Return the number of the advisory lock that whoever migrates a schema holds."""
    return int.from_bytes(hashlib.sha256(f"{VERSION_TABLE} {schema}".encode()).digest()[:8], "big", signed=True)


def is_ours(name: str | None, kind: str, _: object) -> bool:
    """Tell Alembic's autogenerate whether a thing in the database is for it to compare (its `include_name`)."""
    if kind == "table":
        return name in Tables().metadata.tables
    return name not in STOCK_INDEXES


def _alembic(command: Callable[..., None], conn: Connection, schema: str | None, revision: str) -> None:
    made = config(schema)
    made.attributes["connection"] = conn
    try:
        command(made, revision)
    except exc.DBAPIError as error:
        if error.connection_invalidated:
            raise
        state = getattr(error.orig, "sqlstate", None)
        message = re.sub(r"\nLINE \d+: .*\n *\^", "", str(error.orig).rpartition("Error'>: ")[2])
        hint = (
            " Run `alembic upgrade head` before deploying, with a role that may create tables; "
            "then setup() needs no such right."
            if state == "42501"  # insufficient_privilege
            else ""
        )
        raise MigrationError(f"migration to {revision!r} failed and was rolled back: {message}.{hint}") from error


def _answer(conn: Connection, question: Select[tuple[bool]], theirs: bool) -> bool:
    """Ask, and leave no transaction open that was not open before."""
    answer = conn.scalar(question)
    if not theirs:
        conn.commit()
    return bool(answer)


def _revisions(conn: Connection, sql: Statements) -> set[str]:
    theirs = conn.in_transaction()
    # Looked for first, since selecting from a table that is missing would end a caller's transaction.
    known = conn.dialect.has_table(conn, VERSION_TABLE, schema=sql.tables.schema)
    revisions = operations.revisions(Ordinary(conn), sql) if known else set()
    if not theirs:
        conn.rollback()
    return revisions


def _known() -> set[str]:
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}


def _wait(deadline: float, pause: Callable[[float], None], who: str) -> None:
    if time.monotonic() > deadline:
        raise MigrationLocked(f"{who} has held the migration lock past the deadline. Let it finish, then try again.")
    pause(_POLL_SECONDS * random.uniform(0.5, 1.5))
