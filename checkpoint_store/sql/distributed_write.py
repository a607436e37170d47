"""The statements that store the rows of one thread on distributed tables; no I/O.

Citus sends an INSERT of VALUES to the node of the thread at once, but collects the rows of an INSERT .. SELECT FROM
unnest() on the coordinator first, which takes four times as long. So there is a text for each number of rows, as long
as they are few.

It executes each CTE that writes by itself, in their order and in one transaction. Whether a CTE sees the rows of the
one before depends on where the shards are: so none looks for any. It has the locks of the one before in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from checkpoint_store.schema import Tables
from checkpoint_store.sql import expressions as ex
from checkpoint_store.sql.arrays import array_binds
from checkpoint_store.sql.write import keeping, kept_values, replacing, replacing_special, with_values

# From some 16 rows on the coordinator's way takes less time, but it commits in two phases: if a node is lost between
# them, what is acknowledged stays invisible until Citus recovers it.
MOST_ROWS = 32
"""The largest number of blobs or pending writes for which there is a text."""

MOST_PAGES = 32
"""The largest number of pages for which there is one: they are rounded up to powers of two."""

BLOB = {"channel": sa.Text, "version": sa.Text, "type": sa.Text, "blob": sa.LargeBinary}
PAGE = {"digest": sa.LargeBinary, "page": sa.LargeBinary}
WRITE = {"idx": sa.Integer, "channel": sa.Text, "type": sa.Text, "blob": sa.LargeBinary}
"""The columns of which each row has its own values."""

Count = int | None
"""A number of rows; None for any, as arrays."""


class Shape(NamedTuple):
    """The shape of a put: its rows by kind, and what else decides about its text."""

    blobs: Count
    pages: Count
    claims: bool
    """Whether the statement is to lock the thread, for its pages."""
    anchored: bool
    """Whether the transaction has locked the thread's row before: see `_insert`."""
    has_kept: bool
    """Whether it keeps values of its parent."""


def shaped(columns: Mapping[str, Any], rows: Sequence[Sequence[Any]], most: int) -> tuple[Count, dict[str, Any]]:
    """Return the number of rows for which there is a text, and the rows as its binds."""
    if len(rows) > most:
        return None, dict(array_binds([*columns], rows))
    return len(rows), {
        f"{name}_{n}": value for n, row in enumerate(rows) for name, value in zip(columns, row, strict=True)
    }


def put_checkpoint(t: Tables, shape: Shape) -> sa.Executable:
    """Upsert a checkpoint together with the blobs and pages that are new in it: one statement, so atomic on its own.

    Returns a row, unless a trigger drops the checkpoint. Binds: those of `write.put_checkpoint`, but for the blobs, and
    `kept` as `kept_inline` has selected it; blobs and pages by `shaped`; and those of `claim_thread`.
    """
    names = ["thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id"]
    own: dict[str, sa.ColumnElement[Any]] = {name: ex.param(name) for name in names}
    checkpoint: sa.ColumnElement[Any] = sa.cast(ex.param("checkpoint"), pg.JSONB)
    if shape.has_kept:
        checkpoint = with_values(checkpoint, sa.cast(ex.param("kept"), pg.JSONB))
    row = {**own, "checkpoint": checkpoint, "metadata": sa.cast(ex.param("metadata"), pg.JSONB)}
    stored = replacing(pg.insert(t.checkpoints).values(row), "checkpoint", "metadata")
    anchor = t.checkpoint_threads if shape.anchored else None
    if shape.claims:
        stored = stored.add_cte(claim_thread(t).cte("claimed"))
    if shape.pages != 0:
        own_page = _insert(t.checkpoint_pages, {"thread_id": own["thread_id"]}, PAGE, shape.pages, anchor)
        stored = stored.add_cte(own_page.on_conflict_do_nothing().cte("new_pages"))
    if shape.blobs != 0:
        graph = {name: own[name] for name in names[:2]}
        own_blob = _insert(t.checkpoint_blobs, graph, BLOB, shape.blobs, anchor)
        stored = stored.add_cte(keeping(own_blob).cte("new_blobs"))
    return stored.returning(ex.ONE)


def put_writes(t: Tables, count: Count, anchored: bool) -> pg.Insert:
    """Insert the pending writes of one task: see `write.put_writes`, for the rows `shaped`, and `_insert`."""
    own = {name: ex.param(name) for name in ("thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "task_path")}
    return replacing_special(
        _insert(t.checkpoint_writes, own, WRITE, count, t.checkpoint_threads if anchored else None)
    )


def claim_thread(t: Tables) -> pg.Insert:
    """Lock a thread, so that no other transaction deletes its pages before this one commits; insert its row if need be.

    Binds: `thread_id`, and `epoch`, that of a new row.
    """
    threads = t.checkpoint_threads
    row = {"thread_id": ex.param("thread_id"), "epoch": ex.param("epoch", sa.BigInteger)}
    return (
        pg.insert(threads)
        .values(row)
        .on_conflict_do_update(
            index_elements=list(threads.primary_key), set_={"epoch": threads.c.epoch}, where=sa.false()
        )
    )


def held_pages(t: Tables) -> sa.Select[Any]:
    """Lock a thread as `claim_thread` does, and select those of some pages that it has, as an array.

    Returns no row if there is no row to lock, or if a transaction that deletes pages had it locked until now: the
    statement still sees them. Binds: `thread_id`, `digests`.
    """
    threads, seen, p = t.checkpoint_threads, t.checkpoint_threads.alias("seen"), t.checkpoint_pages
    is_one = p.c.digest == sa.func.any(ex.array_param("digests", sa.LargeBinary))
    found = sa.select(sa.func.array_agg(p.c.digest)).where(ex.in_thread(p), is_one).scalar_subquery()
    is_as_seen = sa.and_(ex.in_thread(threads), ex.in_thread(seen), threads.c.epoch == seen.c.epoch)
    rows = threads.join(seen, ex.same_thread(threads, seen))
    return sa.select(found).select_from(rows).where(is_as_seen).with_for_update(key_share=True, of=threads)


def kept_inline(t: Tables) -> sa.Select[Any]:
    """Select the inline values that a checkpoint keeps of its parent, as JSON text, or NULL: see `write.kept_values`.

    Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`, `parent_checkpoint_id`, `kept`.
    """
    *keys, parent = [ex.param(name) for name in ("thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id")]
    found = kept_values(t, keys, parent, ex.param("kept")).subquery("found")
    return sa.select(sa.cast(found.c.inline, sa.Text))


def _insert(
    table: sa.Table,
    own: Mapping[str, sa.ColumnElement[Any]],
    columns: Mapping[str, Any],
    count: Count,
    anchor: sa.Table | None,
) -> pg.Insert:
    """Insert rows that have some values in common.

    Any number of them is one task too if the thread comes from a row that is there: the thread's own, its anchor, which
    is to be locked. Without it Citus collects them on the coordinator, and commits in two phases.
    """
    if count is None:
        new = ex.rows_of_binds(**columns)
        rows = sa.select(*own.values(), *new.c)
        if anchor is not None:
            values = {**own, "thread_id": anchor.c.thread_id}
            rows = sa.select(*values.values(), *new.c).select_from(anchor.join(new, sa.true()))
            rows = rows.where(ex.in_thread(anchor))
        return pg.insert(table).from_select([*own, *columns], rows)
    each: Iterable[int] = range(count)
    return pg.insert(table).values(
        [{**own, **{name: ex.param(f"{name}_{n}", kind) for name, kind in columns.items()}} for n in each]
    )
