"""Core statements, built once per schema; no I/O.

Each statement is one round trip and one row-count-independent SQL text: varying numbers of rows travel as arrays. Every
table it touches carries an equality on `thread_id`, so that a distributed or partitioned PostgreSQL can route it.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, case, cast, column, func, literal_column, select, table

from checkpoint_store.schema import VERSION_TABLE, Tables, checked, quoted
from checkpoint_store.sql import copy_thread, delete, delete_candidates, history, list_threads, locks, reencrypt, sizes
from checkpoint_store.sql.compiled import Read, Statement
from checkpoint_store.sql.delta_history import delta_history
from checkpoint_store.sql.expressions import int_literal, named, param
from checkpoint_store.sql.pages import inline_blobs, next_blobs, share_blobs
from checkpoint_store.sql.read import MOST_ROWS, TASKS, checkpoints, inventory, list_page
from checkpoint_store.sql.write import known_pages, missing_pages, put_checkpoint, put_writes, store

__all__ = ["MOST_ROWS", "TASKS", "Read", "Statement", "Statements", "statements_of"]


class Statements:
    """All statements on the tables of one schema, each built when it is first needed.

    Args:
        tables: The tables they speak of.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._pages: dict[frozenset[str], Read] = {}
        self._threads: dict[frozenset[str], Statement] = {}

    @cached_property
    def put_checkpoint(self) -> Statement:
        """See `put_checkpoint`."""
        return Statement(put_checkpoint(self.tables))

    @cached_property
    def put_checkpoint_keeping(self) -> Statement:
        """See `put_checkpoint`, for one that has something to keep."""
        return Statement(put_checkpoint(self.tables, kept=True))

    @cached_property
    def put_writes(self) -> Statement:
        """See `put_writes`."""
        return Statement(put_writes(self.tables))

    @cached_property
    def get_checkpoint(self) -> Read:
        """See `checkpoints`: the one with a given id. Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`."""
        chosen = self._pick(named(self.tables, "checkpoint_id"))
        return Read.of(lambda joined: checkpoints(self.tables, chosen, joined=joined, thread=param("thread_id")))

    @cached_property
    def get_latest(self) -> Read:
        """See `checkpoints`: the newest. Binds: `thread_id`, `checkpoint_ns`."""
        newest = self.tables.checkpoints.c.checkpoint_id.desc()
        chosen = self._pick(named(self.tables)).order_by(newest).limit(int_literal(1))
        return Read.of(lambda joined: checkpoints(self.tables, chosen, joined=joined, thread=param("thread_id")))

    @cached_property
    def has_newer(self) -> Statement:
        """Whether there is a checkpoint newer than one. Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`."""
        c = self.tables.checkpoints.c
        newer = self._pick(named(self.tables)).where(c.checkpoint_id > param("checkpoint_id"))
        return Statement(select(newer.exists()))

    @cached_property
    def log_position(self) -> Statement:
        """Where the write-ahead log ends, with what is written but not flushed."""
        return Statement(select(cast(func.pg_current_wal_insert_lsn(), Text)))

    @cached_property
    def replayed_position(self) -> Statement:
        """Where the replay of the write-ahead log is; NULL on what does not replay any."""
        replayed = cast(func.pg_last_wal_replay_lsn(), Text)
        return Statement(select(case((func.pg_is_in_recovery(), replayed))))

    @cached_property
    def store(self) -> Statement:
        """See `store`."""
        return Statement(store(self.tables))

    @cached_property
    def store_simple(self) -> Statement:
        """See `store`, where there are no pending writes, and no checkpoint keeps anything of its parent's."""
        return Statement(store(self.tables, simple=True))

    @cached_property
    def store_alone(self) -> Statement:
        """See `store`, for one thread all of whose pages come along."""
        return Statement(store(self.tables, insisting=True))

    @cached_property
    def known_pages(self) -> Statement:
        """See `known_pages`."""
        return Statement(known_pages(self.tables))

    @cached_property
    def missing_pages(self) -> Statement:
        """See `missing_pages`."""
        return Statement(missing_pages(self.tables))

    @cached_property
    def lock_removal(self) -> Statement:
        """See `locking.lock_removal`."""
        return Statement(locks.lock_removal())

    @cached_property
    def next_blob_values(self) -> Statement:
        """See `encrypting.next_blob_values`."""
        return Statement(reencrypt.next_blob_values(self.tables))

    @cached_property
    def next_write_values(self) -> Statement:
        """See `encrypting.next_write_values`."""
        return Statement(reencrypt.next_write_values(self.tables))

    @cached_property
    def next_inline_values(self) -> Statement:
        """See `encrypting.next_inline_values`."""
        return Statement(reencrypt.next_inline_values(self.tables))

    @cached_property
    def rewrite_blobs(self) -> Statement:
        """See `encrypting.rewrite_blobs`."""
        return Statement(reencrypt.rewrite_blobs(self.tables))

    @cached_property
    def rewrite_writes(self) -> Statement:
        """See `encrypting.rewrite_writes`."""
        return Statement(reencrypt.rewrite_writes(self.tables))

    @cached_property
    def move_inline(self) -> Statement:
        """See `encrypting.move_inline`."""
        return Statement(reencrypt.move_inline(self.tables))

    @cached_property
    def count_plain(self) -> Statement:
        """See `encrypting.count_plain`."""
        return Statement(reencrypt.count_plain(self.tables))

    @cached_property
    def lock_graphs(self) -> Statement:
        """See `locking.lock_graphs`."""
        return Statement(locks.lock_graphs())

    @cached_property
    def continuations(self) -> Statement:
        """See `locking.continuations`."""
        return Statement(locks.continuations(self.tables))

    @cached_property
    def begin_session(self) -> Statement:
        """See `locking.begin_session`."""
        return Statement(locks.begin_session())

    @cached_property
    def session_id(self) -> Statement:
        """See `locking.session_id`."""
        return Statement(locks.session_id())

    @cached_property
    def lock_number(self) -> Statement:
        """See `locking.lock_number`."""
        return Statement(locks.lock_number())

    @cached_property
    def take_lock(self) -> Statement:
        """See `locking.take_lock`."""
        return Statement(locks.take_lock())

    @cached_property
    def take_lock_in_transaction(self) -> Statement:
        """See `locking.take_lock_in_transaction`."""
        return Statement(locks.take_lock_in_transaction())

    @cached_property
    def has_lock(self) -> Statement:
        """See `locking.has_lock`."""
        return Statement(locks.has_lock())

    @cached_property
    def drop_lock(self) -> Statement:
        """See `locking.drop_lock`."""
        return Statement(locks.drop_lock())

    @cached_property
    def lock_threads(self) -> Statement:
        """See `removing.lock_threads`."""
        return Statement(delete.lock_threads(self.tables))

    @cached_property
    def claim_threads(self) -> Statement:
        """See `removing.claim_threads`."""
        return Statement(delete.claim_threads(self.tables))

    @cached_property
    def next_threads(self) -> Statement:
        """See `choosing.next_threads`."""
        return Statement(delete_candidates.next_threads(self.tables))

    @cached_property
    def next_writers(self) -> Statement:
        """See `choosing.next_writers`."""
        return Statement(delete_candidates.next_writers(self.tables))

    @cached_property
    def stray_writes(self) -> Statement:
        """See `choosing.stray_writes`."""
        return Statement(delete_candidates.stray_writes(self.tables))

    @cached_property
    def next_leftovers(self) -> Statement:
        """See `choosing.next_leftovers`."""
        return Statement(delete_candidates.next_leftovers(self.tables))

    @cached_property
    def given_leftovers(self) -> Statement:
        """See `choosing.given_leftovers`."""
        return Statement(delete_candidates.given_leftovers(self.tables))

    @cached_property
    def blob_graphs(self) -> Statement:
        """See `choosing.blob_graphs`."""
        return Statement(delete_candidates.blob_graphs(self.tables))

    @cached_property
    def given_threads(self) -> Statement:
        """See `choosing.given_threads`."""
        return Statement(delete_candidates.given_threads(self.tables))

    @cached_property
    def threads_of_runs(self) -> Statement:
        """See `choosing.threads_of_runs`."""
        return Statement(delete_candidates.threads_of_runs(self.tables))

    @cached_property
    def lineage(self) -> Statement:
        """See `choosing.lineage`."""
        return Statement(delete_candidates.lineage(self.tables))

    @cached_property
    def bare_channels(self) -> Statement:
        """See `choosing.bare_channels`."""
        return Statement(delete_candidates.bare_channels(self.tables))

    @cached_property
    def traces(self) -> Statement:
        """See `choosing.traces`."""
        return Statement(delete_candidates.traces(self.tables))

    @cached_property
    def delete_checkpoints(self) -> Statement:
        """See `removing.delete_checkpoints`."""
        return Statement(delete.delete_checkpoints(self.tables))

    @cached_property
    def count_checkpoints(self) -> Statement:
        """See `removing.count_checkpoints`."""
        return Statement(delete.count_checkpoints(self.tables))

    @cached_property
    def parents(self) -> Statement:
        """See `removing.parents`."""
        return Statement(delete.parents(self.tables))

    @cached_property
    def children(self) -> Statement:
        """See `removing.children`."""
        return Statement(delete.children(self.tables))

    @cached_property
    def mend(self) -> Statement:
        """See `removing.mend`."""
        return Statement(delete.mend(self.tables))

    @cached_property
    def next_blob(self) -> Statement:
        """See `removing.next_blob`."""
        return Statement(delete.next_blob(self.tables))

    @cached_property
    def pass_over(self) -> Statement:
        """See `removing.pass_over`."""
        return Statement(delete.pass_over(self.tables))

    @cached_property
    def lock_blobs(self) -> Statement:
        """See `removing.lock_blobs`."""
        return Statement(delete.lock_blobs(self.tables))

    @cached_property
    def lock_some_blobs(self) -> Statement:
        """See `removing.lock_blobs`."""
        return Statement(delete.lock_blobs(self.tables, some=True))

    @cached_property
    def delete_blobs(self) -> Statement:
        """See `removing.delete_blobs`."""
        return Statement(delete.delete_blobs(self.tables))

    @cached_property
    def delete_some_blobs(self) -> Statement:
        """See `removing.delete_blobs`."""
        return Statement(delete.delete_blobs(self.tables, some=True))

    @cached_property
    def count_blobs(self) -> Statement:
        """See `removing.count_blobs`."""
        return Statement(delete.count_blobs(self.tables))

    @cached_property
    def delete_pages(self) -> Statement:
        """See `removing.delete_pages`."""
        return Statement(delete.delete_pages(self.tables))

    @cached_property
    def paged_threads(self) -> Statement:
        """See `removing.paged_threads`."""
        return Statement(delete.paged_threads(self.tables))

    @cached_property
    def count_pages(self) -> Statement:
        """See `removing.count_pages`."""
        return Statement(delete.count_pages(self.tables))

    @cached_property
    def forget_threads(self) -> Statement:
        """See `removing.forget_threads`."""
        return Statement(delete.forget_threads(self.tables))

    @cached_property
    def delete_threads(self) -> Statement:
        """See `removing.delete_threads`."""
        return Statement(delete.delete_threads(self.tables))

    @cached_property
    def stored_threads(self) -> Statement:
        """See `copying.stored_threads`."""
        return Statement(copy_thread.stored_threads(self.tables))

    @cached_property
    def copy_thread(self) -> Statement:
        """See `copying.copy_thread`."""
        return Statement(copy_thread.copy_thread(self.tables))

    @cached_property
    def epoch_of(self) -> Statement:
        """See `copying.epoch_of`."""
        return Statement(copy_thread.epoch_of(self.tables))

    @cached_property
    def thread_tables(self) -> Statement:
        """See `sizes.thread_tables`."""
        return Statement(sizes.thread_tables(self.tables))

    @cached_property
    def thread_channels(self) -> Statement:
        """See `sizes.thread_channels`."""
        return Statement(sizes.thread_channels(self.tables))

    @cached_property
    def largest_threads(self) -> Statement:
        """See `sizes.largest_threads`."""
        return Statement(sizes.largest_threads(self.tables))

    @cached_property
    def table_sizes(self) -> Statement:
        """See `sizes.table_sizes`."""
        return Statement(sizes.table_sizes())

    @cached_property
    def history(self) -> Statement:
        """See `history.history`."""
        return Statement(history.history(self.tables))

    @cached_property
    def matching(self) -> Statement:
        """See `history.matching`."""
        return Statement(history.matching(self.tables))

    @cached_property
    def next_blobs(self) -> Statement:
        """See `next_blobs`."""
        return Statement(next_blobs(self.tables))

    @cached_property
    def share_blobs(self) -> Statement:
        """See `share_blobs`."""
        return Statement(share_blobs(self.tables))

    @cached_property
    def inline_blobs(self) -> Statement:
        """See `inline_blobs`."""
        return Statement(inline_blobs(self.tables))

    @cached_property
    def delta_history(self) -> Statement:
        """See `delta_history`."""
        return Statement(delta_history(self.tables))

    @cached_property
    def inventory(self) -> Statement:
        """See `inventory`."""
        return Statement(inventory(self.tables))

    @cached_property
    def adoption(self) -> Statement:
        """Whether the stock saver has set up tables; the comment on ours; the database's name.

        Binds: `stock` and `version`, the qualified names of their bookkeeping and ours.
        """
        comment = func.obj_description(func.to_regclass(param("version")), literal_column("'pg_class'"))
        return Statement(select(func.to_regclass(param("stock")).is_not(None), comment, func.current_database()))

    @cached_property
    def revision(self) -> Statement:
        """The revisions that Alembic has noted for this schema, one row as a rule; with database and encoding."""
        schema = self.tables.schema
        noted = table(VERSION_TABLE, column("version_num"), schema=None if schema is None else quoted(schema))
        encoding = func.current_setting(literal_column("'server_encoding'"))
        return Statement(select(noted.c.version_num, func.current_database(), encoding))

    def list_page(self, conditions: frozenset[str]) -> Read:
        """See `list_page`; built once for each set of conditions."""
        if (page := self._pages.get(conditions)) is None:
            page = Read.of(lambda joined: list_page(self.tables, conditions, joined=joined))
            self._pages[conditions] = page
        return page

    def list_threads(self, conditions: frozenset[str]) -> Statement:
        """See `threads.newest_threads` or `threads_by_id`, as the conditions say; built once for each set of them."""
        if (listed := self._threads.get(conditions)) is None:
            build = list_threads.newest_threads if "newest" in conditions else list_threads.threads_by_id
            listed = self._threads[conditions] = Statement(build(self.tables, conditions))
        return listed

    def _pick(self, condition: ColumnElement[bool]) -> Select[Any]:
        return select(self.tables.checkpoints).where(condition)


def statements_of(schema: str | None) -> Statements:
    """Return the statements on the tables of a PostgreSQL schema; savers share them.

    Raises:
        InvalidOption: If it can't be the name of one.
    """
    return _statements_of(checked(schema))


@lru_cache(maxsize=64)
def _statements_of(schema: str | None) -> Statements:
    return Statements(Tables(schema))
