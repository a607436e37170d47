"""The tables that a database has, complete or not: ours at any revision, or those of the stock saver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from checkpoint_store.errors import SET_UP, AccessDenied, NotSetUp
from checkpoint_store.schema import HEAD, LATEST_INDEX, STOCK_TABLE, VERSION_TABLE, Tables, identifier, qualified
from checkpoint_store.sql.catalog import complete
from checkpoint_store.sql.distribution import DistributedTables
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.operation import Kind, operation


@dataclass(frozen=True)
class Catalog:
    """The tables of a schema, as far as they exist."""

    schema: str | None
    role: str
    """The database role that has asked."""
    columns: Mapping[str, frozenset[str]]
    """The columns of the tables, the version tables and the indexes that exist, by their names."""
    unreadable: Sequence[str]
    """Those of the tables that the role may not read."""
    revision: str | None = None
    """The revision that they are at, if it can be known and they are not complete."""
    stock_version: int | None = None
    """The number of the stock saver's newest migration, likewise."""

    @cached_property
    def missing(self) -> list[str]:
        """The tables and columns that do not exist, of those that this version needs."""
        found: list[str] = []
        for table in Tables(self.schema).all:
            if (columns := self.columns.get(table.name)) is None:
                found.append(table.name)
            else:
                found += [f"{table.name}.{name}" for name in sorted({*table.columns.keys()} - columns)]
        return found

    @property
    def additions(self) -> str:
        """The tables, columns and indexes that an upgrade adds, as text; empty at head."""
        indexes = sum(name not in self.columns for name in _indexes(Tables(self.schema)))
        parts = [*self.missing, *([f"{indexes} index{'es' * (indexes > 1)}"] if indexes else [])]
        if self.revision == HEAD or not parts:
            return ""
        *first, last = parts
        return f"{', '.join(first)} and {last}" if first else last

    @property
    def has_latest_index(self) -> bool:
        """Whether there is the index by which threads are listed, the last used first."""
        return LATEST_INDEX in self.columns

    @property
    def state(self) -> str:
        """A description of the tables, as the end of a sentence about them."""
        if self.revision is not None:
            return f"are at revision {self.revision}"
        if STOCK_TABLE in self.columns:
            version = "" if self.stock_version is None else f", version {self.stock_version}"
            return f"are those of langgraph-checkpoint-postgres{version}, not adopted"
        return "were never set up" if self.is_empty else "exist, but are not adopted"

    @property
    def is_empty(self) -> bool:
        """Whether there are none, neither ours nor the stock saver's."""
        return not self.columns.keys() & {STOCK_TABLE, *(table.name for table in Tables(self.schema).all)}

    @property
    def foreign(self) -> str:
        """The column that a table of another application lacks, with the table's name; empty if there is none."""
        for table in Tables(self.schema).all:
            needed = {one.name for one in table.columns if one.primary_key or not (one.nullable or one.server_default)}
            if lacking := sorted(needed - self.columns.get(table.name, needed)):
                return f"{qualified(table.name, self.schema)}.{lacking[0]}"
        return ""

    def check(self) -> None:
        """Raise unless there are tables that can be read as ours.

        Raises:
            NotSetUp: If there are none, or one of another application's.
        """
        if self.is_empty or self.foreign:
            raise self.not_set_up()

    def not_set_up(self) -> NotSetUp:
        """Return the error for tables that are not at head."""
        if self.foreign:
            return NotSetUp(
                f"a table of another application has the name of a checkpoint table; it lacks {self.foreign}. Keep the "
                "checkpoints in a PostgreSQL schema of their own, and name it."
            )
        place = "" if self.schema is None else f" in schema {identifier(self.schema)}"
        adds = f", which adds {self.additions}" if self.additions and not self.is_empty else ""
        return NotSetUp(f"the tables{place} {self.state}; this version needs {HEAD}{adds}. {SET_UP}")

    def access_denied(self) -> AccessDenied:
        """Return the error for tables that the role may not read, with the SQL that gives it the right."""
        to = identifier(self.role)
        known = [table.name for table in Tables(self.schema).all] + [VERSION_TABLE, STOCK_TABLE]
        tables = ", ".join(qualified(name, self.schema) for name in known if name in self.columns)
        usage = "" if self.schema is None else f"GRANT USAGE ON SCHEMA {identifier(self.schema)} TO {to}; "
        return AccessDenied(
            f"the role {to} may not read {', '.join(qualified(name, self.schema) for name in self.unreadable)}. "
            f"A role that owns the tables can give the right: {usage}GRANT SELECT ON {tables} TO {to};"
        )

    def statements(self, *, distributed: bool) -> Statements:
        """Return statements that read the tables as they are."""
        tables = DistributedTables(self.schema) if distributed else Tables(self.schema)
        return Statements(complete(tables, self.columns))


@operation(Kind.PROBE)
def catalog(db: Executor, sql: Statements) -> Catalog:
    """Return which tables there are."""
    schema, tables = sql.tables.schema, Tables(sql.tables.schema)
    names = [*(table.name for table in tables.all), *_indexes(tables), VERSION_TABLE, STOCK_TABLE]
    rows = db.fetch(sql.relations, {"names": [qualified(name, schema) for name in names]})
    by_name = {qualified(name, schema): name for name in names}
    columns = {by_name[name]: frozenset(found) for name, found, _, _ in rows if found}
    readable = {by_name[name] for name, _, may_read, _ in rows if may_read}
    unreadable = [table.name for table in tables.all if table.name in columns and table.name not in readable]
    revision, version = None, None
    if VERSION_TABLE in readable:
        revision = min((row[0] for row in db.fetch(sql.revision, {})), default=None)
    if revision is None and STOCK_TABLE in readable:
        version = db.fetch(sql.stock_version, {})[0][0]
    return Catalog(schema, rows[0][3], columns, unreadable, revision, version)


def _indexes(tables: Tables) -> list[str]:
    return sorted(str(index.name) for index in tables.checkpoints.indexes)
