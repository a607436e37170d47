"""The revision that the tables are at, and whether this version of the library works on it."""

from __future__ import annotations

import logging

from sqlalchemy import Connection, exc

from checkpoint_store.conninfo.driver_errors import diagnosis_of, raise_from
from checkpoint_store.migrations.alembic_config import config
from checkpoint_store.migrations.error_translation import reason_of, translate_errors
from checkpoint_store.migrations.placement import distribution_of
from checkpoint_store.migrations.privileges import INSUFFICIENT_PRIVILEGE, access_denied, role_of
from checkpoint_store.schema import HEAD, VERSION_TABLE
from checkpoint_store.sql.executor import ConnectionExecutor, Executor
from checkpoint_store.sql.statements import Statements, statements_of
from checkpoint_store.storage import probes
from checkpoint_store.storage.catalog import catalog
from checkpoint_store.storage.operation import Kind, operation

log = logging.getLogger(__name__)


@translate_errors()
def current(conn: Connection, schema: str | None = None) -> str | None:
    """Return the revision that the tables are at, or None if they were never migrated.

    Args:
        conn: A connection to the database, in a transaction or not.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
    """
    return min(stored_revisions(conn, statements_of(schema)), default=None)


@translate_errors()
def check(conn: Connection, schema: str | None = None) -> None:
    """Raise unless the tables are at the revision that this version works on, or a newer one; for readiness probes.

    It takes no lock and needs no right but to read `checkpoint_store_version`.

    Args:
        conn: A connection to the database, in a transaction or not.
        schema: The PostgreSQL schema, or None for the `search_path`'s.

    Raises:
        NotSetUp: If the tables are missing or older, or Citus has distributed only some of them, or not all together;
            the message names their revision, or the tables.
        AccessDenied: If the role may not read the revision.
    """
    require_head(conn, schema)
    distribution_of(conn, schema)


def require_head(conn: Connection, schema: str | None) -> None:
    """Check the revision as `check` does."""
    in_transaction, sql = conn.in_transaction(), statements_of(schema)
    try:
        revisions = stored_revisions(conn, sql)
        _require_usable(revisions, ConnectionExecutor(conn), sql)
    except exc.DBAPIError as error:
        if diagnosis_of(error).state != INSUFFICIENT_PRIVILEGE:
            raise
        raise_from(access_denied(reason_of(error), schema, None if in_transaction else role_of(conn)), error)
    finally:
        if not in_transaction:
            conn.rollback()


@operation(Kind.PROBE)
def check_revisions(db: Executor, sql: Statements) -> None:
    """Check the revision as `check` does, as an operation."""
    _require_usable(probes.revisions(db, sql), db, sql)


def is_usable(revisions: set[str]) -> bool:
    """Return whether tables at these revisions are at head, or at a revision of a newer version, which is logged."""
    if not revisions or HEAD in revisions:
        return bool(revisions)
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}
    if is_newer := not revisions <= known:
        log.warning("the database is at revision %s, which is newer than this library", min(revisions))
    return is_newer


def stored_revisions(conn: Connection, sql: Statements) -> set[str]:
    """Return the revisions in the version table, none where it is missing; leave no transaction open of our own."""
    in_transaction = conn.in_transaction()
    # Looked for first, since selecting from a table that is missing would end a caller's transaction.
    exists = conn.dialect.has_table(conn, VERSION_TABLE, schema=sql.tables.schema)
    revisions = probes.revisions(ConnectionExecutor(conn), sql) if exists else set()
    if not in_transaction:
        conn.rollback()
    return revisions


def _require_usable(revisions: set[str], db: Executor, sql: Statements) -> None:
    if not is_usable(revisions):
        raise catalog(db, sql).not_set_up()
