"""The statements that delete, and collect pages that nothing refers to; no I/O."""

from __future__ import annotations

from sqlalchemy import (
    Delete,
    delete,
    exists,
    update,
)

from checkpoint_store.schema import PAGED, Tables
from checkpoint_store.statements.clauses import (
    digests_of,
    given,
    key,
    number,
)


def delete_thread(t: Tables) -> Delete:
    """Delete everything stored for a thread, atomically. Binds: `thread_id`."""
    # In the order in which `store` writes, so that the two don't deadlock: PostgreSQL executes the statement itself,
    # then the CTEs, the last one first.
    rest = [
        delete(table).where(table.c.thread_id == given("thread_id")).cte(f"deleted_{table.name}")
        for table in (t.checkpoint_threads, t.checkpoint_pages, t.checkpoint_blobs, t.checkpoints)
    ]
    return delete(t.checkpoint_writes).where(t.checkpoint_writes.c.thread_id == given("thread_id")).add_cte(*rest)


def collect_pages(t: Tables) -> Delete:
    """Delete the pages of a thread that no blob of it refers to, and begin another epoch. Binds: `thread_id`.

    To be executed after `lock_thread`, in one transaction: its snapshot then has everything that was stored before.
    """
    p, threads, b = t.checkpoint_pages, t.checkpoint_threads, t.checkpoint_blobs
    used = digests_of(b).where(b.c.thread_id == given("thread_id"), b.c.type == key(PAGED)).distinct().cte("used")
    another = (
        update(threads)
        .where(threads.c.thread_id == given("thread_id"))
        .values(epoch=threads.c.epoch + number(1))
        .cte("another_epoch")
    )
    is_used = exists().where(used.c.digest == p.c.digest)
    return delete(p).where(p.c.thread_id == given("thread_id"), ~is_used).add_cte(another)
