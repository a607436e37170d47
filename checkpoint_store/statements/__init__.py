"""Core statements, built once per schema; no I/O.

Each statement is one round trip and one row-count-independent SQL text: varying numbers of rows travel as arrays. Every
table it touches carries an equality on `thread_id`, so that a distributed or partitioned PostgreSQL can route it.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Select, column, func, select, table

from checkpoint_store.schema import VERSION_TABLE, Tables, quoted
from checkpoint_store.statements.ancestry import delta_history
from checkpoint_store.statements.clauses import given, named, number
from checkpoint_store.statements.converting import inline_blobs, next_blobs, share_blobs
from checkpoint_store.statements.deleting import collect_pages, delete_thread
from checkpoint_store.statements.locking import (
    begin_session,
    continuations,
    drop_lock,
    lock_graphs,
    lock_number,
    session_id,
    take_lock,
    take_lock_in_transaction,
    transaction,
)
from checkpoint_store.statements.reading import MOST_ROWS, TASKS, checkpoints, inventory, list_page
from checkpoint_store.statements.statement import Read, Statement
from checkpoint_store.statements.storing import known_pages, put_checkpoint, put_writes, replacing, store

__all__ = ["MOST_ROWS", "TASKS", "Read", "Statement", "Statements", "statements_of"]


class Statements:
    """All statements on the tables of one schema, each built when it is first needed.

    Args:
        tables: The tables they speak of.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._pages: dict[frozenset[str], Read] = {}

    @cached_property
    def put_checkpoint(self) -> Statement:
        """See `put_checkpoint`."""
        return Statement(put_checkpoint(self.tables))

    @cached_property
    def add_writes(self) -> Statement:
        """See `put_writes`, for writes of which the first one stays."""
        return Statement(put_writes(self.tables).on_conflict_do_nothing())

    @cached_property
    def replace_writes(self) -> Statement:
        """See `put_writes`, for writes of which the last one counts."""
        return Statement(replacing(put_writes(self.tables), "channel", "type", "blob", "task_path"))

    @cached_property
    def get_checkpoint(self) -> Read:
        """See `checkpoints`: the one with a given id. Binds: `thread_id`, `checkpoint_ns`, `checkpoint_id`."""
        chosen = self._pick(named(self.tables, "checkpoint_id"))
        return Read.of(lambda joined: checkpoints(self.tables, chosen, joined=joined))

    @cached_property
    def get_latest(self) -> Read:
        """See `checkpoints`: the newest. Binds: `thread_id`, `checkpoint_ns`."""
        newest = self.tables.checkpoints.c.checkpoint_id.desc()
        chosen = self._pick(named(self.tables)).order_by(newest).limit(number(1))
        return Read.of(lambda joined: checkpoints(self.tables, chosen, joined=joined))

    @cached_property
    def store(self) -> Statement:
        """See `store`."""
        return Statement(store(self.tables))

    @cached_property
    def known_pages(self) -> Statement:
        """See `known_pages`."""
        return Statement(known_pages(self.tables))

    @cached_property
    def lock_thread(self) -> Statement:
        """Waits until nobody stores pages of a thread, and keeps others from it. Binds: `thread_id`."""
        t = self.tables.checkpoint_threads
        return Statement(select(t.c.epoch).where(t.c.thread_id == given("thread_id")).with_for_update())

    @cached_property
    def lock_graphs(self) -> Statement:
        """See `lock_graphs`."""
        return Statement(lock_graphs())

    @cached_property
    def continuations(self) -> Statement:
        """See `continuations`."""
        return Statement(continuations(self.tables))

    @cached_property
    def begin_session(self) -> Statement:
        """See `begin_session`."""
        return Statement(begin_session())

    @cached_property
    def session_id(self) -> Statement:
        """See `session_id`."""
        return Statement(session_id())

    @cached_property
    def transaction(self) -> Statement:
        """See `transaction`."""
        return Statement(transaction())

    @cached_property
    def lock_number(self) -> Statement:
        """See `lock_number`."""
        return Statement(lock_number())

    @cached_property
    def take_lock(self) -> Statement:
        """See `take_lock`."""
        return Statement(take_lock())

    @cached_property
    def take_lock_in_transaction(self) -> Statement:
        """See `take_lock_in_transaction`."""
        return Statement(take_lock_in_transaction())

    @cached_property
    def drop_lock(self) -> Statement:
        """See `drop_lock`."""
        return Statement(drop_lock())

    @cached_property
    def delete_thread(self) -> Statement:
        """See `delete_thread`."""
        return Statement(delete_thread(self.tables))

    @cached_property
    def collect_pages(self) -> Statement:
        """See `collect_pages`."""
        return Statement(collect_pages(self.tables))

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
    def has_table(self) -> Statement:
        """Whether there is a table: to know a database of the stock saver by. Binds: `name`, qualified."""
        return Statement(select(func.to_regclass(given("name")).is_not(None)))

    @cached_property
    def revision(self) -> Statement:
        """The revisions that Alembic has noted for this schema; one row, as a rule."""
        schema = self.tables.schema
        noted = table(VERSION_TABLE, column("version_num"), schema=None if schema is None else quoted(schema))
        return Statement(select(noted.c.version_num))

    def list_page(self, conditions: frozenset[str]) -> Read:
        """See `list_page`; built once for each set of conditions."""
        if (page := self._pages.get(conditions)) is None:
            page = Read.of(lambda joined: list_page(self.tables, conditions, joined=joined))
            self._pages[conditions] = page
        return page

    def _pick(self, condition: ColumnElement[bool]) -> Select[Any]:
        return select(self.tables.checkpoints).where(condition)


@lru_cache(maxsize=64)
def statements_of(schema: str | None) -> Statements:
    """Return the statements on the tables of a PostgreSQL schema; savers share them."""
    return Statements(Tables(schema))
