"""The statements that list threads of distributed tables; no I/O.

A shard has all rows of a thread, so each can find its own first threads; the coordinator merges them. No shard can walk
from thread to thread, nor end after a number of rows: a recursive query without a thread is refused, and so is a LIMIT
in a subquery that depends on the row. A shard that has fewer threads than are wanted would read all its rows, so a
first statement finds where the next one ends.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import sqlalchemy as sa

from checkpoint_store.schema import Tables
from checkpoint_store.sql import expressions as ex
from checkpoint_store.sql.list_threads import has_prefix, matches


def next_roots(t: Tables, conditions: Set[str]) -> sa.Select[Any]:
    """Select the ids and threads of the next root checkpoints of all threads, newest first.

    Conditions are `after` (binds `last_checkpoint_id`, `last_thread_id`) and `prefix`. Binds: `skipped` (array of
    threads), `steps` (the most checkpoints), and those of the conditions.
    """
    c = t.checkpoints.c
    found = sa.select(c.checkpoint_id, c.thread_id).where(*_newest_first(t, conditions))
    found = found.where(has_prefix(c.thread_id)) if "prefix" in conditions else found
    return found.order_by(c.checkpoint_id.desc(), c.thread_id.desc()).limit(ex.param("steps", sa.Integer))


def threads_with_root(t: Tables, conditions: Set[str]) -> sa.Select[Any]:
    """Select the next threads that have a root checkpoint, with the id of the newest and its metadata as JSON text.

    With `newest` they are in the order of that id, the newest first, otherwise in that of their own. Conditions are
    also `after` (binds `last_thread_id`, and with `newest` `last_checkpoint_id`), `until`, only with `newest` (binds
    `until_checkpoint_id`, `until_thread_id`), `prefix` and `filter` (JSON text that the metadata must contain). Binds:
    `wanted` (the most threads), with `newest` also `skipped` (array of threads), and those of the conditions.
    """
    c, newer = t.checkpoints.c, t.checkpoints.alias("newer")
    is_newer = sa.and_(
        newer.c.thread_id == c.thread_id,
        newer.c.checkpoint_ns == ex.text_literal(""),
        newer.c.checkpoint_id > c.checkpoint_id,
        # Of this the planner expects few rows. If it expected many, as in a long thread, it would look for the first of
        # them in the whole shard, and there is none if the checkpoint is the newest.
        newer.c.checkpoint_ns.concat(ex.text_literal("")) == ex.text_literal(""),
    )
    later = sa.select(ex.ONE).select_from(newer).where(is_newer).correlate(t.checkpoints)
    # As a number, as in `has_prefix`: the planner walks through the index, and looks for newer ones row by row.
    wanted = [sa.cast(sa.not_(later.exists()), sa.Integer) > ex.ZERO]
    order: list[sa.ColumnElement[Any]] = [c.thread_id]
    if "newest" in conditions:
        order = [c.checkpoint_id.desc(), c.thread_id.desc()]
        wanted += _newest_first(t, conditions)
    else:
        wanted.append(c.checkpoint_ns == ex.text_literal(""))
        if "after" in conditions:
            wanted.append(c.thread_id > ex.param("last_thread_id"))
    if "prefix" in conditions:
        wanted.append(has_prefix(c.thread_id))
    if "filter" in conditions:
        wanted.append(sa.cast(matches(c.metadata), sa.Integer) > ex.ZERO)
    found = sa.select(c.thread_id, c.checkpoint_id, sa.cast(c.metadata, sa.Text)).where(*wanted)
    return found.order_by(*order).limit(ex.param("wanted", sa.Integer))


def next_threads(t: Tables, conditions: Set[str]) -> sa.Select[Any]:
    """Select the next threads in the order of their ids, each with its newest root checkpoint or NULL.

    Conditions are some of `after` (binds `last_thread_id`), `prefix`, and `rootless`: only threads without a root
    checkpoint. Binds: `wanted` (the most threads), and those of the conditions.
    """
    c = t.checkpoints.c
    newest = sa.func.max(c.checkpoint_id).filter(c.checkpoint_ns == ex.text_literal(""))
    found = sa.select(c.thread_id, newest).group_by(c.thread_id).order_by(c.thread_id)
    if "after" in conditions:
        found = found.where(c.thread_id > ex.param("last_thread_id"))
    if "prefix" in conditions:
        found = found.where(has_prefix(c.thread_id))
    if "rootless" in conditions:
        found = found.having(newest.is_(None))
    return found.limit(ex.param("wanted", sa.Integer))


def root_metadata(t: Tables) -> sa.Select[Any]:
    """Select the metadata of root checkpoints of some threads, as JSON text, by thread.

    Binds: the arrays `thread_ids` and `checkpoint_ids`.
    """
    c, keys = t.checkpoints, ex.rows_of_binds(thread_id=sa.Text, checkpoint_id=sa.Text)
    is_key = sa.and_(c.c.thread_id == keys.c.thread_id, c.c.checkpoint_id == keys.c.checkpoint_id)
    found = sa.select(c.c.thread_id, sa.cast(c.c.metadata, sa.Text)).select_from(c.join(keys, is_key))
    return found.where(c.c.checkpoint_ns == ex.text_literal(""), ex.among_threads(c))


def _newest_first(t: Tables, conditions: Set[str]) -> list[sa.ColumnElement[bool]]:
    """Return the conditions by which root checkpoints of all threads are read from their index."""
    c = t.checkpoints.c
    place = sa.tuple_(c.checkpoint_id, c.thread_id)
    # By LIKE, as in the index.
    wanted = [c.checkpoint_ns.like(ex.text_literal("")), c.thread_id != sa.func.all(ex.array_param("skipped"))]
    if "after" in conditions:
        wanted.append(place < sa.tuple_(ex.param("last_checkpoint_id"), ex.param("last_thread_id")))
    if "until" in conditions:
        wanted.append(place >= sa.tuple_(ex.param("until_checkpoint_id"), ex.param("until_thread_id")))
    return wanted
