"""The statements that store checkpoints, blobs, pages and pending writes: one call's, or many at once; no I/O."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    LargeBinary,
    Select,
    Table,
    Text,
    and_,
    cast,
    extract,
    false,
    func,
    or_,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert

from checkpoint_store.schema import Tables
from checkpoint_store.statements.clauses import (
    given,
    number,
    rows_of_binds,
)


def put_checkpoint(t: Tables) -> Insert:
    """Upsert a checkpoint together with the blobs that are new in it: one statement, so atomic on its own.

    Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`, `parent_checkpoint_id`, `checkpoint` and `metadata` (JSON
    text), and the blobs as four arrays of equal length, `channels`, `versions`, `types`, `blobs`.
    """
    new = rows_of_binds(channel=Text, version=Text, type=Text, blob=LargeBinary)
    blobs = keeping(
        insert(t.checkpoint_blobs).from_select(
            ["thread_id", "checkpoint_ns", "channel", "version", "type", "blob"],
            select(given("thread_id"), given("checkpoint_ns"), new.c.channel, new.c.version, new.c.type, new.c.blob),
        )
    )
    insertion = insert(t.checkpoints).values(
        thread_id=given("thread_id"),
        checkpoint_ns=given("checkpoint_ns"),
        checkpoint_id=given("checkpoint_id"),
        parent_checkpoint_id=given("parent_checkpoint_id"),
        # JSON travels as text, so that the host's json_serializer can't change it.
        checkpoint=cast(given("checkpoint"), JSONB),
        metadata=cast(given("metadata"), JSONB),
    )
    return replacing(insertion, "checkpoint", "metadata").add_cte(blobs.cte("new_blobs"))


def put_writes(t: Tables) -> Insert:
    """Store the pending writes of one task; see `replacing_special` for those that are there already.

    Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`, `task_id`, `task_path`, and the writes as four arrays of equal
    length, `idxs`, `channels`, `types`, `blobs`, with no `idx` twice.
    """
    new = rows_of_binds(idx=Integer, channel=Text, type=Text, blob=LargeBinary)
    own = ["thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "task_path"]
    return replacing_special(
        insert(t.checkpoint_writes).from_select(
            [*own, "idx", "channel", "type", "blob"],
            select(*[given(name) for name in own], new.c.idx, new.c.channel, new.c.type, new.c.blob),
        )
    )


def replacing(insertion: Insert, *columns: str, where: ColumnElement[bool] | None = None) -> Insert:
    """An insert that replaces some columns of the rows that are there already, or of some of them."""
    table: Any = insertion.table
    return insertion.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={name: insertion.excluded[name] for name in columns}, where=where
    )


def replacing_special(insertion: Insert) -> Insert:
    """An insert of pending writes, decided row by row as LangGraph's `InMemorySaver` does.

    A write to a special channel, whose `idx` is negative, replaces the one that is there; an ordinary write stays as it
    was first stored.
    """
    return replacing(insertion, "channel", "type", "blob", "task_path", where=insertion.excluded["idx"] < number(0))


def keeping(insertion: Insert) -> Insert:
    """An insert that leaves the rows that are there already as they are, and locks them.

    Without the lock, whoever deletes a row that nothing refers to would not notice the one who is about to.
    """
    table: Any = insertion.table
    return insertion.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={"type": table.c.type}, where=false()
    )


def store(t: Tables) -> Select[Any]:
    """Store many checkpoints, blobs, pages and pending writes, of any threads: all in one commit.

    A thread whose rows refer to pages passes only if those are there: its row in `checkpoint_threads` has the epoch
    they were seen in, or all of them come along. The row is locked until the commit, so that nobody deletes pages
    meanwhile. (Having waited for a lock, a statement goes on with the snapshot it began with, except for the locked row
    itself: so it is this row that tells.) Nothing is stored of threads that don't pass. Returns those that do, and
    their epochs.

    Binds: arrays by the names of `changes.merged`.
    """
    passed = passed_threads(t)
    graph = {"checkpoint_ns": Text}
    write = {**graph, "checkpoint_id": Text, "task_id": Text, "idx": Integer, "task_path": Text}
    value = {"channel": Text, "type": Text, "blob": LargeBinary}
    pages = new_rows(passed, "page_", t.checkpoint_pages, digest=LargeBinary, page=LargeBinary).on_conflict_do_nothing()
    blobs = keeping(
        new_rows(passed, "blob_", t.checkpoint_blobs, **graph, channel=Text, version=Text, type=Text, blob=LargeBinary)
    )
    checkpoints = new_rows(
        passed,
        "checkpoint_",
        t.checkpoints,
        **graph,
        checkpoint_id=Text,
        parent_checkpoint_id=Text,
        checkpoint=Text,
        metadata=Text,
    )
    writes = replacing_special(new_rows(passed, "write_", t.checkpoint_writes, **write, **value))
    return select(passed.c.thread_id, passed.c.epoch).add_cte(
        pages.cte("new_pages"),
        blobs.cte("new_blobs"),
        replacing(checkpoints, "checkpoint", "metadata").cte("new_checkpoints"),
        writes.cte("new_writes"),
    )


def known_pages(t: Tables) -> Select[Any]:
    """Select the epoch of a thread and those of some pages that it has; no row if it never had any.

    Binds: `thread_id`, `digests` (array of bytes).
    """
    p, threads = t.checkpoint_pages, t.checkpoint_threads
    digest = rows_of_binds(digest=LargeBinary).c.digest
    known = select(p.c.digest).where(p.c.thread_id == given("thread_id"), p.c.digest == digest)
    known = select(func.array_agg(digest)).where(known.correlate(threads, digest.table).exists()).correlate(threads)
    return select(_seen(threads), known.scalar_subquery()).where(threads.c.thread_id == given("thread_id"))


def new_rows(passed: CTE, prefix: str, target: Table, **columns: Any) -> Insert:
    """Insert rows that come as arrays, of the threads that passed."""
    new, names = rows_of_binds(prefix, thread_id=Text, **columns), ["thread_id", *columns]
    values = [cast(new.c[name], JSONB) if name in ("checkpoint", "metadata") else new.c[name] for name in names]
    chosen = select(*values).select_from(new.join(passed, passed.c.thread_id == new.c.thread_id))
    # Everybody locks rows in one order: by key, as Python sorts strings.
    keys = [new.c[column.key] for column in target.primary_key]
    order = [key.collate("C") if isinstance(key.type, Text) else key for key in keys]
    return insert(target).from_select(names, chosen.order_by(*order))


def passed_threads(t: Tables) -> CTE:
    """The threads whose rows may be stored, and their epochs; see `store`. Binds: the gates of `changes.merged`."""
    threads, kinds = t.checkpoint_threads, {"thread_id": Text, "kind": Integer, "epoch": BigInteger}
    gate = rows_of_binds("gate_", **kinds)
    made = (
        insert(threads)
        .from_select(
            ["thread_id", "epoch"],
            select(gate.c.thread_id, gate.c.epoch).where(gate.c.kind == number(2)).order_by(gate.c.thread_id),
        )
        .on_conflict_do_nothing()
        .returning(threads.c.thread_id, _seen(threads))
        .cte("made")
    )
    held = (
        select(threads.c.thread_id, _seen(threads))
        .select_from(gate.join(threads, threads.c.thread_id == gate.c.thread_id))
        .where(or_(gate.c.kind == number(2), and_(gate.c.kind == number(1), gate.c.epoch == _seen(threads))))
        .order_by(threads.c.thread_id)
        .with_for_update(read=True, of=threads)
        .cte("held")
    )
    ungated = select(gate.c.thread_id, gate.c.epoch).where(gate.c.kind == number(0))
    return union_all(ungated, select(made), select(held)).cte("passed")


def _seen(threads: FromClause) -> ColumnElement[int]:
    """The epoch of a thread as those who store pages see it: another one on each server, and each time it is started.

    A standby that took over, or a backup, may lack the last pages that its predecessor had, but not the epoch.
    """
    started = cast(extract("epoch", func.pg_postmaster_start_time()) * number(1_000_000), BigInteger)
    return threads.c.epoch.bitwise_xor(started).label("epoch")
