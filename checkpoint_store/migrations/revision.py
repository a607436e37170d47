"""Frame of every revision, run by our own env.py or by a host's.

`checkpoint_store_version`, in the schema of the tables, has the revision that they are at. Under our env.py Alembic
keeps it, since it is the version table there. Under a host's, Alembic notes the revision in the host's version table,
and the frame notes it in ours as well. So there is one place to look, without knowledge of the host's Alembic or the
right to read its table; and a revision that `setup()` has run before the host's pipeline is not run again.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from alembic.util import CommandError
from sqlalchemy import Column, PrimaryKeyConstraint, String, column, func, literal_column, quoted_name, select, table

from alembic import op
from checkpoint_store.errors import CheckpointStoreError
from checkpoint_store.migrations.alembic_config import LOCK_TIMEOUT, schema_of
from checkpoint_store.migrations.ddl import create_schema, literal
from checkpoint_store.migrations.lock import lock_key_of, migration_lock
from checkpoint_store.migrations.lock_timeout import LockTimeout, blocking_transactions, limit_lock_waits
from checkpoint_store.migrations.placement import refuse_worker
from checkpoint_store.migrations.runner import without_translate_map
from checkpoint_store.migrations.version_check import current
from checkpoint_store.schema import VERSION_TABLE, quoted

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext

log = logging.getLogger(__name__)

Body = Callable[[str | None], None]
"""A revision's DDL, as a function of the schema; None for the `search_path`'s."""


def upgrade_to(revision: str, down_revision: str | None) -> Callable[[Body], Callable[[], None]]:
    """Make a function of a schema a revision's `upgrade`."""

    def is_due(noted: str | None) -> bool:
        if noted == down_revision:
            return True
        if (passed := _passed(noted)) is None or revision in passed:
            return False
        raise CommandError(
            f"can't run {revision}: {VERSION_TABLE} has the tables at {noted or 'no revision'}, not at "
            f"{down_revision}. Run setup(), or `alembic upgrade head` with checkpoint_store's own script_location, and "
            "then this again."
        )

    return functools.partial(_framed, is_due=is_due, target=revision, is_first=down_revision is None)


def downgrade_from(revision: str, down_revision: str | None) -> Callable[[Body], Callable[[], None]]:
    """Make a function of a schema a revision's `downgrade`."""

    def is_due(noted: str | None) -> bool:
        if noted == revision:
            return True
        if (passed := _passed(noted)) is not None and revision not in passed:
            return False
        raise CommandError(
            f"can't undo {revision}: {VERSION_TABLE} has the tables at {noted}, which comes after it. Upgrade first, "
            "with the version of checkpoint_store that knows it, so that both version tables say the same."
        )

    return functools.partial(_framed, is_due=is_due, target=down_revision, is_first=False)


@contextlib.contextmanager
def outside_transaction() -> Iterator[None]:
    """Leave the transaction, as Alembic's `autocommit_block()` does, and keep the migration lock.

    Not for a transaction that is a caller's, or that other revisions share: it would be committed.
    """
    context = op.get_context()
    if context.as_sql or _is_our_own(context):
        with context.autocommit_block():
            yield
        return
    conn = op.get_bind()
    key = lock_key_of(conn, schema_of(context))
    # The lock of a revision ends with its transaction. The session has it already, so neither of these waits.
    conn.execute(select(func.pg_advisory_lock(key)))
    try:
        with context.autocommit_block():
            yield
        conn.execute(select(func.pg_advisory_xact_lock(key)))
    finally:
        if not conn.invalidated:
            conn.execute(select(func.pg_advisory_unlock(key)))


@contextlib.contextmanager
def waiting_for_snapshots(schema: str | None) -> Iterator[None]:
    """Log the transactions that building an index online waits for, and keep the deadline."""
    conn, timeout = op.get_bind(), _lock_timeout(op.get_context())
    if blocking := blocking_transactions(conn, schema, snapshots=True):
        log.warning("an index is built online, which waits for transactions that are older: %s", blocking)
    with contextlib.nullcontext() if timeout is None else limit_lock_waits(conn, timeout.left, local=False):
        yield


def _framed(
    body: Body, *, is_due: Callable[[str | None], bool], target: str | None, is_first: bool
) -> Callable[[], None]:
    """Return a revision's function for Alembic; it notes the target afterwards.

    `is_due` takes the revision in our version table, and returns whether the DDL is still to be run.
    """
    run_and_note = functools.partial(_run_and_note, body, target, is_first=is_first)

    @functools.wraps(body)
    def run() -> None:
        context = op.get_context()
        try:
            name = schema_of(context)
            schema = None if name is None else quoted(name)
            op.execute(refuse_worker())
            if _is_our_own(context):
                timeout = _lock_timeout(context)
                with contextlib.nullcontext() if timeout is None else limit_lock_waits(op.get_bind(), timeout.seconds):
                    body(schema)
            elif context.as_sql:
                run_and_note(schema)
            else:
                _run_if_due(run_and_note, is_due, schema)
        except CheckpointStoreError as error:
            raise CommandError(str(error)) from error

    return run


def _run_if_due(
    run: Callable[[quoted_name | None], None], is_due: Callable[[str | None], bool], schema: quoted_name | None
) -> None:
    conn = op.get_bind()
    if not conn.in_transaction():
        conn.begin()  # as the first statement would
    with without_translate_map(conn), migration_lock(conn, schema):
        if is_due(current(conn, schema)):
            run(schema)
        else:
            log.info("%s is at this revision already; nothing is done", VERSION_TABLE)


def _run_and_note(body: Body, target: str | None, schema: quoted_name | None, *, is_first: bool) -> None:
    if is_first and schema is not None:
        op.execute(create_schema(schema))
    if is_first:
        key = PrimaryKeyConstraint("version_num", name=op.f(f"{VERSION_TABLE}_pkc"))
        number = Column("version_num", String(32), nullable=False)
        op.create_table(VERSION_TABLE, number, key, schema=schema, if_not_exists=True)
    body(schema)
    version = table(VERSION_TABLE, column("version_num"), schema=schema)
    op.execute(version.delete())
    if target is not None:
        op.execute(version.insert().values(version_num=literal_column(literal(target))))


def _lock_timeout(context: MigrationContext) -> LockTimeout | None:
    """Return how long to wait for table locks, where our own code drives Alembic."""
    return None if context.config is None else context.config.attributes.get(LOCK_TIMEOUT)


def _is_our_own(context: MigrationContext) -> bool:
    """Return whether Alembic itself keeps `checkpoint_store_version`, in the schema of the tables."""
    return context.version_table == VERSION_TABLE and context.version_table_schema == schema_of(context)


def _passed(noted: str | None) -> set[str] | None:
    """Return the revisions that tables at a noted one have been through; None if a newer version has noted it."""
    script = op.get_context().script
    if noted is None or script is None:
        return set()
    try:
        script.get_revision(noted)
    except CommandError:
        return None
    return {passed.revision for passed in script.iterate_revisions(noted, "base")}
