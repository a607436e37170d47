"""One function per unit of work, on an `Executor`.

They are written in sync style: SQLAlchemy's greenlets run them on an async engine, a sync engine runs them as they are.
Where it doesn't say otherwise each is one statement, so it is atomic on its own and needs no transaction around it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import exc

from checkpoint_store.conninfo.driver_errors import diagnosis_of, raise_from
from checkpoint_store.errors import (
    Conflict,
    InvalidConfig,
    Refused,
    short_repr,
)
from checkpoint_store.schema import PAGED
from checkpoint_store.serde.keys import Key, Listing
from checkpoint_store.sql.compiled import Read, Statement
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.checks import check_transaction, refusal
from checkpoint_store.storage.operation import Kind, operation
from checkpoint_store.storage.page_cache import PageCache
from checkpoint_store.storage.probes import checkpoints_of
from checkpoint_store.storage.shared_pages import missing_pages
from checkpoint_store.storage.write_batch import Change, Put, merged

_BLOB_TYPES = 7
_BLOBS = slice(6, 9)
"""The places of the blobs' types, and of their channels, types and bytes, among `statements.checkpoints`' columns."""

ASK_BYTES = 64 * 1024
"""From so many bytes of pages on, the database is asked which of them it has, where nothing is known of the thread."""

Last = tuple[str, str, str]
"""Thread, namespace and id of the last row of a page."""


@operation(Kind.STORE)
def store(db: Executor, sql: Statements, page_cache: PageCache, changes: Sequence[Change]) -> dict[str, str]:
    """Store changes made one after the other, all in one commit.

    Only those of threads that lack pages which this process takes to be there are stored in further ones, with all they
    need, and a checkpoint that keeps values of one that is stored with it: then the order is kept within a thread.

    Args:
        db: The executor.
        sql: The statements.
        page_cache: What is remembered of pages.
        changes: What to store; at least one.

    Returns:
        Of which threads something was refused, and how errors tell it; all else is stored.
    """
    refused: dict[str, str] = {}
    for together in _apart(changes) if _keeps_within(changes) else [changes]:
        if left := [change for change in together if change.thread_id not in refused]:
            refused |= _store(db, sql, page_cache, left)
    return refused


def _keeps_within(changes: Sequence[Change]) -> bool:
    """Tell whether a checkpoint keeps values of one that is among them, which their own statement would not see."""
    puts = [change.binds for change in changes if isinstance(change, Put)]
    if len(puts) < 2 or not any(put["kept"] for put in puts):
        return False
    names = ("thread_id", "checkpoint_ns")
    keys = {(*[put[name] for name in names], put["checkpoint_id"]) for put in puts}
    return any(put["kept"] and (*[put[name] for name in names], put["parent_checkpoint_id"]) in keys for put in puts)


def _store(db: Executor, sql: Statements, page_cache: PageCache, changes: Sequence[Change]) -> dict[str, str]:
    if len(changes) == 1 and not getattr(changes[0], "pages", None):
        return _store_plain(db, sql, changes[0])
    puts = [change for change in changes if isinstance(change, Put) and change.pages]
    known = {put.thread_id: there for put in puts if (there := _known(db, sql, page_cache, put)) is not None}
    is_simple = all(isinstance(change, Put) and not change.binds["kept"] for change in changes)
    passed, refused = _store_together(db, sql, sql.store_simple if is_simple else sql.store, changes, known)
    # Each of the others alone: then nothing that others do at the same time can be the reason any more.
    for thread_id, theirs in _by_thread(change for change in changes if change.thread_id not in passed).items():
        page_cache.forget(thread_id)
        is_paged = any(put.thread_id == thread_id for put in puts)
        try:
            found, why = _store_together(db, sql, sql.store_one_thread if is_paged else sql.store, theirs, {})
        except exc.DBAPIError as error:
            if not diagnosis_of(error).is_by_policy:
                raise
            raise_from(Refused(refusal(thread_id, sql.tables.checkpoint_threads)), error)
        if thread_id not in found and not why:
            why = {thread_id: refusal(thread_id, sql.tables.checkpoint_threads)}
        refused |= why
    for put in puts:
        if put.thread_id in refused:
            page_cache.forget(put.thread_id)
        else:
            page_cache.remember(put.thread_id, put.digests)
    return refused


def _store_together(
    db: Executor,
    sql: Statements,
    statement: Statement,
    changes: Sequence[Change],
    known: Mapping[str, Container[bytes]],
) -> tuple[set[str], dict[str, str]]:
    """Store changes by one statement. Returns the threads it has stored, and of which of them rows were dropped."""
    binds = merged(changes, known)
    rows = db.fetch(statement, binds)
    passed = {row[0] for row in rows}
    if not passed:
        return passed, {}
    *_, checkpoints, _, new_pages = rows[0]
    if checkpoints < sum(thread_id in passed for thread_id in binds["checkpoint_thread_ids"]):
        if len(passed) > 1:
            return set(), {}  # one by one it shows whose
        return passed, {thread_id: refusal(thread_id, sql.tables.checkpoints) for thread_id in passed}
    if new_pages < sum(thread_id in passed for thread_id in binds["page_thread_ids"]):
        # Some were there already, or are hidden.
        puts = [change for change in changes if isinstance(change, Put) and change.thread_id in passed]
        lacking = missing_pages(db, sql, puts)
        return passed, {thread_id: refusal(thread_id, sql.tables.checkpoint_pages) for thread_id in lacking}
    return passed, {}


def _by_thread(changes: Iterable[Change]) -> dict[str, list[Change]]:
    threads: dict[str, list[Change]] = {}
    for change in changes:
        threads.setdefault(change.thread_id, []).append(change)
    return threads


@operation(Kind.STORE, in_transaction=True)
def store_continuing(db: Executor, sql: Statements, page_cache: PageCache, changes: Sequence[Change]) -> dict[str, str]:
    """Store changes of which some have to continue the newest checkpoint of their namespace; in a transaction.

    Returns:
        The same as `store`.

    Raises:
        Conflict: If one of them doesn't; nothing is stored then.
        WrongTransaction: If the transaction is of a kind in which that can't be known.
    """
    puts = [change.binds for change in changes if isinstance(change, Put) and change.continues]
    graphs = {name: [put[name.removesuffix("s")] for put in puts] for name in ("thread_ids", "checkpoint_nss")}
    level, _ = db.fetch(sql.lock_namespaces, {"table": checkpoints_of(sql), **graphs})[0]
    check_transaction(db, "refuse_forks", level)
    refused: dict[str, str] = {}
    for together in _apart(changes):
        if left := [change for change in together if change.thread_id not in refused]:
            _check_continuations(db, sql, left)
            refused |= store(db, sql, page_cache, left)
    return refused


def _apart(changes: Sequence[Change]) -> Iterator[list[Change]]:
    """Split changes so that no two checkpoints of a namespace are together: the second is to see the first."""
    together: list[Change] = []
    graphs: set[tuple[str, str]] = set()
    for change in changes:
        if isinstance(change, Put):
            graph = (change.thread_id, change.binds["checkpoint_ns"])
            if graph in graphs:
                yield together
                together, graphs = [], set()
            graphs.add(graph)
        together.append(change)
    yield together


def _check_continuations(db: Executor, sql: Statements, changes: Sequence[Change]) -> None:
    names = ("thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id")
    puts = [change.binds for change in changes if isinstance(change, Put) and change.continues]
    if not puts:
        return
    for row in db.fetch(sql.continuations, {f"{name}s": [put[name] for put in puts] for name in names}):
        thread_id, checkpoint_ns, checkpoint_id, parent, newest, continues = row
        if not continues:
            why = (
                f"continues {short_repr(parent)}, but the newest is {short_repr(newest)}"
                if parent != newest
                else f"has an id that does not sort behind that of {short_repr(parent)}, which it continues: readers "
                "would "
                "not find it. The clocks of two machines may differ"
            )
            raise Conflict(
                f"thread {short_repr(thread_id, 200)}, namespace {short_repr(checkpoint_ns, 200)}: checkpoint "
                f"{short_repr(checkpoint_id)} {why}. Nothing was written. Another run has written to the thread "
                "meanwhile: load its state and run again, and see saver.thread_lock() to have runs wait for each other."
            )


def _store_plain(db: Executor, sql: Statements, change: Change) -> dict[str, str]:
    if not isinstance(change, Put):
        db.fetch(sql.put_writes, change.binds)
    elif not db.fetch(sql.put_checkpoint_keeping if change.binds["kept"] else sql.put_checkpoint, change.binds):
        return {change.thread_id: refusal(change.thread_id, sql.tables.checkpoints)}
    return {}


def _known(db: Executor, sql: Statements, page_cache: PageCache, put: Put) -> Container[bytes] | None:
    if (known := page_cache.known(put.thread_id)) is not None:
        return known
    if sum(map(len, put.pages.values())) <= ASK_BYTES:
        return None
    rows = db.fetch(sql.known_pages, {"thread_id": put.thread_id, "digests": list(put.pages)})
    return {row[0] for row in rows} or None


@operation(Kind.READ, name="get_tuple", thread_of=lambda _, key: key.thread_id)
def get_settled(db: Executor, sql: Statements, page_cache: PageCache, key: Key) -> Row | None:
    """Return the checkpoint that a key names if there is a newer one of its thread and namespace; otherwise None."""
    # Asked for first: what is there then was written when no newer one was, and there may have been more to come.
    if not db.fetch(sql.has_newer, key._asdict())[0][0]:
        return None
    return next(iter(_read(db, sql.get_checkpoint, page_cache, key._asdict())), None)


@operation(
    Kind.READ,
    name="get_tuple",
    thread_of=lambda _, key: key.thread_id,
    may_lag=lambda _, key: bool(key.checkpoint_id),
    on_replica=get_settled,
)
def get_checkpoint(db: Executor, sql: Statements, page_cache: PageCache, key: Key) -> Row | None:
    """Return the checkpoint that a key names, or the newest of its thread and namespace, or None."""
    binds = key._asdict()
    if key.checkpoint_id is None and page_cache.has_values(key.thread_id):
        # What this process stored last it has the pages of: the recipes are all it has to ask for.
        rows = db.fetch(sql.get_latest.plain, binds)
        if not rows or (row := _made(rows[0], page_cache)) is not None:
            return row if rows else None
        return next(iter(db.fetch(sql.get_latest.joined, binds)), None)
    return next(iter(_read(db, sql.get_checkpoint if key.checkpoint_id else sql.get_latest, page_cache, binds)), None)


@operation(
    Kind.READ,
    name="list",
    thread_of=lambda _, listing, __: listing.thread_id,
    may_lag=lambda *_: True,
)
def list_page(
    db: Executor, sql: Statements, page_cache: PageCache, listing: Listing, after: tuple[Last | None, int]
) -> Sequence[Row]:
    """Return the page of a listing that follows a row, or its first: so many checkpoints, fewer at the end."""
    last, size = after
    binds = {name: value for name, value in listing._asdict().items() if value is not None and name != "limit"}
    conditions = frozenset(binds)
    if last is not None:
        conditions |= {"after_row"}
        binds.update(last_thread_id=last[0], last_checkpoint_ns=last[1], last_checkpoint_id=last[2])
    return _read(db, sql.list_checkpoints(conditions), page_cache, {**binds, "batch_size": size})


def _read(db: Executor, read: Read, page_cache: PageCache, binds: dict[str, Any]) -> Sequence[Row]:
    """Read checkpoints: in one statement, but in two where pages come unexpected."""
    if binds.get("thread_id") is None or page_cache.known(binds["thread_id"]) is None:
        rows = db.fetch(read.plain, binds)
        if not any(PAGED in (row[_BLOB_TYPES] or ()) for row in rows):
            return rows
    return db.fetch(read.joined, binds)


def _made(row: Row, page_cache: PageCache) -> Row | None:
    """Return a row with values in the place of recipes, or None if a page is not at hand."""
    thread_id, namespace, *_ = columns = list(row)
    channels, types, blobs = columns[_BLOBS]
    if PAGED not in (types or ()):
        return row
    types, blobs = list(types), list(blobs)
    for place, channel in enumerate(channels):
        if types[place] == PAGED:
            types[place], blobs[place] = "msgpack", page_cache.value(thread_id, (namespace, channel), blobs[place])
            if blobs[place] is None:
                return None
    columns[_BLOBS] = channels, types, blobs
    return columns


@operation(Kind.READ, thread_of=lambda thread_id, _: thread_id)
def history(db: Executor, sql: Statements, thread_id: str, most: int) -> Sequence[Row]:
    """Return the newest checkpoints of a thread without their values; see `statements.history`."""
    return db.fetch(sql.summaries, {"thread_id": thread_id, "limit": most})


@operation(Kind.READ, thread_of=lambda key: key.thread_id)
def find_checkpoint(db: Executor, sql: Statements, key: Key) -> Row | None:
    """Return the checkpoint whose id is that of a key or the only one that begins so, or the newest, whole.

    Raises:
        InvalidConfig: If several ids begin so.
    """
    if key.checkpoint_id is not None:
        rows = db.fetch(sql.get_checkpoint.joined, key._asdict())
        if rows:
            return rows[0]
        begun = db.fetch(sql.ids_with_prefix, {**key._asdict(), "prefix": key.checkpoint_id})
        if len(begun) > 1:
            raise InvalidConfig(
                f"several checkpoints have ids that begin with {short_repr(key.checkpoint_id)}; give more of it"
            )
        if not begun:
            return None
        key = key._replace(checkpoint_id=begun[0][0])
    rows = db.fetch(sql.get_checkpoint.joined if key.checkpoint_id else sql.get_latest.joined, key._asdict())
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
