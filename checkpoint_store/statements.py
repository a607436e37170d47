"""Core statements, built once per schema; no I/O.

Each statement is one round trip and one row-count-independent SQL text: varying numbers of rows travel as arrays. Every
table it touches carries an equality on `thread_id`, so that a distributed or partitioned PostgreSQL can route it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    Delete,
    Dialect,
    Executable,
    Integer,
    LargeBinary,
    Numeric,
    Select,
    Subquery,
    Text,
    bindparam,
    cast,
    column,
    delete,
    func,
    select,
    table,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.sql.selectable import LateralFromClause

from checkpoint_store.ancestry import delta_history
from checkpoint_store.clauses import (
    applied,
    arrays,
    given,
    key,
    member,
    member_text,
    named,
    number,
    rows_of_binds,
    same_graph,
)
from checkpoint_store.schema import VERSION_TABLE, Tables

TASKS = "__pregel_tasks"
"""LangGraph's channel of pending sends (`langgraph.checkpoint.serde.types.TASKS`, not imported: see `schema`)."""


MOST_ROWS = 256
"""How many rows a page of a list may have."""


class Statement:
    """A Core statement, compiled once per dialect into the driver's own SQL and the order of its parameters.

    It is executed as driver SQL, because SQLAlchemy's statement cache costs more than the statement: at every call it
    derives a key from the whole construct (0.25 ms for `put_checkpoint`), and on SQLAlchemy 2.0 it can't hold
    PostgreSQL's upserts at all (2 ms to compile one). It also keeps a host's `schema_translate_map` off our tables.
    """

    def __init__(self, construct: Executable) -> None:
        self.construct = construct
        self._compiled: dict[tuple[str, str, str], tuple[str, tuple[str, ...] | None]] = {}

    def sql(self, dialect: Dialect) -> str:
        """Return the SQL text for a dialect."""
        return self._for(dialect)[0]

    def parameters(self, dialect: Dialect, binds: Mapping[str, Any]) -> tuple[Any, ...] | Mapping[str, Any]:
        """Return the binds as the dialect's driver takes them: by position or by name."""
        order = self._for(dialect)[1]
        return binds if order is None else tuple([binds[name] for name in order])

    def _for(self, dialect: Dialect) -> tuple[str, tuple[str, ...] | None]:
        key = (dialect.name, dialect.driver, dialect.paramstyle)
        if (known := self._compiled.get(key)) is None:
            compiled = self.construct.compile(dialect=dialect)  # type: ignore[attr-defined]
            order = tuple(compiled.positiontup) if compiled.positional else None
            known = self._compiled[key] = (compiled.string, order)
        return known


class Statements:
    """All statements on the tables of one schema, each built when it is first needed.

    Args:
        tables: The tables they speak of.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._pages: dict[frozenset[str], Statement] = {}

    @cached_property
    def put_checkpoint(self) -> Statement:
        """See `put_checkpoint`."""
        return Statement(put_checkpoint(self.tables))

    @cached_property
    def add_writes(self) -> Statement:
        """See `put_writes`, for writes of which the first one stays."""
        return Statement(put_writes(self.tables).on_conflict_do_nothing())

    @cached_property
    def replace_writes(self) -> Statement:
        """See `put_writes`, for writes of which the last one counts."""
        insertion = put_writes(self.tables)
        new = insertion.excluded
        return Statement(
            insertion.on_conflict_do_update(
                index_elements=list(self.tables.checkpoint_writes.primary_key),
                set_={"channel": new.channel, "type": new.type, "blob": new.blob, "task_path": new.task_path},
            )
        )

    @cached_property
    def get_checkpoint(self) -> Statement:
        """See `checkpoints`: the one with a given id. Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`."""
        return Statement(checkpoints(self.tables, self._pick(named(self.tables, "checkpoint_id"))))

    @cached_property
    def get_latest(self) -> Statement:
        """See `checkpoints`: the newest. Binds: `thread_id`, `checkpoint_ns`."""
        newest = self.tables.checkpoints.c.checkpoint_id.desc()
        return Statement(checkpoints(self.tables, self._pick(named(self.tables)).order_by(newest).limit(number(1))))

    @cached_property
    def delete_thread(self) -> Statement:
        """See `delete_thread`."""
        return Statement(delete_thread(self.tables))

    @cached_property
    def delta_history(self) -> Statement:
        """See `delta_history`."""
        return Statement(delta_history(self.tables))

    @cached_property
    def revision(self) -> Statement:
        """The revisions that Alembic has noted for this schema; one row, as a rule."""
        noted = table(VERSION_TABLE, column("version_num"), schema=self.tables.schema)
        return Statement(select(noted.c.version_num))

    def list_page(self, conditions: frozenset[str]) -> Statement:
        """See `list_page`; built once for each set of conditions."""
        if (page := self._pages.get(conditions)) is None:
            page = self._pages[conditions] = Statement(list_page(self.tables, conditions))
        return page

    def _pick(self, condition: ColumnElement[bool]) -> Select[Any]:
        return select(self.tables.checkpoints).where(condition)


def put_checkpoint(t: Tables) -> Insert:
    """Upsert a checkpoint together with the blobs that are new in it: one statement, so atomic on its own.

    Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`, `parent_checkpoint_id`, `checkpoint` and `metadata` (JSON
    text), and the blobs as four arrays of equal length, `channels`, `versions`, `types`, `blobs`.
    """
    new = rows_of_binds(channel=Text, version=Text, type=Text, blob=LargeBinary)
    blobs = (
        insert(t.checkpoint_blobs)
        .from_select(
            ["thread_id", "checkpoint_ns", "channel", "version", "type", "blob"],
            select(given("thread_id"), given("checkpoint_ns"), new.c.channel, new.c.version, new.c.type, new.c.blob),
        )
        .on_conflict_do_nothing()
    )
    insertion = insert(t.checkpoints).values(
        thread_id=given("thread_id"),
        checkpoint_ns=given("checkpoint_ns"),
        checkpoint_id=given("checkpoint_id"),
        parent_checkpoint_id=given("parent_checkpoint_id"),
        # JSON travels as text, so that the host's json_serializer can't change it.
        checkpoint=cast(given("checkpoint"), JSONB),
        metadata=cast(given("metadata"), JSONB),
    )
    return insertion.on_conflict_do_update(
        index_elements=list(t.checkpoints.primary_key),
        set_={"checkpoint": insertion.excluded.checkpoint, "metadata": insertion.excluded.metadata},
    ).add_cte(blobs.cte("new_blobs"))


def put_writes(t: Tables) -> Insert:
    """Insert the pending writes of one task; the caller adds what happens to those that are there already.

    Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`, `task_id`, `task_path`, and the writes as four arrays of equal
    length, `idxs`, `channels`, `types`, `blobs`, with no `idx` twice.
    """
    new = rows_of_binds(idx=Integer, channel=Text, type=Text, blob=LargeBinary)
    own = ["thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "task_path"]
    return insert(t.checkpoint_writes).from_select(
        [*own, "idx", "channel", "type", "blob"],
        select(*[given(name) for name in own], new.c.idx, new.c.channel, new.c.type, new.c.blob),
    )


def checkpoints(t: Tables, chosen: Select[Any]) -> Select[Any]:
    """Select checkpoints whole: with the blobs of their channels, their pending writes and old-style pending sends.

    The columns are those of `codec.Row`. What belongs to a checkpoint comes as parallel arrays from LATERAL subqueries,
    the shape that a distributed PostgreSQL takes too.

    Args:
        t: The tables.
        chosen: Which rows of `checkpoints`, ordered and limited as wanted. It is a subquery of its own, so that the
            LATERAL parts run for these rows only, and only after sorting and limiting.
    """
    c = chosen.subquery("c")
    blobs, writes, sends = _blobs(t, c), _writes(t, c), _sends(t, c)
    return select(
        c.c.thread_id,
        c.c.checkpoint_ns,
        c.c.checkpoint_id,
        c.c.parent_checkpoint_id,
        cast(c.c.checkpoint, Text),
        cast(c.c.metadata, Text),
        *blobs.c,
        *writes.c,
        *sends.c,
    ).select_from(c.join(blobs, true()).join(writes, true()).join(sends, true()))


def list_page(t: Tables, conditions: frozenset[str]) -> Select[Any]:
    """Select one page of checkpoints, newest first.

    Binds: `page_size`, at most `MOST_ROWS`, and one for each condition.

    Args:
        t: The tables.
        conditions: Any of `thread_id`, `checkpoint_ns`, `checkpoint_id`, `filter` (JSON text that the metadata must
            contain), `before` (a checkpoint id) and `after_row`, which says that the page begins after the row with
            `last_checkpoint_id`, `last_thread_id` and `last_checkpoint_ns`.
    """
    c = t.checkpoints.c
    across = "thread_id" in conditions and "checkpoint_ns" not in conditions
    wanted = [c[name] == given(name) for name in ("thread_id", "checkpoint_ns", "checkpoint_id") if name in conditions]
    if "filter" in conditions:
        wanted.append(c.metadata.op("@>", return_type=Boolean)(cast(given("filter"), JSONB)))
    if "before" in conditions:
        wanted.append(c.checkpoint_id < given("before"))
    # Ids are unique only within a thread and namespace; what the conditions leave open completes the order.
    names = ["checkpoint_id", *(name for name in ("thread_id", "checkpoint_ns") if name not in conditions)]
    if "after_row" in conditions:
        last = [given(f"last_{name}") for name in names]
        wanted.append(tuple_(*[c[name] for name in names]) < tuple_(*last) if len(names) > 1 else c[names[0]] < last[0])
    page = select(t.checkpoints).where(*wanted).order_by(*[c[name].desc() for name in names]).limit(number(MOST_ROWS))
    if across:
        # Namespace by namespace each part of the page comes from the index in order. Otherwise every page would read
        # and sort the whole thread: its index has the namespace before the checkpoint.
        namespaces = _namespaces(t)
        part = page.where(c.checkpoint_ns == namespaces.c.checkpoint_ns).correlate(namespaces).lateral("part")
        page = select(part).select_from(namespaces.join(part, true()))
        page = page.order_by(*[part.c[name].desc() for name in names]).limit(number(MOST_ROWS))
    # A limit that is a parameter tells the planner nothing: it would plan for a tenth of the thread, and compile the
    # plan of a long one (JIT), which takes longer than running it. So it is told the most there can be first.
    most = page.subquery("page")
    ordered = select(most).order_by(*[most.c[name].desc() for name in names])
    whole = checkpoints(t, ordered.limit(select(bindparam("page_size", type_=Integer)).scalar_subquery()))
    return whole.order_by(*[whole.selected_columns[name].desc() for name in names])


def _namespaces(t: Tables) -> CTE:
    """The namespaces of a thread, by a walk that jumps from one to the next in the index."""
    c = t.checkpoints.c
    ordered = (
        select(c.checkpoint_ns).where(c.thread_id == given("thread_id")).order_by(c.checkpoint_ns).limit(number(1))
    )
    found = select(ordered.scalar_subquery().label("checkpoint_ns")).cte("namespaces", recursive=True)
    following = ordered.where(c.checkpoint_ns > found.c.checkpoint_ns).correlate(found).scalar_subquery()
    return found.union_all(select(following).where(found.c.checkpoint_ns.is_not(None)))


def delete_thread(t: Tables) -> Delete:
    """Delete everything stored for a thread, atomically. Binds: `thread_id`."""
    blobs, writes = (
        delete(table).where(table.c.thread_id == given("thread_id")).cte(f"deleted_{table.name}")
        for table in (t.checkpoint_blobs, t.checkpoint_writes)
    )
    return delete(t.checkpoints).where(t.checkpoints.c.thread_id == given("thread_id")).add_cte(blobs, writes)


def _blobs(t: Tables, c: Subquery) -> LateralFromClause:
    b = t.checkpoint_blobs
    pairs = func.jsonb_each_text(member(c.c.checkpoint, key("channel_versions"))).table_valued("key", "value")
    # A SELECT of its own: a distributed PostgreSQL can't plan the set-returning function in the join itself.
    current = select(pairs.c.key.label("channel"), pairs.c.value.label("version")).correlate(c).subquery("current")
    # The limit has the primary key looked up for each channel. Otherwise the planner, which takes every checkpoint to
    # have 100 channels, would rather read all blobs of a thread and hash them.
    found = (
        select(b.c.type, b.c.blob)
        .where(same_graph(b, c), b.c.channel == current.c.channel, b.c.version == current.c.version)
        .where(b.c.type != key("empty"))
        .limit(number(1))
        .correlate(c, current)
        .lateral("found")
    )
    return (
        select(*arrays([current.c.channel, found.c.type, found.c.blob], "blob"))
        .select_from(current.join(found, true()))
        .correlate(c)
        .lateral("blobs")
    )


def _writes(t: Tables, c: Subquery) -> LateralFromClause:
    w = t.checkpoint_writes
    return (
        select(*arrays([w.c.task_id, w.c.channel, w.c.type, w.c.blob], "write", *applied(w)))
        .where(same_graph(w, c), w.c.checkpoint_id == c.c.checkpoint_id)
        .correlate(c)
        .lateral("writes")
    )


def _sends(t: Tables, c: Subquery) -> LateralFromClause:
    """Before format 4 a step's sends were writes of the parent, in its own thread and namespace."""
    w = t.checkpoint_writes
    old = cast(member_text(c.c.checkpoint, key("v")), Numeric) < number(4)
    return (
        select(*arrays([w.c.type, w.c.blob], "send", *applied(w)))
        .where(same_graph(w, c), w.c.checkpoint_id == c.c.parent_checkpoint_id, w.c.channel == key(TASKS), old)
        .correlate(c)
        .lateral("sends")
    )
