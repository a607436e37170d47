"""The statements that read a thread's history without its values; no I/O."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from checkpoint_store.schema import PAGED, Tables
from checkpoint_store.sql import expressions as ex
from checkpoint_store.sql.read import TASKS

INTERRUPT, ERROR = "__interrupt__", "__error__"
"""LangGraph's channels of interrupts and of failed tasks."""


_CONTROL = (INTERRUPT, ERROR, "__error_source_node__", "__resume__")
"""LangGraph's channels of what happened to a task (its CONTROL_WRITES); one that has written to others has finished."""

LARGEST_SENDS = 256 * 1024
"""The size up to which the value of a channel that triggers tasks is read, to know which."""


def newest_summaries(t: Tables, *, before: bool) -> sa.Select[Any]:
    """Select the newest checkpoints of a thread in all its namespaces, or the newest with smaller ids than one.

    Binds: `thread_id`, `limit`, and `before` if there is such an id; for the columns see `_summaries`.
    """
    c = t.checkpoints
    found = sa.select(c.c.thread_id, c.c.checkpoint_ns, c.c.checkpoint_id).where(*_among(c, before=before))
    found = found.order_by(c.c.checkpoint_id.desc(), c.c.checkpoint_ns.desc()).limit(ex.param("limit", sa.Integer))
    return _summaries(t, found.subquery("chosen"))


def summaries_at(t: Tables) -> sa.Select[Any]:
    """Select some checkpoints of a thread, as `newest_summaries`. Binds: see `_keys`."""
    c, keys = t.checkpoints, _keys()
    found = sa.select(c.c.thread_id, c.c.checkpoint_ns, c.c.checkpoint_id).where(ex.in_thread(c))
    is_one = sa.and_(c.c.checkpoint_ns == keys.c.checkpoint_ns, c.c.checkpoint_id == keys.c.checkpoint_id)
    return _summaries(t, found.select_from(c.join(keys, is_one)).subquery("chosen"))


def count_checkpoints(t: Tables, *, before: bool) -> sa.Select[Any]:
    """Count the checkpoints of a thread, or those with smaller ids than one. Binds: `thread_id`, and `before`."""
    return sa.select(sa.func.count()).select_from(t.checkpoints).where(*_among(t.checkpoints, before=before))


def parents_of_newer(t: Tables) -> sa.Select[Any]:
    """Select those of some checkpoints that have children with the id `before`, or a larger one. Binds: see `_keys`."""
    c, keys = t.checkpoints, _keys()
    is_parent = sa.and_(c.c.checkpoint_ns == keys.c.checkpoint_ns, c.c.parent_checkpoint_id == keys.c.checkpoint_id)
    found = sa.select(c.c.checkpoint_ns, c.c.parent_checkpoint_id).distinct().select_from(c.join(keys, is_parent))
    return found.where(ex.in_thread(c), c.c.checkpoint_id >= ex.param("before"))


def _among(c: sa.FromClause, *, before: bool) -> list[sa.ColumnElement[bool]]:
    return [ex.in_thread(c), *([c.c.checkpoint_id < ex.param("before")] if before else [])]


def _keys() -> sa.TableValuedAlias:
    """Return the keys of checkpoints. Binds: `thread_id`, and the arrays `checkpoint_nss` and `checkpoint_ids`."""
    return ex.rows_of_binds(checkpoint_ns=sa.Text, checkpoint_id=sa.Text)


def _summaries(t: Tables, chosen: sa.FromClause) -> sa.Select[Any]:
    """Select checkpoints by their keys, without their values; the columns are those of `serde.records.Summary`."""
    c = t.checkpoints
    before = c.alias("before")
    parent = (
        sa.select(ex.channel_versions(before).label("versions"))
        .where(ex.same_namespace(before, c), before.c.checkpoint_id == c.c.parent_checkpoint_id)
        .offset(ex.ZERO)  # so that a long one is fetched from its TOAST once, not for every channel
        .correlate(c)
        .lateral("parent")
    )
    writes, values = _writes(t, c), _new_values(t, c, parent)
    own = sa.func.pg_column_size(c.c.checkpoint) + sa.func.pg_column_size(c.c.metadata)
    rows = chosen.join(c, ex.same_checkpoint(c, chosen)).outerjoin(parent, sa.true())
    # What a static interrupt has seen is every channel, and triggers nothing.
    seen = ex.members_of(c.c.checkpoint, "versions_seen").op("-", return_type=pg.JSONB())(ex.text_literal(INTERRUPT))
    inline = ex.names_of(ex.members_of(c.c.checkpoint, "channel_values"))
    return (
        sa.select(
            c.c.checkpoint_ns,
            c.c.checkpoint_id,
            c.c.parent_checkpoint_id,
            sa.cast(c.c.metadata, sa.Text).label("metadata"),
            sa.cast(own + values.c.bytes + writes.c.bytes, sa.BigInteger).label("added"),
            writes.c.tasks,
            writes.c.marks,
            writes.c.begun,
            writes.c.finished,
            sa.cast(ex.members_of(c.c.checkpoint, "channel_versions"), sa.Text).label("versions"),
            sa.cast(seen, sa.Text).label("seen"),
            sa.select(sa.func.array_agg(inline.c.channel)).scalar_subquery().label("inline"),
            values.c.channels,
            values.c.types,
            values.c.blobs,
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
    """Select the number of tasks that have stored writes at a checkpoint, their bytes, and what became of the tasks."""
    w = t.checkpoint_writes
    is_mark, is_control = (w.c.channel.in_([*map(ex.text_literal, names)]) for names in ((INTERRUPT, ERROR), _CONTROL))
    return (
        sa.select(
            sa.func.count(w.c.task_id.distinct()).label("tasks"),
            sa.func.coalesce(sa.func.sum(sa.func.pg_column_size(w.c.blob)), ex.ZERO).label("bytes"),
            sa.func.array_agg(w.c.channel.distinct()).filter(is_mark).label("marks"),
            sa.func.array_agg(w.c.task_path.distinct()).filter(is_control).label("begun"),
            sa.func.array_agg(w.c.task_path.distinct()).filter(sa.not_(is_control)).label("finished"),
        )
        .where(ex.same_checkpoint(w, c))
        .correlate(c)
        .lateral("writes")
    )


def _new_values(t: Tables, c: sa.FromClause, parent: sa.FromClause) -> sa.FromClause:
    """Select the bytes of the blobs and pages of a checkpoint that its parent does not have, and their channels.

    Of channels that trigger tasks the values are selected too. Those may be the parent's: in a fork, or in a channel
    that waits for several tasks.
    """
    b, old, p = t.checkpoint_blobs, t.checkpoint_blobs.alias("old"), t.checkpoint_pages
    versions = ex.members_of(c.c.checkpoint, "channel_versions")
    pairs = sa.func.jsonb_each_text(versions).table_valued("key", "value").render_derived()
    # A SELECT of its own, as in `read`, for a distributed PostgreSQL.
    current = sa.select(pairs.c.key, pairs.c.value).correlate(c).subquery("current")
    before = ex.member_text(parent.c.versions, current.c.key)
    is_current = sa.and_(ex.same_namespace(b, c), b.c.channel == current.c.key, b.c.version == current.c.value)
    # With the limit the primary key is looked up for each channel. Otherwise all blobs of the thread would be hashed,
    # for every checkpoint.
    new = sa.select(b).where(is_current).limit(ex.ONE).correlate(c, current).lateral("new")
    is_paged = new.c.type == ex.text_literal(PAGED)
    is_old = sa.and_(ex.same_namespace(old, new), old.c.channel == new.c.channel, old.c.version == before)
    known = ex.digests_of(old).where(is_old, old.c.type == ex.text_literal(PAGED)).correlate(new, parent, current)
    fresh = ex.digests_in(new).except_(known)
    found = sa.select(sa.func.sum(sa.func.pg_column_size(p.c.page)).label("bytes"))
    found = found.where(is_paged, ex.same_thread(p, new), p.c.digest.in_(fresh))
    pages = found.correlate(new, parent, current).lateral("pages")
    sizes = sa.func.coalesce(sa.func.pg_column_size(new.c.blob), ex.ZERO) + sa.func.coalesce(pages.c.bytes, ex.ZERO)
    is_new = current.c.value.is_distinct_from(before)
    joins, branches = (current.c.key.like(ex.text_literal(start)) for start in ("join:%", "branch:%"))
    is_trigger = sa.or_(joins, branches, current.c.key == ex.text_literal(TASKS))
    is_small = sa.func.length(new.c.blob) <= ex.int_literal(LARGEST_SENDS)
    has_value = new.c.type != ex.text_literal("empty")
    source = ex.member_text(c.c.metadata, ex.text_literal("source"))
    return (
        sa.select(
            sa.func.coalesce(sa.func.sum(sizes).filter(is_new), ex.ZERO).label("bytes"),
            sa.func.array_agg(current.c.key).filter(has_value).label("channels"),
            sa.func.array_agg(new.c.type).filter(has_value).label("types"),
            sa.func.array_agg(sa.case((sa.and_(is_trigger, is_small), new.c.blob))).filter(has_value).label("blobs"),
        )
        .select_from(current.join(new, sa.true()).outerjoin(pages, sa.true()))
        .where(sa.or_(is_new, joins, source.is_distinct_from(ex.text_literal("loop"))))
        .correlate(c, parent)
        .lateral("new_values")
    )
