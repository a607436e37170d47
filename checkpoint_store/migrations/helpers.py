"""What every revision goes through, be it run by our own env.py or by a host's.

`checkpoint_store_version`, in the schema of the tables, says which revision they are at. Run by our env.py, a revision
leaves that to Alembic, whose version table it is. Run by a host's, Alembic notes the revision in the host's version
table, and what is here notes it in ours as well. So whoever wants to know looks in one place and needs neither to know
of the host's Alembic nor the right to read its table; and a revision that `setup()` has run before the host's pipeline
came to it is not run again.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from alembic.util import CommandError
from sqlalchemy import (
    Column,
    PrimaryKeyConstraint,
    String,
    TextClause,
    column,
    func,
    literal_column,
    quoted_name,
    select,
    table,
    text,
)

from alembic import op
from checkpoint_store import migrations
from checkpoint_store.errors import CheckpointStoreError
from checkpoint_store.migrations.lock import PATIENCE, Patience, bounded, those_in_the_way
from checkpoint_store.schema import ADOPTED, STOCK_TABLE, VERSION_TABLE, identifier, qualified, quoted

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext

log = logging.getLogger(__name__)

Body = Callable[[str | None], None]
"""What a revision does, in a schema; None for the `search_path`'s."""

_TAG = "$checkpoint_store$"
"""What quotes the body of a DO: no name of a schema has it in it."""


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

    return lambda body: _step(body, is_due, revision, is_first=down_revision is None)


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

    return lambda body: _step(body, is_due, down_revision, is_first=False)


def statement(sql: str) -> TextClause:
    """Return a statement as it stands: a colon in it is no parameter's."""
    return text(sql.replace(":", "\\:"))


def block(body: str) -> TextClause:
    """Return a block of PL/pgSQL as a statement."""
    return statement(f"DO {_TAG}\n{textwrap.dedent(body).strip()}\n{_TAG}")


def literal(value: str) -> str:
    """Return a text as SQL has it."""
    escaped = value.replace("'", "''")
    return f"'{escaped}'"


def create_schema(schema: str) -> TextClause:
    """Return the statement that creates a schema if it is missing; only then it needs the right to."""
    # CREATE SCHEMA IF NOT EXISTS needs it in any case.
    name = identifier(schema)
    return block(
        f"BEGIN\n    IF to_regnamespace({literal(name)}) IS NULL THEN\n        CREATE SCHEMA {name};\n    END IF;\nEND"
    )


def refuse_foreign(tables: Mapping[str, Mapping[str, str]], schema: str | None) -> TextClause:
    """Return the statement that fails if a table of one of our names is somebody else's.

    VARCHAR passes for TEXT: `varchar_to_text` makes it that.

    Args:
        tables: For each table the columns that it has if it is ours, and their types as PostgreSQL writes them.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
    """
    return block(
        f"""
DECLARE
    missing text;
BEGIN
    SELECT string_agg(name || '.' || col || ' ' || kind, ', ') INTO missing
    FROM (
        VALUES
            {_values(tables, schema)}
    ) AS wanted(name, rel, col, kind)
    WHERE to_regclass(rel) IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = to_regclass(rel) AND attname = col AND NOT attisdropped
        AND (format_type(atttypid, atttypmod) = kind OR kind = 'text' AND atttypid = to_regtype('varchar'))
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION USING
            MESSAGE = 'a table of another application has the name of a checkpoint table; it lacks ' || missing,
            HINT = 'Keep the checkpoints in a PostgreSQL schema of their own.';
    END IF;
END
"""
    )


def note_adoption(tables: Iterable[str], schema: str | None) -> TextClause:
    """Return the statement that notes, in a comment on our version table, whether one of the tables is there already.

    A comment goes with a dump, and needs no right to be read.

    Args:
        tables: Their names.
        schema: The PostgreSQL schema, or None for the `search_path`'s first, where tables are made.
    """
    place = "quote_ident(current_schema())" if schema is None else literal(identifier(schema))
    found = " OR ".join(f"to_regclass({place} || {literal('.' + table)}) IS NOT NULL" for table in tables)
    version = qualified(VERSION_TABLE, schema)
    told = f"{ADOPTED} the tables were there before, and stay when these revisions are undone"
    return block(
        f"""
        BEGIN
            IF {found} THEN
                COMMENT ON TABLE {version} IS {literal(told)};
            ELSIF obj_description(to_regclass({literal(version)}), 'pg_class') IS NOT NULL THEN
                COMMENT ON TABLE {version} IS NULL;
            END IF;
        END
        """
    )


def ours_alone(schema: str | None) -> str:
    """Return the condition that the tables were made by us, and that the stock saver does not know of them."""
    noted = f"obj_description(to_regclass({literal(qualified(VERSION_TABLE, schema))}), 'pg_class')"
    return (
        f"to_regclass({literal(qualified(STOCK_TABLE, schema))}) IS NULL"
        f" AND left(coalesce({noted}, ''), {len(ADOPTED)}) <> {literal(ADOPTED)}"
    )


def varchar_to_text(tables: Mapping[str, Mapping[str, str]], schema: str | None) -> TextClause:
    """Return the statement that turns VARCHAR columns into TEXT, without rewriting a table or an index.

    Args:
        tables: As for `refuse_foreign`; columns that are not there are passed over.
        schema: The PostgreSQL schema, or None for the `search_path`'s.
    """
    return block(
        f"""
DECLARE
    change text;
BEGIN
    FOR change IN
        SELECT 'ALTER TABLE ' || rel || ' ' || string_agg(
            'ALTER COLUMN ' || quote_ident(col) || ' TYPE text'
            || CASE WHEN atthasdef THEN ', ALTER COLUMN ' || quote_ident(col) || ' SET DEFAULT ''''' ELSE '' END, ', '
        )
        FROM (
            VALUES
            {_values(tables, schema)}
        ) AS wanted(name, rel, col, kind)
        JOIN pg_attribute ON attrelid = to_regclass(rel) AND attname = col AND NOT attisdropped
        WHERE kind = 'text' AND atttypid = to_regtype('varchar')
        GROUP BY rel
    LOOP
        EXECUTE change;
    END LOOP;
END
"""
    )


def _values(tables: Mapping[str, Mapping[str, str]], schema: str | None) -> str:
    # No percent sign may stand in here: offline, some dialects double it.
    return ",\n            ".join(
        f"({literal(table)}, {literal(qualified(table, schema))}, {literal(column)}, {literal(kind)})"
        for table, columns in tables.items()
        for column, kind in columns.items()
    )


@contextlib.contextmanager
def outside_transaction() -> Iterator[None]:
    """Leave the transaction, as Alembic's `autocommit_block()` does, and stay the only one that migrates.

    Not for a transaction that is a caller's, or that other revisions share: it would be committed.
    """
    context = op.get_context()
    if context.as_sql or _is_our_own(context):
        with context.autocommit_block():
            yield
        return
    conn = op.get_bind()
    key = migrations.lock_key_of(conn, schema_of(context))
    # The lock that a step holds ends with its transaction. The session has it already, so neither of these waits.
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
    """Say who is waited for where an index is built online, and keep the deadline."""
    conn, patience = op.get_bind(), patience_of(op.get_context())
    if known := those_in_the_way(conn, schema, snapshots=True):
        log.warning("an index is built online, which waits for transactions that are older: %s", known)
    with contextlib.nullcontext() if patience is None else bounded(conn, patience.left, local=False):
        yield


def schema_of(context: MigrationContext) -> str | None:
    """Return the schema that Alembic's configuration names for our tables.

    In this order: `config.attributes["checkpoint_store_schema"]`, set by our env.py and by a host's that decides while
    it runs; `-x checkpoint_store_schema=...`; `checkpoint_store_schema` in the ini file or in pyproject.toml.
    """
    config = context.config
    if config is None or context.environment_context is None:
        return None
    if migrations.SCHEMA_OPTION in config.attributes:
        named: str | None = config.attributes[migrations.SCHEMA_OPTION]
        return named
    arguments = context.environment_context.get_x_argument(as_dictionary=True)
    return arguments.get(migrations.SCHEMA_OPTION) or migrations.schema_option(config)


def patience_of(context: MigrationContext) -> Patience | None:
    """Return how long to wait for others, where our own code drives Alembic."""
    return None if context.config is None else context.config.attributes.get(PATIENCE)


def _step(
    body: Body, is_due: Callable[[str | None], bool], target: str | None, *, is_first: bool
) -> Callable[[], None]:
    @functools.wraps(body)
    def run() -> None:
        context = op.get_context()
        try:
            named = schema_of(context)
            schema = None if named is None else quoted(named)
            patience = patience_of(context)
            if patience is not None:
                with bounded(op.get_bind(), patience.seconds):
                    body(schema)
            elif _is_our_own(context):
                body(schema)
            elif context.as_sql:
                _run_and_note(body, schema, target, is_first=is_first)
            else:
                conn = op.get_bind()
                if not conn.in_transaction():
                    conn.begin()  # as the first statement would
                with migrations.untranslated(conn), migrations.locked(conn, schema):
                    if is_due(migrations.current(conn, schema)):
                        _run_and_note(body, schema, target, is_first=is_first)
                    else:
                        log.info("%s already says so; nothing is done", VERSION_TABLE)
        except CheckpointStoreError as error:
            raise CommandError(str(error)) from error

    return run


def _run_and_note(body: Body, schema: quoted_name | None, target: str | None, *, is_first: bool) -> None:
    if is_first and schema is not None:
        op.execute(create_schema(schema))
    if is_first:
        op.create_table(
            VERSION_TABLE,
            Column("version_num", String(32), nullable=False),
            PrimaryKeyConstraint("version_num", name=op.f(f"{VERSION_TABLE}_pkc")),
            schema=schema,
            if_not_exists=True,
        )
    body(schema)
    noted = table(VERSION_TABLE, column("version_num"), schema=schema)
    op.execute(noted.delete())
    if target is not None:
        op.execute(noted.insert().values(version_num=literal_column(literal(target))))


def _is_our_own(context: MigrationContext) -> bool:
    """Tell whether Alembic itself keeps `checkpoint_store_version`, in the schema of the tables."""
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
