"""Facts about a server and our tables on it, from its catalog and statistics: for a diagnosis, and for monitoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from checkpoint_store.schema import LATEST_INDEX, STOCK_TABLE, VERSION_TABLE, identifier, qualified
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.operation import Kind, operation
from checkpoint_store.storage.thread_stats import table_sizes

_DISK_PAGE = 8192


class Server(NamedTuple):
    """A server, with the database and the role of the connection."""

    version_number: int
    """Such as 160004 for 16.4."""
    version: str
    database: str
    role: str
    is_superuser: bool
    may_create_schemas: bool
    is_standby: bool
    is_read_only: bool
    """Whether transactions are READ ONLY unless they say otherwise."""
    encoding: str
    max_connections: int
    reserved_connections: int
    """Those that only superusers and the like get."""
    role_limit: int
    """The connections that the role may have; -1 for no limit."""
    database_limit: int
    """The connections that the database may have; -1 for no limit."""
    search_path: Sequence[str]
    """The schemas of the `search_path` that exist."""
    plan_cache_mode: str
    plan_cache_source: str
    """The place that this setting comes from, such as `default` or `user`."""
    transaction_age: int
    """The number of transactions since the oldest row that is not frozen."""
    multixact_age: int
    freeze_age: int
    """The age at which autovacuum freezes rows."""
    has_autovacuum: bool
    has_citus: bool


class SchemaRights(NamedTuple):
    """The rights of the role on the schema of the tables."""

    schema: str
    may_use: bool
    may_create: bool


class Relation(NamedTuple):
    """A table or view with the name of one of our tables, or of one that notes versions."""

    schema: str
    name: str
    owner: str
    is_found: bool
    """Whether its name alone finds it: no schema before it in the `search_path` has one of that name."""
    has_row_security: bool
    """Whether policies hold for the role."""
    may_select: bool
    may_insert: bool
    may_update: bool
    may_delete: bool
    has_rows: bool
    """Whether it has rows, by the server's statistics."""


class Elsewhere(NamedTuple):
    """Schemas that were not asked about, and have tables of our names."""

    schemas: Sequence[str]
    """Some of them, those whose tables have rows first."""
    has_rows: bool
    """Whether the tables of the first have rows, by the server's statistics."""
    total: int

    @property
    def places(self) -> str:
        """Their names as part of a sentence."""
        names = ", ".join(map(identifier, self.schemas[:3]))
        return f"schema {names}" if self.total == 1 else f"{self.total} schemas, such as {names}"


class Rule(NamedTuple):
    """Rules of one of our tables by which rows are hidden, changed or refused."""

    table: str
    kind: str
    """`trigger`, `policy`, `rule`, `constraint` (CHECK or FOREIGN KEY), or `column` (NOT NULL without a default)."""
    name: str


class Index(NamedTuple):
    """An index on one of our tables, or on a partition."""

    table: str
    is_partition: bool
    schema: str
    name: str
    is_primary: bool
    is_valid: bool
    is_being_built: bool


class TableStatistics(NamedTuple):
    """The server's statistics of a table, in sum over its partitions; all of them are estimates."""

    table: str
    rows: int
    """By the last VACUUM or ANALYZE."""
    live: int
    dead: int
    disk_pages: int
    """Of 8 kB, by the last VACUUM or ANALYZE."""
    toast_live: int
    """The pieces of large values."""
    toast_dead: int
    toast_disk_pages: int
    vacuumed_at: datetime | None
    analyzed_at: datetime | None
    is_autovacuum_off: bool
    vacuum_at: int = 0
    """The number of dead rows beyond which autovacuum comes."""

    @property
    def current_rows(self) -> int | None:
        """The number of rows now, where the server has kept count since the last VACUUM or ANALYZE; None otherwise.

        A table that was never analyzed is counted from its first row; after a crash, and on a standby, none is.
        """
        is_kept = self.vacuumed_at or self.analyzed_at or (self.live and not self.rows)
        return self.live if is_kept else None

    @property
    def dead_bytes(self) -> int:
        """The bytes on disk that dead rows occupy."""
        heap = dead_share(self.live, self.dead) * self.disk_pages
        toast = dead_share(self.toast_live, self.toast_dead) * self.toast_disk_pages
        return round((heap + toast) * _DISK_PAGE)


class Connections(NamedTuple):
    """The numbers of connections to a server."""

    all: int
    of_database: int
    of_role: int


class Session(NamedTuple):
    """A session of another client, with locks on our tables or an old transaction."""

    pid: int
    role: str | None
    application: str | None
    state: str | None
    """NULL where the role may not see it."""
    transaction_seconds: float | None
    state_seconds: float | None
    tables: Sequence[str] | None
    """Those of ours that it has locked, or waits for."""
    waits: bool
    excludes: bool
    """Whether its lock excludes readers."""
    blocked_by: Sequence[int] | None


@operation(Kind.PROBE)
def limit_waits(db: Executor, sql: Statements, statement_seconds: float, lock_seconds: float) -> None:
    """Limit the time of the statements in this transaction, and of their waits for locks."""
    limits = {"statement": statement_seconds, "lock": lock_seconds}
    db.fetch(sql.limit_waits, {name: str(round(seconds * 1000)) for name, seconds in limits.items()})


@operation(Kind.PROBE)
def server(db: Executor, sql: Statements) -> Server:
    """Return the facts about the server, the database and the role."""
    return Server(*db.fetch(sql.server, {})[0])


@operation(Kind.PROBE)
def schema_rights(db: Executor, sql: Statements) -> SchemaRights | None:
    """Return the rights on the schema; None if it is missing, or no schema of the `search_path` exists."""
    rows = db.fetch(sql.schema_rights, {"schema": sql.tables.schema})
    return SchemaRights(*rows[0]) if rows else None


@operation(Kind.PROBE)
def relations(db: Executor, sql: Statements) -> list[Relation]:
    """Return the relations that have the names of our tables, of our version table and of the stock saver's."""
    names = [*[table.name for table in sql.tables.all], VERSION_TABLE, STOCK_TABLE]
    return [Relation(*row) for row in db.fetch(sql.named_relations, {"tables": names, "schema": sql.tables.schema})]


@operation(Kind.PROBE)
def elsewhere(db: Executor, sql: Statements) -> Elsewhere:
    """Return the other schemas that have such tables and that the role may use."""
    rows = db.fetch(sql.elsewhere, {"schema": sql.tables.schema})
    return Elsewhere([row[0] for row in rows], *(rows[0][1:] if rows else (False, 0)))


@operation(Kind.PROBE)
def rules(db: Executor, sql: Statements) -> list[Rule]:
    """Return what may hide, change or refuse rows of our tables."""
    names = _names(sql)
    return [Rule(names[name], *rest) for name, *rest in db.fetch(sql.rules, {"names": list(names)})]


@operation(Kind.PROBE)
def indexes(db: Executor, sql: Statements) -> list[Index]:
    """Return the indexes of our tables and of their partitions."""
    names = _names(sql)
    return [Index(names[name], *rest) for name, *rest in db.fetch(sql.indexes, {"names": list(names)})]


@operation(Kind.PROBE)
def table_statistics(db: Executor, sql: Statements) -> list[TableStatistics]:
    """Return the statistics of our tables."""
    names = _names(sql)
    rows = db.fetch(sql.table_statistics, {"names": list(names)})
    return [TableStatistics(names[name], *rest) for name, *rest in rows]


@operation(Kind.PROBE)
def connections(db: Executor, sql: Statements) -> Connections:
    """Return the numbers of connections."""
    return Connections(*db.fetch(sql.connections, {})[0])


@operation(Kind.PROBE)
def sessions(db: Executor, sql: Statements) -> list[Session]:
    """Return the sessions of other clients that have locks on our tables, wait for them, or have old transactions."""
    names = _names(sql)
    found = [Session(*row) for row in db.fetch(sql.sessions, {"names": list(names)})]
    return [one._replace(tables=[names[name] for name in one.tables or ()]) for one in found]


class Measurements(NamedTuple):
    """Numbers for monitoring, which cost little on a database of any size."""

    server: Server
    connections: Connections
    sizes: Sequence[Row]
    """As `table_sizes` returns them."""
    statistics: Sequence[TableStatistics]
    indexes: Sequence[Index]
    sessions: Sequence[Session]
    ends: Sequence[str]
    """The first and the last checkpoint id of root graphs, where their index is there and there are any."""


@operation(Kind.READ, in_transaction=True)
def measurements(db: Executor, sql: Statements, statement_seconds: float, lock_seconds: float) -> Measurements:
    """Return numbers for monitoring; `LimitReached` is raised where a lock on a table keeps them back."""
    limit_waits(db, sql, statement_seconds, lock_seconds)
    found = indexes(db, sql)
    ends: list[Row] = []
    if any(index.name == LATEST_INDEX and index.is_valid for index in found):
        ends = [*db.fetch(sql.oldest_checkpoint, {}), *db.fetch(sql.newest_checkpoint, {})]
    return Measurements(
        server(db, sql),
        connections(db, sql),
        table_sizes(db, sql),
        table_statistics(db, sql),
        found,
        sessions(db, sql),
        [row[0] for row in ends],
    )


def dead_share(live: int, dead: int) -> float:
    """Return the share of rows that are dead."""
    return dead / (live + dead) if dead else 0.0


def _names(sql: Statements) -> Mapping[str, str]:
    """Return the tables' names by their qualified ones."""
    return {qualified(table.name, sql.tables.schema): table.name for table in sql.tables.all}
