"""The clauses that statements are made of; no I/O."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    FromClause,
    Integer,
    LargeBinary,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by, array

from checkpoint_store.schema import PAGED, Tables

_ENTRY_BYTES, _PAGE = 17, 255
"""As `pages` writes its recipes; a test has PostgreSQL read them."""

_EMPTY: ColumnElement[bytes] = literal_column("''::bytea", LargeBinary)


def param(name: str, kind: Any = Text) -> ColumnElement[Any]:
    """Return a value that comes with the call, a text as a rule."""
    return bindparam(name, type_=kind)


def text_literal(name: str) -> ColumnElement[str]:
    """A JSON key or other text of ours, as a literal: as a parameter it would travel with every call."""
    return literal_column(f"'{name}'", Text)


def int_literal(value: int) -> ColumnElement[int]:
    """A number of ours, as a literal."""
    return literal_column(str(value), Integer)


def named(t: Tables, *more: str) -> ColumnElement[bool]:
    """The condition that picks a thread's namespace in `checkpoints`, or more exactly."""
    return and_(*[t.checkpoints.c[name] == param(name) for name in ("thread_id", "checkpoint_ns", *more)])


Thread = ColumnElement[str] | None
"""The thread's id where it comes with the call, so that each table of a statement can be asked for that thread alone.

That other rows of the statement have it the server knows too, but not when it plans: it would look at every partition
of a table, or every shard, and pass over all but one only when it comes to them.
"""


def same_graph(one: FromClause, other: FromClause, thread: Thread = None) -> ColumnElement[bool]:
    """The condition that rows of two tables belong to the same thread and namespace."""
    thread = other.c.thread_id if thread is None else thread
    return and_(one.c.thread_id == thread, one.c.checkpoint_ns == other.c.checkpoint_ns)


def same_blob(one: FromClause, other: FromClause) -> ColumnElement[bool]:
    """The condition that rows of two tables have the key of the same blob."""
    return and_(same_graph(one, other), one.c.channel == other.c.channel, one.c.version == other.c.version)


def member(document: ColumnElement[Any], name: ColumnElement[str]) -> ColumnElement[Any]:
    """A member of a JSON object, as JSON."""
    return document.op("->", return_type=JSONB())(name)


def member_text(document: ColumnElement[Any], name: ColumnElement[str]) -> ColumnElement[Any]:
    """A member of a JSON object, as text."""
    return document.op("->>", return_type=Text())(name)


def has_member(document: ColumnElement[Any], name: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a JSON object has a member, be it null."""
    return document.op("?", return_type=Boolean())(name)


def members_of(document: ColumnElement[Any], name: str) -> ColumnElement[Any]:
    """A member of a JSON object if it is an object itself, else NULL: of which there are no members, but no error."""
    found = member(document, text_literal(name))
    return case((func.jsonb_typeof(found) == text_literal("object"), found))


def is_a(kind: str, part: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether JSON is of a kind, such as an object."""
    return func.jsonb_typeof(part) == text_literal(kind)


def value_of(t: Tables, b: FromClause, thread: Thread = None) -> tuple[ColumnElement[str], ColumnElement[bytes]]:
    """The type and the bytes of a blob; a recipe (see `pages`) is joined to its value, or NULL if a page is missing."""
    p = t.checkpoint_pages
    entry = _entries(b).subquery("entry")
    thread = b.c.thread_id if thread is None else thread
    page = select(p.c.page).where(p.c.thread_id == thread, p.c.digest == entry.c.content).correlate(b, entry)
    piece = case(
        (entry.c.size == int_literal(_PAGE), page.scalar_subquery()),
        else_=func.substr(entry.c.content, int_literal(1), entry.c.size),
    )
    pieces = select(entry.c.place, piece.label("piece")).select_from(entry).correlate(b).subquery("pieces")
    in_order = aggregate_order_by(_EMPTY, pieces.c.place)
    joined = case((func.bool_and(pieces.c.piece.is_not(None)), func.string_agg(pieces.c.piece, in_order)))
    is_paged = b.c.type == text_literal(PAGED)
    return (
        case((is_paged, text_literal("msgpack")), else_=b.c.type).label("type"),
        case((is_paged, select(joined).select_from(pieces).scalar_subquery()), else_=b.c.blob).label("blob"),
    )


def digests_of(b: FromClause) -> Select[Any]:
    """The digests of the pages that recipes name; the caller adds which blobs, all of them recipes."""
    entry = _entries(b).lateral("entry")
    return select(entry.c.content.label("digest")).select_from(b.join(entry, entry.c.size == int_literal(_PAGE)))


def digests_in(b: FromClause) -> Select[Any]:
    """The digests of the pages that one recipe names, that of a row of the enclosing statement."""
    entry = _entries(b).subquery("entry")
    return select(entry.c.content.label("digest")).where(entry.c.size == int_literal(_PAGE)).correlate(b)


def _entries(b: FromClause) -> Select[Any]:
    """The entries of a recipe: their place, their size or 255 for a page, and their content or the page's digest."""
    # A SELECT of its own, and the OFFSET keeps it so: a long one is fetched from its TOAST once, not for every entry.
    # Without any it is NULL, which array_fill() would not take.
    recipe = (
        select(func.coalesce(b.c.blob.concat(_EMPTY), _EMPTY).label("entries"))
        .offset(int_literal(0))
        .correlate(b)
        .lateral("recipe")
    )
    entries = recipe.c.entries
    # To the planner generate_series() returns 1,000 rows and unnest() 10, of which a range leaves 1: if it expected
    # more, a page of a list would seem so dear that the server compiles the plan (JIT), longer than it takes to run.
    count = func.length(entries, type_=Integer) // int_literal(_ENTRY_BYTES)
    zeros = func.unnest(func.array_fill(int_literal(0), array([count])))
    place = zeros.table_valued("zero", with_ordinality="place").render_derived("places").c.place
    at = cast((place - int_literal(1)) * int_literal(_ENTRY_BYTES), Integer)
    size = func.get_byte(entries, at).label("size")
    content = func.substr(entries, at + int_literal(2), int_literal(_ENTRY_BYTES - 1)).label("content")
    known = and_(place >= int_literal(1), place <= count)
    each = select(place, size, content).select_from(recipe.join(place.table, true())).where(known)
    # Kept apart by an OFFSET as well: otherwise each row that is sorted would carry the whole recipe along.
    return each.offset(int_literal(0)).correlate(b)


def applied(writes: FromClause) -> list[ColumnElement[Any]]:
    """The order in which LangGraph applies the writes of a step (its `writes_sort_key`).

    Collation "C" orders strings as Python does, by code point, whatever the database's locale.
    """
    return [writes.c.task_path.collate("C"), writes.c.task_id.collate("C"), writes.c.idx]
