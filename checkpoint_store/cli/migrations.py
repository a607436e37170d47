"""The commands `upgrade`, `downgrade`, `check`, `sql` and `distribute`: the schema, for a deploy pipeline."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from checkpoint_store.cli import output
from checkpoint_store.cli.connection import Json, Schema, Url, Yes, confirm, on_backend, on_connection
from checkpoint_store.cli.text import counted
from checkpoint_store.errors import NotSetUp

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from checkpoint_store.database.backend import Backend
    from checkpoint_store.distribution import Distribution

Timeout = Annotated[
    float,
    typer.Option(metavar="SECONDS", help="How long to wait for other migrations and for transactions on the tables."),
]

T = TypeVar("T")

LOCK_SECONDS = 60.0

_ROLLED_BACK = "the revision under way was rolled back, those before it stay; the same command goes on"


def upgrade(
    revision: Annotated[str, typer.Argument(help="How far; as a rule the newest.")] = "head",
    url: Url = "",
    schema: Schema = None,
    timeout: Timeout = LOCK_SECONDS,
) -> None:
    """Upgrade the tables to this version's revision.

    Safe to run from many processes at once, and where nothing is left to do. A database of
    langgraph-checkpoint-postgres is taken over in place.

    \b
    Example:
      checkpoint-store upgrade
      checkpoint-store upgrade --schema agents
    """
    from checkpoint_store import migrations

    if revision == "head":
        on_backend(url, schema, lambda backend: backend.setup(timeout), _ROLLED_BACK)
    else:
        _migrate(url, schema, revision, timeout, migrations.upgrade)
    output.line(f"at {_current(url, schema)}")
    on_backend(url, schema, _hint_at_others)


def downgrade(
    revision: Annotated[str, typer.Argument(help='How far back: the name of a revision, or "base" for all of it.')],
    url: Url = "",
    schema: Schema = None,
    yes: Yes = False,
    timeout: Timeout = LOCK_SECONDS,
) -> None:
    """Undo revisions; "base" drops the tables.

    Every checkpoint is dropped with them. Tables that were there before, of langgraph-checkpoint-postgres or made by
    hand, are left.

    \b
    Example:
      checkpoint-store downgrade cs02_pages
      checkpoint-store downgrade base --yes
    """
    from checkpoint_store import migrations

    if not yes:
        confirm(f"{_undoing(url, schema) if revision == 'base' else f'back to {revision}'}: go on?")
    _migrate(url, schema, revision, timeout, migrations.downgrade)
    output.line(f"at {_current(url, schema) or 'base'}")


def check(url: Url = "", schema: Schema = None, as_json: Json = False) -> None:
    """Check whether the database is at head.

    Exit code 0 says that it is at this version's revision or a newer one, 3 that it is not, or that the tables are
    only partly distributed by Citus. Needs the right to read one table. Suitable as a readiness probe.

    \b
    Example:
      checkpoint-store check || checkpoint-store upgrade
    """
    from checkpoint_store import distribution, migrations
    from checkpoint_store.schema import HEAD

    def read(conn: Connection) -> tuple[str | None, Distribution | None]:
        try:
            migrations.check(conn, schema)
            return migrations.current(conn, schema), distribution.current(conn, schema)
        except NotSetUp:
            if as_json:
                current = migrations.current(conn, schema)
                output.document({"revision": current, "head": HEAD, "distribution": None, "ready": False})
            raise

    revision, found = on_connection(url, schema, read)
    if as_json:
        places = None if found is None else {"shards": found.shards, "nodes": found.nodes}
        output.document({"revision": revision, "head": HEAD, "distribution": places, "ready": True})
        return
    output.line(f"at {revision}" + (", which is head" if revision == HEAD else f", newer than {HEAD}"))
    if found is not None:
        output.line(_distributed(found))


def sql(
    revision: Annotated[str, typer.Argument(help="How far; as a rule the newest.")] = "head", schema: Schema = None
) -> None:
    """Print the SQL that an upgrade would run.

    It needs no database. The SQL is for a database that was never migrated.

    \b
    Example:
      checkpoint-store sql > checkpoint_store.sql
      psql --single-transaction -f checkpoint_store.sql
    """
    from checkpoint_store import migrations

    typer.echo(migrations.offline_sql(schema, revision=revision).rstrip("\n"))


def distribute(
    url: Url = "",
    schema: Schema = None,
    timeout: Timeout = LOCK_SECONDS,
    as_sql: Annotated[bool, typer.Option("--sql", help="Print the SQL instead; it needs no database.")] = False,
) -> None:
    """Distribute the tables over the nodes of a Citus cluster.

    Run it on the coordinator, with the database at head. Moves the stored rows, with the tables locked. All of it is
    one transaction. Leaves distributed tables unchanged.

    \b
    Example:
      checkpoint-store distribute
      checkpoint-store distribute --sql | psql -v ON_ERROR_STOP=1 --dbname=postgresql://coordinator/app
    """
    from checkpoint_store import distribution
    from checkpoint_store.database.provider import pause_of

    if as_sql:
        typer.echo(distribution.sql(schema))
        return

    def work(conn: Connection) -> Distribution:
        return distribution.distribute(conn, schema, timeout=timeout, pause=pause_of(conn.dialect))

    found = _in_session(url, schema, work, "all of it was rolled back")
    for change in found.changes:
        output.line(change)
    output.line(_distributed(found))


def _migrate(url: str, schema: str | None, revision: str, timeout: float, migrate: Callable[..., None]) -> None:
    from checkpoint_store.database.provider import pause_of

    def work(conn: Connection) -> None:
        migrate(conn, schema=schema, revision=revision, timeout=timeout, pause=pause_of(conn.dialect))

    _in_session(url, schema, work, _ROLLED_BACK)


def _in_session(url: str, schema: str | None, work: Callable[[Connection], T], advice: str) -> T:
    """Run a function that takes the migration lock, and commit."""
    from checkpoint_store.database.pool import is_pooled

    def run(conn: Connection) -> T:
        if is_pooled(conn):
            conn.begin()  # it holds the lock as well: the next transaction may get another connection
        result = work(conn)
        conn.commit()
        return result

    return on_connection(url, schema, run, advice)


def _distributed(found: Distribution) -> str:
    return f"distributed by thread over {counted(found.shards, 'shard')} on {counted(found.nodes, 'node')}"


async def _hint_at_others(backend: Backend) -> None:
    """Say which other schemas have tables, if those that were upgraded are empty: another set may be meant."""
    from checkpoint_store.cli.findings.tables import is_empty
    from checkpoint_store.storage.diagnosis import elsewhere, relations

    others = await backend.run(elsewhere)
    if others.total and is_empty(await backend.run(relations)):
        output.hint(f"there are tables in {others.places} too; --schema {shlex.quote(others.schemas[0])} names those")


def _undoing(url: str, schema: str | None) -> str:
    """Return the consequences of undoing all revisions."""
    from checkpoint_store.storage import probes

    if on_backend(url, schema, lambda backend: backend.run(probes.outlives_downgrade)):
        return (
            "the tables that were there before, or that langgraph-checkpoint-postgres has set up, stay with every "
            "checkpoint; what checkpoint_store has added to them will be dropped"
        )
    return "all tables will be dropped, with every checkpoint"


def _current(url: str, schema: str | None) -> str | None:
    from checkpoint_store import migrations

    return on_connection(url, schema, lambda conn: migrations.current(conn, schema))
