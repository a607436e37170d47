"""The statements that read a thread's history without its values; no I/O."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, FromClause, Integer, Select, Text, and_, cast, func, select, true
from sqlalchemy.sql.selectable import LateralFromClause

from checkpoint_store.schema import PAGED, Tables
from checkpoint_store.sql.expressions import (
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
    """Select the newest checkpoints of a thread in all its namespaces, and what each of them added.

    A row is a namespace, an id, its parent's id, the metadata as JSON text, the bytes that came with it (the
    checkpoint, values that its parent does not have, as far as those share no pages with the parent's, and pending
    writes), the number of tasks that have stored writes, and those channels of theirs that mean something.

    Binds: `thread_id`, `limit`.
    """
    c, w = t.checkpoints, t.checkpoint_writes
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
    said = func.array_agg(w.c.channel.distinct()).filter(
        w.c.channel.in_([text_literal(INTERRUPT), text_literal(ERROR)])
    )
    writes = (
        select(
            func.count(w.c.task_id.distinct()).label("tasks"),
            func.coalesce(func.sum(func.pg_column_size(w.c.blob)), int_literal(0)).label("bytes"),
            said.label("said"),
        )
        .where(same_checkpoint(w, c))
        .correlate(c)
        .lateral("writes")
    )
    values = _new_values(t, c, parent)
    own = func.pg_column_size(c.c.checkpoint) + func.pg_column_size(c.c.metadata)
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
        .select_from(
            chosen.join(c, same_checkpoint(c, chosen))
            .outerjoin(parent, true())
            .join(writes, true())
            .join(values, true())
        )
        .order_by(c.c.checkpoint_id.desc(), c.c.checkpoint_ns.desc())
    )


def ids_with_prefix(t: Tables) -> Select[Any]:
    """Select the ids that begin so, of a thread's namespace, two at most. Binds: those of `named`, `prefix`."""
    c = t.checkpoints.c
    begins = func.starts_with(c.checkpoint_id, param("prefix"), type_=Boolean())
    return (
        select(c.checkpoint_id)
        .where(in_namespace(t.checkpoints), begins)
        .order_by(c.checkpoint_id.desc())
        .limit(int_literal(2))
    )


def _new_values(t: Tables, c: FromClause, parent: FromClause) -> LateralFromClause:
    """The bytes of a checkpoint's blobs that its parent does not have, and of the pages that the parent's do not."""
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
    sizes = func.coalesce(func.pg_column_size(b.c.blob), int_literal(0)) + func.coalesce(pages.c.bytes, int_literal(0))
    return (
        select(func.coalesce(func.sum(sizes), int_literal(0)).label("bytes"))
        .select_from(
            current.join(
                b, and_(same_namespace(b, c), b.c.channel == current.c.key, b.c.version == current.c.value)
            ).outerjoin(pages, true())
        )
        .where(current.c.value.is_distinct_from(before))
        .correlate(c, parent)
        .lateral("new_values")
    )
