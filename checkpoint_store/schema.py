"""The tables, and the meaning of every column.

Names, columns, types and keys of the first three are those of LangGraph's own PostgreSQL saver
(`langgraph-checkpoint-postgres`, "the stock saver"), so that both can work on one database. This module imports nothing
of LangGraph: a deploy job that only migrates does not pay for it.

A **thread** is one conversation, a **namespace** one graph within it (the root graph is `""`, subgraphs are
`"node:task|node:task"`). A **checkpoint** is the state of one graph after one step. Its channel values live inline in
its JSON when JSON can hold them exactly, otherwise as a **blob** under the channel's version, which all checkpoints
that did not change the channel share. A **pending write** is a value that a task produced after a checkpoint and before
the next. A large value may be stored as **pages**, which the thread's later values share as far as they are the same;
its blob is then the recipe that lists them (see `serde.pages`).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from checkpoint_store.errors import InvalidOption, short_repr
from checkpoint_store.serde import jsonb

VERSION_TABLE = "checkpoint_store_version"
"""The table in which Alembic notes the revision of this schema, apart from a host's own `alembic_version`."""

HEAD = "cs04_subgraphs"
"""The revision that this version of the library works on, as `alembic heads` prints it (a test compares them)."""

LATEST_INDEX = "checkpoint_store_latest_idx"
"""The index of root graphs' checkpoints by age, for lists of the threads that were last used."""

STOCK_TABLE = "checkpoint_migrations"
"""The table in which the stock saver notes its migrations."""

ADOPTED = "adopted:"
"""The start of the comment on `VERSION_TABLE` where the first revision found tables, and so did not create them."""

MAX_NAME_BYTES = 63
"""The length of names in PostgreSQL, unless it was built otherwise."""

PAGED = "pages"
"""The type of a blob that is a recipe of a `msgpack` value. The stock saver refuses it by name."""


class Tables:
    """The table definitions of one PostgreSQL schema.

    Args:
        schema: Name of the PostgreSQL schema, or None for the one the connection's `search_path` resolves to.
        metadata: The MetaData to define them in: with a host's, its tables can refer to these by foreign keys and in
            joins. By default a new one.

    Raises:
        InvalidOption: If `schema` can't be the name of a schema, or `metadata` is not a MetaData.
    """

    def __init__(self, schema: str | None = None, *, metadata: sa.MetaData | None = None) -> None:
        if metadata is not None and not isinstance(metadata, sa.MetaData):
            raise InvalidOption(f"metadata must be a MetaData of SQLAlchemy's or None, not {short_repr(metadata)}")
        self.schema = checked(schema)
        self.metadata = sa.MetaData() if metadata is None else metadata
        self.checkpoints = self._checkpoints()
        self.checkpoint_blobs = self._table(
            "checkpoint_blobs",
            _key("thread_id"),
            _key("checkpoint_ns", server_default=""),
            _key("channel"),
            # The text of the version in the checkpoint's channel_versions, a string or a number there.
            _key("version"),
            # The serializer's name of its format; "empty" stands for a channel without a value.
            sa.Column("type", sa.Text, nullable=False),
            sa.Column("blob", sa.LargeBinary),
        )
        self.checkpoint_writes = self._table(
            "checkpoint_writes",
            _key("thread_id"),
            _key("checkpoint_ns", server_default=""),
            _key("checkpoint_id"),
            _key("task_id"),
            # The write's place in its task; negative for errors, interrupts and the like (LangGraph's WRITES_IDX_MAP).
            sa.Column("idx", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("channel", sa.Text, nullable=False),
            sa.Column("type", sa.Text),
            sa.Column("blob", sa.LargeBinary, nullable=False),
            # Orders the tasks of a step the way LangGraph applies them; last, since the stock saver added it last.
            sa.Column("task_path", sa.Text, nullable=False, server_default=""),
        )
        self.checkpoint_pages = self._table(
            "checkpoint_pages",
            _key("thread_id"),
            # BLAKE2b of the page, 16 bytes.
            sa.Column("digest", sa.LargeBinary, primary_key=True),
            sa.Column("page", sa.LargeBinary, nullable=False),
        )
        # One row for each thread that has pages, or is a copy; transactions that store or delete pages lock it first.
        # Its epoch changes when pages are deleted, for a transaction that has just looked for them; a copy has its own.
        self.checkpoint_threads = self._table(
            "checkpoint_threads", _key("thread_id"), sa.Column("epoch", sa.BigInteger, nullable=False)
        )
        self.all = (
            self.checkpoints,
            self.checkpoint_blobs,
            self.checkpoint_writes,
            self.checkpoint_pages,
            self.checkpoint_threads,
        )

    def _checkpoints(self) -> sa.Table:
        checkpoints = self._table(
            "checkpoints",
            _key("thread_id"),
            _key("checkpoint_ns", server_default=""),
            _key("checkpoint_id"),
            # The checkpoint that this one continues; not necessarily stored, and its id not necessarily smaller.
            sa.Column("parent_checkpoint_id", sa.Text),
            # Unused; the stock saver's first version wrote a serializer's name here.
            sa.Column("type", sa.Text),
            # The checkpoint as JSON: id, ts, channel_versions, versions_seen, and the inline channel_values.
            sa.Column("checkpoint", JSONB, nullable=False),
            sa.Column("metadata", JSONB, nullable=False, server_default="{}"),
        )
        c = checkpoints.c
        # The checkpoints of a run, where LangGraph was told its id. A query by run has to say that it is not NULL.
        run_id = c.metadata.op("->>", return_type=sa.Text())(sa.literal_column("'run_id'"))
        sa.Index("checkpoint_store_run_idx", run_id, postgresql_where=run_id.is_not(None))
        # Threads by their last activity. Ascending, since PostgreSQL appends to the right end of an index fastest; of
        # root graphs only, since a subgraph's checkpoints come with theirs. The condition is a LIKE, which no lookup of
        # one thread has: for its newest the server might walk through the checkpoints of all threads here.
        is_root = c.checkpoint_ns.like(sa.literal_column("''"))
        sa.Index(LATEST_INDEX, c.checkpoint_id, c.thread_id, postgresql_where=is_root)
        # The others, for lists of all checkpoints. A thread without subgraphs has none of them.
        of_subgraph = [c.checkpoint_id, c.thread_id, c.checkpoint_ns]
        sa.Index("checkpoint_store_subgraphs_idx", *of_subgraph, postgresql_where=sa.not_(is_root))
        return checkpoints

    def _table(self, name: str, *columns: sa.Column[Any]) -> sa.Table:
        # A default schema of the host's MetaData is not meant for these.
        schema = sa.BLANK_SCHEMA if self.schema is None else quoted(self.schema)
        return sa.Table(name, self.metadata, *columns, schema=schema)


def _key(name: str, **options: Any) -> sa.Column[str]:
    return sa.Column(name, sa.Text, primary_key=True, **options)


def quoted(schema: str) -> sa.quoted_name:
    """Return the name of a schema for SQLAlchemy to quote always: the reserved words depend on the server.

    Raises:
        InvalidOption: If it can't be the name of a schema.
    """
    return sa.quoted_name(_name(schema), quote=True)


def checked(schema: str | None) -> str | None:
    """Return the name of a schema as plain text, also of a text of another class.

    Raises:
        InvalidOption: If it can't be the name of a schema.
    """
    return None if schema is None else _name(schema)


def _name(schema: object) -> str:
    name = "".join(schema) if isinstance(schema, str) else ""  # plain text, also of an Enum's member
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > MAX_NAME_BYTES:
        raise InvalidOption(
            f"schema must have at most {MAX_NAME_BYTES} bytes, not {size:,} as {short_repr(name)} has: PostgreSQL cuts "
            "longer names, so that two could become one."
        )
    if not name or not jsonb.holds(name):
        raise InvalidOption(f"schema must be the name of a PostgreSQL schema or None, not {short_repr(schema)}")
    return name


def qualified(table: str, schema: str | None) -> str:
    """Return a table's name as SQL text, with its schema if it has one."""
    return table if schema is None else f"{identifier(schema)}.{table}"


def identifier(name: str) -> str:
    """Return a name as SQL text, quoted."""
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


tables = Tables()
metadata = tables.metadata
checkpoints = tables.checkpoints
checkpoint_blobs = tables.checkpoint_blobs
checkpoint_writes = tables.checkpoint_writes
checkpoint_pages = tables.checkpoint_pages
checkpoint_threads = tables.checkpoint_threads
