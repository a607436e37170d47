"""Core statements, built once per schema; no I/O.

Each statement is one round trip and one row-count-independent SQL text: varying numbers of rows travel as arrays. Every
table it touches carries an equality on `thread_id`, so that a distributed or partitioned PostgreSQL can route it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    BigInteger,
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
    Table,
    Text,
    Update,
    and_,
    bindparam,
    cast,
    column,
    delete,
    exists,
    func,
    or_,
    select,
    table,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.sql.selectable import LateralFromClause

from checkpoint_store.ancestry import delta_history
from checkpoint_store.clauses import (
    applied,
    arrays,
    digests_of,
    given,
    key,
    member,
    member_text,
    named,
    number,
    rows_of_binds,
    same_blob,
    same_graph,
    value_of,
)
from checkpoint_store.schema import PAGED, VERSION_TABLE, Tables

TASKS = "__pregel_tasks"
"""LangGraph's channel of pending sends (`langgraph.checkpoint.serde.types.TASKS`, not imported: see `schema`)."""


MOST_ROWS = 128
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


class Read(NamedTuple):
    """A statement that reads checkpoints, in two forms.

    Joining pages is a large part of the plan, and each execution pays for it whether there are pages or not.
    """

    plain: Statement
    """Returns recipes as they are, of the type `schema.PAGED`."""
    joined: Statement
    """Returns their values."""

    @classmethod
    def of(cls, build: Callable[[bool], Executable]) -> Read:
        """Build both from a function of whether pages are joined."""
        return cls(Statement(build(False)), Statement(build(True)))


class Statements:
    """All statements on the tables of one schema, each built when it is first needed.

    Args:
        tables: The tables they speak of.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._pages: dict[frozenset[str], Read] = {}

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
        return Statement(replacing(put_writes(self.tables), "channel", "type", "blob", "task_path"))

    @cached_property
    def get_checkpoint(self) -> Read:
        """See `checkpoints`: the one with a given id. Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`."""
        chosen = self._pick(named(self.tables, "checkpoint_id"))
        return Read.of(lambda joined: checkpoints(self.tables, chosen, joined=joined))

    @cached_property
    def get_latest(self) -> Read:
        """See `checkpoints`: the newest. Binds: `thread_id`, `checkpoint_ns`."""
        newest = self.tables.checkpoints.c.checkpoint_id.desc()
        chosen = self._pick(named(self.tables)).order_by(newest).limit(number(1))
        return Read.of(lambda joined: checkpoints(self.tables, chosen, joined=joined))

    @cached_property
    def store(self) -> Statement:
        """See `store`."""
        return Statement(store(self.tables))

    @cached_property
    def known_pages(self) -> Statement:
        """See `known_pages`."""
        return Statement(known_pages(self.tables))

    @cached_property
    def lock_thread(self) -> Statement:
        """Waits until nobody stores pages of a thread, and keeps others from it. Binds: `thread_id`."""
        t = self.tables.checkpoint_threads
        return Statement(select(t.c.epoch).where(t.c.thread_id == given("thread_id")).with_for_update())

    @cached_property
    def delete_thread(self) -> Statement:
        """See `delete_thread`."""
        return Statement(delete_thread(self.tables))

    @cached_property
    def collect_pages(self) -> Statement:
        """See `collect_pages`."""
        return Statement(collect_pages(self.tables))

    @cached_property
    def next_blobs(self) -> Statement:
        """See `next_blobs`."""
        return Statement(next_blobs(self.tables))

    @cached_property
    def share_blobs(self) -> Statement:
        """See `share_blobs`."""
        return Statement(share_blobs(self.tables))

    @cached_property
    def inline_blobs(self) -> Statement:
        """See `inline_blobs`."""
        return Statement(inline_blobs(self.tables))

    @cached_property
    def delta_history(self) -> Statement:
        """See `delta_history`."""
        return Statement(delta_history(self.tables))

    @cached_property
    def has_table(self) -> Statement:
        """Whether there is a table: to know a database of the stock saver by. Binds: `name`, qualified."""
        return Statement(select(func.to_regclass(given("name")).is_not(None)))

    @cached_property
    def revision(self) -> Statement:
        """The revisions that Alembic has noted for this schema; one row, as a rule."""
        noted = table(VERSION_TABLE, column("version_num"), schema=self.tables.schema)
        return Statement(select(noted.c.version_num))

    def list_page(self, conditions: frozenset[str]) -> Read:
        """See `list_page`; built once for each set of conditions."""
        if (page := self._pages.get(conditions)) is None:
            page = Read.of(lambda joined: list_page(self.tables, conditions, joined=joined))
            self._pages[conditions] = page
        return page

    def _pick(self, condition: ColumnElement[bool]) -> Select[Any]:
        return select(self.tables.checkpoints).where(condition)


@lru_cache(maxsize=64)
def statements_of(schema: str | None) -> Statements:
    """Return the statements on the tables of a PostgreSQL schema; savers share them."""
    return Statements(Tables(schema))


def replacing(insertion: Insert, *columns: str) -> Insert:
    """An insert that replaces some columns of the rows that are there already."""
    table: Any = insertion.table
    return insertion.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={name: insertion.excluded[name] for name in columns}
    )


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
    return replacing(insertion, "checkpoint", "metadata").add_cte(blobs.cte("new_blobs"))


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


def checkpoints(t: Tables, chosen: Select[Any], *, joined: bool) -> Select[Any]:
    """Select checkpoints whole: with the blobs of their channels, their pending writes and old-style pending sends.

    The columns are those of `codec.Row`. What belongs to a checkpoint comes as parallel arrays from LATERAL subqueries,
    the shape that a distributed PostgreSQL takes too.

    Args:
        t: The tables.
        chosen: Which rows of `checkpoints`, ordered and limited as wanted. It is a subquery of its own, so that the
            LATERAL parts run for these rows only, and only after sorting and limiting.
        joined: Whether pages are joined to values.
    """
    c = chosen.subquery("c")
    blobs, writes, sends = _blobs(t, c, joined=joined), _writes(t, c), _sends(t, c)
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


def list_page(t: Tables, conditions: frozenset[str], *, joined: bool) -> Select[Any]:
    """Select one page of checkpoints, newest first.

    Binds: `page_size`, at most `MOST_ROWS`, and one for each condition.

    Args:
        t: The tables.
        conditions: Any of `thread_id`, `checkpoint_ns`, `checkpoint_id`, `filter` (JSON text that the metadata must
            contain), `before` (a checkpoint id) and `after_row`, which says that the page begins after the row with
            `last_checkpoint_id`, `last_thread_id` and `last_checkpoint_ns`.
        joined: Whether pages are joined to values.
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
    size = select(bindparam("page_size", type_=Integer)).scalar_subquery()
    whole = checkpoints(t, ordered.limit(size), joined=joined)
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


def store(t: Tables) -> Select[Any]:
    """Store many checkpoints, blobs, pages and pending writes, of any threads: all in one commit.

    A thread whose rows refer to pages passes only if those are there: its row in `checkpoint_threads` has the epoch
    they were seen in, or all of them come along. The row is locked until the commit, so that nobody deletes pages
    meanwhile. (Having waited for a lock, a statement goes on with the snapshot it began with, except for the locked row
    itself: so it is this row that tells.) Nothing is stored of threads that don't pass. Returns those that do, and
    their epochs.

    Binds: arrays by the names of `changes.merged`.
    """
    passed = _passed(t)
    graph = {"checkpoint_ns": Text}
    write = {**graph, "checkpoint_id": Text, "task_id": Text, "idx": Integer, "task_path": Text}
    value = {"channel": Text, "type": Text, "blob": LargeBinary}
    pages = _new_rows(
        passed, "page_", t.checkpoint_pages, digest=LargeBinary, page=LargeBinary
    ).on_conflict_do_nothing()
    blobs = _new_rows(
        passed, "blob_", t.checkpoint_blobs, **graph, channel=Text, version=Text, type=Text, blob=LargeBinary
    ).on_conflict_do_nothing()
    checkpoints = _new_rows(
        passed,
        "checkpoint_",
        t.checkpoints,
        **graph,
        checkpoint_id=Text,
        parent_checkpoint_id=Text,
        checkpoint=Text,
        metadata=Text,
    )
    added = _new_rows(passed, "added_", t.checkpoint_writes, **write, **value).on_conflict_do_nothing()
    return select(passed.c.thread_id, passed.c.epoch).add_cte(
        pages.cte("new_pages"),
        blobs.cte("new_blobs"),
        replacing(checkpoints, "checkpoint", "metadata").cte("new_checkpoints"),
        added.cte("added_writes"),
        replacing(
            _new_rows(passed, "replaced_", t.checkpoint_writes, **write, **value),
            "channel",
            "type",
            "blob",
            "task_path",
        ).cte("replaced_writes"),
    )


def _new_rows(passed: CTE, prefix: str, target: Table, **columns: Any) -> Insert:
    """Insert rows that come as arrays, of the threads that passed."""
    new, names = rows_of_binds(prefix, thread_id=Text, **columns), ["thread_id", *columns]
    values = [cast(new.c[name], JSONB) if name in ("checkpoint", "metadata") else new.c[name] for name in names]
    chosen = select(*values).select_from(new.join(passed, passed.c.thread_id == new.c.thread_id))
    # Everybody locks rows in one order: by key, as Python sorts strings, but special writes (whose idx is negative)
    # before ordinary ones, because those that replace are all special and go first.
    special_first = [new.c.idx >= number(0)] if "idx" in columns else []
    keys = [new.c[column.key] for column in target.primary_key]
    order = [*special_first, *[key.collate("C") if isinstance(key.type, Text) else key for key in keys]]
    return insert(target).from_select(names, chosen.order_by(*order))


def _passed(t: Tables) -> CTE:
    threads, kinds = t.checkpoint_threads, {"thread_id": Text, "kind": Integer, "epoch": BigInteger}
    gate = rows_of_binds("gate_", **kinds)
    made = (
        insert(threads)
        .from_select(
            ["thread_id", "epoch"],
            select(gate.c.thread_id, gate.c.epoch).where(gate.c.kind == number(2)).order_by(gate.c.thread_id),
        )
        .on_conflict_do_nothing()
        .returning(threads.c.thread_id, threads.c.epoch)
        .cte("made")
    )
    held = (
        select(threads.c.thread_id, threads.c.epoch)
        .select_from(gate.join(threads, threads.c.thread_id == gate.c.thread_id))
        .where(or_(gate.c.kind == number(2), and_(gate.c.kind == number(1), gate.c.epoch == threads.c.epoch)))
        .order_by(threads.c.thread_id)
        .with_for_update(read=True, of=threads)
        .cte("held")
    )
    ungated = select(gate.c.thread_id, gate.c.epoch).where(gate.c.kind == number(0))
    return union_all(ungated, select(made), select(held)).cte("passed")


def known_pages(t: Tables) -> Select[Any]:
    """Select the epoch of a thread and those of some pages that it has; no row if it never had any.

    Binds: `thread_id`, `digests` (array of bytes).
    """
    p, threads = t.checkpoint_pages, t.checkpoint_threads
    digest = rows_of_binds(digest=LargeBinary).c.digest
    known = select(p.c.digest).where(p.c.thread_id == threads.c.thread_id, p.c.digest == digest)
    known = select(func.array_agg(digest)).where(known.correlate(threads, digest.table).exists()).correlate(threads)
    return select(threads.c.epoch, known.scalar_subquery()).where(threads.c.thread_id == given("thread_id"))


def delete_thread(t: Tables) -> Delete:
    """Delete everything stored for a thread, atomically. Binds: `thread_id`."""
    # In the order in which `store` writes, so that the two don't deadlock: PostgreSQL executes the statement itself,
    # then the CTEs, the last one first.
    rest = [
        delete(table).where(table.c.thread_id == given("thread_id")).cte(f"deleted_{table.name}")
        for table in (t.checkpoint_threads, t.checkpoint_pages, t.checkpoint_blobs, t.checkpoints)
    ]
    return delete(t.checkpoint_writes).where(t.checkpoint_writes.c.thread_id == given("thread_id")).add_cte(*rest)


def collect_pages(t: Tables) -> Delete:
    """Delete the pages of a thread that no blob of it refers to, and begin another epoch. Binds: `thread_id`.

    To be executed after `lock_thread`, in one transaction: its snapshot then has everything that was stored before.
    """
    p, threads, b = t.checkpoint_pages, t.checkpoint_threads, t.checkpoint_blobs
    used = digests_of(b).where(b.c.thread_id == given("thread_id"), b.c.type == key(PAGED)).distinct().cte("used")
    another = (
        update(threads)
        .where(threads.c.thread_id == given("thread_id"))
        .values(epoch=threads.c.epoch + number(1))
        .cte("another_epoch")
    )
    is_used = exists().where(used.c.digest == p.c.digest)
    return delete(p).where(p.c.thread_id == given("thread_id"), ~is_used).add_cte(another)


def next_blobs(t: Tables) -> Select[Any]:
    """Select the blobs of a type that follow a key, with the bytes stored: a recipe as it is.

    Binds: `type`, `least` (bytes that they have at least), `most` (how many), and the key to start after: `thread_id`,
    `checkpoint_ns`, `channel`, `version`.
    """
    b = t.checkpoint_blobs
    keys = list(b.primary_key)
    return (
        select(*keys, b.c.blob)
        .where(tuple_(*keys) > tuple_(*[given(column.name) for column in keys]))
        .where(b.c.type == given("type"), func.octet_length(b.c.blob) >= bindparam("least", type_=Integer))
        .order_by(*keys)
        .limit(bindparam("most", type_=Integer))
    )


def share_blobs(t: Tables) -> Update:
    """Put recipes in the place of plain blobs, and store their pages; under the same conditions as `store`.

    Returns the threads that passed, once for each blob replaced. Binds: those of `store` for gates, pages and blobs.
    """
    passed, b = _passed(t), t.checkpoint_blobs
    pages = _new_rows(passed, "page_", t.checkpoint_pages, digest=LargeBinary, page=LargeBinary)
    new = rows_of_binds(
        "blob_", thread_id=Text, checkpoint_ns=Text, channel=Text, version=Text, type=Text, blob=LargeBinary
    )
    return (
        update(b)
        .values(type=new.c.type, blob=new.c.blob)
        .where(same_blob(b, new), b.c.type != key(PAGED), passed.c.thread_id == new.c.thread_id)
        .returning(b.c.thread_id)
        .add_cte(pages.on_conflict_do_nothing().cte("new_pages"))
    )


def inline_blobs(t: Tables) -> Update:
    """Put their values in the place of recipes, except where a page is missing.

    Binds: the blobs' keys as arrays, `blob_thread_ids`, `blob_checkpoint_nss`, `blob_channels`, `blob_versions`.
    """
    b = t.checkpoint_blobs
    paged = b.alias("paged")
    new = rows_of_binds("blob_", thread_id=Text, checkpoint_ns=Text, channel=Text, version=Text)
    kind, value = value_of(t, paged)
    whole = select(*[paged.c[column.name] for column in b.primary_key], kind, value)
    whole = whole.select_from(new.join(paged, same_blob(paged, new))).where(paged.c.type == key(PAGED))
    found = whole.cte("found")
    return (
        update(b)
        .values(type=found.c.type, blob=found.c.blob)
        .where(same_blob(b, found), found.c.blob.is_not(None))
        .returning(b.c.thread_id)
    )


def _blobs(t: Tables, c: Subquery, *, joined: bool) -> LateralFromClause:
    b = t.checkpoint_blobs
    pairs = func.jsonb_each_text(member(c.c.checkpoint, key("channel_versions"))).table_valued("key", "value")
    # A SELECT of its own: a distributed PostgreSQL can't plan the set-returning function in the join itself.
    current = select(pairs.c.key.label("channel"), pairs.c.value.label("version")).correlate(c).subquery("current")
    # The limit has the primary key looked up for each channel. Otherwise the planner, which takes every checkpoint to
    # have 100 channels, would rather read all blobs of a thread and hash them.
    found = (
        select(*(value_of(t, b) if joined else (b.c.type, b.c.blob)))
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
