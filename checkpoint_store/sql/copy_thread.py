"""The statements that copy a thread, without a row leaving the server; no I/O."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, Table, Text, case, column, func, or_, select, table
from sqlalchemy.dialects.postgresql import ARRAY, array, insert

from checkpoint_store.schema import Tables
from checkpoint_store.sql.expressions import member_text, param, text_literal


def stored_threads(t: Tables) -> Select[Any]:
    """Select whether anything is stored for one thread, and whether for another. Binds: `thread_id`, `target_id`."""
    tables = (t.checkpoints, t.checkpoint_writes, t.checkpoint_blobs)
    stored: list[ColumnElement[Any]] = [
        or_(*[select(table.c.thread_id).where(table.c.thread_id == param(name)).exists() for table in tables])
        for name in ("thread_id", "target_id")
    ]
    return select(*stored)


TABLES = ("checkpoint_pages", "checkpoint_blobs", "checkpoints", "checkpoint_writes")
"""The tables whose rows are copied, in the order in which `copy_rows` counts them."""


def copy_rows(t: Tables) -> Select[Any]:
    """Insert everything that is stored for a thread under another id.

    Returns how many rows it has made of each table, and how many there are: something of a host's may drop some.

    It sees the source as of one moment, which each commit of a writer or collector leaves whole, so it locks nothing
    there. The target must have nothing; it gets a row in `checkpoint_threads` whether there are pages or not.

    Binds: `thread_id`, `target_id`, and `epoch`, one that the target's pages never had.
    """
    threads, epoch = t.checkpoint_threads, param("epoch", BigInteger)
    made = insert(threads).values(thread_id=param("target_id"), epoch=epoch)
    made = made.on_conflict_do_update(index_elements=list(threads.primary_key), set_={"epoch": epoch})
    copies = [
        _copied(t.checkpoint_pages),
        _copied(t.checkpoint_blobs),
        _copied(t.checkpoints, metadata=_renamed(t)),
        _copied(t.checkpoint_writes),
    ]
    counts = [select(func.count()).select_from(copy).scalar_subquery() for copy in copies]
    tables = (t.checkpoint_pages, t.checkpoint_blobs, t.checkpoints, t.checkpoint_writes)
    stored = [select(func.count()).where(one.c.thread_id == param("thread_id")).scalar_subquery() for one in tables]
    return select(array(counts), array(stored)).add_cte(made.cte("made"))


def thread_epoch(t: Tables) -> Select[Any]:
    """Select the epoch of a thread, if it has one. Binds: `thread_id`."""
    threads = t.checkpoint_threads
    return select(threads.c.epoch).where(threads.c.thread_id == param("thread_id"))


def task_paths(table_name: str) -> Select[Any]:
    """Select the paths of a thread's tasks from another saver's table: namespace, checkpoint, task and path.

    Binds: `thread_id`.
    """
    names = ("thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "task_path")
    thread_id, *found = table(table_name, *[column(name) for name in names]).c
    return select(*found).distinct().where(thread_id == param("thread_id"))


def _copied(table: Table, **changed: ColumnElement[Any]) -> Any:
    changed = {"thread_id": param("target_id"), **changed}
    columns = [column.name for column in table.columns]
    source = select(*[changed.get(name, table.c[name]) for name in columns])
    copy = insert(table).from_select(columns, source.where(table.c.thread_id == param("thread_id")))
    return copy.returning(text_literal("")).cte(f"copied_{table.name}")


def _renamed(t: Tables) -> ColumnElement[Any]:
    """The metadata; where it names the thread, as older versions of LangGraph had it, it names the copy."""
    metadata, name = t.checkpoints.c.metadata, text_literal("thread_id")
    path = func.array_append(text_literal("{}").cast(ARRAY(Text)), name)
    new = func.jsonb_set(metadata, path, func.to_jsonb(param("target_id")))
    return case((member_text(metadata, name) == param("thread_id"), new), else_=metadata)
