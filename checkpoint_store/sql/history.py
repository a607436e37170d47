"""The statements that read a thread's history without its values; no I/O."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, FromClause, Integer, Select, Text, and_, cast, func, select, true
from sqlalchemy.sql.selectable import LateralFromClause

from checkpoint_store.schema import PAGED, Tables
from checkpoint_store.sql.expressions import (
    ZERO,
    channel_versions,
    digests_in,
    digests_of,
    in_namespace,
    int_literal,
    member_text,
    members_of,
    param,
    same_checkpoint,
    same_namespace,
    text_literal,
)

INTERRUPT, ERROR = "__interrupt__", "__error__"
"""LangGraph's channels of interrupts and of failed tasks."""


def summaries(t: Tables) -> Select[Any]:
    """Select the newest checkpoints of a thread in all its namespaces, with the bytes that each of them added.

    A row is a namespace, an id, its parent's id, the metadata as JSON text, the added bytes (of the checkpoint itself,
    its pending writes, and values and pages that its parent does not have), the number of tasks that have stored
    writes, and those of `INTERRUPT` and `ERROR` that they wrote to.

    Binds: `thread_id`, `limit`.
    """
    c = t.checkpoints
    chosen = (
        select(c.c.thread_id, c.c.checkpoint_ns, c.c.checkpoint_id)
        .where(c.c.thread_id == param("thread_id"))
        .order_by(c.c.checkpoint_id.desc(), c.c.checkpoint_ns.desc())
        .limit(param("limit", Integer))
        .subquery("chosen")
    )
    before = c.alias("before")
    parent = (
        select(channel_versions(before).label("versions"))
        .where(same_namespace(before, c), before.c.checkpoint_id == c.c.parent_checkpoint_id)
        .correlate(c)
        .lateral("parent")
    )
    writes, values = _writes(t, c), _new_values(t, c, parent)
    own = func.pg_column_size(c.c.checkpoint) + func.pg_column_size(c.c.metadata)
    rows = chosen.join(c, same_checkpoint(c, chosen)).outerjoin(parent, true())
    return (
        select(
            c.c.checkpoint_ns,
            c.c.checkpoint_id,
            c.c.parent_checkpoint_id,
            cast(c.c.metadata, Text).label("metadata"),
            cast(own + values.c.bytes + writes.c.bytes, BigInteger).label("added"),
            writes.c.tasks,
            writes.c.said,
        )
        .select_from(rows.join(writes, true()).join(values, true()))
        .order_by(c.c.checkpoint_id.desc(), c.c.checkpoint_ns.desc())
    )


def ids_with_prefix(t: Tables) -> Select[Any]:
    """Select at most two checkpoint ids of a namespace that have a prefix.

    Binds: `thread_id`, `checkpoint_ns`, `prefix`.
    """
    c = t.checkpoints.c
    begins = func.starts_with(c.checkpoint_id, param("prefix"), type_=Boolean())
    return (
        select(c.checkpoint_id)
        .where(in_namespace(t.checkpoints), begins)
        .order_by(c.checkpoint_id.desc())
        .limit(int_literal(2))
    )


def _writes(t: Tables, c: FromClause) -> LateralFromClause:
    """Select the number of tasks that have stored writes at a checkpoint, their bytes, and their special channels."""
    w = t.checkpoint_writes
    is_special = w.c.channel.in_([text_literal(INTERRUPT), text_literal(ERROR)])
    return (
        select(
            func.count(w.c.task_id.distinct()).label("tasks"),
            func.coalesce(func.sum(func.pg_column_size(w.c.blob)), ZERO).label("bytes"),
            func.array_agg(w.c.channel.distinct()).filter(is_special).label("said"),
        )
        .where(same_checkpoint(w, c))
        .correlate(c)
        .lateral("writes")
    )


def _new_values(t: Tables, c: FromClause, parent: FromClause) -> LateralFromClause:
    """Select the bytes of the blobs and pages of a checkpoint that its parent does not have."""
    b, old, p = t.checkpoint_blobs, t.checkpoint_blobs.alias("old"), t.checkpoint_pages
    versions = members_of(c.c.checkpoint, "channel_versions")
    current = func.jsonb_each_text(versions).table_valued("key", "value").render_derived("current")
    before = member_text(parent.c.versions, current.c.key)
    is_old = and_(
        same_namespace(old, b), old.c.channel == b.c.channel, old.c.version == before, old.c.type == text_literal(PAGED)
    )
    fresh = digests_in(b).except_(digests_of(old).where(is_old).correlate(b, parent, current))
    pages = (
        select(func.sum(func.pg_column_size(p.c.page)).label("bytes"))
        .where(b.c.type == text_literal(PAGED), p.c.thread_id == b.c.thread_id, p.c.digest.in_(fresh))
        .correlate(b, parent, current)
        .lateral("pages")
    )
    sizes = func.coalesce(func.pg_column_size(b.c.blob), ZERO) + func.coalesce(pages.c.bytes, ZERO)
    return (
        select(func.coalesce(func.sum(sizes), ZERO).label("bytes"))
        .select_from(
            current.join(
                b, and_(same_namespace(b, c), b.c.channel == current.c.key, b.c.version == current.c.value)
            ).outerjoin(pages, true())
        )
        .where(current.c.value.is_distinct_from(before))
        .correlate(c, parent)
        .lateral("new_values")
    )
