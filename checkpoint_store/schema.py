"""The tables, and what every column means.

Names, columns, types and keys of the first three are those of LangGraph's own PostgreSQL saver
(`langgraph-checkpoint-postgres`, "the stock saver"), so that both can work on one database. This module imports nothing
of LangGraph: a deploy job that only migrates does not pay for it.

A **thread** is one conversation, a **namespace** one graph within it (the root graph is `""`, subgraphs are
`"node:task|node:task"`). A **checkpoint** is the state of one graph after one step. Its channel values live inline in
its JSON when JSON can hold them exactly, otherwise as a **blob** under the channel's version, which all checkpoints
that did not change the channel share. A **pending write** is what a task produced after a checkpoint and before the
next. A large value may be stored as **pages**, which the thread's later values share as far as they are the same; its
blob is then the recipe that lists them (see `pages`).
"""

from __future__ import annotations

from sqlalchemy import (
    BLANK_SCHEMA,
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    literal_column,
    quoted_name,
)
from sqlalchemy.dialects.postgresql import JSONB

from checkpoint_store.errors import InvalidOption, short_repr
from checkpoint_store.serde import jsonb

VERSION_TABLE = "checkpoint_store_version"
"""Where Alembic notes the revision of this schema, apart from a host's own `alembic_version`."""

HEAD = "cs03_lifecycle"
"""The revision this version of the library works on; `alembic heads` says the same (a test compares them)."""

STOCK_TABLE = "checkpoint_migrations"
"""Where the stock saver notes which of its migrations it has run."""

ADOPTED = "adopted:"
"""How the comment on `VERSION_TABLE` begins where the first revision found tables, and so did not make them."""

MOST_BYTES = 63
"""How long a name may be in PostgreSQL, unless it was built otherwise."""

PAGED = "pages"
"""The type of a blob that is a recipe; the value it makes is of type `msgpack`. The stock saver refuses it by name."""


class Tables:
    """The table definitions of one PostgreSQL schema.

    Args:
        schema: Name of the PostgreSQL schema, or None for the one the connection's `search_path` resolves to.
        metadata: Where to define them: a host's own, whose tables can then refer to these by foreign keys and in
            joins. By default a new one.

    Raises:
        InvalidOption: If the schema can't be the name of one, or `metadata` is none.
    """

    def __init__(self, schema: str | None = None, *, metadata: MetaData | None = None) -> None:
        if metadata is not None and not isinstance(metadata, MetaData):
            raise InvalidOption(f"metadata is {short_repr(metadata)}; it has to be a MetaData of SQLAlchemy's, or None")
        self.schema = checked(schema)
        self.metadata = MetaData() if metadata is None else metadata
        # A schema that the host's MetaData has by default is not meant for these.
        place = BLANK_SCHEMA if schema is None else quoted(schema)
        self.checkpoints = Table(
            "checkpoints",
            self.metadata,
            Column("thread_id", Text, primary_key=True),
            Column("checkpoint_ns", Text, primary_key=True, server_default=""),
            Column("checkpoint_id", Text, primary_key=True),
            # The checkpoint that this one continues; not necessarily stored, and its id not necessarily smaller.
            Column("parent_checkpoint_id", Text),
            # Unused; the stock saver's first version wrote a serializer's name here.
            Column("type", Text),
            # The checkpoint as JSON: id, ts, channel_versions, versions_seen, and the inline channel_values.
            Column("checkpoint", JSONB, nullable=False),
            Column("metadata", JSONB, nullable=False, server_default="{}"),
            schema=place,
        )
        c = self.checkpoints.c
        # The checkpoints of a run, where LangGraph was told its id. Whoever looks for one says that it is not NULL.
        run_id = c.metadata.op("->>", return_type=Text())(literal_column("'run_id'"))
        Index("checkpoint_store_run_idx", run_id, postgresql_where=run_id.is_not(None))
        # Threads by their last activity. Ascending, since PostgreSQL appends to the right end of an index fastest; of
        # root graphs only, since a subgraph's checkpoints come with theirs.
        # Said by LIKE, as no lookup of one thread says it: for its newest the server might walk through the checkpoints
        # of all threads here.
        is_root = c.checkpoint_ns.like(literal_column("''"))
        Index("checkpoint_store_latest_idx", c.checkpoint_id, c.thread_id, postgresql_where=is_root)
        self.checkpoint_blobs = Table(
            "checkpoint_blobs",
            self.metadata,
            Column("thread_id", Text, primary_key=True),
            Column("checkpoint_ns", Text, primary_key=True, server_default=""),
            Column("channel", Text, primary_key=True),
            # As text what the checkpoint's channel_versions has as text, string or number.
            Column("version", Text, primary_key=True),
            # What the serializer calls its format; "empty" stands for a channel without a value.
            Column("type", Text, nullable=False),
            Column("blob", LargeBinary),
            schema=place,
        )
        self.checkpoint_writes = Table(
            "checkpoint_writes",
            self.metadata,
            Column("thread_id", Text, primary_key=True),
            Column("checkpoint_ns", Text, primary_key=True, server_default=""),
            Column("checkpoint_id", Text, primary_key=True),
            Column("task_id", Text, primary_key=True),
            # The write's place in its task; negative for errors, interrupts and the like (LangGraph's WRITES_IDX_MAP).
            Column("idx", Integer, primary_key=True, autoincrement=False),
            Column("channel", Text, nullable=False),
            Column("type", Text),
            Column("blob", LargeBinary, nullable=False),
            # Orders the tasks of a step the way LangGraph applies them; last, since the stock saver added it last.
            Column("task_path", Text, nullable=False, server_default=""),
            schema=place,
        )
        self.checkpoint_pages = Table(
            "checkpoint_pages",
            self.metadata,
            Column("thread_id", Text, primary_key=True),
            # BLAKE2b of the page, 16 bytes.
            Column("digest", LargeBinary, primary_key=True),
            Column("page", LargeBinary, nullable=False),
            schema=place,
        )
        # One row for each thread that has pages, or is a copy. Who stores or deletes pages locks it first; its epoch is
        # another one after pages were deleted, so that whoever has looked for them just before notices, and one of its
        # own for each copy that was made.
        self.checkpoint_threads = Table(
            "checkpoint_threads",
            self.metadata,
            Column("thread_id", Text, primary_key=True),
            Column("epoch", BigInteger, nullable=False),
            schema=place,
        )
        self.all = (
            self.checkpoints,
            self.checkpoint_blobs,
            self.checkpoint_writes,
            self.checkpoint_pages,
            self.checkpoint_threads,
        )


def quoted(schema: str) -> quoted_name:
    """Return the name of a schema as SQLAlchemy quotes it in any case: what is a reserved word depends on the server.

    Raises:
        InvalidOption: If it can't be the name of one.
    """
    return quoted_name(_name(schema), quote=True)


def checked(schema: str | None) -> str | None:
    """Return the name of a schema as plain text, whatever class of text it is.

    Raises:
        InvalidOption: If it can't be the name of one.
    """
    return None if schema is None else _name(schema)


def _name(schema: object) -> str:
    name = str.__str__(schema) if issubclass(type(schema), str) else ""
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > MOST_BYTES:
        raise InvalidOption(
            f"schema is {short_repr(name)}, of {size:,} bytes; PostgreSQL cuts names to {MOST_BYTES}, so that two "
            "could become one. Use a shorter one."
        )
    if not name or not jsonb.holds(name):
        raise InvalidOption(f"schema is {short_repr(schema)}; it has to be the name of a PostgreSQL schema, or None")
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
