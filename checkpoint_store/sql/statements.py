"""The statements on the tables of one schema, by name.

Each is one round trip and one SQL text, however many rows it is about: these travel as arrays. Every table it touches
carries an equality on `thread_id`, so that a distributed or partitioned PostgreSQL can route it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, partial

from checkpoint_store.schema import Tables, checked, qualified
from checkpoint_store.sql import (
    catalog,
    copy_thread,
    delete,
    delete_candidates,
    delta_history,
    diagnosis,
    distributed_threads,
    distributed_write,
    distribution,
    history,
    list_threads,
    locks,
    pages,
    probes,
    read,
    reencrypt,
    sizes,
    thread_rows,
    write,
)
from checkpoint_store.sql import expressions as ex
from checkpoint_store.sql.compiled import Read, Statement, compiled, compiled_read


class Statements:
    """All statements on the tables of one schema, each built when it is first needed."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.are_distributed = ex.is_distributed(tables.checkpoints)
        """Whether the tables are distributed by Citus: then a statement is about one thread, or reads."""
        self.checkpoints_name = qualified(tables.checkpoints.name, tables.schema)
        """The table of checkpoints as SQL text names it."""
        # These are built once for each set of conditions, or of parts.
        self.list_checkpoints: Callable[[frozenset[str]], Read] = cache(partial(Read.of, read.list_checkpoints, tables))
        self.newest_keys: Callable[[frozenset[str]], Statement] = cache(
            lambda conditions: Statement(read.newest_keys, tables, conditions)
        )
        self.list_threads: Callable[[frozenset[str]], Statement] = cache(
            lambda conditions: Statement(list_threads.list_threads, tables, conditions)
        )
        self.next_roots: Callable[[frozenset[str]], Statement] = cache(
            lambda conditions: Statement(distributed_threads.next_roots, tables, conditions)
        )
        self.threads_with_root: Callable[[frozenset[str]], Statement] = cache(
            lambda conditions: Statement(distributed_threads.threads_with_root, tables, conditions)
        )
        self.next_threads_by_id: Callable[[frozenset[str]], Statement] = cache(
            lambda conditions: Statement(distributed_threads.next_threads, tables, conditions)
        )
        self.store: Callable[[frozenset[str]], Statement] = cache(lambda parts: Statement(write.store, tables, parts))
        self.next_threads_of: Callable[[str], Statement] = cache(
            lambda name: Statement(pages.next_threads, tables, name)
        )
        self.next_rows: Callable[[str], Statement] = cache(lambda name: Statement(thread_rows.next_rows, tables, name))
        self.insert_rows: Callable[[str], Statement] = cache(
            lambda name: Statement(thread_rows.insert_rows, tables, name)
        )
        # For distributed tables, built once for each number of rows.
        self.put_some: Callable[[distributed_write.Shape], Statement] = cache(
            lambda shape: Statement(distributed_write.put_checkpoint, tables, shape)
        )
        self.put_some_writes: Callable[[int | None, bool], Statement] = cache(
            lambda count, anchored: Statement(distributed_write.put_writes, tables, count, anchored)
        )

    get_checkpoint = compiled_read(read.get_checkpoint)
    get_newest = compiled_read(read.get_newest)
    has_newer = compiled(read.has_newer)
    checkpoints_at = compiled_read(read.checkpoints_at)
    inventory = compiled(read.inventory)

    root_metadata = compiled(distributed_threads.root_metadata)

    put_checkpoint = compiled(write.put_checkpoint)
    put_checkpoint_keeping = compiled(write.put_checkpoint, kept=True)
    put_writes = compiled(write.put_writes)
    known_pages = compiled(write.known_pages)
    missing_pages = compiled(write.missing_pages)

    claim_thread = compiled(distributed_write.claim_thread)
    held_pages = compiled(distributed_write.held_pages)
    kept_inline = compiled(distributed_write.kept_inline)

    ancestors = compiled(delta_history.ancestors)

    summaries = compiled(history.newest_summaries, before=False)
    summaries_before = compiled(history.newest_summaries, before=True)
    summaries_at = compiled(history.summaries_at)
    count_checkpoints_of = compiled(history.count_checkpoints, before=False)
    count_checkpoints_before = compiled(history.count_checkpoints, before=True)
    parents_of_newer = compiled(history.parents_of_newer)
    ids_with_prefix = compiled(history.ids_with_prefix)

    stored_threads = compiled(copy_thread.stored_threads)
    copy_rows = compiled(copy_thread.copy_rows)
    allow_any_size = compiled(copy_thread.allow_any_size)
    thread_epoch = compiled(copy_thread.thread_epoch)

    count_rows = compiled(thread_rows.count_rows)

    lock_number = compiled(locks.lock_number)
    take_lock = compiled(locks.take_lock)
    take_lock_in_transaction = compiled(locks.take_lock_in_transaction)
    take_locks_in_transaction = compiled(locks.take_locks_in_transaction)
    has_lock = compiled(locks.has_lock)
    release_lock = compiled(locks.release_lock)
    begin_session = compiled(locks.begin_session)
    session_id = compiled(locks.session_id)
    lock_namespaces = compiled(locks.lock_namespaces)
    continuations = compiled(locks.continuations)
    lock_removal = compiled(locks.lock_removal)

    lock_threads = compiled(delete.lock_threads)
    insert_thread_rows = compiled(delete.insert_thread_rows)
    delete_checkpoints = compiled(delete.delete_checkpoints)
    count_checkpoints = compiled(delete.count_checkpoints)
    parents = compiled(delete.parents)
    children = compiled(delete.children)
    reparent = compiled(delete.reparent)
    next_blob = compiled(delete.next_blob)
    mark_dead_entries = compiled(delete.mark_dead_entries)
    lock_blobs = compiled(delete.lock_blobs)
    lock_blob_range = compiled(delete.lock_blobs, in_range=True)
    delete_blobs = compiled(delete.delete_blobs)
    delete_blob_range = compiled(delete.delete_blobs, in_range=True)
    count_blobs = compiled(delete.count_blobs)
    delete_pages = compiled(delete.delete_pages)
    paged_threads = compiled(delete.paged_threads)
    count_pages = compiled(delete.count_pages)
    delete_thread_rows = compiled(delete.delete_thread_rows)
    delete_threads = compiled(delete.delete_threads)

    next_threads = compiled(delete_candidates.next_threads)
    thread_count = compiled(delete_candidates.thread_count)
    next_writers = compiled(delete_candidates.next_writers)
    orphaned_writes = compiled(delete_candidates.orphaned_writes)
    next_leftovers = compiled(delete_candidates.next_leftovers)
    leftover_threads = compiled(delete_candidates.leftover_threads)
    sees_all = compiled(delete_candidates.sees_all)
    blob_namespaces = compiled(delete_candidates.blob_namespaces)
    checkpoint_counts = compiled(delete_candidates.checkpoint_counts)
    threads_of_runs = compiled(delete_candidates.threads_of_runs)
    expired_threads = compiled(delete_candidates.expired_threads)
    candidates = compiled(delete_candidates.candidates)
    channels_without_value = compiled(delete_candidates.channels_without_value)
    traces = compiled(delete_candidates.traces)

    next_blobs = compiled(pages.next_blobs)
    share_blobs = compiled(pages.share_blobs)
    inline_blobs = compiled(pages.inline_blobs)

    next_blob_values = compiled(reencrypt.next_blob_values)
    next_write_values = compiled(reencrypt.next_write_values)
    next_inline_values = compiled(reencrypt.next_inline_values)
    rewrite_blobs = compiled(reencrypt.rewrite_blobs)
    rewrite_writes = compiled(reencrypt.rewrite_writes)
    move_inline = compiled(reencrypt.move_inline)
    count_plain = compiled(reencrypt.count_plain)

    thread_tables = compiled(sizes.thread_tables)
    thread_channels = compiled(sizes.thread_channels)
    largest_threads = compiled(sizes.largest_threads)
    thread_sizes = compiled(sizes.thread_sizes)
    table_sizes = compiled(sizes.table_sizes)

    has_citus = compiled(distribution.has_citus)
    placement = compiled(distribution.placement)

    relations = compiled(catalog.relations)
    stock_version = compiled(catalog.stock_version)

    limit_waits = compiled(diagnosis.limit_waits)
    server = compiled(diagnosis.server)
    schema_rights = compiled(diagnosis.schema_rights)
    named_relations = compiled(diagnosis.named_relations)
    elsewhere = compiled(diagnosis.elsewhere)
    rules = compiled(diagnosis.rules)
    indexes = compiled(diagnosis.indexes)
    table_statistics = compiled(diagnosis.table_statistics)
    connections = compiled(diagnosis.connections)
    sessions = compiled(diagnosis.sessions)
    oldest_checkpoint = compiled(diagnosis.end_of_checkpoints, newest=False)
    newest_checkpoint = compiled(diagnosis.end_of_checkpoints, newest=True)

    role = compiled(probes.role)
    adoption = compiled(probes.adoption)
    revision = compiled(probes.revision)
    is_at_head = compiled(probes.is_at_head)
    log_position = compiled(probes.log_position)
    replayed_position = compiled(probes.replayed_position)


def statements_of(schema: str | None, *, distributed: bool = False) -> Statements:
    """Return the statements on the tables of a PostgreSQL schema, distributed or not; savers share them.

    Raises:
        InvalidOption: If it can't be the name of one.
    """
    return _statements_of(checked(schema), distributed)


@lru_cache(maxsize=64)
def _statements_of(schema: str | None, distributed: bool) -> Statements:
    return Statements(distribution.DistributedTables(schema) if distributed else Tables(schema))
