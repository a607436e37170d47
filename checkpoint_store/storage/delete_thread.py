"""Deletion of everything stored for a thread."""

from __future__ import annotations

from collections.abc import Sequence

from checkpoint_store.sql.arrays import thread_binds
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.script import Constant
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.locks import claim_threads, lock_number, lock_removal
from checkpoint_store.storage.operation import Kind, operation
from checkpoint_store.storage.sweep_report import SweepReport, report_of


@operation(Kind.WRITE, in_transaction=True, as_script=True, thread_of=lambda thread_id: thread_id)
def delete_thread(db: Executor, sql: Statements, thread_id: str) -> None:
    """Delete everything stored for a thread."""
    if not db.runs_scripts:
        delete_threads(db, sql, [thread_id])
        return
    if sql.are_distributed:
        lock_number(db, sql, thread_id)  # which raises on a worker; a script decides nothing
        thread_id = Constant(thread_id)
    # The same statements as there; nothing has to be decided between them.
    binds = {**thread_binds([thread_id]), "table": sql.checkpoints_name}
    steps = (sql.lock_removal, sql.insert_thread_rows, sql.lock_threads, sql.delete_threads, sql.delete_threads)
    db.run_script([(statement, binds) for statement in steps])


@operation(Kind.WRITE, in_transaction=True)
def delete_threads(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> SweepReport:
    """Delete everything stored for some threads. Returns what was there, without the number of threads."""
    lock_removal(db, sql, thread_ids)
    return delete_locked_threads(db, sql, thread_ids)


def delete_locked_threads(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> SweepReport:
    """Delete the same under the threads' removal locks, in a transaction."""
    claim_threads(db, sql, thread_ids)
    # Twice, for the rows of a put that the first DELETE had to wait for: it had found a blob there.
    deleted = [db.fetch(sql.delete_threads, thread_binds(thread_ids))[0] for _ in range(2)]
    sizes = [(rows + more, size + more_size) for (rows, size), (more, more_size) in zip(*deleted, strict=True)]
    writes, checkpoints, blobs, pages = sizes
    return report_of(checkpoints=checkpoints, writes=writes, blobs=blobs, pages=pages)
