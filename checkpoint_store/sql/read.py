"""The statements that read complete checkpoints, one or a batch of a list; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from checkpoint_store.schema import Tables
from checkpoint_store.sql import expressions as ex

TASKS = "__pregel_tasks"
"""LangGraph's channel of pending sends (`langgraph.checkpoint.serde.types.TASKS`, not imported: see `schema`)."""

MAX_ROWS = 128
"""The most rows that a batch of a list may have."""

AMONG_ROWS = 4096
"""The number of checkpoints among which those that match a filter are sought, before all of the table are."""


def checkpoints(t: Tables, chosen: sa.Select[Any], *, joined: bool, thread: ex.Thread = None) -> sa.Select[Any]:
    """Select checkpoints with the blobs of their channels, their pending writes and old-style pending sends.

    The columns are those of `serde.records.Row`. The rows that belong to a checkpoint come as parallel arrays from
    LATERAL subqueries, a shape that a distributed PostgreSQL can plan too.

    The chosen rows of `checkpoints`, in order, are a subquery of their own, so that the LATERAL parts are executed for
    these rows only, and only after sorting and limiting. `thread` is the one that all belong to, if there is one.
    `joined` says whether pages are joined to values.
    """
    c = chosen.subquery("c")
    blobs, writes, sends = _blobs(t, c, thread, joined=joined), _writes(t, c, thread), _sends(t, c, thread)
    return sa.select(
        c.c.thread_id,
        c.c.checkpoint_ns,
        c.c.checkpoint_id,
        c.c.parent_checkpoint_id,
        sa.cast(c.c.checkpoint, sa.Text),
        sa.cast(c.c.metadata, sa.Text),
        *blobs.c,
        *writes.c,
        *sends.c,
    ).select_from(c.join(blobs, sa.true()).join(writes, sa.true()).join(sends, sa.true()))


def get_checkpoint(t: Tables, *, joined: bool) -> sa.Select[Any]:
    """Select the checkpoint with an id; see `checkpoints`. Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`."""
    chosen = sa.select(t.checkpoints).where(ex.in_namespace(t.checkpoints, "checkpoint_id"))
    return checkpoints(t, chosen, joined=joined, thread=ex.param("thread_id"))


def get_newest(t: Tables, *, joined: bool) -> sa.Select[Any]:
    """Select the newest checkpoint of a namespace; see `checkpoints`. Binds: `thread_id`, `checkpoint_ns`."""
    c = t.checkpoints
    chosen = sa.select(c).where(ex.in_namespace(c)).order_by(c.c.checkpoint_id.desc()).limit(ex.ONE)
    return checkpoints(t, chosen, joined=joined, thread=ex.param("thread_id"))


def has_newer(t: Tables) -> sa.Select[Any]:
    """Select whether a namespace has a checkpoint newer than one.

    Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`.
    """
    c = t.checkpoints
    newer = sa.select(c).where(ex.in_namespace(c), c.c.checkpoint_id > ex.param("checkpoint_id"))
    return sa.select(newer.exists())


def list_checkpoints(t: Tables, conditions: frozenset[str], *, joined: bool) -> sa.Select[Any]:
    """Select one batch of a list of checkpoints, newest first.

    Binds: `batch_size`, at most `MAX_ROWS`, and one for each condition: any of `thread_id`, `checkpoint_ns`,
    `checkpoint_id`, `filter` (JSON text that the metadata must contain), `run_id` (which it must contain, of a few
    checkpoints), `before` (a checkpoint id), and `after_row`: the batch begins after the row with `last_checkpoint_id`,
    `last_thread_id` and `last_checkpoint_ns`. With `among_newest`, for a filter without a thread, only the next
    `AMONG_ROWS` checkpoints are looked at.
    """
    c, names = t.checkpoints.c, _order(conditions)
    rows: sa.FromClause = t.checkpoints
    batch = sa.select(rows).where(*_wanted(t, conditions, names))
    if "thread_id" in conditions and "checkpoint_ns" not in conditions:
        # Of each namespace the rows come from the index in order. Otherwise every batch would read and sort all of the
        # thread, whose index has the namespace before the checkpoint.
        namespaces = _namespaces(t)
        part = batch.where(c.checkpoint_ns == namespaces.c.checkpoint_ns).correlate(namespaces)
        rows = part.order_by(*_newest_first(c, names)).limit(ex.int_literal(MAX_ROWS)).lateral("part")
        batch = sa.select(rows).select_from(namespaces.join(rows, sa.true()))
    elif not conditions & {"thread_id", "filter"}:
        rows = _newest(batch, names, ex.int_literal(MAX_ROWS)).subquery("newest")
        batch = sa.select(rows)
    elif "among_newest" in conditions:
        rows = _newest(batch, names, ex.int_literal(AMONG_ROWS)).subquery("newest")
        batch = sa.select(rows).where(_matches(rows))
    thread = ex.param("thread_id") if "thread_id" in conditions else None
    found = checkpoints(t, _first(batch, rows.c, names), joined=joined, thread=thread)
    return found.order_by(*_newest_first(found.selected_columns, names))


def newest_keys(t: Tables, conditions: frozenset[str]) -> sa.Select[Any]:
    """Select the thread, namespace and id of the checkpoints in one batch of a list of all threads, newest first.

    Of distributed tables, where no statement reads complete checkpoints of several threads. Each shard looks for the
    whole batch, in the order of its indexes. Binds and conditions are those of `list_checkpoints`.
    """
    names = _order(conditions)
    keys = sa.select(*[t.checkpoints.c[name] for name in ("thread_id", "checkpoint_ns", "checkpoint_id")])
    keys = keys.where(*_wanted(t, conditions - {"filter"}, names))
    if "filter" in conditions:
        # As a number, of which the planner expects a third of the rows: it would sort a whole shard for few.
        keys = keys.where(sa.cast(_matches(t.checkpoints), sa.Integer) > ex.ZERO)
    return _newest(keys, names, ex.param("batch_size", sa.Integer))


def checkpoints_at(t: Tables, *, joined: bool) -> sa.Select[Any]:
    """Select some checkpoints of a thread, in any order; see `checkpoints`.

    Binds: `thread_id`, and the arrays `checkpoint_nss` and `checkpoint_ids`.
    """
    c, keys = t.checkpoints, ex.rows_of_binds(checkpoint_ns=sa.Text, checkpoint_id=sa.Text)
    is_wanted = sa.and_(c.c.checkpoint_ns == keys.c.checkpoint_ns, c.c.checkpoint_id == keys.c.checkpoint_id)
    chosen = sa.select(c).select_from(c.join(keys, is_wanted)).where(ex.in_thread(c))
    return checkpoints(t, chosen, joined=joined, thread=ex.param("thread_id"))


def _order(conditions: frozenset[str]) -> list[str]:
    """Return the columns by which a list is ordered: those without a condition, as ids are unique only with them."""
    return ["checkpoint_id", *(name for name in ("thread_id", "checkpoint_ns") if name not in conditions)]


def _wanted(t: Tables, conditions: frozenset[str], names: Sequence[str]) -> list[sa.ColumnElement[bool]]:
    """Return the conditions of a list on the rows of `checkpoints`."""
    c = t.checkpoints.c
    wanted = [
        c[name] == ex.param(name) for name in ("thread_id", "checkpoint_ns", "checkpoint_id") if name in conditions
    ]
    if "filter" in conditions and "among_newest" not in conditions:
        wanted.append(_matches(t.checkpoints))
    if "run_id" in conditions:
        wanted += [ex.run_id(t.checkpoints).is_not(None), ex.run_id(t.checkpoints) == ex.param("run_id")]
    if "before" in conditions:
        wanted.append(c.checkpoint_id < ex.param("before"))
    if "after_row" in conditions:
        last = [ex.param(f"last_{name}") for name in names]
        wanted.append(
            sa.tuple_(*[c[name] for name in names]) < sa.tuple_(*last) if len(names) > 1 else c[names[0]] < last[0]
        )
    return wanted


def _matches(rows: sa.FromClause) -> sa.ColumnElement[bool]:
    return rows.c.metadata.op("@>", return_type=sa.Boolean)(sa.cast(ex.param("filter"), pg.JSONB))


def _newest(rows: sa.Select[Any], names: Sequence[str], limit: sa.ColumnElement[int]) -> sa.Select[Any]:
    """Select the newest checkpoints of all threads, merged of two indexes: root graphs and subgraphs have one each."""
    # By LIKE, as in the indexes.
    namespace = rows.selected_columns["checkpoint_ns"]
    of_roots = namespace.like(ex.text_literal(""))
    parts = [
        rows.where(of).order_by(*_newest_first(rows.selected_columns, names)).limit(limit).subquery()
        for of in (of_roots, sa.not_(of_roots))
    ]
    merged = sa.union_all(*[sa.select(part) for part in parts]).subquery("parts")
    return sa.select(merged).order_by(*_newest_first(merged.c, names)).limit(limit)


def _first(rows: sa.Select[Any], columns: Any, names: Sequence[str]) -> sa.Select[Any]:
    """Select the first rows by some columns, descending. Binds: `batch_size`.

    For a limit that is a parameter the planner expects a tenth of the thread, and compiles the plan of a long one
    (JIT), which takes longer than running it. So there is a constant limit first.
    """
    most = rows.order_by(*_newest_first(columns, names)).limit(ex.int_literal(MAX_ROWS)).subquery()
    size = sa.select(ex.param("batch_size", sa.Integer)).scalar_subquery()
    return sa.select(most).order_by(*_newest_first(most.c, names)).limit(size)


def _newest_first(columns: Any, names: Sequence[str]) -> list[sa.ColumnElement[Any]]:
    return [columns[name].desc() for name in names]


def inventory(t: Tables) -> sa.Select[Any]:
    """Select the checkpoints of a thread, once for each task with pending writes: its path and their number.

    Binds: `thread_id`.
    """
    c, w = t.checkpoints, t.checkpoint_writes
    keys = [c.c.checkpoint_ns, c.c.checkpoint_id, w.c.task_id]
    found = sa.select(*keys, sa.func.max(w.c.task_path), sa.func.count(w.c.idx))
    return found.select_from(c.outerjoin(w, ex.same_checkpoint(w, c))).where(ex.in_thread(c)).group_by(*keys)


def _namespaces(t: Tables) -> sa.CTE:
    """Return the namespaces of a thread, by a walk that jumps from one to the next in the index."""
    c = t.checkpoints.c
    ordered = (
        sa.select(c.checkpoint_ns).where(c.thread_id == ex.param("thread_id")).order_by(c.checkpoint_ns).limit(ex.ONE)
    )
    found = sa.select(ordered.scalar_subquery().label("checkpoint_ns")).cte("namespaces", recursive=True)
    following = ordered.where(c.checkpoint_ns > found.c.checkpoint_ns).correlate(found).scalar_subquery()
    return found.union_all(sa.select(following).where(found.c.checkpoint_ns.is_not(None)))


def _blobs(t: Tables, c: sa.Subquery, thread: ex.Thread, *, joined: bool) -> sa.FromClause:
    b = t.checkpoint_blobs
    # Versions that were changed by hand may not be an object, which must not make the whole list fail.
    pairs = sa.func.jsonb_each_text(ex.members_of(c.c.checkpoint, "channel_versions")).table_valued("key", "value")
    # A SELECT of its own: a distributed PostgreSQL can't plan the set-returning function in the join itself.
    current = sa.select(pairs.c.key.label("channel"), pairs.c.value.label("version")).correlate(c).subquery("current")
    # With the limit the primary key is looked up for each channel. Otherwise the planner, which expects 100 channels of
    # every checkpoint, would rather read all blobs of a thread and hash them.
    found = (
        sa.select(*(ex.value_of(t, b, thread) if joined else (b.c.type, b.c.blob)))
        .where(ex.same_namespace(b, c, thread), b.c.channel == current.c.channel, b.c.version == current.c.version)
        .where(b.c.type != ex.text_literal("empty"))
        .limit(ex.ONE)
        .correlate(c, current)
        .lateral("found")
    )
    chosen = sa.select(*ex.aggregate([current.c.channel, found.c.type, found.c.blob], "blob"))
    return chosen.select_from(current.join(found, sa.true())).correlate(c).lateral("blobs")


def _writes(t: Tables, c: sa.Subquery, thread: ex.Thread) -> sa.FromClause:
    w = t.checkpoint_writes
    found = sa.select(*ex.aggregate([w.c.task_id, w.c.channel, w.c.type, w.c.blob], "write", *ex.write_order(w)))
    return found.where(ex.same_checkpoint(w, c, thread)).correlate(c).lateral("writes")


def _sends(t: Tables, c: sa.Subquery, thread: ex.Thread) -> sa.FromClause:
    """Select the sends of a step: before format 4 these were writes of its parent, in the same namespace."""
    w = t.checkpoint_writes
    document, name = c.c.checkpoint, ex.text_literal("v")
    is_number = ex.is_a("number", ex.member(document, name))
    old = sa.case((is_number, sa.cast(ex.member_text(document, name), sa.Numeric) < ex.int_literal(4)))
    return (
        sa.select(*ex.aggregate([w.c.type, w.c.blob], "send", *ex.write_order(w)))
        .where(ex.same_namespace(w, c, thread), w.c.checkpoint_id == c.c.parent_checkpoint_id)
        .where(w.c.channel == ex.text_literal(TASKS), old)
        .correlate(c)
        .lateral("sends")
    )
