"""The statement that walks a checkpoint's ancestors for LangGraph's delta channels; no I/O.

A delta channel stores what each step adds and only now and then its whole value. Its value at a checkpoint is the one
stored at the nearest ancestor that has one, with all writes since. Which checkpoints are ancestors, only the parents
tell: a fork shares the namespace, and ids made by several processes need not increase from parent to child.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    FromClause,
    Select,
    Text,
    and_,
    cast,
    func,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy.sql.selectable import LateralFromClause

from checkpoint_store.schema import Tables
from checkpoint_store.sql.arrays import aggregate, array_param, rows_of
from checkpoint_store.sql.expressions import (
    applied,
    has_member,
    int_literal,
    is_a,
    member,
    member_text,
    named,
    param,
    same_graph,
    text_literal,
    value_of,
)


def ancestors(t: Tables) -> Select[Any]:
    """Select the ancestors of a checkpoint with what they contribute to some channels.

    A row is an ancestor: its id, its parent's id, whether the walk starts there, its writes to the channels still
    sought at that point, and the values that end the walk of their channels. The columns are those of `rows.Ancestor`.

    Each ancestor, and whether it has a value, is looked up by its key, so that the walk costs its length, however long
    the thread is. A LIMIT in a subquery of its own has the server do so: of a join or an EXISTS it would make a hash of
    all rows of the thread, and that of the values anew for each ancestor.

    Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id` (or NULL for the newest), `channels` (array of text).
    """
    c = t.checkpoints
    newest = select(c.c.checkpoint_id).where(named(t)).order_by(c.c.checkpoint_id.desc()).limit(int_literal(1))
    target = func.coalesce(param("checkpoint_id"), newest.scalar_subquery())
    start = select(c.c.parent_checkpoint_id).where(named(t), c.c.checkpoint_id == target).scalar_subquery()

    channels = array_param("channels")
    found = _found(t, c, channels)
    chain = (
        select(
            c.c.checkpoint_id,
            c.c.parent_checkpoint_id,
            _flag(True).label("first"),
            _is_sound(c).label("sound"),
            channels.label("sought"),
            found.c.found,
        )
        .select_from(c.join(found, true()))
        .where(named(t), c.c.checkpoint_id == start)
        .cte("chain", recursive=True)
    )
    left, parent = _left(chain), _parent(t, chain)
    found = _found(t, parent, left.c.sought)
    own = [parent.c.checkpoint_id, parent.c.parent_checkpoint_id, _flag(False), _is_sound(parent)]
    # UNION, not UNION ALL: a row that was there before ends the walk, so that a cycle of parents can't make it endless.
    chain = chain.union(
        select(*own, left.c.sought, found.c.found)
        .select_from(chain.join(left, true()).join(parent, true()).join(found, true()))
        .where(func.cardinality(left.c.sought) > int_literal(0))
    )
    writes, values = _writes(t, chain), _values(t, chain)
    steps = [chain.c[name] for name in ("checkpoint_id", "parent_checkpoint_id", "first", "sound")]
    return select(*steps, *writes.c, *values.c).select_from(chain.join(writes, true()).join(values, true()))


def _parent(t: Tables, chain: FromClause) -> LateralFromClause:
    """The parent of a checkpoint, if it is there."""
    c = t.checkpoints
    parent = select(c).where(named(t), c.c.checkpoint_id == chain.c.parent_checkpoint_id)
    return parent.limit(int_literal(1)).correlate(chain).lateral("parent")


def _is_sound(c: FromClause) -> ColumnElement[bool]:
    """Whether a checkpoint has objects where its values and versions should be; in others nothing could be found."""
    parts = [member(c.c.checkpoint, text_literal(name)) for name in ("channel_versions", "channel_values")]
    # A checkpoint without inline values may have none, or null.
    return and_(
        is_a("object", parts[0]),
        func.coalesce(func.jsonb_typeof(parts[1]), text_literal("null")).in_(
            [text_literal("object"), text_literal("null")]
        ),
    )


def _flag(value: bool) -> ColumnElement[bool]:
    return literal_column(str(value).lower(), Boolean)


def _found(t: Tables, c: FromClause, sought: ColumnElement[Any]) -> LateralFromClause:
    """Those of the sought channels that a checkpoint has a value for, inline or as a blob."""
    channel = rows_of(sought, "channel").c.channel
    inline = has_member(member(c.c.checkpoint, text_literal("channel_values")), channel)
    blob = select(literal_column("true", Boolean)).where(_is_blob(t, c, channel)).limit(int_literal(1))
    blob = blob.correlate(c, channel.table)
    return (
        select(func.array_agg(channel).label("found")).where(or_(inline, blob.scalar_subquery())).correlate(c).lateral()
    )


def _left(chain: FromClause) -> LateralFromClause:
    """The channels whose walk goes on to the parent."""
    channel = rows_of(chain.c.sought, "channel").c.channel
    none = cast(text_literal("{}"), ARRAY(Text))
    gone = func.coalesce(chain.c.found, none)
    return (
        select(func.coalesce(func.array_agg(channel), none).label("sought")).where(channel != func.all(gone)).lateral()
    )


def _is_blob(t: Tables, c: FromClause, channel: ColumnElement[str]) -> ColumnElement[bool]:
    """The condition that a blob is the value of a channel at a checkpoint."""
    b = t.checkpoint_blobs
    version = member_text(member(c.c.checkpoint, text_literal("channel_versions")), channel)
    return and_(
        same_graph(b, c, param("thread_id")),
        b.c.channel == channel,
        b.c.version == version,
        b.c.type != text_literal("empty"),
    )


def _writes(t: Tables, chain: FromClause) -> LateralFromClause:
    w = t.checkpoint_writes
    return (
        select(*aggregate([w.c.task_id, w.c.channel, w.c.type, w.c.blob], "write", *applied(w)))
        .where(
            w.c.thread_id == param("thread_id"),
            w.c.checkpoint_ns == param("checkpoint_ns"),
            w.c.checkpoint_id == chain.c.checkpoint_id,
            w.c.channel == func.any(chain.c.sought),
        )
        .correlate(chain)
        .lateral("writes")
    )


def _values(t: Tables, chain: FromClause) -> LateralFromClause:
    c, b = t.checkpoints, t.checkpoint_blobs
    found = rows_of(chain.c.found, "channel")
    inline = cast(member(member(c.c.checkpoint, text_literal("channel_values")), found.c.channel), Text)
    # The limit has the primary key looked up, as in `statements`.
    blob = (
        select(b.c.version, *value_of(t, b, param("thread_id")))
        .where(_is_blob(t, c, found.c.channel))
        .limit(int_literal(1))
        .correlate(c, found)
        .lateral()
    )
    return (
        select(*aggregate([found.c.channel, blob.c.version, blob.c.type, blob.c.blob, inline.label("inline")], "value"))
        .select_from(c.join(found, true()).outerjoin(blob, true()))
        .where(named(t), c.c.checkpoint_id == chain.c.checkpoint_id)
        .correlate(chain)
        .lateral("stored")
    )
