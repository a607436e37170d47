"""The statement that tells a thread's history, without its values; no I/O."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, FromClause, Integer, Select, Text, and_, cast, func, select, true
from sqlalchemy.sql.selectable import LateralFromClause

from checkpoint_store.schema import PAGED, Tables
from checkpoint_store.sql.expressions import (
    digests_in,
    digests_of,
    int_literal,
    member,
    member_text,
    members_of,
    named,
    param,
    same_graph,
    text_literal,
)

INTERRUPT, ERROR = "__interrupt__", "__error__"
"""LangGraph's channels of questions to a person and of tasks that failed."""


def summaries(t: Tables) -> Select[Any]:
    """Select the newest checkpoints of a thread in all its namespaces, and what each of them added.

    A row is a namespace, an id, its parent's id, the metadata as JSON text, the bytes that came with it (the
    checkpoint, values that its parent does not have, as far as those share no pages with the parent's, and pending
    writes), the number of tasks that have stored writes, and those channels of theirs that mean something.

    Binds: `thread_id`, `most`.
    """
    c, w = t.checkpoints, t.checkpoint_writes
    chosen = (
        select(c.c.thread_id, c.c.checkpoint_ns, c.c.checkpoint_id)
        .where(c.c.thread_id == param("thread_id"))
        .order_by(c.c.checkpoint_id.desc(), c.c.checkpoint_ns.desc())
        .limit(param("most", Integer))
        .subquery("chosen")
    )
    before = c.alias("before")
    parent = (
        select(member(before.c.checkpoint, text_literal("channel_versions")).label("versions"))
        .where(same_graph(before, c), before.c.checkpoint_id == c.c.parent_checkpoint_id)
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
        .where(same_graph(w, c), w.c.checkpoint_id == c.c.checkpoint_id)
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
            chosen.join(c, and_(same_graph(c, chosen), c.c.checkpoint_id == chosen.c.checkpoint_id))
            .outerjoin(parent, true())
            .join(writes, true())
            .join(values, true())
        )
        .order_by(c.c.checkpoint_id.desc(), c.c.checkpoint_ns.desc())
    )


def matching(t: Tables) -> Select[Any]:
    """Select the ids that begin so, of a thread's namespace, two at most. Binds: those of `named`, `start`."""
    c = t.checkpoints.c
    begins = func.starts_with(c.checkpoint_id, param("start"), type_=Boolean())
    return select(c.checkpoint_id).where(named(t), begins).order_by(c.checkpoint_id.desc()).limit(int_literal(2))


def _new_values(t: Tables, c: FromClause, parent: FromClause) -> LateralFromClause:
    """The bytes of a checkpoint's blobs that its parent does not have, and of the pages that the parent's do not."""
    b, old, p = t.checkpoint_blobs, t.checkpoint_blobs.alias("old"), t.checkpoint_pages
    versions = members_of(c.c.checkpoint, "channel_versions")
    current = func.jsonb_each_text(versions).table_valued("key", "value").render_derived("current")
    before = member_text(parent.c.versions, current.c.key)
    is_old = and_(
        same_graph(old, b), old.c.channel == b.c.channel, old.c.version == before, old.c.type == text_literal(PAGED)
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
                b, and_(same_graph(b, c), b.c.channel == current.c.key, b.c.version == current.c.value)
            ).outerjoin(pages, true())
        )
        .where(current.c.value.is_distinct_from(before))
        .correlate(c, parent)
        .lateral("new_values")
    )
