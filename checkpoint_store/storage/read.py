"""Reads of checkpoints: by key, the newest, by the beginning of an id, their history and their ancestors."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

from checkpoint_store.errors import InvalidConfig, short_repr
from checkpoint_store.schema import PAGED
from checkpoint_store.serde.keys import Key
from checkpoint_store.serde.records import Summary
from checkpoint_store.sql.arrays import array_binds
from checkpoint_store.sql.compiled import Read
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.script import Constant, planned_for
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.operation import Kind, operation
from checkpoint_store.storage.page_cache import PageCache

_BLOB_TYPES = 7
_BLOBS = slice(6, 9)
"""The places of the blobs' types, and of their channels, types and bytes, in a row of `sql.read.checkpoints`."""


@operation(Kind.READ, name="get_tuple", thread_of=lambda _, key: key.thread_id)
def get_settled(db: Executor, sql: Statements, page_cache: PageCache, key: Key) -> Row | None:
    """Return the checkpoint that a key names if there is a newer one of its thread and namespace; otherwise None."""
    # Asked first: without a newer one there may be more pending writes to come.
    if not db.fetch(sql.has_newer, key._asdict())[0][0]:
        return None
    return next(iter(read_checkpoints(db, sql.get_checkpoint, page_cache, key._asdict())), None)


@operation(
    Kind.READ,
    name="get_tuple",
    thread_of=lambda _, key: key.thread_id,
    may_lag=lambda _, key: bool(key.checkpoint_id),
    on_replica=get_settled,
)
def get_checkpoint(db: Executor, sql: Statements, page_cache: PageCache, key: Key) -> Row | None:
    """Return the checkpoint that a key names, or the newest of its thread and namespace, or None."""
    read = sql.get_checkpoint if key.checkpoint_id else sql.get_newest
    binds, is_paged = key._asdict(), page_cache.known(key.thread_id) is not None
    if not is_paged or (key.checkpoint_id is None and page_cache.has_values(key.thread_id)):
        rows = db.fetch(read.plain, binds)
        # This process has the pages of the values that it stored last: it asks for nothing but the recipes.
        if not rows or (row := _made(rows[0], page_cache)) is not None:
            return row if rows else None
    return next(iter(db.fetch(read.joined, binds)), None)


def read_checkpoints(db: Executor, read: Read, page_cache: PageCache, binds: dict[str, Any]) -> Sequence[Row]:
    """Return checkpoints by one statement, or by two if there are unexpected pages."""
    if binds.get("thread_id") is None or page_cache.known(binds["thread_id"]) is None:
        rows = db.fetch(read.plain, binds)
        if not any(PAGED in (row[_BLOB_TYPES] or ()) for row in rows):
            return rows
    return db.fetch(read.joined, binds)


def _made(row: Row, page_cache: PageCache) -> Row | None:
    """Return a row with values in the place of recipes, or None if a page is not cached."""
    if PAGED not in (row[_BLOB_TYPES] or ()):
        return row
    thread_id, namespace, *_ = columns = list(row)
    channels, *rest = columns[_BLOBS]
    types, blobs = map(list, rest)
    for place, channel in enumerate(channels):
        if types[place] == PAGED:
            types[place], blobs[place] = "msgpack", page_cache.value(thread_id, (namespace, channel), blobs[place])
            if blobs[place] is None:
                return None
    columns[_BLOBS] = channels, types, blobs
    return columns


class History(NamedTuple):
    """The newest checkpoints of a thread, or the newest of those with smaller ids than one, without their values."""

    rows: Sequence[Summary]
    total: int
    """The number of them without the limit."""
    parents: Sequence[Summary]
    """Those of their parents that are stored, but are not among them."""
    continued: Set[tuple[str, str]]
    """The namespaces and ids of those that have children beyond the id that bounds them."""


@operation(Kind.READ, thread_of=lambda thread_id, *_: thread_id)
def history(db: Executor, sql: Statements, thread_id: str, limit: int, before: str | None = None) -> History:
    """Return the newest checkpoints of a thread; with `before`, of those with smaller ids than that."""
    binds = {"thread_id": thread_id, "before": before}
    newest, count = sql.summaries, sql.count_checkpoints_of
    if before is not None:
        newest, count = sql.summaries_before, sql.count_checkpoints_before
    rows = [Summary(*row) for row in db.fetch(newest, {**binds, "limit": limit})]
    keys = {(row.checkpoint_ns, row.checkpoint_id) for row in rows}
    sought = {(row.checkpoint_ns, row.parent_checkpoint_id) for row in rows if row.parent_checkpoint_id} - keys
    names = ("checkpoint_ns", "checkpoint_id")
    parents = db.fetch(sql.summaries_at, {**binds, **array_binds(names, sought)}) if sought else []
    newer = [] if before is None or not rows else db.fetch(sql.parents_of_newer, {**binds, **array_binds(names, keys)})
    total = db.fetch(count, binds)[0][0] if len(rows) == limit else len(rows)
    return History(rows, total, [Summary(*row) for row in parents], {(row[0], row[1]) for row in newer})


@operation(Kind.READ, thread_of=lambda key: key.thread_id)
def find_checkpoint(db: Executor, sql: Statements, key: Key) -> Row | None:
    """Return the checkpoint whose id is a key's or the only one that begins with it, or the newest, with its values.

    Raises:
        InvalidConfig: If several ids begin with it.
    """
    if key.checkpoint_id is not None:
        rows = db.fetch(sql.get_checkpoint.joined, key._asdict())
        if rows:
            return rows[0]
        # For a prefix that it knows the server searches the index; else it reads all of the namespace.
        thread_id = Constant(key.thread_id) if sql.are_distributed else key.thread_id
        binds = {**key._asdict(), "thread_id": thread_id, "prefix": key.checkpoint_id}
        begun = db.fetch(planned_for(sql.ids_with_prefix, binds), {})
        if len(begun) > 1:
            raise InvalidConfig(
                f"several checkpoints have ids that begin with {short_repr(key.checkpoint_id)}; give more of it"
            )
        if not begun:
            return None
        key = key._replace(checkpoint_id=begun[0][0])
    rows = db.fetch(sql.get_checkpoint.joined if key.checkpoint_id else sql.get_newest.joined, key._asdict())
    return rows[0] if rows else None


@operation(Kind.READ, name="get_delta_channel_history", thread_of=lambda key, _: key.thread_id)
def settled_history(db: Executor, sql: Statements, key: Key, channels: Sequence[str]) -> Sequence[Row] | None:
    """Return the same as `delta_history`; None if there is none: a replica may not have the checkpoint yet."""
    return db.fetch(sql.ancestors, {**key._asdict(), "channels": list(channels)}) or None


@operation(
    Kind.READ,
    name="get_delta_channel_history",
    thread_of=lambda key, _: key.thread_id,
    may_lag=lambda key, _: bool(key.checkpoint_id),
    on_replica=settled_history,
)
def delta_history(db: Executor, sql: Statements, key: Key, channels: Sequence[str]) -> Sequence[Row]:
    """Return the ancestors of a checkpoint with what they contribute to some channels."""
    return db.fetch(sql.ancestors, {**key._asdict(), "channels": list(channels)})


@operation(Kind.READ, thread_of=lambda thread_id: thread_id)
def take_inventory(db: Executor, sql: Statements, thread_id: str) -> Sequence[Row]:
    """Return the checkpoints of a thread, and of each the tasks that have pending writes, with their number."""
    return db.fetch(sql.inventory, {"thread_id": thread_id})
