"""The statements that store checkpoints, blobs, pages and pending writes, of one call or of many at once; no I/O."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Column,
    ColumnElement,
    FromClause,
    Integer,
    LargeBinary,
    Select,
    Table,
    Text,
    and_,
    case,
    cast,
    false,
    func,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB, Insert, array, insert
from sqlalchemy.sql.dml import ReturningInsert

from checkpoint_store.schema import PAGED, Tables
from checkpoint_store.sql.expressions import (
    ONE,
    ZERO,
    array_param,
    channel_values,
    channel_versions,
    count_of,
    few_rows_of_binds,
    int_literal,
    key_types,
    member,
    param,
    rows_of_binds,
    same_blob,
    text_literal,
)

UNGATED, NEEDS, COMPLETE = range(3)
"""The kinds of threads: without pages, with pages that have to be there already, with all of its pages in the call."""

_GATE = {"thread_id": Text, "kind": Integer, "epoch": BigInteger, "first": Integer, "last": Integer}
"""The columns of threads: their kind, the epoch of a new row, and the range of the needed pages among all digests."""


def put_checkpoint(t: Tables, *, kept: bool = False) -> ReturningInsert[Any]:
    """Upsert a checkpoint together with the blobs that are new in it: one statement, so atomic on its own.

    Returns a row, unless a trigger drops the checkpoint.

    Args:
        t: The tables.
        kept: Whether the checkpoint keeps values of its parent: see `kept_values`.

    Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`, `parent_checkpoint_id`, `checkpoint` and `metadata` (JSON
    text), the blobs as four arrays of equal length, `channels`, `versions`, `types`, `blobs`, and `kept`.
    """
    new = rows_of_binds(channel=Text, version=Text, type=Text, blob=LargeBinary)
    blobs = keeping(
        insert(t.checkpoint_blobs).from_select(
            ["thread_id", "checkpoint_ns", "channel", "version", "type", "blob"],
            select(param("thread_id"), param("checkpoint_ns"), new.c.channel, new.c.version, new.c.type, new.c.blob),
        )
    )
    own = ["thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id"]
    row: dict[str, ColumnElement[Any]] = {
        **{name: param(name) for name in own},
        # JSON is sent as text, so that the host's json_serializer can't change it.
        "checkpoint": cast(param("checkpoint"), JSONB),
        "metadata": cast(param("metadata"), JSONB),
    }
    insertion = insert(t.checkpoints)
    if kept:
        names = {name: row[name] for name in own[:3]}
        kept_of = kept_values(t, **names, keeps_from=row["parent_checkpoint_id"], kept=param("kept"))
        found = kept_of.subquery("found")
        row["checkpoint"] = _with_values(row["checkpoint"], found.c.inline)
        insertion = insertion.from_select([*row], select(*row.values()).select_from(found))
    else:
        insertion = insertion.values(row)
    stored = replacing(insertion, "checkpoint", "metadata").add_cte(blobs.cte("new_blobs"))
    return stored.returning(ONE)


def kept_values(
    t: Tables,
    *,
    thread_id: ColumnElement[str],
    checkpoint_ns: ColumnElement[str],
    checkpoint_id: ColumnElement[str],
    keeps_from: ColumnElement[str],
    kept: ColumnElement[str],
) -> Select[Any]:
    """Select the inline values that a checkpoint keeps of its parent, as a JSON object, or NULL: always one row.

    A step that does not know a channel omits its value and does not change its version. A blob is found by that
    version, an inline value has to be copied. A checkpoint that is stored once more has copied it already, and its
    parent may have been deleted since.

    Args:
        t: The tables.
        thread_id: The checkpoint's thread.
        checkpoint_ns: Its namespace.
        checkpoint_id: Its id.
        keeps_from: Its parent.
        kept: The versions of those channels, a JSON object as text; only a value of that version is kept.
    """
    p = t.checkpoints
    parent = (
        select(
            channel_values(p).label("inline"),
            channel_versions(p).label("versions"),
        )
        .where(p.c.thread_id == thread_id, p.c.checkpoint_ns == checkpoint_ns)
        .where(p.c.checkpoint_id.in_([keeps_from, checkpoint_id]))
        .offset(ZERO)  # so that a long one is fetched from its TOAST once, not for every channel
        .correlate_except(p)
        .lateral("parent")
    )
    each = (
        func.jsonb_each(cast(kept, JSONB))
        .table_valued(Column("channel", Text), Column("version", JSONB))
        .render_derived("kept")
    )
    value = member(parent.c.inline, each.c.channel)
    return (
        select(func.jsonb_object_agg(each.c.channel, value, type_=JSONB).label("inline"))
        .select_from(parent.join(each, true()))
        .where(value.is_not(None), member(parent.c.versions, each.c.channel) == each.c.version)
        .correlate_except(parent, each)
    )


def _with_values(checkpoint: ColumnElement[Any], inline: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a checkpoint with more channel values inline, if there are any."""
    values = member(checkpoint, text_literal("channel_values")).op("||")(inline)
    path = array([text_literal("channel_values")])
    return case((inline.is_(None), checkpoint), else_=func.jsonb_set(checkpoint, path, values, type_=JSONB))


def put_writes(t: Tables) -> Insert:
    """Insert the pending writes of one task; see `replacing_special` for those that exist already.

    Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`, `task_id`, `task_path`, and the writes as four arrays of equal
    length, `idxs`, `channels`, `types`, `blobs`, with no `idx` twice.
    """
    new = rows_of_binds(idx=Integer, channel=Text, type=Text, blob=LargeBinary)
    own = ["thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "task_path"]
    return replacing_special(
        insert(t.checkpoint_writes).from_select(
            [*own, "idx", "channel", "type", "blob"],
            select(*[param(name) for name in own], new.c.idx, new.c.channel, new.c.type, new.c.blob),
        )
    )


def replacing(insertion: Insert, *columns: str, where: ColumnElement[bool] | None = None) -> Insert:
    """Return an insert that replaces some columns of rows that exist already, or of those that meet a condition."""
    table: Any = insertion.table
    return insertion.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={name: insertion.excluded[name] for name in columns}, where=where
    )


def replacing_special(insertion: Insert) -> Insert:
    """Return an insert of pending writes that decides row by row, as LangGraph's `InMemorySaver` does.

    A write to a special channel, which has a negative `idx`, replaces the stored one; an ordinary write stays as it was
    first stored.
    """
    return replacing(insertion, "channel", "type", "blob", "task_path", where=insertion.excluded["idx"] < ZERO)


def keeping(insertion: Insert) -> Insert:
    """Return an insert that does not change rows that exist already, but locks them.

    Without the lock, another transaction could delete a row to which this one is about to refer.
    """
    table: Any = insertion.table
    return insertion.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={"type": table.c.type}, where=false()
    )


def store(t: Tables, *, one_thread: bool = False, simple: bool = False) -> Select[Any]:
    """Store many checkpoints, blobs, pages and pending writes, of any threads: all in one commit.

    Rows of a thread are stored only if `passed_threads` has it. Returns these threads, and in each row the numbers of
    all rows written: writes, checkpoints, blobs and pages. A row that existed already counts only if it is a checkpoint
    or a special write.

    Args:
        t: The tables.
        one_thread: Whether it is for a single thread with all of its pages in the call: see `claimed_threads`.
        simple: Whether there are no pending writes, and no checkpoint keeps values of its parent.

    Binds: arrays by the names of `write_batch.merged`.
    """
    passed = claimed_threads(t) if one_thread else passed_threads(t)
    blobs = keeping(new_rows(passed, "blob_", t.checkpoint_blobs, type=Text, blob=LargeBinary))
    checkpoints = new_checkpoints(passed, t, kept=not simple)
    write = {"task_path": Text, "channel": Text, "type": Text, "blob": LargeBinary}
    new_writes = replacing_special(new_rows(passed, "write_", t.checkpoint_writes, **write))
    stored = replacing(checkpoints, "checkpoint", "metadata")
    # The counts are computed in this order, the one in which every transaction locks rows (see `delete`).
    rows = [
        *([] if simple else [new_writes.returning(ONE).cte("new_writes")]),
        stored.returning(ONE).cte("new_checkpoints"),
        blobs.returning(ONE).cte("new_blobs"),
        new_pages(t, passed),
    ]
    return select(passed.c.thread_id, *map(count_of, rows))


def known_pages(t: Tables) -> Select[Any]:
    """Select those of some pages that a thread has. Binds: `thread_id`, `digests` (array of bytes)."""
    p = t.checkpoint_pages
    is_one = p.c.digest == func.any(array_param("digests", LargeBinary))
    return select(p.c.digest).where(p.c.thread_id == param("thread_id"), is_one)


def missing_pages(t: Tables) -> Select[Any]:
    """Select the threads of pages that do not exist, though a recipe names them, once for each page.

    Binds: parallel arrays of the recipe's key, `thread_ids`, `checkpoint_nss`, `channels`, `versions`, and `digests`.
    """
    p, b = t.checkpoint_pages, t.checkpoint_blobs
    sought = rows_of_binds(thread_id=Text, checkpoint_ns=Text, channel=Text, version=Text, digest=LargeBinary)
    # A scalar subquery is not made a join, so the server never reads all rows of a table.
    page = select(p.c.digest).where(p.c.thread_id == sought.c.thread_id, p.c.digest == sought.c.digest)
    recipe = select(b.c.type).where(b.c.thread_id == sought.c.thread_id, same_blob(b, sought))
    return select(sought.c.thread_id).where(
        page.correlate(sought).scalar_subquery().is_(None),
        recipe.correlate(sought).scalar_subquery() == text_literal(PAGED),
    )


def new_pages(t: Tables, passed: CTE) -> CTE:
    """Insert the pages that come as arrays, of the threads that passed, unless they exist."""
    pages = new_rows(passed, "page_", t.checkpoint_pages, page=LargeBinary)
    return pages.on_conflict_do_nothing().returning(ONE).cte("new_pages")


def new_rows(passed: CTE, prefix: str, target: Table, **columns: Any) -> Insert:
    """Insert rows that come as arrays of their keys and some more columns, of the threads that passed."""
    columns = {**key_types(target), **columns}
    new = rows_of_binds(prefix, **columns)
    chosen = select(*new.c).select_from(new.join(passed, passed.c.thread_id == new.c.thread_id))
    return insert(target).from_select([*columns], chosen.order_by(*_in_order(target, new)))


def new_checkpoints(passed: CTE, t: Tables, *, kept: bool) -> Insert:
    """Insert checkpoints that come as arrays, of the threads that passed, each with the values that it keeps."""
    own = ["thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id"]
    more = ["keeps_from", "kept"] if kept else []
    new = rows_of_binds("checkpoint_", **dict.fromkeys([*own, "checkpoint", "metadata", *more], Text))
    row: dict[str, ColumnElement[Any]] = {
        **{name: new.c[name] for name in own},
        "checkpoint": cast(new.c.checkpoint, JSONB),
        "metadata": cast(new.c.metadata, JSONB),
    }
    rows: FromClause = new.join(passed, passed.c.thread_id == new.c.thread_id)
    if kept:
        found = kept_values(t, **{name: new.c[name] for name in (*own[:3], *more)}).lateral("found")
        row["checkpoint"] = _with_values(row["checkpoint"], found.c.inline)
        rows = rows.join(found, true())
    chosen = select(*row.values()).select_from(rows)
    return insert(t.checkpoints).from_select([*row], chosen.order_by(*_in_order(t.checkpoints, new)))


def _in_order(target: Table, new: FromClause) -> list[ColumnElement[Any]]:
    """Return the order in which every transaction locks rows: by key, as Python sorts strings."""
    keys = [new.c[column.key] for column in target.primary_key]
    return [column.collate("C") if isinstance(column.type, Text) else column for column in keys]


def passed_threads(t: Tables) -> CTE:
    """Select the threads with rows that may be stored. Binds: the gates and the needed pages of `write_batch.merged`.

    A thread that needs pages passes if they exist and no transaction deletes any before this one commits: a transaction
    that does has locked the thread's row in `checkpoint_threads`, and gives it another epoch. After waiting for that
    lock a statement continues with the snapshot that it began with, except for the locked row itself: so the row is
    joined twice, as it is once it is locked and as it was in the snapshot that has the pages.

    A thread with all of its pages in the call passes if its row could be inserted, or locked. That fails only if
    another transaction inserts or deletes the row at the same time.
    """
    threads, seen, p = t.checkpoint_threads, t.checkpoint_threads.alias("seen"), t.checkpoint_pages
    made = _new_threads(t).on_conflict_do_nothing().returning(threads.c.thread_id).cte("made")
    # As few rows: a plan for their real number would seem so much cheaper that the server plans every execution anew.
    gate = few_rows_of_binds("gate_", **_GATE)
    # One scan of the key's index, which skips from page to page: to look each up takes three times as long.
    needed = select(array_param("needed_digests", LargeBinary)).scalar_subquery()
    theirs = needed[slice(gate.c.first, gate.c.last)]
    found = select(func.count()).where(p.c.thread_id == gate.c.thread_id, p.c.digest == func.any(theirs))
    has_all = found.correlate(gate).scalar_subquery() == gate.c.last - gate.c.first + ONE
    is_whole = and_(threads.c.epoch == seen.c.epoch, has_all)
    held = (
        select(threads.c.thread_id)
        .select_from(
            gate.join(threads, threads.c.thread_id == gate.c.thread_id).join(seen, seen.c.thread_id == gate.c.thread_id)
        )
        # CASE, not OR: of that the server would check the part about the gate beforehand, and count the pages twice.
        .where(case((gate.c.kind == int_literal(NEEDS), is_whole), else_=gate.c.kind == int_literal(COMPLETE)))
        .order_by(threads.c.thread_id)
        .with_for_update(read=True, of=threads)
        .cte("held")
    )
    each = rows_of_binds("gate_", **_GATE)
    ungated = select(each.c.thread_id).where(each.c.kind == int_literal(UNGATED))
    return union_all(ungated, select(made), select(held)).cte("passed")


def claimed_threads(t: Tables) -> CTE:
    """Select the same for one thread with all of its pages in the call: it passes, whatever other transactions do.

    It updates the row, by which it gets one that was inserted after its snapshot too. If it gets none, then a trigger
    drops the row or a policy hides it.
    """
    threads = t.checkpoint_threads
    claimed = _new_threads(t).on_conflict_do_update(
        index_elements=list(threads.primary_key), set_={"epoch": threads.c.epoch}
    )
    return claimed.returning(threads.c.thread_id).cte("passed")


def _new_threads(t: Tables) -> Insert:
    """Insert rows for the threads with all of their pages in the call."""
    gate = rows_of_binds("gate_", **_GATE)
    new = select(gate.c.thread_id, gate.c.epoch).where(gate.c.kind == int_literal(COMPLETE)).order_by(gate.c.thread_id)
    return insert(t.checkpoint_threads).from_select(["thread_id", "epoch"], new)
