"""The statements that copy a thread within the server; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from checkpoint_store.schema import Tables
from checkpoint_store.sql import expressions as ex


def stored_threads(t: Tables) -> sa.Select[Any]:
    """Select whether rows exist of one thread, and whether of another. Binds: `thread_id`, `target_id`."""
    tables = (t.checkpoints, t.checkpoint_writes, t.checkpoint_blobs)
    stored: list[sa.ColumnElement[Any]] = [
        sa.or_(*[sa.select(table.c.thread_id).where(table.c.thread_id == ex.param(name)).exists() for table in tables])
        for name in ("thread_id", "target_id")
    ]
    return sa.select(*stored)


TABLES = ("checkpoint_pages", "checkpoint_blobs", "checkpoints", "checkpoint_writes")
"""The tables whose rows are copied, in the order in which `copy_rows` counts them."""


def copy_rows(t: Tables) -> sa.Select[Any]:
    """Insert all rows of a thread under another id.

    Returns two arrays by the order of `TABLES`: the numbers of inserted rows and of the source's, which differ if a
    trigger of the host drops any.

    It locks nothing of the source: its snapshot has all of a commit or nothing. There must be no rows of the target,
    which gets a row in `checkpoint_threads` whether there are pages or not. Of distributed tables the source may be on
    another node, and is read at once, see `_source`.

    Binds: `thread_id`, `target_id`, and `epoch`, one that the target's pages never had.
    """
    threads, epoch = t.checkpoint_threads, ex.param("epoch", sa.BigInteger)
    made = pg.insert(threads).values(thread_id=ex.param("target_id"), epoch=epoch)
    made = made.on_conflict_do_update(index_elements=list(threads.primary_key), set_={"epoch": epoch})
    tables = (t.checkpoint_pages, t.checkpoint_blobs, t.checkpoints, t.checkpoint_writes)
    rows: list[tuple[sa.FromClause, sa.ColumnElement[bool]]]
    if ex.is_distributed(threads):
        source = _source(tables)
        rows = [(source, source.c.place == ex.int_literal(place)) for place, _ in enumerate(tables)]
    else:
        rows = [(one, ex.in_thread(one)) for one in tables]
    copies = [_copied(one, *of_it) for one, of_it in zip(tables, rows, strict=True)]
    stored = [sa.select(sa.func.count()).select_from(of).where(is_it).scalar_subquery() for of, is_it in rows]
    return sa.select(pg.array([*map(ex.count_of, copies)]), pg.array(stored)).add_cte(made.cte("made"))


def allow_any_size(_: Tables) -> sa.Select[Any]:
    """Let `copy_rows` on distributed tables be of any size until the transaction ends; Citus refuses 1 GB otherwise."""
    name = ex.text_literal("citus.max_intermediate_result_size")
    return sa.select(sa.func.set_config(name, ex.text_literal("-1"), ex.TRUE))


def _source(tables: Sequence[sa.Table]) -> sa.CTE:
    """Select all rows of a thread, each with the place of its table: one task, so one snapshot has all of them.

    Citus copies by a task for each table, and in READ COMMITTED each of these has a snapshot of its own.
    """
    columns = {column.name: column for table in tables for column in table.columns if column.name != "thread_id"}
    each = [
        sa.select(
            ex.int_literal(place).label("place"),
            *[table.c.get(name, sa.cast(sa.null(), column.type).label(name)) for name, column in columns.items()],
        ).where(ex.in_thread(table))
        for place, table in enumerate(tables)
    ]
    return sa.union_all(*each).cte("source")


def thread_epoch(t: Tables) -> sa.Select[Any]:
    """Select the epoch of a thread, if it has one. Binds: `thread_id`."""
    threads = t.checkpoint_threads
    return sa.select(threads.c.epoch).where(ex.in_thread(threads))


def task_paths(table_name: str) -> sa.Select[Any]:
    """Select the paths of a thread's tasks from another saver's table: namespace, checkpoint, task and path.

    Binds: `thread_id`.
    """
    names = ("thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "task_path")
    thread_id, *found = sa.table(table_name, *[sa.column(name) for name in names]).c
    return sa.select(*found).distinct().where(thread_id == ex.param("thread_id"))


def _copied(table: sa.Table, rows: sa.FromClause, is_it: sa.ColumnElement[bool]) -> sa.CTE:
    """Insert those rows of a table, or of `_source`, that meet a condition."""
    changed = {"thread_id": ex.param("target_id")}
    if "metadata" in table.c:
        changed["metadata"] = renamed(rows.c.metadata)
    columns = [column.name for column in table.columns]
    source = sa.select(*[changed[name] if name in changed else rows.c[name] for name in columns])
    copy = pg.insert(table).from_select(columns, source.select_from(rows).where(is_it))
    return copy.returning(ex.text_literal("")).cte(f"copied_{table.name}")


def renamed(metadata: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return the metadata; if it names the thread, as with older versions of LangGraph, it names the copy."""
    name = ex.text_literal("thread_id")
    path = sa.func.array_append(ex.text_literal("{}").cast(pg.ARRAY(sa.Text)), name)
    new = sa.func.jsonb_set(metadata, path, sa.func.to_jsonb(ex.param("target_id")))
    return sa.case((ex.member_text(metadata, name) == ex.param("thread_id"), new), else_=metadata)
