"""The statements that encrypt stored values, or encrypt them anew; no I/O.

Each rewrites a row only if the SHA-256 of its bytes is still that which was read: a write in between is not lost.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    FromClause,
    Integer,
    LargeBinary,
    Select,
    Table,
    Text,
    Update,
    and_,
    case,
    cast,
    exists,
    func,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert

from checkpoint_store.schema import Tables
from checkpoint_store.sql.expressions import (
    ONE,
    ZERO,
    aggregate,
    channel_values,
    channel_versions,
    is_a,
    is_value,
    key_types,
    member_text,
    members_of,
    param,
    rows_of_binds,
    text_literal,
    value_of,
)


def next_blob_values(t: Tables) -> Select[Any]:
    """Select the blobs that follow a key: see `_batch`; of a recipe the value.

    Binds: the key to start after, `last_thread_id`, `last_checkpoint_ns`, `last_channel`, `last_version`, and `limit`.
    """
    b = t.checkpoint_blobs
    kind, value = value_of(t, b)
    return _batch(b, kind, value).where(b.c.type != text_literal("empty"))


def next_write_values(t: Tables) -> Select[Any]:
    """Select the pending writes that follow a key: see `_batch`.

    Binds: the key to start after, `last_thread_id` to `last_idx`, and `limit`.
    """
    w = t.checkpoint_writes
    return _batch(w, w.c.type, w.c.blob)


def next_inline_values(t: Tables) -> Select[Any]:
    """Select the checkpoints with inline values that follow a key: key, all inline values as JSON, and arrays of them.

    The arrays are the channels, their values as JSON, their versions, and the types of the blobs of these versions, if
    there are any; and the bytes of those at which the value is true, which may mark a snapshot.

    Binds: the key to start after, `last_thread_id`, `last_checkpoint_ns`, `last_checkpoint_id`, and `limit`.
    """
    b = t.checkpoint_blobs
    chosen = _after(t.checkpoints).where(_has_inline(t.checkpoints)).subquery("c")
    one = _members(chosen)
    version = member_text(channel_versions(chosen), one.c.channel)
    kind, blob = value_of(t, b)
    maybe = case((one.c.value == cast(text_literal("true"), JSONB), blob)).label("blob")
    found = (
        select(kind, maybe).where(is_value(b, chosen, one.c.channel)).limit(ONE).correlate(chosen, one).lateral("found")
    )
    columns = [
        one.c.channel,
        cast(one.c.value, Text).label("value"),
        version.label("version"),
        found.c.type,
        found.c.blob,
    ]
    inline = select(*aggregate(columns, "inline")).select_from(one.outerjoin(found, true())).correlate(chosen).lateral()
    keys = [chosen.c[column.name] for column in t.checkpoints.primary_key]
    values = cast(channel_values(chosen), Text)
    return select(*keys, values, *inline.c).select_from(chosen.join(inline, true())).order_by(*keys)


def rewrite_blobs(t: Tables) -> Update:
    """Replace types and bytes of blobs: see `_rewrite`."""
    return _rewrite(t.checkpoint_blobs)


def rewrite_writes(t: Tables) -> Update:
    """Replace types and bytes of pending writes: see `_rewrite`."""
    return _rewrite(t.checkpoint_writes)


def move_inline(t: Tables) -> Select[Any]:
    """Store inline values as blobs, and take them out of their checkpoints. Returns the keys of the checkpoints.

    Binds: parallel arrays of checkpoints, `thread_ids`, `checkpoint_nss`, `checkpoint_ids`, `befores` and `afters`
    (their inline values as JSON text), and of values, `value_thread_ids`, `value_checkpoint_nss`,
    `value_checkpoint_ids`, `value_channels`, `value_versions`, `value_types`, `value_blobs`.
    """
    c, b = t.checkpoints, t.checkpoint_blobs
    new = rows_of_binds(**key_types(c), before=Text, after=Text)
    name = cast(text_literal("{channel_values}"), ARRAY(Text))
    moved = (
        update(c)
        .values(checkpoint=func.jsonb_set(c.c.checkpoint, name, cast(new.c.after, JSONB)))
        .where(_same(c, new, [column.name for column in c.primary_key]))
        .where(channel_values(c) == cast(new.c.before, JSONB))
        .returning(*c.primary_key)
        .cte("moved")
    )
    value = rows_of_binds("value_", **key_types(c), channel=Text, version=Text, type=Text, blob=LargeBinary)
    names = [column.name for column in b.columns]
    chosen = (
        select(*[value.c[column] for column in names])
        .select_from(value.join(moved, _same(value, moved, [column.name for column in c.primary_key])))
        .order_by(*[value.c[column.name] for column in b.primary_key])
    )
    values = insert(b).from_select(names, chosen)
    # A blob that exists already is the value of that version, unless its type says that there is none.
    values = values.on_conflict_do_update(
        index_elements=list(b.primary_key),
        set_={"type": values.excluded.type, "blob": values.excluded.blob},
        where=b.c.type == text_literal("empty"),
    )
    return select(*moved.c).add_cte(values.cte("new_blobs"))


def count_plain(t: Tables) -> Select[Any]:
    """Count the values that are not encrypted: blobs, pending writes, inline values."""
    b, w, c = t.checkpoint_blobs, t.checkpoint_writes, t.checkpoints
    plain = [func.strpos(func.coalesce(table.c.type, text_literal("")), text_literal("+")) == ZERO for table in (b, w)]
    one = _members(c)
    inline = select(func.count()).select_from(c.join(one, true())).where(~_is_blob(t, c, one.c.channel))
    return select(
        select(func.count()).select_from(b).where(b.c.type != text_literal("empty"), plain[0]).scalar_subquery(),
        select(func.count()).select_from(w).where(plain[1]).scalar_subquery(),
        inline.scalar_subquery(),
    )


def _batch(table: Table, kind: ColumnElement[Any], value: ColumnElement[Any]) -> Select[Any]:
    """Select key, channel, SHA-256 and type of the stored bytes, type and bytes of the value."""
    keys = [*table.primary_key, table.c.channel.label("of_channel")]
    stored = (func.sha256(table.c.blob).label("digest"), table.c.type.label("stored_type"))
    return _after(table).with_only_columns(*keys, *stored, kind, value)


def _after(table: Table) -> Select[Any]:
    keys: list[Column[Any]] = list(table.primary_key)
    last = [param(f"last_{column.name}", column.type) for column in keys]
    return select(table).where(tuple_(*keys) > tuple_(*last)).order_by(*keys).limit(param("limit", Integer))


def _rewrite(table: Table) -> Update:
    """Replace types and bytes of rows, and return a thread for each.

    Binds: parallel arrays of the rows' keys, `digests` (of the bytes that were read), `types` and `blobs`.
    """
    keys = key_types(table)
    new = rows_of_binds(**keys, digest=LargeBinary, type=Text, blob=LargeBinary)
    return (
        update(table)
        .values(type=new.c.type, blob=new.c.blob)
        .where(_same(table, new, [*keys]), func.sha256(table.c.blob) == new.c.digest)
        .returning(table.c.thread_id)
    )


def _members(c: FromClause) -> FromClause:
    return (
        func.jsonb_each(members_of(c.c.checkpoint, "channel_values"))
        .table_valued(Column("channel", Text), Column("value", JSONB))
        .render_derived("one")
    )


def _has_inline(c: FromClause) -> ColumnElement[bool]:
    values = channel_values(c)
    return and_(is_a("object", values), values != cast(text_literal("{}"), JSONB))


def _is_blob(t: Tables, c: FromClause, channel: Any) -> ColumnElement[bool]:
    """Return whether there is a blob for a channel of a checkpoint: it takes precedence over an inline value."""
    return exists().where(is_value(t.checkpoint_blobs, c, channel)).correlate(c, channel.table)


def _same(one: FromClause, other: FromClause, names: list[str]) -> ColumnElement[bool]:
    return and_(*[one.c[name] == other.c[name] for name in names])
