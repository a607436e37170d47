"""The statements that copy a thread within the server; no I/O."""

from __future__ import annotations

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
    which gets a row in `checkpoint_threads` whether there are pages or not.

    Binds: `thread_id`, `target_id`, and `epoch`, one that the target's pages never had.
    """
    threads, epoch = t.checkpoint_threads, ex.param("epoch", sa.BigInteger)
    made = pg.insert(threads).values(thread_id=ex.param("target_id"), epoch=epoch)
    made = made.on_conflict_do_update(index_elements=list(threads.primary_key), set_={"epoch": epoch})
    tables = (t.checkpoint_pages, t.checkpoint_blobs, t.checkpoints, t.checkpoint_writes)
    copies = [_copied(one, **({"metadata": _renamed(t)} if one is t.checkpoints else {})) for one in tables]
    stored = [sa.select(sa.func.count()).where(ex.in_thread(one)).scalar_subquery() for one in tables]
    return sa.select(pg.array([*map(ex.count_of, copies)]), pg.array(stored)).add_cte(made.cte("made"))


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


def _copied(table: sa.Table, **changed: sa.ColumnElement[Any]) -> Any:
    changed = {"thread_id": ex.param("target_id"), **changed}
    columns = [column.name for column in table.columns]
    source = sa.select(*[changed.get(name, table.c[name]) for name in columns])
    copy = pg.insert(table).from_select(columns, source.where(ex.in_thread(table)))
    return copy.returning(ex.text_literal("")).cte(f"copied_{table.name}")


def _renamed(t: Tables) -> sa.ColumnElement[Any]:
    """Return the metadata; if it names the thread, as with older versions of LangGraph, it names the copy."""
    metadata, name = t.checkpoints.c.metadata, ex.text_literal("thread_id")
    path = sa.func.array_append(ex.text_literal("{}").cast(pg.ARRAY(sa.Text)), name)
    new = sa.func.jsonb_set(metadata, path, sa.func.to_jsonb(ex.param("target_id")))
    return sa.case((ex.member_text(metadata, name) == ex.param("thread_id"), new), else_=metadata)
