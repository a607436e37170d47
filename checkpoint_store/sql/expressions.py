"""The expressions that statements are made of; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from checkpoint_store.schema import PAGED, Tables

_ENTRY_BYTES, _PAGE = 17, 255
"""As `serde.pages` writes recipes; a test has PostgreSQL read them."""

_EMPTY: sa.ColumnElement[bytes] = sa.literal_column("''::bytea", sa.LargeBinary)


def param(name: str, kind: Any = sa.Text) -> sa.ColumnElement[Any]:
    """Return a parameter: a value that comes with the call, by default a text."""
    return sa.bindparam(name, type_=kind)


@cache
def text_literal(name: str) -> sa.ColumnElement[str]:
    """Return a JSON key or other text of ours as a literal: as a parameter it would travel with every call."""
    return sa.literal_column(f"'{name}'", sa.Text)


@cache
def int_literal(value: int) -> sa.ColumnElement[int]:
    """Return a number of ours as a literal."""
    return sa.literal_column(str(value), sa.Integer)


ZERO, ONE = int_literal(0), int_literal(1)
FALSE, TRUE = sa.literal_column("false", sa.Boolean), sa.literal_column("true", sa.Boolean)


def array_param(name: str, kind: Any = sa.Text) -> sa.ColumnElement[Any]:
    """Return an array that comes with the call."""
    return sa.bindparam(name, type_=sa.ARRAY(kind))


def key_types(table: sa.Table) -> dict[str, Any]:
    """Return the columns of a table's key with their types, as `rows_of_binds` takes them."""
    return {column.name: type(column.type) for column in table.primary_key}


def rows_of_binds(prefix: str = "", /, **columns: Any) -> sa.TableValuedAlias:
    """Return parallel arrays, bound by the plurals of the columns' names, as rows."""
    return _rows(prefix, columns, lambda array: array)


def few_rows_of_binds(prefix: str, /, **columns: Any) -> sa.TableValuedAlias:
    """Return parallel arrays as rows of which the planner expects ten: it looks each up in an index.

    If it knew how many there are, it would rather read tables whole, up to sizes where that takes ten times as long.
    """
    return _rows(prefix, columns, lambda array: sa.select(array).scalar_subquery())


def _rows(
    prefix: str, columns: Mapping[str, Any], form: Callable[[sa.ColumnElement[Any]], sa.ColumnElement[Any]]
) -> sa.TableValuedAlias:
    arrays = [form(array_param(f"{prefix}{name}s", kind)) for name, kind in columns.items()]
    rows = sa.func.unnest(*arrays).table_valued(*[sa.Column(name, kind) for name, kind in columns.items()])
    return rows.render_derived(f"{prefix}new")


def rows_of(array: sa.ColumnElement[Any], name: str) -> sa.TableValuedAlias:
    """Return an array of text as rows of one column."""
    return sa.func.unnest(array).table_valued(sa.Column(name, sa.Text)).render_derived()


def aggregate(
    columns: Sequence[sa.ColumnElement[Any]], prefix: str, *order: sa.ColumnElement[Any]
) -> list[sa.ColumnElement[Any]]:
    """Return columns aggregated into parallel arrays, NULL where there is no row; named by prefix and column."""
    return [
        sa.func.array_agg(pg.aggregate_order_by(column, *order) if order else column).label(f"{prefix}_{column.key}")
        for column in columns
    ]


def in_namespace(rows: sa.FromClause, *more: str) -> sa.ColumnElement[bool]:
    """Return the condition that rows belong to the namespace that the call names, and equal it in more columns.

    Binds: `thread_id`, `checkpoint_ns`, and the names of those columns.
    """
    return sa.and_(*[rows.c[name] == param(name) for name in ("thread_id", "checkpoint_ns", *more)])


def in_thread(rows: sa.FromClause) -> sa.ColumnElement[bool]:
    """Return the condition that rows belong to the thread that the call names. Binds: `thread_id`."""
    return rows.c.thread_id == param("thread_id")


def in_threads(rows: sa.FromClause) -> sa.ColumnElement[bool]:
    """Return the condition that rows belong to one of the threads that the call names. Binds: see `thread_binds`."""
    return in_thread(rows) if is_distributed(rows) else among_threads(rows)


def among_threads(rows: sa.FromClause) -> sa.ColumnElement[bool]:
    """Return the same for several threads also of distributed tables, whose shards alone are asked: for reads."""
    return rows.c.thread_id == sa.func.any(array_param("thread_ids"))


DISTRIBUTED = "checkpoint_store.distributed"
"""The key in the `info` of a table that Citus has distributed; see `sql.distribution`."""


def is_distributed(rows: sa.FromClause) -> bool:
    """Return whether rows are those of a distributed table, or of an alias of one."""
    table = getattr(rows, "element", rows)
    return isinstance(table, sa.Table) and DISTRIBUTED in table.info


def same_thread(one: sa.FromClause, other: sa.FromClause) -> sa.ColumnElement[bool]:
    """Return the condition that rows of two tables belong to the same thread; for distributed ones, to the call's."""
    equal = one.c.thread_id == other.c.thread_id
    return sa.and_(equal, *[in_thread(rows) for rows in (one, other) if is_distributed(rows)])


Thread = sa.ColumnElement[str] | None
"""The parameter with the thread's id, with which each table of a statement is compared; None if there is no such one.

If a table is compared with another table's rows instead, the server knows the thread only when it executes: its plan
has every partition of the table, or every shard, and skips all but one at the last moment.
"""


def same_namespace(one: sa.FromClause, other: sa.FromClause, thread: Thread = None) -> sa.ColumnElement[bool]:
    """Return the condition that rows of two tables belong to the same thread and namespace."""
    is_same = same_thread(one, other) if thread is None else one.c.thread_id == thread
    return sa.and_(is_same, one.c.checkpoint_ns == other.c.checkpoint_ns)


def same_checkpoint(one: sa.FromClause, other: sa.FromClause, thread: Thread = None) -> sa.ColumnElement[bool]:
    """Return the condition that rows of two tables have the key of the same checkpoint."""
    return sa.and_(same_namespace(one, other, thread), one.c.checkpoint_id == other.c.checkpoint_id)


def same_blob(one: sa.FromClause, other: sa.FromClause) -> sa.ColumnElement[bool]:
    """Return the condition that rows of two tables have the key of the same blob."""
    return sa.and_(same_namespace(one, other), one.c.channel == other.c.channel, one.c.version == other.c.version)


def member(document: sa.ColumnElement[Any], name: sa.ColumnElement[str]) -> sa.ColumnElement[Any]:
    """Return a member of a JSON object, as JSON."""
    return document.op("->", return_type=pg.JSONB())(name)


def member_text(document: sa.ColumnElement[Any], name: sa.ColumnElement[str]) -> sa.ColumnElement[Any]:
    """Return a member of a JSON object, as text."""
    return document.op("->>", return_type=sa.Text())(name)


def has_member(document: sa.ColumnElement[Any], name: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Return whether a JSON object has a member, even if that is null."""
    return document.op("?", return_type=sa.Boolean())(name)


def names_of(document: sa.ColumnElement[Any]) -> sa.TableValuedAlias:
    """Return the names of a JSON object's members, as rows of one column, `channel`."""
    return sa.func.jsonb_object_keys(document).table_valued(sa.Column("channel", sa.Text)).render_derived()


def members_of(document: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[Any]:
    """Return a member of a JSON object if it is an object itself, else NULL, which has no members."""
    found = member(document, text_literal(name))
    return sa.case((sa.func.jsonb_typeof(found) == text_literal("object"), found))


def is_a(kind: str, part: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Return whether JSON is of a kind, such as an object."""
    return sa.func.jsonb_typeof(part) == text_literal(kind)


def channel_versions(c: sa.FromClause) -> sa.ColumnElement[Any]:
    """Return the versions of a checkpoint's channels, a JSON object."""
    return member(c.c.checkpoint, text_literal("channel_versions"))


def channel_values(c: sa.FromClause) -> sa.ColumnElement[Any]:
    """Return the values of a checkpoint's channels that are inline, a JSON object."""
    return member(c.c.checkpoint, text_literal("channel_values"))


def run_id(c: sa.FromClause) -> sa.ColumnElement[Any]:
    """Return the id of a checkpoint's run, as the index on it has it."""
    return member_text(c.c.metadata, text_literal("run_id"))


def is_value(
    b: sa.FromClause, c: sa.FromClause, channel: sa.ColumnElement[str], thread: Thread = None
) -> sa.ColumnElement[bool]:
    """Return the condition that a blob is the value of a channel at a checkpoint."""
    version = member_text(channel_versions(c), channel)
    is_version = sa.and_(b.c.channel == channel, b.c.version == version)
    return sa.and_(same_namespace(b, c, thread), is_version, b.c.type != text_literal("empty"))


def is_inline(c: sa.FromClause, channel: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Return the condition that a checkpoint has a value of a channel inline."""
    return sa.func.coalesce(has_member(channel_values(c), channel), FALSE)


def value_of(
    t: Tables, b: sa.FromClause, thread: Thread = None
) -> tuple[sa.ColumnElement[str], sa.ColumnElement[bytes]]:
    """Return the type and the bytes of a blob's value: for a recipe its joined pages, or NULL if one is missing."""
    p = t.checkpoint_pages
    entry = _entries(b).subquery("entry")
    if thread is None:
        thread = param("thread_id") if is_distributed(b) else b.c.thread_id
    page = sa.select(p.c.page).where(p.c.thread_id == thread, p.c.digest == entry.c.content).correlate(b, entry)
    piece = sa.case(
        (entry.c.size == int_literal(_PAGE), page.scalar_subquery()),
        else_=sa.func.substr(entry.c.content, ONE, entry.c.size),
    )
    pieces = sa.select(entry.c.place, piece.label("piece")).select_from(entry).correlate(b).subquery("pieces")
    in_order = pg.aggregate_order_by(_EMPTY, pieces.c.place)
    joined = sa.case((sa.func.bool_and(pieces.c.piece.is_not(None)), sa.func.string_agg(pieces.c.piece, in_order)))
    is_paged = b.c.type == text_literal(PAGED)
    return (
        sa.case((is_paged, text_literal("msgpack")), else_=b.c.type).label("type"),
        sa.case((is_paged, sa.select(joined).select_from(pieces).scalar_subquery()), else_=b.c.blob).label("blob"),
    )


def digests_of(b: sa.FromClause) -> sa.Select[Any]:
    """Select the digests of the pages that recipes name; the caller adds the condition for blobs that are recipes."""
    entry = _entries(b).lateral("entry")
    return sa.select(entry.c.content.label("digest")).select_from(b.join(entry, entry.c.size == int_literal(_PAGE)))


def digests_in(b: sa.FromClause) -> sa.Select[Any]:
    """Select the digests of the pages that one recipe names, a row of the enclosing statement."""
    entry = _entries(b).subquery("entry")
    return sa.select(entry.c.content.label("digest")).where(entry.c.size == int_literal(_PAGE)).correlate(b)


def _entries(b: sa.FromClause) -> sa.Select[Any]:
    """Select the entries of a recipe: place, size (255 for a page), and content or the page's digest."""
    # A SELECT of its own, which the OFFSET keeps apart: a long recipe is fetched from its TOAST once, not for every
    # entry. array_fill() does not take NULL, which it would be without any bytes.
    found = sa.select(sa.func.coalesce(b.c.blob.concat(_EMPTY), _EMPTY).label("entries")).offset(ZERO).correlate(b)
    recipe = found.lateral("recipe")
    entries = recipe.c.entries
    # The planner expects 1,000 rows of generate_series() and 10 of unnest(), of which a range leaves 1: if it expected
    # more, a part of a list would seem so expensive that the server compiles the plan (JIT), which takes longer than
    # running it.
    count = sa.func.length(entries, type_=sa.Integer) // int_literal(_ENTRY_BYTES)
    zeros = sa.func.unnest(sa.func.array_fill(ZERO, pg.array([count])))
    place = zeros.table_valued("zero", with_ordinality="place").render_derived("places").c.place
    at = sa.cast((place - ONE) * int_literal(_ENTRY_BYTES), sa.Integer)
    size = sa.func.get_byte(entries, at).label("size")
    content = sa.func.substr(entries, at + int_literal(2), int_literal(_ENTRY_BYTES - 1)).label("content")
    known = sa.and_(place >= ONE, place <= count)
    each = sa.select(place, size, content).select_from(recipe.join(place.table, sa.true())).where(known)
    # Kept apart by an OFFSET as well: otherwise each row that is sorted would carry the whole recipe.
    return each.offset(ZERO).correlate(b)


def count_of(rows: sa.FromClause) -> sa.ColumnElement[int]:
    """Return the number of rows, as a scalar subquery."""
    return sa.select(sa.func.count()).select_from(rows).scalar_subquery()


def write_order(writes: sa.FromClause) -> list[sa.ColumnElement[Any]]:
    """Return the order in which LangGraph applies the writes of a step (its `writes_sort_key`).

    Collation "C" orders strings as Python does, by code point, whatever the database's locale.
    """
    return [writes.c.task_path.collate("C"), writes.c.task_id.collate("C"), writes.c.idx]
