"""The statements that store checkpoints, blobs, pages and pending writes, of one call or of many at once; no I/O."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from checkpoint_store.schema import PAGED, Tables
from checkpoint_store.sql import expressions as ex

UNGATED, NEEDS, COMPLETE = range(3)
"""The kinds of threads: without pages, with pages that have to be there already, with all of its pages in the call."""

COUNTED = ("write", "checkpoint", "blob", "page")
"""The rows that `store` stores, by the prefixes of their binds, in the order in which it counts them."""

LOCK_TIMEOUT = "200ms"
"""The longest wait for a lock in a commit of several calls: its holder may itself wait for one of the others."""

_GATE = {"thread_id": sa.Text, "kind": sa.Integer, "epoch": sa.BigInteger, "first": sa.Integer, "last": sa.Integer}
"""The columns of threads: their kind, the epoch of a new row, and the range of the needed pages among all digests."""


def put_checkpoint(t: Tables, *, kept: bool = False) -> sa.Executable:
    """Upsert a checkpoint together with the blobs that are new in it: one statement, so atomic on its own.

    Returns a row, unless a trigger drops the checkpoint. With `kept` it keeps values of its parent: see `kept_values`.

    Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`, `parent_checkpoint_id`, `checkpoint` and `metadata` (JSON
    text), the blobs as four arrays of equal length, `channels`, `versions`, `types`, `blobs`, and `kept`.
    """
    new = ex.rows_of_binds(channel=sa.Text, version=sa.Text, type=sa.Text, blob=sa.LargeBinary)
    own = ["thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id"]
    values = sa.select(ex.param("thread_id"), ex.param("checkpoint_ns"), *new.c)
    blobs = keeping(pg.insert(t.checkpoint_blobs).from_select([*own[:2], *new.c.keys()], values))
    row: dict[str, sa.ColumnElement[Any]] = {
        **{name: ex.param(name) for name in own},
        # JSON is sent as text, so that the host's json_serializer can't change it.
        "checkpoint": sa.cast(ex.param("checkpoint"), pg.JSONB),
        "metadata": sa.cast(ex.param("metadata"), pg.JSONB),
    }
    insertion = pg.insert(t.checkpoints)
    if kept:
        *keys, parent = [row[name] for name in own]
        found = kept_values(t, keys, parent, ex.param("kept")).subquery("found")
        row["checkpoint"] = with_values(row["checkpoint"], found.c.inline)
        insertion = insertion.from_select([*row], sa.select(*row.values()).select_from(found))
    else:
        insertion = insertion.values(row)
    stored = replacing(insertion, "checkpoint", "metadata").add_cte(blobs.cte("new_blobs"))
    return stored.returning(ex.ONE)


def kept_values(
    t: Tables, keys: Sequence[sa.ColumnElement[str]], keeps_from: sa.ColumnElement[str], kept: sa.ColumnElement[str]
) -> sa.Select[Any]:
    """Select the inline values that a checkpoint keeps of its parent, as a JSON object, or NULL: always one row.

    A step that does not know a channel omits its value and does not change its version. A blob is found by that
    version, an inline value has to be copied. A checkpoint that is stored once more has copied it already, and its
    parent may have been deleted since.

    The arguments are the checkpoint's key, its parent's id, and the versions of those channels, a JSON object as text:
    only a value of that version is kept.
    """
    p = t.checkpoints
    thread_id, checkpoint_ns, checkpoint_id = keys
    parent = (
        sa.select(ex.channel_values(p).label("inline"), ex.channel_versions(p).label("versions"))
        .where(p.c.thread_id == thread_id, p.c.checkpoint_ns == checkpoint_ns)
        .where(p.c.checkpoint_id.in_([keeps_from, checkpoint_id]))
        .offset(ex.ZERO)  # so that a long one is fetched from its TOAST once, not for every channel
        .correlate_except(p)
        .lateral("parent")
    )
    pairs = sa.func.jsonb_each(sa.cast(kept, pg.JSONB))
    each = pairs.table_valued(sa.Column("channel", sa.Text), sa.Column("version", pg.JSONB)).render_derived("kept")
    value = ex.member(parent.c.inline, each.c.channel)
    return (
        sa.select(sa.func.jsonb_object_agg(each.c.channel, value, type_=pg.JSONB).label("inline"))
        .select_from(parent.join(each, sa.true()))
        .where(value.is_not(None), ex.member(parent.c.versions, each.c.channel) == each.c.version)
        .correlate_except(parent, each)
    )


def with_values(checkpoint: sa.ColumnElement[Any], inline: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return a checkpoint with more channel values inline, if there are any."""
    values = ex.member(checkpoint, ex.text_literal("channel_values")).op("||")(inline)
    path = pg.array([ex.text_literal("channel_values")])
    return sa.case((inline.is_(None), checkpoint), else_=sa.func.jsonb_set(checkpoint, path, values, type_=pg.JSONB))


def put_writes(t: Tables) -> pg.Insert:
    """Insert the pending writes of one task; see `replacing_special` for those that exist already.

    Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`, `task_id`, `task_path`, and the writes as four arrays of equal
    length, `idxs`, `channels`, `types`, `blobs`, with no `idx` twice.
    """
    new = ex.rows_of_binds(idx=sa.Integer, channel=sa.Text, type=sa.Text, blob=sa.LargeBinary)
    own = ["thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "task_path"]
    values = sa.select(*[ex.param(name) for name in own], *new.c)
    return replacing_special(pg.insert(t.checkpoint_writes).from_select([*own, *new.c.keys()], values))


def replacing(insertion: pg.Insert, *columns: str, where: sa.ColumnElement[bool] | None = None) -> pg.Insert:
    """Return an insert that replaces some columns of rows that exist already, or of those that meet a condition."""
    table: Any = insertion.table
    return insertion.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={name: insertion.excluded[name] for name in columns}, where=where
    )


def replacing_special(insertion: pg.Insert) -> pg.Insert:
    """Return an insert of pending writes that decides row by row, as LangGraph's `InMemorySaver` does.

    A write to a special channel, which has a negative `idx`, replaces the stored one; an ordinary write stays as it was
    first stored.
    """
    return replacing(insertion, "channel", "type", "blob", "task_path", where=insertion.excluded["idx"] < ex.ZERO)


def keeping(insertion: pg.Insert) -> pg.Insert:
    """Return an insert that does not change rows that exist already, but locks them.

    Without the lock, another transaction could delete a row to which this one is about to refer.
    """
    table: Any = insertion.table
    return insertion.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={"type": table.c.type}, where=sa.false()
    )


def store(t: Tables, parts: Set[str]) -> sa.Select[Any]:
    """Store many checkpoints, blobs, pages and pending writes, of any threads: all in one commit.

    Returns, after the limit and a thread, the numbers of rows written, in the order of `COUNTED`, for those that are
    parts. A row that existed already counts only if it is a checkpoint or a special write. With gates, rows of a thread
    are stored only if `passed_threads` has it, and there is a row for each of these threads.

    Args:
        t: The tables.
        parts: The rows that there are: any of `COUNTED`; `kept` for checkpoints that keep values of their parents;
            `gate` if threads have gates, and `one_thread` for a single one with all of its pages in the call, for which
            see `claimed_threads`; `limited` if no lock is waited for longer than `LOCK_TIMEOUT`.

    Binds: arrays by the names of `write_batch.merged`.
    """
    passed, limit = None, _limited() if "limited" in parts else None
    if "gate" in parts:
        passed = claimed_threads(t) if "one_thread" in parts else passed_threads(t, limit)
    # The limit is the first column, so it is set first. The counts are computed in this order, the one in which every
    # transaction locks rows (see `delete`).
    columns: list[sa.ColumnElement[Any]] = [sa.null() if limit is None else limit]
    columns += [sa.null() if passed is None else passed.c.thread_id]
    columns += [ex.count_of(_stored(t, passed, name, parts)) for name in COUNTED if name in parts]
    return sa.select(*columns)


def _limited() -> sa.ColumnElement[Any]:
    """Set `lock_timeout` until the transaction ends."""
    name, value = ex.text_literal("lock_timeout"), ex.text_literal(LOCK_TIMEOUT)
    return sa.select(sa.func.set_config(name, value, ex.TRUE)).scalar_subquery()


def _stored(t: Tables, passed: sa.CTE | None, name: str, parts: Set[str]) -> sa.CTE:
    """Store the rows of one table."""
    if name == "page":
        return new_pages(t, passed)
    if name == "write":
        columns = {"task_path": sa.Text, "channel": sa.Text, "type": sa.Text, "blob": sa.LargeBinary}
        rows = replacing_special(new_rows(passed, "write_", t.checkpoint_writes, **columns))
    elif name == "checkpoint":
        rows = replacing(new_checkpoints(passed, t, kept="kept" in parts), "checkpoint", "metadata")
    else:
        rows = keeping(new_rows(passed, "blob_", t.checkpoint_blobs, type=sa.Text, blob=sa.LargeBinary))
    return rows.returning(ex.ONE).cte(f"new_{name}s")


def known_pages(t: Tables) -> sa.Select[Any]:
    """Select those of some pages that a thread has. Binds: `thread_id`, `digests` (array of bytes)."""
    p = t.checkpoint_pages
    is_one = p.c.digest == sa.func.any(ex.array_param("digests", sa.LargeBinary))
    return sa.select(p.c.digest).where(ex.in_thread(p), is_one)


def missing_pages(t: Tables) -> sa.Select[Any]:
    """Select the threads of pages that do not exist, though a recipe names them, once for each page.

    Binds: parallel arrays of the recipe's key, `thread_ids`, `checkpoint_nss`, `channels`, `versions`, and `digests`.
    """
    p, b = t.checkpoint_pages, t.checkpoint_blobs
    sought = ex.rows_of_binds(
        thread_id=sa.Text, checkpoint_ns=sa.Text, channel=sa.Text, version=sa.Text, digest=sa.LargeBinary
    )
    # A scalar subquery is not made a join, so the server never reads all rows of a table.
    page = sa.select(p.c.digest).where(ex.same_thread(p, sought), p.c.digest == sought.c.digest)
    recipe = sa.select(b.c.type).where(b.c.thread_id == sought.c.thread_id, ex.same_blob(b, sought))
    return sa.select(sought.c.thread_id).where(
        page.correlate(sought).scalar_subquery().is_(None),
        recipe.correlate(sought).scalar_subquery() == ex.text_literal(PAGED),
    )


def new_pages(t: Tables, passed: sa.CTE | None) -> sa.CTE:
    """Insert the pages that come as arrays, of the threads that passed, unless they exist."""
    pages = new_rows(passed, "page_", t.checkpoint_pages, page=sa.LargeBinary)
    return pages.on_conflict_do_nothing().returning(ex.ONE).cte("new_pages")


def new_rows(passed: sa.CTE | None, prefix: str, target: sa.Table, **columns: Any) -> pg.Insert:
    """Insert rows that come as arrays of their keys and some more columns, of the threads that passed, if need be."""
    columns = {**ex.key_types(target), **columns}
    new = ex.rows_of_binds(prefix, **columns)
    return pg.insert(target).from_select([*columns], _of_passed(sa.select(*new.c), new, new, passed, target))


def new_checkpoints(passed: sa.CTE | None, t: Tables, *, kept: bool) -> pg.Insert:
    """Insert checkpoints that come as arrays, of the threads that passed, each with the values that it keeps."""
    own = ["thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id"]
    more = ["keeps_from", "kept"] if kept else []
    new = ex.rows_of_binds("checkpoint_", **dict.fromkeys([*own, "checkpoint", "metadata", *more], sa.Text))
    row: dict[str, sa.ColumnElement[Any]] = {
        **{name: new.c[name] for name in own},
        "checkpoint": sa.cast(new.c.checkpoint, pg.JSONB),
        "metadata": sa.cast(new.c.metadata, pg.JSONB),
    }
    rows: sa.FromClause = new
    if kept:
        found = kept_values(t, [new.c[name] for name in own[:3]], new.c.keeps_from, new.c.kept).lateral("found")
        row["checkpoint"] = with_values(row["checkpoint"], found.c.inline)
        rows = rows.join(found, sa.true())
    chosen = _of_passed(sa.select(*row.values()), rows, new, passed, t.checkpoints)
    return pg.insert(t.checkpoints).from_select([*row], chosen)


def _of_passed(
    chosen: sa.Select[Any], rows: sa.FromClause, new: sa.FromClause, passed: sa.CTE | None, target: sa.Table
) -> sa.Select[Any]:
    """Return a SELECT from new rows: of all, in the order in which they come, or sorted, of the threads that passed."""
    if passed is None:
        return chosen.select_from(rows)
    chosen = chosen.select_from(rows.join(passed, passed.c.thread_id == new.c.thread_id))
    return chosen.order_by(*_in_order(target, new))


def _in_order(target: sa.Table, new: sa.FromClause) -> list[sa.ColumnElement[Any]]:
    """Return the order in which every transaction locks rows: by key, as Python sorts strings."""
    keys = [new.c[column.key] for column in target.primary_key]
    return [column.collate("C") if isinstance(column.type, sa.Text) else column for column in keys]


def passed_threads(t: Tables, limit: sa.ColumnElement[Any] | None = None) -> sa.CTE:
    """Select the threads with rows that may be stored. Binds: the gates and the needed pages of `write_batch.merged`.

    A thread that needs pages passes if they exist and no transaction deletes any before this one commits: a transaction
    that does has locked the thread's row in `checkpoint_threads`, and gives it another epoch. After waiting for that
    lock a statement continues with the snapshot that it began with, except for the locked row itself: so the row is
    joined twice, as it is once it is locked and as it was in the snapshot that has the pages.

    A thread with all of its pages in the call passes if its row could be inserted, or locked. That fails only if
    another transaction inserts or deletes the row at the same time.

    `limit` is set before a row is locked.
    """
    threads, seen, p = t.checkpoint_threads, t.checkpoint_threads.alias("seen"), t.checkpoint_pages
    made = _new_threads(t).on_conflict_do_nothing().returning(threads.c.thread_id).cte("made")
    # As few rows: a plan for their real number would seem so much cheaper that the server plans every execution anew.
    gate = ex.few_rows_of_binds("gate_", **_GATE)
    # One scan of the key's index, which skips from page to page: to look each up takes three times as long.
    needed = sa.select(ex.array_param("needed_digests", sa.LargeBinary)).scalar_subquery()
    theirs = needed[slice(gate.c.first, gate.c.last)]
    found = sa.select(sa.func.count()).where(p.c.thread_id == gate.c.thread_id, p.c.digest == sa.func.any(theirs))
    has_all = found.correlate(gate).scalar_subquery() == gate.c.last - gate.c.first + ex.ONE
    is_whole = sa.and_(threads.c.epoch == seen.c.epoch, has_all)
    held = (
        sa.select(threads.c.thread_id)
        .select_from(
            gate.join(threads, threads.c.thread_id == gate.c.thread_id).join(seen, seen.c.thread_id == gate.c.thread_id)
        )
        # CASE, not OR: of that the server would check the part about the gate beforehand, and count the pages twice.
        .where(sa.case((gate.c.kind == ex.int_literal(NEEDS), is_whole), else_=gate.c.kind == ex.int_literal(COMPLETE)))
        .order_by(threads.c.thread_id)
        .with_for_update(read=True, of=threads)
        .cte("held")
    )
    each = ex.rows_of_binds("gate_", **_GATE)
    ungated = sa.select(each.c.thread_id).where(each.c.kind == ex.int_literal(UNGATED))
    if limit is not None:
        ungated = ungated.where(limit.is_not(None))
    return sa.union_all(ungated, sa.select(made), sa.select(held)).cte("passed")


def claimed_threads(t: Tables) -> sa.CTE:
    """Select the same for one thread with all of its pages in the call: it passes, whatever other transactions do.

    It updates the row, by which it gets one that was inserted after its snapshot too. If it gets none, then a trigger
    drops the row or a policy hides it.
    """
    threads = t.checkpoint_threads
    claimed = _new_threads(t).on_conflict_do_update(
        index_elements=list(threads.primary_key), set_={"epoch": threads.c.epoch}
    )
    return claimed.returning(threads.c.thread_id).cte("passed")


def _new_threads(t: Tables) -> pg.Insert:
    """Insert rows for the threads with all of their pages in the call."""
    gate = ex.rows_of_binds("gate_", **_GATE)
    complete = sa.select(gate.c.thread_id, gate.c.epoch).where(gate.c.kind == ex.int_literal(COMPLETE))
    new = complete.order_by(gate.c.thread_id)
    return pg.insert(t.checkpoint_threads).from_select(["thread_id", "epoch"], new)
