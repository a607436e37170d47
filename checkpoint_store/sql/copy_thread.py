"""The statements that copy a thread within the server; no I/O."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, Table, Text, case, column, func, or_, select, table
from sqlalchemy.dialects.postgresql import ARRAY, array, insert

from checkpoint_store.schema import Tables
from checkpoint_store.sql.expressions import count_of, member_text, param, text_literal


def stored_threads(t: Tables) -> Select[Any]:
    """Select whether rows exist of one thread, and whether of another. Binds: `thread_id`, `target_id`."""
    tables = (t.checkpoints, t.checkpoint_writes, t.checkpoint_blobs)
    stored: list[ColumnElement[Any]] = [
        or_(*[select(table.c.thread_id).where(table.c.thread_id == param(name)).exists() for table in tables])
        for name in ("thread_id", "target_id")
    ]
    return select(*stored)


TABLES = ("checkpoint_pages", "checkpoint_blobs", "checkpoints", "checkpoint_writes")
"""The tables whose rows are copied, in the order in which `copy_rows` counts them."""


def copy_rows(t: Tables) -> Select[Any]:
    """Insert all rows of a thread under another id.

    Returns two arrays by the order of `TABLES`: the numbers of inserted rows and of the source's, which differ if a
    trigger of the host drops any.

    It locks nothing of the source: its snapshot has all of a commit or nothing. There must be no rows of the target,
    which gets a row in `checkpoint_threads` whether there are pages or not.

    Binds: `thread_id`, `target_id`, and `epoch`, one that the target's pages never had.
    """
    threads, epoch = t.checkpoint_threads, param("epoch", BigInteger)
    made = insert(threads).values(thread_id=param("target_id"), epoch=epoch)
    made = made.on_conflict_do_update(index_elements=list(threads.primary_key), set_={"epoch": epoch})
    tables = (t.checkpoint_pages, t.checkpoint_blobs, t.checkpoints, t.checkpoint_writes)
    copies = [_copied(one, **({"metadata": _renamed(t)} if one is t.checkpoints else {})) for one in tables]
    stored = [select(func.count()).where(one.c.thread_id == param("thread_id")).scalar_subquery() for one in tables]
    return select(array([*map(count_of, copies)]), array(stored)).add_cte(made.cte("made"))


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
    """Return the metadata; if it names the thread, as with older versions of LangGraph, it names the copy."""
    metadata, name = t.checkpoints.c.metadata, text_literal("thread_id")
    path = func.array_append(text_literal("{}").cast(ARRAY(Text)), name)
    new = func.jsonb_set(metadata, path, func.to_jsonb(param("target_id")))
    return case((member_text(metadata, name) == param("thread_id"), new), else_=metadata)
