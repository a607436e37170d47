"""The statement that walks a checkpoint's ancestors for LangGraph's delta channels; no I/O.

A delta channel stores the writes of each step and only now and then its whole value. Its value at a checkpoint is the
one stored at the nearest ancestor that has one, with all writes since. Ancestors are found by their parents' ids alone:
a fork shares the namespace, and ids made by several processes need not increase from parent to child.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from checkpoint_store.schema import Tables
from checkpoint_store.sql import expressions as ex


def ancestors(t: Tables) -> sa.Select[Any]:
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
    newest = sa.select(c.c.checkpoint_id).where(ex.in_namespace(c)).order_by(c.c.checkpoint_id.desc()).limit(ex.ONE)
    target = sa.func.coalesce(ex.param("checkpoint_id"), newest.scalar_subquery())
    start = sa.select(c.c.parent_checkpoint_id).where(ex.in_namespace(c), c.c.checkpoint_id == target).scalar_subquery()

    channels = ex.array_param("channels")
    found = _found(t, c, channels)
    chain = (
        sa.select(
            c.c.checkpoint_id,
            c.c.parent_checkpoint_id,
            ex.TRUE.label("first"),
            _is_sound(c).label("sound"),
            channels.label("sought"),
            found.c.found,
        )
        .select_from(c.join(found, sa.true()))
        .where(ex.in_namespace(c), c.c.checkpoint_id == start)
        .cte("chain", recursive=True)
    )
    left, parent = _left(chain), _parent(t, chain)
    found = _found(t, parent, left.c.sought)
    own = [parent.c.checkpoint_id, parent.c.parent_checkpoint_id, ex.FALSE, _is_sound(parent)]
    # UNION, not UNION ALL: a row that was there before ends the walk, so that a cycle of parents can't make it endless.
    chain = chain.union(
        sa.select(*own, left.c.sought, found.c.found)
        .select_from(chain.join(left, sa.true()).join(parent, sa.true()).join(found, sa.true()))
        .where(sa.func.cardinality(left.c.sought) > ex.ZERO)
    )
    writes, values = _writes(t, chain), _values(t, chain)
    steps = [chain.c[name] for name in ("checkpoint_id", "parent_checkpoint_id", "first", "sound")]
    return sa.select(*steps, *writes.c, *values.c).select_from(chain.join(writes, sa.true()).join(values, sa.true()))


def _parent(t: Tables, chain: sa.FromClause) -> sa.FromClause:
    """Return the parent of a checkpoint, or no row."""
    c = t.checkpoints
    parent = sa.select(c).where(ex.in_namespace(c), c.c.checkpoint_id == chain.c.parent_checkpoint_id)
    return parent.limit(ex.ONE).correlate(chain).lateral("parent")


def _is_sound(c: sa.FromClause) -> sa.ColumnElement[bool]:
    """Return whether a checkpoint has objects as its values and versions; in any other nothing could be found."""
    parts = [ex.member(c.c.checkpoint, ex.text_literal(name)) for name in ("channel_versions", "channel_values")]
    # A checkpoint without inline values may have none, or null.
    return sa.and_(
        ex.is_a("object", parts[0]),
        sa.func.coalesce(sa.func.jsonb_typeof(parts[1]), ex.text_literal("null")).in_(
            [ex.text_literal("object"), ex.text_literal("null")]
        ),
    )


def _found(t: Tables, c: sa.FromClause, sought: sa.ColumnElement[Any]) -> sa.FromClause:
    """Return those of the sought channels that a checkpoint has a value of, inline or as a blob."""
    channel = ex.rows_of(sought, "channel").c.channel
    inline = ex.has_member(ex.channel_values(c), channel)
    b = t.checkpoint_blobs
    blob = sa.select(ex.TRUE).where(ex.is_value(b, c, channel, ex.param("thread_id"))).limit(ex.ONE)
    blob = blob.correlate(c, channel.table)
    found = sa.select(sa.func.array_agg(channel).label("found")).where(sa.or_(inline, blob.scalar_subquery()))
    return found.correlate(c).lateral()


def _left(chain: sa.FromClause) -> sa.FromClause:
    """Return the channels for which the walk continues with the parent."""
    channel = ex.rows_of(chain.c.sought, "channel").c.channel
    none = sa.cast(ex.text_literal("{}"), sa.ARRAY(sa.Text))
    gone = sa.func.coalesce(chain.c.found, none)
    found = sa.select(sa.func.coalesce(sa.func.array_agg(channel), none).label("sought"))
    return found.where(channel != sa.func.all(gone)).lateral()


def _writes(t: Tables, chain: sa.FromClause) -> sa.FromClause:
    w = t.checkpoint_writes
    return (
        sa.select(*ex.aggregate([w.c.task_id, w.c.channel, w.c.type, w.c.blob], "write", *ex.write_order(w)))
        .where(ex.in_namespace(w), w.c.checkpoint_id == chain.c.checkpoint_id)
        .where(w.c.channel == sa.func.any(chain.c.sought))
        .correlate(chain)
        .lateral("writes")
    )


def _values(t: Tables, chain: sa.FromClause) -> sa.FromClause:
    c, b = t.checkpoints, t.checkpoint_blobs
    found = ex.rows_of(chain.c.found, "channel")
    inline = sa.cast(ex.member(ex.channel_values(c), found.c.channel), sa.Text)
    # With the limit the primary key is looked up, as in `read`.
    chosen = sa.select(b.c.version, *ex.value_of(t, b, ex.param("thread_id")))
    chosen = chosen.where(ex.is_value(b, c, found.c.channel, ex.param("thread_id"))).limit(ex.ONE).correlate(c, found)
    blob = chosen.lateral()
    return (
        sa.select(
            *ex.aggregate([found.c.channel, blob.c.version, blob.c.type, blob.c.blob, inline.label("inline")], "value")
        )
        .select_from(c.join(found, sa.true()).outerjoin(blob, sa.true()))
        .where(ex.in_namespace(c), c.c.checkpoint_id == chain.c.checkpoint_id)
        .correlate(chain)
        .lateral("stored")
    )
