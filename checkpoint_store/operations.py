"""One function per unit of work, on an `Executor`.

They are written in sync style: SQLAlchemy's greenlets run them on an async engine, a sync engine runs them as they are.
Where it doesn't say otherwise each is one statement, so it is atomic on its own and needs no transaction around it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeVar

from sqlalchemy import Table, exc, func, select

from checkpoint_store import pages
from checkpoint_store.causes import chain, diagnosis_of
from checkpoint_store.changes import Change, Put, merged
from checkpoint_store.config import Key, Listing
from checkpoint_store.errors import (
    SET_UP,
    Conflict,
    InvalidConfig,
    NotSetUp,
    Refused,
    ThreadExists,
    ThreadNotFound,
    WrongTransaction,
    shown,
)
from checkpoint_store.executor import Executor, Row
from checkpoint_store.kinds import Kind, is_a
from checkpoint_store.schema import ADOPTED, PAGED, STOCK_TABLE, VERSION_TABLE, qualified
from checkpoint_store.shelf import Shelf
from checkpoint_store.statements import Read, Statement, Statements, copying

T = TypeVar("T")

log = logging.getLogger(__name__)

_warned: set[tuple[str, str]] = set()
"""What was warned of, a database and its encoding or a schema: once in a process is enough."""

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


@is_a(Kind.STORE)
def store(db: Executor, sql: Statements, shelf: Shelf, changes: Sequence[Change]) -> dict[str, str]:
    """Store changes made one after the other, all in one commit.

    Only those of threads that lack pages which this process takes to be there are stored in further ones, with all they
    need, and a checkpoint that keeps values of one that is stored with it: then the order is kept within a thread.

    Args:
        db: The executor.
        sql: The statements.
        shelf: What is remembered of pages.
        changes: What to store; at least one.

    Returns:
        Of which threads something was refused, and how errors tell it; all else is stored.
    """
    refused: dict[str, str] = {}
    for together in _apart(changes) if _keeps_within(changes) else [changes]:
        if left := [change for change in together if change.thread_id not in refused]:
            refused |= _store(db, sql, shelf, left)
    return refused


def _keeps_within(changes: Sequence[Change]) -> bool:
    """Tell whether a checkpoint keeps values of one that is among them, which their own statement would not see."""
    puts = [change.binds for change in changes if isinstance(change, Put)]
    if len(puts) < 2 or not any(put["kept"] for put in puts):
        return False
    names = ("thread_id", "checkpoint_ns")
    keys = {(*[put[name] for name in names], put["checkpoint_id"]) for put in puts}
    return any(put["kept"] and (*[put[name] for name in names], put["parent_checkpoint_id"]) in keys for put in puts)


def _store(db: Executor, sql: Statements, shelf: Shelf, changes: Sequence[Change]) -> dict[str, str]:
    if len(changes) == 1 and not getattr(changes[0], "pages", None):
        return _store_plain(db, sql, changes[0])
    puts = [change for change in changes if isinstance(change, Put) and change.pages]
    known = {put.thread_id: there for put in puts if (there := _known(db, sql, shelf, put)) is not None}
    is_simple = all(isinstance(change, Put) and not change.binds["kept"] for change in changes)
    passed, refused = _store_together(db, sql, sql.store_simple if is_simple else sql.store, changes, known)
    # Each of the others alone: then nothing that others do at the same time can be the reason any more.
    for thread_id, theirs in _by_thread(change for change in changes if change.thread_id not in passed).items():
        shelf.forget(thread_id)
        is_paged = any(put.thread_id == thread_id for put in puts)
        try:
            found, why = _store_together(db, sql, sql.store_alone if is_paged else sql.store, theirs, {})
        except exc.DBAPIError as error:
            if not diagnosis_of(error).is_by_policy:
                raise
            chain(Refused(refusal(thread_id, sql.tables.checkpoint_threads)), error)
        if thread_id not in found and not why:
            why = {thread_id: refusal(thread_id, sql.tables.checkpoint_threads)}
        refused |= why
    for put in puts:
        if put.thread_id in refused:
            shelf.forget(put.thread_id)
        else:
            shelf.remember(put.thread_id, put.digests)
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


def missing_pages(db: Executor, sql: Statements, puts: Sequence[Put]) -> set[str]:
    """Return the threads that lack any page of puts that were stored, unless that was removed since."""
    names = ("thread_ids", "checkpoint_nss", "channels", "versions", "digests")
    rows = [
        (put.thread_id, put.binds["checkpoint_ns"], channel, version, digest)
        for put in puts
        for channel, version in zip(put.binds["channels"], put.binds["versions"], strict=True)
        for digest in put.digests.get((put.binds["checkpoint_ns"], channel), ())
    ]
    binds = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return {row[0] for row in db.fetch(sql.missing_pages, binds)}


def _by_thread(changes: Iterable[Change]) -> dict[str, list[Change]]:
    threads: dict[str, list[Change]] = {}
    for change in changes:
        threads.setdefault(change.thread_id, []).append(change)
    return threads


@is_a(Kind.STORE)
def store_continuing(db: Executor, sql: Statements, shelf: Shelf, changes: Sequence[Change]) -> dict[str, str]:
    """Store changes of which some have to continue the newest checkpoint of their namespace; in a transaction.

    Returns:
        The same as `store`.

    Raises:
        Conflict: If one of them doesn't; nothing is stored then.
        WrongTransaction: If the transaction is of a kind in which that can't be known.
    """
    puts = [change.binds for change in changes if isinstance(change, Put) and change.continues]
    graphs = {name: [put[name.removesuffix("s")] for put in puts] for name in ("thread_ids", "checkpoint_nss")}
    level, _ = db.fetch(sql.lock_graphs, {"table": checkpoints_of(sql), **graphs})[0]
    _check_transaction(db, "refuse_forks", level)
    refused: dict[str, str] = {}
    for together in _apart(changes):
        if left := [change for change in together if change.thread_id not in refused]:
            _check_continuations(db, sql, left)
            refused |= store(db, sql, shelf, left)
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


@is_a(Kind.READ)
def lock_number(db: Executor, sql: Statements, thread_id: str) -> int:
    """Return the number that a thread's lock goes by.

    Raises:
        NotSetUp: If the tables are missing.
    """
    table = checkpoints_of(sql)
    number: int | None = db.fetch(sql.lock_number, {"thread_id": thread_id, "table": table})[0][0]
    return _known_table(number, table)


@is_a(Kind.READ)
def take_lock(db: Executor, sql: Statements, number: int) -> bool:
    """Try to take a lock for the session; tells whether nobody else has it."""
    return bool(db.fetch(sql.take_lock, {"number": number})[0][0])


@is_a(Kind.READ)
def drop_lock(db: Executor, sql: Statements, number: int) -> bool:
    """Give a lock of the session back; tells whether it had it."""
    return bool(db.fetch(sql.drop_lock, {"number": number})[0][0])


@is_a(Kind.READ)
def take_lock_in_transaction(db: Executor, sql: Statements, thread_id: str) -> int | None:
    """Try to take a thread's lock until the transaction ends; returns its number, or None if somebody else has it.

    Raises:
        NotSetUp: If the tables are missing.
        WrongTransaction: If there is no transaction, or one that does not see what the last to have the lock has done.
    """
    table = checkpoints_of(sql)
    number, taken, level = db.fetch(sql.take_lock_in_transaction, {"thread_id": thread_id, "table": table})[0]
    _known_table(number, table)
    _check_transaction(db, "thread_lock()", level)
    return number if taken else None


@is_a(Kind.READ)
def has_lock(db: Executor, sql: Statements, number: int) -> bool:
    """Tell whether the session has a lock."""
    return bool(db.fetch(sql.has_lock, {"number": number})[0][0])


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


@is_a(Kind.READ)
def session_id(db: Executor, sql: Statements) -> int:
    """Return the id of the server's process that the session talks to."""
    return db.fetch(sql.session_id, {})[0][0]  # type: ignore[no-any-return]


def checkpoints_of(sql: Statements) -> str:
    """Return how the table of checkpoints is named in SQL text."""
    return qualified(sql.tables.checkpoints.name, sql.tables.schema)


def _store_plain(db: Executor, sql: Statements, change: Change) -> dict[str, str]:
    if not isinstance(change, Put):
        db.fetch(sql.put_writes, change.binds)
    elif not db.fetch(sql.put_checkpoint_keeping if change.binds["kept"] else sql.put_checkpoint, change.binds):
        return {change.thread_id: refusal(change.thread_id, sql.tables.checkpoints)}
    return {}


def refusal(thread_id: str, table: Table, outcome: str | None = None) -> str:
    """Return how errors tell that a row could be stored without an error, and is not there.

    Args:
        thread_id: Whose row.
        table: Its table.
        outcome: What has become of the call; by default what does of a put.
    """
    outcome = (
        outcome
        or {
            "checkpoint_threads": "Nothing of the call was stored",
            "checkpoint_pages": "The value that needs it was stored, but can't be read",
            "checkpoints": "The checkpoint was not stored",
        }[table.name]
    )
    return (
        f"thread {shown(thread_id, 200)}: the database dropped a row of {table.name}, or hides it, without an error. "
        f"{outcome}. The reason is a BEFORE trigger that returns NULL, or a row-level security policy and another "
        "tenant that has used the thread id. Have the trigger return the row; give each tenant thread ids of its own."
    )


def _known(db: Executor, sql: Statements, shelf: Shelf, put: Put) -> Container[bytes] | None:
    if (known := shelf.known(put.thread_id)) is not None:
        return known
    if sum(map(len, put.pages.values())) <= ASK_BYTES:
        return None
    rows = db.fetch(sql.known_pages, {"thread_id": put.thread_id, "digests": list(put.pages)})
    return {row[0] for row in rows} or None


@is_a(Kind.READ, name="get_tuple", thread_of=lambda _, key: key.thread_id)
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


@is_a(Kind.READ, name="get_tuple", thread_of=lambda _, key: key.thread_id)
def get_settled(db: Executor, sql: Statements, shelf: Shelf, key: Key) -> Row | None:
    """Return the checkpoint that a key names if there is a newer one of its thread and namespace; otherwise None."""
    # Asked for first: what is there then was written when no newer one was, and there may have been more to come.
    if not db.fetch(sql.has_newer, key._asdict())[0][0]:
        return None
    return next(iter(_read(db, sql.get_checkpoint, shelf, key._asdict())), None)


@is_a(Kind.READ, name="list", thread_of=lambda _, listing, __: listing.thread_id)
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


@is_a(Kind.READ)
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
    claim_threads(db, sql, thread_ids)
    # Once more, for what was stored by whoever the first time had to wait for: it had found a blob there.
    rows = [db.fetch(sql.delete_threads, {"thread_ids": list(thread_ids)})[0] for _ in range(2)]
    return [(one[0] + more[0], one[1] + more[1]) for one, more in zip(*rows, strict=True)]


def claim_threads(db: Executor, sql: Statements, thread_ids: Sequence[str]) -> None:
    """Keep others from storing pages of some threads, also of those that have none yet; in a transaction."""
    db.fetch(sql.claim_threads, {"thread_ids": list(thread_ids)})
    lock_pages(db, sql, thread_ids)


@is_a(Kind.OTHER, thread_of=lambda thread_id: thread_id)
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
        claim_threads(db, sql, [target])
    # Whoever remembers pages of a thread that had this id before remembers them of another epoch.
    epoch = secrets.randbits(62)
    try:
        [(copies, stored)] = db.fetch(sql.copy_thread, {**binds, "epoch": epoch})
    except exc.IntegrityError as error:
        _raise_if_there(target, error)
        raise
    _check_copied(target, copies, stored)
    copied = sum(copies)
    if not copied:  # deleted just now
        db.fetch(sql.forget_threads, {"thread_ids": [target]})
        raise not_found(source)
    if tried is not None:
        tried[epoch] = copied
    return copied


def _check_copied(target: str, copies: Sequence[int], stored: Sequence[int]) -> None:
    """Check that as many rows were made of each table as there are of the source."""
    for name, copied, count in zip(copying.TABLES, copies, stored, strict=True):
        if copied < count:
            raise Refused(
                f"thread {shown(target, 200)}: the database dropped rows of {name} without an error, so it was not "
                "made, and nothing has changed. The reason is a trigger that returns NULL, or a rule: have it keep the "
                "row."
            )


def _raise_if_there(target: str, error: exc.IntegrityError) -> None:
    """Raise our error where it was a row of the target's that is there already, not a rule of the host's."""
    said = diagnosis_of(error)
    if said.state == "23505" and (said.constraint or "").endswith("_pkey"):
        exists = ThreadExists(
            f"target_thread_id is {shown(target, 200)}, for which something was stored while it was to be made. Stop "
            "what stores to it, or choose another id."
        )
        chain(exists, error)


def not_found(thread_id: str) -> ThreadNotFound:
    """Return the error for a thread that has to be there and isn't."""
    return ThreadNotFound(f"nothing is stored for the thread {shown(thread_id, 200)}")


@is_a(Kind.READ)
def list_threads(db: Executor, sql: Statements, conditions: frozenset[str], binds: dict[str, Any]) -> Row:
    """Return the next part of a list of threads, as `statements.threads` has it."""
    return db.fetch(sql.list_threads(conditions), binds)[0]


@is_a(Kind.READ, name="get_thread_stats", thread_of=lambda thread_id: thread_id)
def thread_stats(db: Executor, sql: Statements, thread_id: str) -> tuple[Sequence[Row], Sequence[Row]]:
    """Return what a thread occupies, by table and by channel."""
    binds = {"thread_id": thread_id}
    return db.fetch(sql.thread_tables, binds), db.fetch(sql.thread_channels, binds)


@is_a(Kind.READ)
def largest_threads(db: Executor, sql: Statements, most: int) -> Sequence[Row]:
    """Return the threads that have most, their checkpoints and bytes; reads every row."""
    return db.fetch(sql.largest_threads, {"most": most})


@is_a(Kind.READ)
def table_sizes(db: Executor, sql: Statements) -> Sequence[Row]:
    """Return about how many rows the tables have, and what they occupy on disk."""
    names = {qualified(name, sql.tables.schema): name for name in (t.name for t in sql.tables.metadata.sorted_tables)}
    rows = db.fetch(sql.table_sizes, {"names": list(names)})
    return sorted(((names[name], rows, size) for name, rows, size in rows), key=itemgetter(2), reverse=True)


@is_a(Kind.READ, thread_of=lambda thread_id, _: thread_id)
def history(db: Executor, sql: Statements, thread_id: str, most: int) -> Sequence[Row]:
    """Return the newest checkpoints of a thread without their values; see `statements.history`."""
    return db.fetch(sql.history, {"thread_id": thread_id, "most": most})


@is_a(Kind.READ, thread_of=lambda key: key.thread_id)
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


@is_a(Kind.OTHER, thread_of=lambda thread_id: thread_id)
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


@is_a(Kind.READ)
def next_blobs(db: Executor, sql: Statements, kind: str, last: Blob, most: int) -> Sequence[Row]:
    """Return the blobs of a type that follow another one, key and bytes; plain ones only if they are large."""
    names = ("thread_id", "checkpoint_ns", "channel", "version")
    least = 0 if kind == PAGED else pages.LARGE_BYTES
    return db.fetch(sql.next_blobs, {**dict(zip(names, last, strict=True)), "type": kind, "least": least, "most": most})


def share_blobs(db: Executor, sql: Statements, puts: Sequence[Put]) -> int:
    """Put recipes in the place of stored blobs of one thread; in a transaction. Returns how many.

    Raises:
        Refused: If something of the database's hides the rows that it depends on.
    """
    binds, thread_id = merged(puts, {}), puts[0].thread_id
    rows = db.fetch(sql.share_blobs, binds)
    if not rows:
        raise Refused(refusal(thread_id, sql.tables.checkpoint_threads))
    [(_, stored, replaced)] = rows
    if stored < len(binds["page_digests"]) and missing_pages(db, sql, puts):
        raise Refused(refusal(thread_id, sql.tables.checkpoint_pages, "The thread's values stay as they were"))
    return int(replaced)


def inline_blobs(db: Executor, sql: Statements, keys: Sequence[Blob]) -> int:
    """Put values in the place of recipes. Returns how many."""
    columns = zip(("thread_id", "checkpoint_ns", "channel", "version"), zip(*keys, strict=True), strict=True)
    return len(db.fetch(sql.inline_blobs, {f"blob_{name}s": list(column) for name, column in columns}))


@is_a(Kind.READ, name="get_delta_channel_history", thread_of=lambda key, _: key.thread_id)
def delta_history(db: Executor, sql: Statements, key: Key, channels: Sequence[str]) -> Sequence[Row]:
    """Return the ancestors of a checkpoint with what they contribute to some channels."""
    return db.fetch(sql.delta_history, {**key._asdict(), "channels": list(channels)})


@is_a(Kind.READ, thread_of=lambda thread_id: thread_id)
def take_inventory(db: Executor, sql: Statements, thread_id: str) -> Sequence[Row]:
    """Return the checkpoints of a thread, and of each the tasks that have pending writes, with their number."""
    return db.fetch(sql.inventory, {"thread_id": thread_id})


@is_a(Kind.READ)
def is_adopted(db: Executor, sql: Statements) -> bool:
    """Tell whether the stock saver may read the tables: it has set them up, or we did not make them."""
    schema = sql.tables.schema
    names = {"stock": qualified(STOCK_TABLE, schema), "version": qualified(VERSION_TABLE, schema)}
    is_stock, comment, database = db.fetch(sql.adoption, names)[0]
    was_found = (comment or "").startswith(ADOPTED)
    if is_stock and not was_found and (database, schema or "") not in _warned:
        _warned.add((database, schema or ""))
        log.warning(
            'database "%s": the stock saver has set up the tables, so it may read them, and can\'t read shared pages. '
            "Large values are stored whole. Pass share_pages=True if it doesn't, share_pages=False to leave it so.",
            database,
        )
    return bool(is_stock) or was_found


@is_a(Kind.READ)
def outlives_downgrade(db: Executor, sql: Statements) -> bool:
    """Tell whether the tables stay when all revisions are undone: as `is_adopted`, and nothing is logged."""
    schema = sql.tables.schema
    names = {"stock": qualified(STOCK_TABLE, schema), "version": qualified(VERSION_TABLE, schema)}
    is_stock, comment, _ = db.fetch(sql.adoption, names)[0]
    return bool(is_stock) or (comment or "").startswith(ADOPTED)


@is_a(Kind.READ)
def revisions(db: Executor, sql: Statements) -> set[str]:
    """Return the revisions that the database is at, and warn of an encoding that can't hold every text."""
    rows = db.fetch(sql.revision, {})
    for _, database, encoding in rows:
        if encoding != "UTF8" and (database, encoding) not in _warned:
            _warned.add((database, encoding))
            log.warning(
                'database "%s" has the encoding %s, not UTF8: a checkpoint that has a character which it lacks is '
                "refused. Move, by pg_dump and pg_restore, to a database made with CREATE DATABASE ... ENCODING 'UTF8' "
                "TEMPLATE template0.",
                database,
                encoding,
            )
    return {row[0] for row in rows}


@is_a(Kind.READ)
def log_position(db: Executor, sql: Statements) -> int:
    """Return where the write-ahead log ends, in bytes."""
    return _position(db.fetch(sql.log_position, {})[0][0])


@is_a(Kind.READ)
def replayed_position(db: Executor, sql: Statements) -> int | None:
    """Return how much of its primary's write-ahead log a replica has replayed, in bytes; None of what is no replica."""
    position = db.fetch(sql.replayed_position, {})[0][0]
    return position and _position(position)


def _position(text: str) -> int:
    # Two hexadecimal numbers of 32 bits: https://www.postgresql.org/docs/current/datatype-pg-lsn.html
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)
