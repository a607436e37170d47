"""The statement that walks a checkpoint's ancestors for LangGraph's delta channels; no I/O.

A delta channel stores the writes of each step and only now and then its whole value. Its value at a checkpoint is the
one stored at the nearest ancestor that has one, with all writes since. Ancestors are found by their parents' ids alone:
a fork shares the namespace, and ids made by several processes need not increase from parent to child.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    FromClause,
    Select,
    Text,
    and_,
    cast,
    func,
    or_,
    select,
    true,
)
from sqlalchemy.sql.selectable import LateralFromClause

from checkpoint_store.schema import Tables
from checkpoint_store.sql.expressions import (
    FALSE,
    ONE,
    TRUE,
    ZERO,
    aggregate,
    array_param,
    channel_values,
    has_member,
    in_namespace,
    is_a,
    is_value,
    member,
    param,
    rows_of,
    text_literal,
    value_of,
    write_order,
)


def ancestors(t: Tables) -> Select[Any]:
    """Select the ancestors of a checkpoint with their values of some channels and their writes to them.

    A row is an ancestor: its id, its parent's id, whether the walk starts there, its writes to the channels still
    sought at that point, and the values that end the walk of their channels. The columns are those of
    `serde.records.Ancestor`.

    Each ancestor, and whether it has a value, is looked up by its key, so that the walk costs its length, however long
    the thread is. A LIMIT in a subquery of its own makes the server do so: for a join or an EXISTS it would hash all
    rows of the thread, and those of the values anew for each ancestor.

    Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id` (or NULL for the newest), `channels` (array of text).
    """
    c = t.checkpoints
    newest = select(c.c.checkpoint_id).where(in_namespace(c)).order_by(c.c.checkpoint_id.desc()).limit(ONE)
    target = func.coalesce(param("checkpoint_id"), newest.scalar_subquery())
    start = select(c.c.parent_checkpoint_id).where(in_namespace(c), c.c.checkpoint_id == target).scalar_subquery()

    channels = array_param("channels")
    found = _found(t, c, channels)
    chain = (
        select(
            c.c.checkpoint_id,
            c.c.parent_checkpoint_id,
            TRUE.label("first"),
            _is_sound(c).label("sound"),
            channels.label("sought"),
            found.c.found,
        )
        .select_from(c.join(found, true()))
        .where(in_namespace(c), c.c.checkpoint_id == start)
        .cte("chain", recursive=True)
    )
    left, parent = _left(chain), _parent(t, chain)
    found = _found(t, parent, left.c.sought)
    own = [parent.c.checkpoint_id, parent.c.parent_checkpoint_id, FALSE, _is_sound(parent)]
    # UNION, not UNION ALL: a row that was there before ends the walk, so that a cycle of parents can't make it endless.
    chain = chain.union(
        select(*own, left.c.sought, found.c.found)
        .select_from(chain.join(left, true()).join(parent, true()).join(found, true()))
        .where(func.cardinality(left.c.sought) > ZERO)
    )
    writes, values = _writes(t, chain), _values(t, chain)
    steps = [chain.c[name] for name in ("checkpoint_id", "parent_checkpoint_id", "first", "sound")]
    return select(*steps, *writes.c, *values.c).select_from(chain.join(writes, true()).join(values, true()))


def _parent(t: Tables, chain: FromClause) -> LateralFromClause:
    """Return the parent of a checkpoint, or no row."""
    c = t.checkpoints
    parent = select(c).where(in_namespace(c), c.c.checkpoint_id == chain.c.parent_checkpoint_id)
    return parent.limit(ONE).correlate(chain).lateral("parent")


def _is_sound(c: FromClause) -> ColumnElement[bool]:
    """Return whether a checkpoint has objects as its values and versions; in any other nothing could be found."""
    parts = [member(c.c.checkpoint, text_literal(name)) for name in ("channel_versions", "channel_values")]
    # A checkpoint without inline values may have none, or null.
    return and_(
        is_a("object", parts[0]),
        func.coalesce(func.jsonb_typeof(parts[1]), text_literal("null")).in_(
            [text_literal("object"), text_literal("null")]
        ),
    )


def _found(t: Tables, c: FromClause, sought: ColumnElement[Any]) -> LateralFromClause:
    """Return those of the sought channels that a checkpoint has a value of, inline or as a blob."""
    channel = rows_of(sought, "channel").c.channel
    inline = has_member(channel_values(c), channel)
    b = t.checkpoint_blobs
    blob = select(TRUE).where(is_value(b, c, channel, param("thread_id"))).limit(ONE)
    blob = blob.correlate(c, channel.table)
    return (
        select(func.array_agg(channel).label("found")).where(or_(inline, blob.scalar_subquery())).correlate(c).lateral()
    )


def _left(chain: FromClause) -> LateralFromClause:
    """Return the channels for which the walk continues with the parent."""
    channel = rows_of(chain.c.sought, "channel").c.channel
    none = cast(text_literal("{}"), ARRAY(Text))
    gone = func.coalesce(chain.c.found, none)
    return (
        select(func.coalesce(func.array_agg(channel), none).label("sought")).where(channel != func.all(gone)).lateral()
    )


def _writes(t: Tables, chain: FromClause) -> LateralFromClause:
    w = t.checkpoint_writes
    return (
        select(*aggregate([w.c.task_id, w.c.channel, w.c.type, w.c.blob], "write", *write_order(w)))
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
    inline = cast(member(channel_values(c), found.c.channel), Text)
    # With the limit the primary key is looked up, as in `read`.
    blob = (
        select(b.c.version, *value_of(t, b, param("thread_id")))
        .where(is_value(b, c, found.c.channel, param("thread_id")))
        .limit(ONE)
        .correlate(c, found)
        .lateral()
    )
    return (
        select(*aggregate([found.c.channel, blob.c.version, blob.c.type, blob.c.blob, inline.label("inline")], "value"))
        .select_from(c.join(found, true()).outerjoin(blob, true()))
        .where(in_namespace(c), c.c.checkpoint_id == chain.c.checkpoint_id)
        .correlate(chain)
        .lateral("stored")
    )
