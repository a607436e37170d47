"""One function per unit of work, on an `Executor`.

They are written in sync style: SQLAlchemy's greenlets run them on an async engine, a sync engine runs them as they are.
Where it doesn't say otherwise each is one statement, so it is atomic on its own and needs no transaction around it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeVar

from sqlalchemy import exc, func, select

from checkpoint_store import pages
from checkpoint_store.changes import Change, Put, merged
from checkpoint_store.config import Key, Listing
from checkpoint_store.errors import (
    SET_UP,
    Conflict,
    InvalidConfig,
    NotSetUp,
    ThreadExists,
    ThreadNotFound,
    WrongTransaction,
    shown,
)
from checkpoint_store.executor import Executor, Row
from checkpoint_store.schema import PAGED, STOCK_TABLE, qualified
from checkpoint_store.shelf import Known, Shelf, Tentative
from checkpoint_store.statements import Read, Statement, Statements

T = TypeVar("T")

Blob = tuple[str, str, str, str]
"""Thread, namespace, channel and version."""

_BLOB_TYPES = 7
_BLOBS = slice(6, 9)
"""The places of the blobs' types, and of their channels, types and bytes, among `statements.checkpoints`' columns."""

ASK_BYTES = 64 * 1024
"""From so many bytes of pages on, the database is asked which of them it has, where nothing is known of the thread."""

_ROLE = Statement(select(func.current_user()))

Last = tuple[str, str, str]
"""Thread, namespace and id of the last row of a page."""


def store(db: Executor, sql: Statements, shelf: Tentative | None, changes: Sequence[Change]) -> None:
    """Store changes made one after the other, all in one commit.

    Only where pages have been deleted meanwhile, those who counted on them are stored in a second one, with all they
    need: then the order is kept within a thread.

    Args:
        db: The executor.
        sql: The statements.
        shelf: What is known of the pages that are there; None if there are none among the changes, or if the caller
            may roll back what is stored here.
        changes: What to store; at least one.
    """
    if shelf is not None:
        shelf.begin()
    _store(db, sql, shelf, changes)


def _store(db: Executor, sql: Statements, shelf: Tentative | None, changes: Sequence[Change]) -> None:
    if len(changes) == 1 and not getattr(changes[0], "pages", None):
        _store_plain(db, sql, changes[0])
        return
    puts = [change for change in changes if isinstance(change, Put) and change.pages]
    known = {put.thread_id: there for put in puts if (there := _known(db, sql, shelf, put)) is not None}
    while changes:
        passed = dict(map(tuple, db.fetch(sql.store, merged(changes, known))))
        if shelf is not None:
            for put in puts:
                if put.thread_id in passed:
                    shelf.remember(put.thread_id, passed[put.thread_id], put.digests)
                else:
                    shelf.forget(put.thread_id)
        known, changes = {}, [change for change in changes if change.thread_id not in passed]
        puts = [put for put in puts if put.thread_id not in passed]


def store_continuing(db: Executor, sql: Statements, shelf: Tentative | None, changes: Sequence[Change]) -> None:
    """Store changes of which some have to continue the newest checkpoint of their namespace; in a transaction.

    Raises:
        Conflict: If one of them doesn't; nothing is stored then.
        WrongTransaction: If the transaction is of a kind in which that can't be known.
    """
    if shelf is not None:
        shelf.begin()
    puts = [change.binds for change in changes if isinstance(change, Put) and change.continues]
    graphs = {name: [put[name.removesuffix("s")] for put in puts] for name in ("thread_ids", "checkpoint_nss")}
    level, _ = db.fetch(sql.lock_graphs, {"table": checkpoints_of(sql), **graphs})[0]
    _check_transaction(db, "refuse_forks", level)
    for together in _apart(changes):
        _check_continuations(db, sql, together)
        _store(db, sql, shelf, together)


def _apart(changes: Sequence[Change]) -> Iterator[list[Change]]:
    """Split changes so that no two checkpoints of a namespace are together: the second is to continue the first."""
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
                f"continues {shown(parent)}, but the newest is {shown(newest)}"
                if parent != newest
                else f"has an id that does not sort behind that of {shown(parent)}, which it continues: readers would "
                "not find it. The clocks of two machines may differ"
            )
            raise Conflict(
                f"thread {shown(thread_id, 200)}, namespace {shown(checkpoint_ns, 200)}: checkpoint "
                f"{shown(checkpoint_id)} {why}. Nothing was written. Another run has written to the thread meanwhile: "
                "load its state and run again, and see saver.thread_lock() to have runs wait for each other."
            )


def _check_transaction(db: Executor, what: str, level: str) -> None:
    """Check that a transaction holds the locks just taken in it, and sees what others did before it had them.

    Args:
        db: The executor.
        what: What needs it, as the beginning of a sentence.
        level: The transaction's isolation level.

    Raises:
        WrongTransaction: If it doesn't.
    """
    _check_holds(db, what)
    if level in ("repeatable read", "serializable"):
        raise WrongTransaction(
            f"{what} can't work in a transaction that is {level.upper()}: it does not see what others have stored "
            "since it began. Nothing was changed in it. Use READ COMMITTED: for the connection or session; or, where a "
            "listener of the engine's begins the saver's transactions as connections are checked out, for that engine."
        )


def _check_holds(db: Executor, what: str) -> None:
    if not db.is_in_transaction:
        raise WrongTransaction(
            f"{what} can't work on a connection in AUTOCOMMIT: each statement is a transaction of its own, and none "
            "holds a lock for the next. Nothing was changed. Use a saver on the engine, or begin a transaction."
        )


def lock_number(db: Executor, sql: Statements, thread_id: str) -> int:
    """Return the number that a thread's lock goes by.

    Raises:
        NotSetUp: If the tables are missing.
    """
    table = checkpoints_of(sql)
    number: int | None = db.fetch(sql.lock_number, {"thread_id": thread_id, "table": table})[0][0]
    return _known_table(number, table)


def take_lock(db: Executor, sql: Statements, number: int) -> bool:
    """Try to take a lock for the session; tells whether nobody else has it."""
    return bool(db.fetch(sql.take_lock, {"number": number})[0][0])


def drop_lock(db: Executor, sql: Statements, number: int) -> bool:
    """Give a lock of the session back; tells whether it had it."""
    return bool(db.fetch(sql.drop_lock, {"number": number})[0][0])


def take_lock_in_transaction(db: Executor, sql: Statements, thread_id: str) -> bool:
    """Try to take a thread's lock until the transaction ends; tells whether nobody else has it.

    Raises:
        NotSetUp: If the tables are missing.
        WrongTransaction: If there is no transaction, or one that does not see what the last to have the lock has done.
    """
    table = checkpoints_of(sql)
    taken, level = db.fetch(sql.take_lock_in_transaction, {"thread_id": thread_id, "table": table})[0]
    _known_table(taken, table)
    _check_transaction(db, "thread_lock()", level)
    return bool(taken)


def _known_table(answer: T | None, table: str) -> T:
    if answer is None:
        raise NotSetUp(f'table "{table}" does not exist. {SET_UP}')
    return answer


def begin_session(db: Executor, sql: Statements, settings: Mapping[str, str]) -> None:
    """Change what settings of the session the server knows."""
    db.fetch(sql.begin_session, {"names": list(settings), "values": list(settings.values())})


def role(db: Executor, sql: Statements) -> str:  # noqa: ARG001 - as all operations
    """Return the database role that statements run as."""
    return str(db.fetch(_ROLE, {})[0][0])


def session_id(db: Executor, sql: Statements) -> int:
    """Return the id of the server's process that the session talks to."""
    return db.fetch(sql.session_id, {})[0][0]  # type: ignore[no-any-return]


def checkpoints_of(sql: Statements) -> str:
    """Return how the table of checkpoints is named in SQL text."""
    return qualified(sql.tables.checkpoints.name, sql.tables.schema)


def _store_plain(db: Executor, sql: Statements, change: Change) -> None:
    if isinstance(change, Put):
        db.fetch(sql.put_checkpoint, change.binds)
    else:
        db.fetch(sql.put_writes, change.binds)


def _known(db: Executor, sql: Statements, shelf: Shelf | None, put: Put) -> Known | None:
    if shelf is not None and (known := shelf.known(put.thread_id)) is not None:
        return known
    if sum(map(len, put.pages.values())) <= ASK_BYTES:
        return None
    rows = db.fetch(sql.known_pages, {"thread_id": put.thread_id, "digests": list(put.pages)})
    return Known(rows[0][0], {("", ""): frozenset(rows[0][1] or ())}) if rows else None


def get_checkpoint(db: Executor, sql: Statements, shelf: Shelf, key: Key) -> Row | None:
    """Return the checkpoint that a key names, or the newest of its thread and namespace, or None."""
    binds = key._asdict()
    if key.checkpoint_id is None and shelf.has_values(key.thread_id):
        # What this process stored last it has the pages of: the recipes are all it has to ask for.
        rows = db.fetch(sql.get_latest.plain, binds)
        if not rows or (row := _made(rows[0], shelf)) is not None:
            return row if rows else None
        return next(iter(db.fetch(sql.get_latest.joined, binds)), None)
    return next(iter(_read(db, sql.get_checkpoint if key.checkpoint_id else sql.get_latest, shelf, binds)), None)


def get_settled(db: Executor, sql: Statements, shelf: Shelf, key: Key) -> Row | None:
    """Return the checkpoint that a key names if there is a newer one of its thread and namespace; otherwise None."""
    # Asked for first: what is there then was written when no newer one was, and there may have been more to come.
    if not db.fetch(sql.has_newer, key._asdict())[0][0]:
        return None
    return next(iter(_read(db, sql.get_checkpoint, shelf, key._asdict())), None)


def list_page(
    db: Executor, sql: Statements, shelf: Shelf, listing: Listing, after: tuple[Last | None, int]
) -> Sequence[Row]:
    """Return the page of a listing that follows a row, or its first: so many checkpoints, fewer at the end."""
    last, size = after
    binds = {name: value for name, value in listing._asdict().items() if value is not None and name != "limit"}
    conditions = frozenset(binds)
    if last is not None:
        conditions |= {"after_row"}
        binds.update(last_thread_id=last[0], last_checkpoint_ns=last[1], last_checkpoint_id=last[2])
    return _read(db, sql.list_page(conditions), shelf, {**binds, "page_size": size})


def _read(db: Executor, read: Read, shelf: Shelf, binds: dict[str, Any]) -> Sequence[Row]:
    """Read checkpoints: in one statement, but in two where pages come unexpected."""
    if binds.get("thread_id") is None or shelf.known(binds["thread_id"]) is None:
        rows = db.fetch(read.plain, binds)
        if not any(PAGED in (row[_BLOB_TYPES] or ()) for row in rows):
            return rows
    return db.fetch(read.joined, binds)


def _made(row: Row, shelf: Shelf) -> Row | None:
    """Return a row with values in the place of recipes, or None if a page is not at hand."""
    thread_id, namespace, *_ = columns = list(row)
    channels, types, blobs = columns[_BLOBS]
    if PAGED not in (types or ()):
        return row
    types, blobs = list(types), list(blobs)
    for place, channel in enumerate(channels):
        if types[place] == PAGED:
            types[place], blobs[place] = "msgpack", shelf.value(thread_id, (namespace, channel), blobs[place])
            if blobs[place] is None:
                return None
    columns[_BLOBS] = channels, types, blobs
    return columns


def lock_threads(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> list[str]:
    """Keep others from removing anything of some threads, and from storing pages of them; in a transaction.

    Returns:
        Which of them have pages.
    """
    lock_removal(db, sql, thread_ids)
    return lock_pages(db, sql, thread_ids)


def lock_removal(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> None:
    """Keep others from removing anything of some threads; in a transaction. Those who store don't notice.

    Raises:
        WrongTransaction: If it does not see what others have stored: what that needs would be removed.
    """
    if rows := _lock_removal(db, sql, thread_ids):
        _check_transaction(db, "A removal", rows[0][0])


def check_removal(db: Executor, sql: Statements) -> None:
    """Check, before work that ends with a removal, that this one would not be refused; in a transaction.

    Raises:
        WrongTransaction: If it would be.
    """
    lock_removal(db, sql, [""])  # no thread's id


def _lock_removal(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> Sequence[Row]:
    return db.fetch(sql.lock_removal, {"thread_ids": list(thread_ids), "table": checkpoints_of(sql)})


def lock_pages(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> list[str]:
    """Keep others from storing pages of some threads; in a transaction. Returns which of them have pages."""
    return [row[0] for row in db.fetch(sql.lock_threads, {"thread_ids": list(thread_ids)})]


def delete_threads(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> Sequence[tuple[int, int]]:
    """Delete everything stored for some threads; in a transaction.

    Returns:
        How many rows that were, and their bytes: of writes, checkpoints, blobs and pages.
    """
    lock_removal(db, sql, thread_ids)
    return _delete(db, sql, thread_ids)


def _delete(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> Sequence[tuple[int, int]]:
    """Delete everything stored for some threads that nobody else removes anything of; in a transaction."""
    _claim(db, sql, thread_ids)
    # Once more, for what was stored by whoever the first time had to wait for: it had found a blob there.
    rows = [db.fetch(sql.delete_threads, {"thread_ids": list(thread_ids)})[0] for _ in range(2)]
    return [(one[0] + more[0], one[1] + more[1]) for one, more in zip(*rows, strict=True)]


def _claim(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> None:
    """Keep others from storing pages of some threads, also of those that have none yet; in a transaction."""
    db.fetch(sql.claim_threads, {"thread_ids": list(thread_ids)})
    lock_pages(db, sql, thread_ids)


def delete_thread(db: Executor, sql: Statements, thread_id: str) -> None:
    """Delete everything stored for a thread; in a transaction."""
    delete_threads(db, sql, [thread_id])


def copy_thread(
    db: Executor, sql: Statements, copy: tuple[str, str], replace: bool, tried: dict[int, int] | None = None
) -> int:
    """Copy everything stored for a thread under another id; in a transaction. Returns how many rows.

    Args:
        db: The executor.
        sql: The statements.
        copy: The ids of the thread and of its copy.
        replace: Whether what is stored for the target is deleted first.
        tried: How many rows this call has copied in earlier tries, by the epochs it gave the target: where the answer
            to a COMMIT was lost, the copy may be there. The call's own; None if it is never made again.

    Raises:
        ThreadNotFound: If there is nothing to copy.
        ThreadExists: If the target has something already, and is not to be replaced.
    """
    source, target = copy
    binds = {"thread_id": source, "target_id": target}
    # Of two copies to one target the second waits, and finds the first.
    level = _lock_removal(db, sql, [target])[0][0]
    if replace:
        _check_transaction(db, "A copy with replace=True", level)
    else:
        # Also as of one moment long ago. A target that it does not see is not mixed with the copy: see `claim_threads`.
        _check_holds(db, "A copy")
    if tried:
        # The rows tell, on whatever server: a standby that took over may have the copy or not. Where it is the same
        # server, the lock tells that the earlier transaction has ended.
        for (epoch,) in db.fetch(sql.epoch_of, {"thread_id": target}):
            if epoch in tried:
                return tried[epoch]
    is_stored, is_taken = db.fetch(sql.stored_threads, binds)[0]
    # Before anything is deleted: what a caller's own transaction has begun stays whole.
    if not is_stored:
        raise not_found(source)
    if is_taken and not replace:
        raise ThreadExists(
            f"target_thread_id is {shown(target, 200)}, for which something is stored. "
            "Delete it first, choose another id, or pass replace=True."
        )
    if replace:
        _delete(db, sql, [target])
    else:
        _claim(db, sql, [target])
    # Whoever remembers pages of a thread that had this id before remembers them of another epoch.
    epoch = secrets.randbits(62)
    try:
        copied: int = db.fetch(sql.copy_thread, {**binds, "epoch": epoch})[0][0]
    except exc.IntegrityError as error:
        raise ThreadExists(
            f"target_thread_id is {shown(target, 200)}, for which something was stored while it was to be made. Stop "
            "what stores to it, or choose another id."
        ) from error
    if not copied:  # deleted just now
        db.fetch(sql.forget_threads, {"thread_ids": [target]})
        raise not_found(source)
    if tried is not None:
        tried[epoch] = copied
    return copied


def not_found(thread_id: str) -> ThreadNotFound:
    """Return the error for a thread that has to be there and isn't."""
    return ThreadNotFound(f"nothing is stored for the thread {shown(thread_id, 200)}")


def list_threads(db: Executor, sql: Statements, conditions: frozenset[str], binds: dict[str, Any]) -> Row:
    """Return the next part of a list of threads, as `statements.threads` has it."""
    return db.fetch(sql.list_threads(conditions), binds)[0]


def thread_stats(db: Executor, sql: Statements, thread_id: str) -> tuple[Sequence[Row], Sequence[Row]]:
    """Return what a thread occupies, by table and by channel."""
    binds = {"thread_id": thread_id}
    return db.fetch(sql.thread_tables, binds), db.fetch(sql.thread_channels, binds)


def largest_threads(db: Executor, sql: Statements, most: int) -> Sequence[Row]:
    """Return the threads that have most, their checkpoints and bytes; reads every row."""
    return db.fetch(sql.largest_threads, {"most": most})


def table_sizes(db: Executor, sql: Statements) -> Sequence[Row]:
    """Return about how many rows the tables have, and what they occupy on disk."""
    names = {qualified(name, sql.tables.schema): name for name in (t.name for t in sql.tables.metadata.sorted_tables)}
    rows = db.fetch(sql.table_sizes, {"names": list(names)})
    return sorted(((names[name], rows, size) for name, rows, size in rows), key=itemgetter(2), reverse=True)


def history(db: Executor, sql: Statements, thread_id: str, most: int) -> Sequence[Row]:
    """Return the newest checkpoints of a thread without their values; see `statements.history`."""
    return db.fetch(sql.history, {"thread_id": thread_id, "most": most})


def find_checkpoint(db: Executor, sql: Statements, key: Key) -> Row | None:
    """Return the checkpoint whose id is that of a key or the only one that begins so, or the newest, whole.

    Raises:
        InvalidConfig: If several ids begin so.
    """
    if key.checkpoint_id is not None:
        rows = db.fetch(sql.get_checkpoint.joined, key._asdict())
        if rows:
            return rows[0]
        begun = db.fetch(sql.matching, {**key._asdict(), "start": key.checkpoint_id})
        if len(begun) > 1:
            raise InvalidConfig(
                f"several checkpoints have ids that begin with {shown(key.checkpoint_id)}; give more of it"
            )
        if not begun:
            return None
        key = key._replace(checkpoint_id=begun[0][0])
    rows = db.fetch(sql.get_checkpoint.joined if key.checkpoint_id else sql.get_latest.joined, key._asdict())
    return rows[0] if rows else None


def collect_pages(db: Executor, sql: Statements, thread_id: str) -> None:
    """Delete the pages of a thread that nothing refers to; in a transaction."""
    if paged := lock_threads(db, sql, [thread_id]):
        delete_pages(db, sql, paged)


def delete_pages(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> tuple[int, int]:
    """Delete the pages of threads that nothing refers to, and what is known of those that have none; under their lock.

    Returns:
        How many, and their bytes.
    """
    binds = {"thread_ids": list(thread_ids)}
    [(pages, size)] = db.fetch(sql.delete_pages, binds)
    db.fetch(sql.forget_threads, binds)
    return pages, size


def next_blobs(db: Executor, sql: Statements, kind: str, last: Blob, most: int) -> Sequence[Row]:
    """Return the blobs of a type that follow another one, key and bytes; plain ones only if they are large."""
    names = ("thread_id", "checkpoint_ns", "channel", "version")
    least = 0 if kind == PAGED else pages.LARGE_BYTES
    return db.fetch(sql.next_blobs, {**dict(zip(names, last, strict=True)), "type": kind, "least": least, "most": most})


def share_blobs(db: Executor, sql: Statements, puts: Sequence[Put]) -> int:
    """Put recipes in the place of stored blobs. Returns how many."""
    count = len(db.fetch(sql.share_blobs, merged(puts, {})))
    # A thread that has just got its row from somebody else does not pass; then once more.
    return count or len(db.fetch(sql.share_blobs, merged(puts, {})))


def inline_blobs(db: Executor, sql: Statements, keys: Sequence[Blob]) -> int:
    """Put values in the place of recipes. Returns how many."""
    columns = zip(("thread_id", "checkpoint_ns", "channel", "version"), zip(*keys, strict=True), strict=True)
    return len(db.fetch(sql.inline_blobs, {f"blob_{name}s": list(column) for name, column in columns}))


def delta_history(db: Executor, sql: Statements, key: Key, channels: Sequence[str]) -> Sequence[Row]:
    """Return the ancestors of a checkpoint with what they contribute to some channels."""
    return db.fetch(sql.delta_history, {**key._asdict(), "channels": list(channels)})


def take_inventory(db: Executor, sql: Statements, thread_id: str) -> Sequence[Row]:
    """Return the checkpoints of a thread, and of each the tasks that have pending writes, with their number."""
    return db.fetch(sql.inventory, {"thread_id": thread_id})


def is_adopted(db: Executor, sql: Statements) -> bool:
    """Tell whether the stock saver has set up this database too: its bookkeeping is there."""
    name = qualified(STOCK_TABLE, sql.tables.schema)
    return bool(db.fetch(sql.has_table, {"name": name})[0][0])


def revisions(db: Executor, sql: Statements) -> set[str]:
    """Return the revisions that the database is at."""
    return {row[0] for row in db.fetch(sql.revision, {})}


def log_position(db: Executor, sql: Statements) -> int:
    """Return where the write-ahead log ends, in bytes."""
    return _position(db.fetch(sql.log_position, {})[0][0])


def replayed_position(db: Executor, sql: Statements) -> int | None:
    """Return how much of its primary's write-ahead log a replica has replayed, in bytes; None of what is no replica."""
    position = db.fetch(sql.replayed_position, {})[0][0]
    return position and _position(position)


def _position(text: str) -> int:
    # Two hexadecimal numbers of 32 bits: https://www.postgresql.org/docs/current/datatype-pg-lsn.html
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)
