"""Storage of changes, puts and pending writes: which statement, and what follows where pages or rows are missing."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter

from sqlalchemy import exc

from checkpoint_store.conninfo.driver_errors import diagnosis_of, raise_from
from checkpoint_store.errors import Conflict, Refused, short_repr
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.sql.write import COUNTED
from checkpoint_store.storage.distributed_write import store_each, takes_transaction
from checkpoint_store.storage.locks import check_transaction
from checkpoint_store.storage.operation import Kind, Operation, operation
from checkpoint_store.storage.page_cache import PageCache
from checkpoint_store.storage.refusals import refusal
from checkpoint_store.storage.shared_pages import missing_pages
from checkpoint_store.storage.write_batch import Change, Put, merged, parts_of

_continues = attrgetter("continues")


@operation(Kind.STORE)
def store(db: Executor, sql: Statements, page_cache: PageCache, changes: Sequence[Change]) -> dict[str, str]:
    """Store changes made one after the other, all in one commit.

    Further commits are made only for threads that lack pages which this process expects there, with all that they need,
    and for a checkpoint that keeps values of one stored with it: then the order is kept within a thread.

    Args:
        db: The executor.
        sql: The statements.
        page_cache: The cache of pages.
        changes: The changes; at least one.

    Returns:
        The threads of which something was refused, with the error messages; all else is stored.
    """
    if sql.are_distributed:
        return store_each(db, sql, changes)
    if not _keeps_within(changes):
        return _store(db, sql, page_cache, changes)
    return _in_order(_apart(changes), partial(_store, db, sql, page_cache))


def _keeps_within(changes: Sequence[Change]) -> bool:
    """Return whether a checkpoint keeps values of another of the changes, which their one statement would not see."""
    if len(changes) < 2:
        return False
    puts = [change.binds for change in changes if isinstance(change, Put)]
    kept_from = {(put["thread_id"], put["checkpoint_ns"], put["parent_checkpoint_id"]) for put in puts if put["kept"]}
    return any((put["thread_id"], put["checkpoint_ns"], put["checkpoint_id"]) in kept_from for put in puts)


def _store(db: Executor, sql: Statements, page_cache: PageCache, changes: Sequence[Change]) -> dict[str, str]:
    if len(changes) == 1 and not getattr(changes[0], "pages", None):
        return _store_plain(db, sql, changes[0])
    puts = [change for change in changes if isinstance(change, Put) and change.pages]
    known = {put.thread_id: there for put in puts if (there := _known(db, sql, page_cache, put)) is not None}
    passed, refused = _store_together(db, sql, changes, known)
    # Each of the others alone: then nothing that others do at the same time can be the reason any more.
    for thread_id, theirs in _by_thread(change for change in changes if change.thread_id not in passed).items():
        page_cache.forget(thread_id)
        is_paged = any(put.thread_id == thread_id for put in puts)
        try:
            found, why = _store_together(db, sql, theirs, {}, one_thread=is_paged)
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
    changes: Sequence[Change],
    known: Mapping[str, Container[bytes]],
    *,
    one_thread: bool = False,
) -> tuple[set[str], dict[str, str]]:
    """Store changes by one statement. Returns the threads it has stored, and the refusals of those that lost rows."""
    binds = merged(changes, known)
    parts = parts_of(binds)
    if len(changes) > 1:
        parts |= {"limited"}
    rows = db.fetch(sql.store(parts | {"one_thread"} if one_thread else parts), binds)
    passed = {row[1] for row in rows} if "gate" in parts else {change.thread_id for change in changes}
    if not passed:
        return passed, {}
    stored = dict(zip([name for name in COUNTED if name in parts], rows[0][2:], strict=True))

    def is_less(name: str) -> bool:
        sent = sum(map(passed.__contains__, binds.get(f"{name}_thread_ids", ())))
        return bool(stored.get(name, 0) < sent)

    if is_less("checkpoint"):
        if len(passed) > 1:
            return set(), {}  # one by one it shows which
        return passed, {thread_id: refusal(thread_id, sql.tables.checkpoints) for thread_id in passed}
    if is_less("page"):
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


@operation(Kind.STORE, name="store", in_transaction=True)
def store_large(db: Executor, sql: Statements, _: PageCache, changes: Sequence[Change]) -> dict[str, str]:
    """Store changes on distributed tables, with many rows or large values. Returns the same as `store`."""
    return store_each(db, sql, changes, in_transaction=True)


def operation_for(
    sql: Statements, changes: Sequence[Change]
) -> Operation[[PageCache, Sequence[Change]], dict[str, str]]:
    """Return the operation that stores changes."""
    if any(map(_continues, changes)):
        return store_continuing
    return store_large if sql.are_distributed and any(map(takes_transaction, changes)) else store


@operation(Kind.STORE, in_transaction=True)
def store_continuing(db: Executor, sql: Statements, page_cache: PageCache, changes: Sequence[Change]) -> dict[str, str]:
    """Store changes of which some must continue the newest checkpoint of their namespace.

    Returns:
        The same as `store`.

    Raises:
        Conflict: If one of them doesn't; nothing is stored then.
        WrongTransaction: If the transaction has an isolation level in which that can't be known.
    """
    puts = [change.binds for change in changes if isinstance(change, Put) and change.continues]
    graphs = {name: [put[name.removesuffix("s")] for put in puts] for name in ("thread_ids", "checkpoint_nss")}
    level, _ = db.fetch(sql.lock_namespaces, {"table": sql.checkpoints_name, **graphs})[0]
    check_transaction(db, "refuse_forks", level)

    def store_checked(together: Sequence[Change]) -> dict[str, str]:
        _check_continuations(db, sql, together)
        if sql.are_distributed:
            return store_each(db, sql, together, in_transaction=True)
        return _store(db, sql, page_cache, together)

    return _in_order([[change] for change in changes] if sql.are_distributed else _apart(changes), store_checked)


def _in_order(
    parts: Iterable[Sequence[Change]], store_some: Callable[[Sequence[Change]], dict[str, str]]
) -> dict[str, str]:
    """Store some changes after the other; nothing more of a thread after a refusal."""
    refused: dict[str, str] = {}
    for together in parts:
        if left := [change for change in together if change.thread_id not in refused]:
            refused |= store_some(left)
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
    binds = {f"{name}s": [put[name] for put in puts] for name in names}
    for row in db.fetch(sql.continuations, {**binds, "thread_id": puts[0]["thread_id"]}):
        thread_id, checkpoint_ns, checkpoint_id, parent, newest, continues = row
        if not continues:
            why = (
                f"continues {short_repr(parent)}, but the newest is {short_repr(newest)}"
                if parent != newest
                else f"has an id that does not sort after that of {short_repr(parent)}, which it continues: readers "
                "would not find it. The clocks of two machines may differ"
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
    if not put.has_large_pages:
        return None
    rows = db.fetch(sql.known_pages, {"thread_id": put.thread_id, "digests": list(put.pages)})
    return {row[0] for row in rows} or None
