"""The sizes of threads and tables: rows and bytes, by table and by channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

from checkpoint_store.schema import qualified
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.operation import Kind, operation


class TableSize(NamedTuple):
    """The size of a thread in one table."""

    rows: int
    bytes: int
    """As stored: compressed where PostgreSQL compresses, without indexes."""


class ChannelSize(NamedTuple):
    """The size of one channel of a thread."""

    graph: str
    """The namespace without the ids of tasks: `""` for the root graph, `"node"` for all calls of a subgraph there."""
    channel: str
    values: int
    """The number of stored values."""
    writes: int
    """The number of pending writes."""
    bytes: int
    """Of both, as stored; a page that values share is counted once."""


@dataclass(frozen=True)
class ThreadStats:
    """The size of a thread."""

    thread_id: str
    tables: Mapping[str, TableSize]
    """By the tables' names."""
    channels: Sequence[ChannelSize]
    """The largest first."""

    @property
    def checkpoints(self) -> int:
        """The number of its checkpoints in all namespaces."""
        return self.tables["checkpoints"].rows

    @property
    def bytes(self) -> int:
        """Its bytes in all tables."""
        return sum(table.bytes for table in self.tables.values())


def stats_of(thread_id: str, tables: Sequence[Sequence[Any]], channels: Sequence[Sequence[Any]]) -> ThreadStats:
    """Return the size of a thread from the rows of `thread_stats`."""
    sizes = {name: TableSize(rows, size) for name, rows, size in tables}
    return ThreadStats(thread_id, sizes, [ChannelSize(*channel) for channel in channels])


@operation(Kind.READ, name="get_thread_stats", thread_of=lambda thread_id: thread_id, may_lag=lambda _: True)
def thread_stats(db: Executor, sql: Statements, thread_id: str) -> tuple[Sequence[Row], Sequence[Row]]:
    """Return the rows and bytes of a thread, by table and by channel."""
    binds = {"thread_id": thread_id}
    return db.fetch(sql.thread_tables, binds), db.fetch(sql.thread_channels, binds)


@operation(Kind.READ)
def largest_threads(db: Executor, sql: Statements, limit: int) -> Sequence[Row]:
    """Return the largest threads, their checkpoints and bytes; reads every row."""
    return db.fetch(sql.largest_threads, {"limit": limit})


@operation(Kind.READ)
def table_sizes(db: Executor, sql: Statements) -> Sequence[Row]:
    """Return the tables' estimated numbers of rows and their bytes on disk, the largest first."""
    names = {qualified(name, sql.tables.schema): name for name in (t.name for t in sql.tables.all)}
    rows = db.fetch(sql.table_sizes, {"names": list(names)})
    return sorted(((names[name], rows, size) for name, rows, size in rows), key=itemgetter(2), reverse=True)
