"""The statements that read a thread's history without its values; no I/O."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from checkpoint_store.schema import PAGED, Tables
from checkpoint_store.sql import expressions as ex

INTERRUPT, ERROR = "__interrupt__", "__error__"
"""LangGraph's channels of interrupts and of failed tasks."""


def summaries(t: Tables) -> sa.Select[Any]:
    """Select the newest checkpoints of a thread in all its namespaces, with the bytes that each of them added.

    A row is a namespace, an id, its parent's id, the metadata as JSON text, the added bytes (of the checkpoint itself,
    its pending writes, and values and pages that its parent does not have), the number of tasks that have stored
    writes, and those of `INTERRUPT` and `ERROR` that they wrote to.

    Binds: `thread_id`, `limit`.
    """
    c = t.checkpoints
    found = sa.select(c.c.thread_id, c.c.checkpoint_ns, c.c.checkpoint_id).where(ex.in_thread(c))
    found = found.order_by(c.c.checkpoint_id.desc(), c.c.checkpoint_ns.desc()).limit(ex.param("limit", sa.Integer))
    chosen = found.subquery("chosen")
    before = c.alias("before")
    parent = (
        sa.select(ex.channel_versions(before).label("versions"))
        .where(ex.same_namespace(before, c), before.c.checkpoint_id == c.c.parent_checkpoint_id)
        .correlate(c)
        .lateral("parent")
    )
    writes, values = _writes(t, c), _new_values(t, c, parent)
    own = sa.func.pg_column_size(c.c.checkpoint) + sa.func.pg_column_size(c.c.metadata)
    rows = chosen.join(c, ex.same_checkpoint(c, chosen)).outerjoin(parent, sa.true())
    return (
        sa.select(
            c.c.checkpoint_ns,
            c.c.checkpoint_id,
            c.c.parent_checkpoint_id,
            sa.cast(c.c.metadata, sa.Text).label("metadata"),
            sa.cast(own + values.c.bytes + writes.c.bytes, sa.BigInteger).label("added"),
            writes.c.tasks,
            writes.c.said,
        )
        .select_from(rows.join(writes, sa.true()).join(values, sa.true()))
        .order_by(c.c.checkpoint_id.desc(), c.c.checkpoint_ns.desc())
    )


def ids_with_prefix(t: Tables) -> sa.Select[Any]:
    """Select at most two checkpoint ids of a namespace that have a prefix.

    Binds: `thread_id`, `checkpoint_ns`, `prefix`.
    """
    c = t.checkpoints.c
    begins = sa.func.starts_with(c.checkpoint_id, ex.param("prefix"), type_=sa.Boolean())
    found = sa.select(c.checkpoint_id).where(ex.in_namespace(t.checkpoints), begins).order_by(c.checkpoint_id.desc())
    return found.limit(ex.int_literal(2))


def _writes(t: Tables, c: sa.FromClause) -> sa.FromClause:
    """Select the number of tasks that have stored writes at a checkpoint, their bytes, and their special channels."""
    w = t.checkpoint_writes
    is_special = w.c.channel.in_([ex.text_literal(INTERRUPT), ex.text_literal(ERROR)])
    return (
        sa.select(
            sa.func.count(w.c.task_id.distinct()).label("tasks"),
            sa.func.coalesce(sa.func.sum(sa.func.pg_column_size(w.c.blob)), ex.ZERO).label("bytes"),
            sa.func.array_agg(w.c.channel.distinct()).filter(is_special).label("said"),
        )
        .where(ex.same_checkpoint(w, c))
        .correlate(c)
        .lateral("writes")
    )


def _new_values(t: Tables, c: sa.FromClause, parent: sa.FromClause) -> sa.FromClause:
    """Select the bytes of the blobs and pages of a checkpoint that its parent does not have."""
    b, old, p = t.checkpoint_blobs, t.checkpoint_blobs.alias("old"), t.checkpoint_pages
    versions = ex.members_of(c.c.checkpoint, "channel_versions")
    current = sa.func.jsonb_each_text(versions).table_valued("key", "value").render_derived("current")
    before = ex.member_text(parent.c.versions, current.c.key)
    is_old = sa.and_(ex.same_namespace(old, b), old.c.channel == b.c.channel, old.c.version == before)
    known = ex.digests_of(old).where(is_old, old.c.type == ex.text_literal(PAGED)).correlate(b, parent, current)
    fresh = ex.digests_in(b).except_(known)
    found = sa.select(sa.func.sum(sa.func.pg_column_size(p.c.page)).label("bytes"))
    found = found.where(b.c.type == ex.text_literal(PAGED), ex.same_thread(p, b), p.c.digest.in_(fresh))
    pages = found.correlate(b, parent, current).lateral("pages")
    is_current = sa.and_(ex.same_namespace(b, c), b.c.channel == current.c.key, b.c.version == current.c.value)
    sizes = sa.func.coalesce(sa.func.pg_column_size(b.c.blob), ex.ZERO) + sa.func.coalesce(pages.c.bytes, ex.ZERO)
    return (
        sa.select(sa.func.coalesce(sa.func.sum(sizes), ex.ZERO).label("bytes"))
        .select_from(current.join(b, is_current).outerjoin(pages, sa.true()))
        .where(current.c.value.is_distinct_from(before))
        .correlate(c, parent)
        .lateral("new_values")
    )
