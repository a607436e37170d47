"""The statements that list threads, a limited number of rows of an index at a time; no I/O.

No row says that it is its thread's newest, so a list walks through an index and checks for each thread that it meets
whether there is a newer checkpoint. A statement reads at most a given number of rows, and the next one continues where
it ended. Threads with very many rows among them are skipped by the next statement, within the index.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from checkpoint_store.schema import Tables
from checkpoint_store.sql import expressions as ex

MAX_STEPS = 4096
"""The most rows of an index that a statement may read."""

MANY = 16
"""The number of rows with which a thread is skipped by the next statement."""


def list_threads(t: Tables, conditions: Set[str]) -> sa.Select[Any]:
    """Select one part of a list of threads: `newest_threads` if the conditions have `newest`, else `threads_by_id`."""
    return newest_threads(t, conditions) if "newest" in conditions else threads_by_id(t, conditions)


def newest_threads(t: Tables, conditions: Set[str]) -> sa.Select[Any]:
    """Select the threads that have their newest root checkpoint among the next ones of all threads, newest first.

    One row: the number of checkpoints read, the id and thread of the last of them, the threads with `MANY` of them, and
    the threads found, as arrays: see `_found`.

    Conditions are some of `after` (binds `last_checkpoint_id`, `last_thread_id`), `prefix`, `filter` (JSON text that
    the metadata must contain), and `count`: checkpoints are counted. Binds: `skipped` (array of threads), `steps` (the
    most checkpoints to read), `wanted` (the most threads), and those of the conditions.
    """
    part = _next_checkpoints(t, conditions)
    met = (
        sa.select(
            part.c.thread_id, sa.func.max(part.c.checkpoint_id).label("checkpoint_id"), sa.func.count().label("rows")
        )
        .group_by(part.c.thread_id)
        .cte("met")
    )
    # Sorted before the lookups, which end with the last thread that is wanted.
    sought = sa.select(met).order_by(met.c.checkpoint_id.desc(), met.c.thread_id.desc()).subquery("sought")
    newest = _newest(t, sought)
    chosen = sa.select(sought.c.thread_id, newest.c.checkpoint_id, newest.c.metadata)
    chosen = chosen.select_from(sought.join(newest, newest.c.checkpoint_id == sought.c.checkpoint_id))
    found = chosen.order_by(sought.c.checkpoint_id.desc(), sought.c.thread_id.desc())
    last = sa.select(part).order_by(part.c.checkpoint_id, part.c.thread_id).limit(ex.ONE).subquery("last")
    seen = sa.select(sa.func.count().label("steps")).select_from(part).subquery("seen")
    many = (
        sa.select(sa.func.array_agg(met.c.thread_id).label("many"))
        .where(met.c.rows >= ex.int_literal(MANY))
        .subquery("many")
    )
    result = _found(t, found, conditions, lambda rows: [rows.c.checkpoint_id.desc(), rows.c.thread_id.desc()])
    return sa.select(seen.c.steps, last.c.checkpoint_id, last.c.thread_id, many.c.many, *result.c).select_from(
        seen.outerjoin(last, sa.true()).join(many, sa.true()).join(result, sa.true())
    )


def _next_checkpoints(t: Tables, conditions: Set[str]) -> sa.CTE:
    """Select the next root checkpoints of all threads, newest first."""
    c = t.checkpoints.c
    # By LIKE, as in the index.
    is_root = c.checkpoint_ns.like(ex.text_literal(""))
    wanted = [is_root, c.thread_id != sa.func.all(ex.array_param("skipped"))]
    if "after" in conditions:
        position = sa.tuple_(ex.param("last_checkpoint_id"), ex.param("last_thread_id"))
        wanted.append(sa.tuple_(c.checkpoint_id, c.thread_id) < position)
    if "prefix" in conditions:
        wanted.append(has_prefix(c.thread_id))
    rows = sa.select(c.checkpoint_id, c.thread_id).where(*wanted).order_by(c.checkpoint_id.desc(), c.thread_id.desc())
    # A constant limit first, for the planner, as in `read.list_checkpoints`.
    most = rows.limit(ex.int_literal(MAX_STEPS)).subquery("most")
    found = sa.select(most).order_by(most.c.checkpoint_id.desc(), most.c.thread_id.desc())
    return found.limit(sa.select(ex.param("steps", sa.Integer)).scalar_subquery()).cte("part")


def threads_by_id(t: Tables, conditions: Set[str]) -> sa.Select[Any]:
    """Select the next threads in the order of their ids, by a walk that jumps from one to the next in the index.

    Columns and binds are those of `newest_threads`, without `skipped`, and `steps` are threads. So are conditions, but
    `after` binds `last_thread_id` alone, and with `rootless` only threads without a root checkpoint are wanted.
    """
    c = t.checkpoints.c
    ordered = sa.select(c.thread_id).order_by(c.thread_id).limit(ex.ONE)
    first = ordered.where(c.thread_id > ex.param("last_thread_id")) if "after" in conditions else ordered
    walk = sa.select(first.scalar_subquery().label("thread_id"), ex.ONE.label("place")).cte("walk", recursive=True)
    following = ordered.where(c.thread_id > walk.c.thread_id).correlate(walk).scalar_subquery()
    walk = walk.union_all(
        sa.select(following, walk.c.place + ex.ONE).where(
            walk.c.thread_id.is_not(None), walk.c.place < ex.param("steps", sa.Integer)
        )
    )
    newest = _newest(t, walk)
    found = sa.select(walk.c.thread_id, newest.c.checkpoint_id, newest.c.metadata)
    found = found.select_from(walk.outerjoin(newest, sa.true())).where(walk.c.thread_id.is_not(None))
    if "prefix" in conditions:
        found = found.where(has_prefix(walk.c.thread_id))
    if "rootless" in conditions:
        found = found.where(newest.c.checkpoint_id.is_(None))
    last = sa.select(sa.func.max(walk.c.thread_id).label("thread_id"), sa.func.count(walk.c.thread_id).label("steps"))
    seen = last.select_from(walk).subquery("seen")
    nothing = sa.cast(None, sa.Text)
    result = _found(t, found.order_by(walk.c.thread_id), conditions, lambda rows: [rows.c.thread_id])
    return sa.select(
        seen.c.steps, nothing.label("checkpoint_id"), seen.c.thread_id, nothing.label("many"), *result.c
    ).select_from(seen.join(result, sa.true()))


def _newest(t: Tables, threads: sa.FromClause) -> Any:
    """Return the newest root checkpoint of a thread."""
    n = t.checkpoints.alias("n")
    found = sa.select(n.c.checkpoint_id, n.c.metadata)
    found = found.where(n.c.thread_id == threads.c.thread_id, n.c.checkpoint_ns == ex.text_literal(""))
    return found.order_by(n.c.checkpoint_id.desc()).limit(ex.ONE).correlate(threads).lateral("newest")


def _found(
    t: Tables, ordered: sa.Select[Any], conditions: Set[str], order: Callable[[sa.FromClause], list[Any]]
) -> sa.FromClause:
    """Select the wanted threads: id, newest root checkpoint, its metadata as JSON text, number of checkpoints."""
    if "filter" in conditions:
        ordered = ordered.where(matches(ordered.selected_columns["metadata"]))
    rows = ordered.limit(sa.select(ex.param("wanted", sa.Integer)).scalar_subquery()).subquery("rows")
    count: sa.ColumnElement[Any] = sa.cast(None, sa.Integer)
    if "count" in conditions:
        own = t.checkpoints.alias("own")
        counted = sa.select(sa.func.count()).select_from(own).where(own.c.thread_id == rows.c.thread_id)
        count = counted.correlate(rows).scalar_subquery()
    columns = [
        rows.c.thread_id,
        rows.c.checkpoint_id,
        sa.cast(rows.c.metadata, sa.Text).label("metadata"),
        count.label("count"),
    ]
    return sa.select(*ex.aggregate(columns, "found", *order(rows))).subquery("found")


def matches(metadata: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Return whether metadata contains what is wanted. Binds: `filter`, JSON text."""
    return metadata.op("@>", return_type=sa.Boolean)(sa.cast(ex.param("filter"), pg.JSONB))


def has_prefix(thread_id: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Return whether a thread's id begins with a text. Binds: `prefix`."""
    # As a comparison of numbers, of which the planner expects a third of the rows. For an unknown prefix it would
    # expect so few that it would rather sort them all than walk.
    return sa.cast(sa.func.starts_with(thread_id, ex.param("prefix"), type_=sa.Boolean()), sa.Integer) > ex.ZERO
