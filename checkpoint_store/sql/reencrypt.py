"""The statements that encrypt stored values, or encrypt them anew; no I/O.

Each rewrites a row only if the SHA-256 of its bytes is still that which was read: a write in between is not lost.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from checkpoint_store.schema import Tables
from checkpoint_store.sql import expressions as ex
from checkpoint_store.sql.pages import after


def next_blob_values(t: Tables) -> sa.Select[Any]:
    """Select the blobs that follow a key: see `_batch`; of a recipe the value.

    Binds: those of `after`.
    """
    b = t.checkpoint_blobs
    kind, value = ex.value_of(t, b)
    return _batch(b, kind, value).where(b.c.type != ex.text_literal("empty"))


def next_write_values(t: Tables) -> sa.Select[Any]:
    """Select the pending writes that follow a key: see `_batch`.

    Binds: those of `after`.
    """
    w = t.checkpoint_writes
    return _batch(w, w.c.type, w.c.blob)


def next_inline_values(t: Tables) -> sa.Select[Any]:
    """Select the checkpoints with inline values that follow a key: key, all inline values as JSON, and arrays of them.

    The arrays are the channels, their values as JSON, their versions, and the types of the blobs of these versions, if
    there are any; and the bytes of those at which the value is true, which may mark a snapshot.

    Binds: those of `after`.
    """
    b = t.checkpoint_blobs
    stored = ex.channel_values(t.checkpoints)
    has_inline = sa.and_(ex.is_a("object", stored), stored != sa.cast(ex.text_literal("{}"), pg.JSONB))
    chosen = after(t.checkpoints).where(has_inline).subquery("c")
    one = _members(chosen)
    version = ex.member_text(ex.channel_versions(chosen), one.c.channel)
    kind, blob = ex.value_of(t, b)
    maybe = sa.case((one.c.value == sa.cast(ex.text_literal("true"), pg.JSONB), blob)).label("blob")
    rows = sa.select(kind, maybe).where(ex.is_value(b, chosen, one.c.channel)).limit(ex.ONE).correlate(chosen, one)
    found = rows.lateral("found")
    columns = [
        one.c.channel,
        sa.cast(one.c.value, sa.Text).label("value"),
        version.label("version"),
        found.c.type,
        found.c.blob,
    ]
    inline = (
        sa.select(*ex.aggregate(columns, "inline"))
        .select_from(one.outerjoin(found, sa.true()))
        .correlate(chosen)
        .lateral()
    )
    keys = [chosen.c[column.name] for column in t.checkpoints.primary_key]
    values = sa.cast(ex.channel_values(chosen), sa.Text)
    return sa.select(*keys, values, *inline.c).select_from(chosen.join(inline, sa.true())).order_by(*keys)


def rewrite_blobs(t: Tables) -> sa.Update:
    """Replace types and bytes of blobs: see `_rewrite`."""
    return _rewrite(t.checkpoint_blobs)


def rewrite_writes(t: Tables) -> sa.Update:
    """Replace types and bytes of pending writes: see `_rewrite`."""
    return _rewrite(t.checkpoint_writes)


def move_inline(t: Tables) -> sa.Select[Any]:
    """Store inline values as blobs, and take them out of their checkpoints. Returns the keys of the checkpoints.

    Binds: parallel arrays of checkpoints, `thread_ids`, `checkpoint_nss`, `checkpoint_ids`, `befores` and `afters`
    (their inline values as JSON text), and of values, `value_thread_ids`, `value_checkpoint_nss`,
    `value_checkpoint_ids`, `value_channels`, `value_versions`, `value_types`, `value_blobs`.
    """
    c, b = t.checkpoints, t.checkpoint_blobs
    new = ex.rows_of_binds(**ex.key_types(c), before=sa.Text, after=sa.Text)
    name = sa.cast(ex.text_literal("{channel_values}"), sa.ARRAY(sa.Text))
    changed = sa.update(c).values(checkpoint=sa.func.jsonb_set(c.c.checkpoint, name, sa.cast(new.c.after, pg.JSONB)))
    changed = changed.where(_same(c, new, [column.name for column in c.primary_key]))
    moved = (
        changed.where(ex.channel_values(c) == sa.cast(new.c.before, pg.JSONB)).returning(*c.primary_key).cte("moved")
    )
    value = ex.rows_of_binds(
        "value_", **ex.key_types(c), channel=sa.Text, version=sa.Text, type=sa.Text, blob=sa.LargeBinary
    )
    names = [column.name for column in b.columns]
    rows = sa.select(*[value.c[column] for column in names])
    rows = rows.select_from(value.join(moved, _same(value, moved, [column.name for column in c.primary_key])))
    chosen = rows.order_by(*[value.c[column.name] for column in b.primary_key])
    values = pg.insert(b).from_select(names, chosen)
    # A blob that exists already is the value of that version, unless its type says that there is none.
    values = values.on_conflict_do_update(
        index_elements=list(b.primary_key),
        set_={"type": values.excluded.type, "blob": values.excluded.blob},
        where=b.c.type == ex.text_literal("empty"),
    )
    return sa.select(*moved.c).add_cte(values.cte("new_blobs"))


def count_plain(t: Tables) -> sa.Select[Any]:
    """Count the values that are not encrypted: blobs, pending writes, inline values."""
    b, w, c = t.checkpoint_blobs, t.checkpoint_writes, t.checkpoints
    plain = [
        sa.func.strpos(sa.func.coalesce(table.c.type, ex.text_literal("")), ex.text_literal("+")) == ex.ZERO
        for table in (b, w)
    ]
    one = _members(c)
    # A blob takes precedence over an inline value.
    is_blob = sa.exists().where(ex.is_value(b, c, one.c.channel, c.c.thread_id)).correlate(c, one)
    inline = sa.select(sa.func.count()).select_from(c.join(one, sa.true())).where(~is_blob)
    return sa.select(
        sa.select(sa.func.count())
        .select_from(b)
        .where(b.c.type != ex.text_literal("empty"), plain[0])
        .scalar_subquery(),
        sa.select(sa.func.count()).select_from(w).where(plain[1]).scalar_subquery(),
        inline.scalar_subquery(),
    )


def _batch(table: sa.Table, kind: sa.ColumnElement[Any], value: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Select key, channel, SHA-256 and type of the stored bytes, type and bytes of the value."""
    keys = [*table.primary_key, table.c.channel.label("of_channel")]
    stored = (sa.func.sha256(table.c.blob).label("digest"), table.c.type.label("stored_type"))
    return after(table).with_only_columns(*keys, *stored, kind, value)


def _rewrite(table: sa.Table) -> sa.Update:
    """Replace types and bytes of rows, and return a thread for each.

    Binds: parallel arrays of the rows' keys, `digests` (of the bytes that were read), `types` and `blobs`.
    """
    keys = ex.key_types(table)
    new = ex.rows_of_binds(**keys, digest=sa.LargeBinary, type=sa.Text, blob=sa.LargeBinary)
    changed = sa.update(table).values(type=new.c.type, blob=new.c.blob)
    changed = changed.where(_same(table, new, [*keys]), sa.func.sha256(table.c.blob) == new.c.digest)
    return changed.returning(table.c.thread_id)


def _members(c: sa.FromClause) -> sa.FromClause:
    pairs = sa.func.jsonb_each(ex.members_of(c.c.checkpoint, "channel_values"))
    return pairs.table_valued(sa.Column("channel", sa.Text), sa.Column("value", pg.JSONB)).render_derived("one")


def _same(one: sa.FromClause, other: sa.FromClause, names: list[str]) -> sa.ColumnElement[bool]:
    return sa.and_(ex.same_thread(one, other), *[one.c[name] == other.c[name] for name in names if name != "thread_id"])
