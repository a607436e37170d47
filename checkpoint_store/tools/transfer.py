"""Copying of threads from any LangGraph saver into one of ours, through LangGraph's interface; it can be resumed.

    with SqliteSaver.from_conn_string("checkpoints.sqlite") as old, PostgresSaver.from_conn_string(url) as new:
        new.setup()
        report = copy_threads(old, new)

A thread is copied in one transaction, and counted before the commit: after an error, Ctrl-C or `kill -9` each thread is
in the target completely or not at all, and the next call copies those that are missing.

It is written once, in sync style; async code runs it in one of SQLAlchemy's greenlets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NoReturn

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver, CheckpointTuple
from sqlalchemy.util import greenlet_spawn

from checkpoint_store import errors
from checkpoint_store.conninfo.driver_errors import diagnosis_of, is_from_driver, raise_from
from checkpoint_store.database.pinned_provider import pinned
from checkpoint_store.errors import TransferError, safe_str, short_repr
from checkpoint_store.saver.base import BasePostgresSaver
from checkpoint_store.serde.arguments import callback, has_methods
from checkpoint_store.serde.keys import checked_thread_id, members_of
from checkpoint_store.storage.delete_thread import delete_threads
from checkpoint_store.storage.read import take_inventory
from checkpoint_store.tools.inventory import Inventory, Key, counts, first, inventory_of, key_of, place, totals
from checkpoint_store.tools.saver_calls import SaverCalls
from checkpoint_store.tools.task_paths import PathsAt, paths_at

Progress = Callable[["TransferReport"], None]

_FATAL = (
    errors.AccessDenied,
    errors.Closed,
    errors.NotSetUp,
    errors.Unavailable,
    errors.WrongThread,
    errors.WrongTransaction,
)
"""Errors that the next thread would raise too; they are raised as they are."""


@dataclass(frozen=True)
class TransferReport:
    """The numbers of what was copied, and of what was in the target already.

    A thread that had gone on in the source since it was copied counts as copied; its checkpoints and writes that were
    in the target count as skipped.
    """

    threads: int = 0
    checkpoints: int = 0
    writes: int = 0
    """Pending writes."""
    skipped_threads: int = 0
    skipped_checkpoints: int = 0
    skipped_writes: int = 0
    failed_threads: int = 0
    """Threads that were left out, each with a call of `on_error`."""

    def __add__(self, other: TransferReport) -> TransferReport:
        return TransferReport(*[getattr(self, field.name) + getattr(other, field.name) for field in fields(self)])


def copy_threads(
    source: BaseCheckpointSaver[Any],
    target: BasePostgresSaver,
    thread_ids: Iterable[str] | None = None,
    *,
    on_progress: Progress | None = None,
    on_error: Callable[[str, Exception], None] | None = None,
) -> TransferReport:
    """Copy threads from any LangGraph saver into one of ours, with all namespaces, forks and pending writes.

    Ids, parents, metadata, values, versions and the order of writes are kept. It can be called again: a thread that is
    in the target is skipped, one that has gone on in the source is copied anew, and one that has gone on in the target
    is left as it is.

    Args:
        source: The saver to read, by its sync methods, or by its async ones if it has no others. It is not changed.
        target: The saver to write. On a connection of yours everything becomes part of your transaction.
        thread_ids: The threads to copy; None for all, for which another kind of saver is read once more to find them.
        on_progress: Called after each thread with the report so far.
        on_error: Called with a thread's id and its error; the thread is then left out. By default the error is raised.

    Returns:
        The numbers of what was copied, and of what was there.

    Raises:
        TransferError: If a thread can't be copied; nothing of it is stored, and the threads copied before it stay.
        InvalidConfig: If `thread_ids` are not thread ids; nothing is copied.
        InvalidOption: If the target is not one of ours, or another argument can't be used; nothing is copied.
        NotSetUp: If the target's tables are missing.
        Unavailable: If the target's server can't be reached.
    """
    return _Transfer(source, target, SaverCalls()).run(thread_ids, on_progress, on_error)


async def acopy_threads(
    source: BaseCheckpointSaver[Any],
    target: BasePostgresSaver,
    thread_ids: Iterable[str] | None = None,
    *,
    on_progress: Progress | None = None,
    on_error: Callable[[str, Exception], None] | None = None,
) -> TransferReport:
    """Copy threads from any LangGraph saver into one of ours, as `copy_threads`.

    A source that has only sync methods is read in worker threads.
    """
    transfer = _Transfer(source, target, SaverCalls(awaiting=True))
    return await greenlet_spawn(transfer.run, thread_ids, on_progress, on_error)


class _Transfer:
    """One call of `copy_threads`."""

    def __init__(self, source: BaseCheckpointSaver[Any], target: BasePostgresSaver, calls: SaverCalls) -> None:
        if not (has_methods(source, "list") or has_methods(source, "alist")):
            raise errors.InvalidOption(
                f"source must be a LangGraph saver, with list or alist, not {short_repr(source)}"
            )
        if not isinstance(target, BasePostgresSaver):
            raise errors.InvalidOption(
                "target must be an AsyncPostgresSaver or a PostgresSaver of checkpoint_store, not a "
                f"{type(target).__module__}.{type(target).__qualname__}"
            )
        self._source = source
        self._target = target
        self._calls = calls

    def run(
        self,
        thread_ids: Iterable[str] | None,
        on_progress: Progress | None,
        on_error: Callable[[str, Exception], None] | None,
    ) -> TransferReport:
        """Copy thread by thread."""
        callback(on_progress, "on_progress")
        callback(on_error, "on_error")
        report = TransferReport()
        for thread_id, expected in self._threads(thread_ids).items():
            try:
                report += self._copy(thread_id, expected)
            except Exception as error:
                if on_error is None or isinstance(error, _FATAL):
                    raise
                on_error(thread_id, error)
                report += TransferReport(failed_threads=1)
            if on_progress is not None:
                on_progress(report)
        return report

    def _threads(self, thread_ids: Iterable[str] | None) -> Mapping[Any, int]:
        """Return the threads to copy, each with its smallest number of checkpoints."""
        if thread_ids is not None:
            if isinstance(thread_ids, str) or not isinstance(thread_ids, Iterable):
                raise errors.InvalidConfig(
                    f"thread_ids must be a list of thread ids, or None, not {short_repr(thread_ids)}"
                )
            ids = members_of(thread_ids, "thread_ids", errors.InvalidConfig)
            names = [_name_of(one) for one in ids]  # all are checked before anything is copied
            return {name if isinstance(one, str) else one: 1 for one, name in zip(ids, names, strict=True)}
        source = self._source
        if isinstance(source, BasePostgresSaver):
            by_id: Any = [partial(lister, order="thread_id") for lister in (source.list_threads, source.alist_threads)]
            return {thread.thread_id: 1 for thread in self._calls.items(*by_id)}
        return Counter(found.config["configurable"]["thread_id"] for found in self._list(None))

    def _copy(self, thread_id: Any, expected: int) -> TransferReport:
        """Copy one thread, in one transaction, unless it is in the target."""
        config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
        name = _name_of(thread_id)
        with self._transaction() as target:
            there, _ = self._inventory(target, name)
            if there:
                here = self._compare(target, name, config, there)
                if not here - there:
                    return _report(here, there)
                self._delete(target, name, there)
            here = self._put(target, name, config)
            self._check(target, name, here, expected)
        return _report(here, there)

    def _compare(self, target: BasePostgresSaver, name: str, config: RunnableConfig, there: Inventory) -> Inventory:
        """Return the source's inventory of a thread that is in the target; raise if it has gone on in both."""
        here, special = Inventory(), dict[Key, list[Any]]()
        for found in self._list(config):
            here.update(inventory_of(found))
            if writes := _special(found):
                special[key_of(found)] = writes
        new, others = here - there, there - here
        if new and others:
            raise TransferError(
                f"{_thread(name)} has gone on in the source and in the target since it was copied: only the source has "
                f"{first(new)}, only the target {first(others)}. Leave it out, or delete it in the target to have it "
                "copied again."
            )
        for key, writes in special.items() if here == there else ():
            stored = self._calls.call(target.get_tuple, target.aget_tuple, _config(name, *key))
            if not self._is_same(writes, _special(stored)):
                raise TransferError(
                    f"{_thread(name)}, {place(*key)}: the source has another interrupt, answer or error than the "
                    "target, and which is newer can't be known. Leave the thread out, or delete it in the target to "
                    "have it copied again."
                )
        return here

    def _delete(self, target: BasePostgresSaver, name: str, there: Inventory) -> None:
        """Delete a thread from the target, unless it has gone on there since the inventory was taken."""
        backend, (again, _) = target._backend, self._inventory(target, name)
        deleted = self._calls.call(backend.run_blocking, backend.run, delete_threads, [name])
        # The deleted checkpoints are counted too, for commits after the second inventory.
        if again != there or deleted.checkpoints != counts(there)[0]:
            raise TransferError(
                f"{_thread(name)} has gone on in the target while the source was read. Nothing was changed: stop what "
                "writes to it, and copy it again."
            )

    def _put(self, target: BasePostgresSaver, name: str, config: RunnableConfig) -> Inventory:
        """Put a thread's checkpoints, each with its writes. Returns the inventory of what was put."""
        here, paths = Inventory(), self._paths(config)
        # A value is stored under its version for all checkpoints that name it, so it is put with the first one. As all
        # are committed together, it does not matter that this is the newest.
        stored: set[tuple[str, str, str]] = set()
        for found in self._list(config):
            key, checkpoint = key_of(found), found.checkpoint
            try:
                new_versions = {
                    channel: version
                    for channel, version in checkpoint["channel_versions"].items()
                    if channel in checkpoint["channel_values"] and (key[0], channel, str(version)) not in stored
                }
                parent_id = found.parent_config["configurable"].get("checkpoint_id") if found.parent_config else None
                put = _config(name, key[0], parent_id), checkpoint, found.metadata or {}, new_versions
                self._calls.call(target.put, target.aput, *put)
                for writes in _writes(found, paths):
                    self._calls.call(target.put_writes, target.aput_writes, _config(name, *key), *writes)
            except _FATAL:
                raise
            except Exception as error:
                _fail(f"{_thread(name)}, {place(*key)} can't be stored", error)
            stored.update((key[0], channel, str(version)) for channel, version in new_versions.items())
            here.update(inventory_of(found))
        return here

    def _check(self, target: BasePostgresSaver, name: str, here: Inventory, expected: int) -> None:
        """Raise unless the target has what the source lists, and that is not less than expected."""
        if (listed := counts(here)[0]) < expected:
            raise TransferError(
                f"{_thread(name)}: the source lists {listed} checkpoints, where {expected} or more were expected. Is "
                "the thread id right, does the source list all namespaces of a thread, was it deleted meanwhile?"
            )
        stored, _ = self._inventory(target, name)
        if stored != here:
            raise TransferError(
                f"{_thread(name)}: read {totals(here)}, but stored {totals(stored)}; they differ at "
                f"{first((here - stored) + (stored - here))}. The source has something twice that put_writes stores "
                "once, such as two errors of a task."
            )

    def _is_same(self, ours: list[Any], theirs: list[Any]) -> bool:
        serde = self._target.serde
        ours = [(*names, serde.loads_typed(serde.dumps_typed(value))) for *names, value in ours]
        with suppress(Exception):  # an array has no truth
            if ours == theirs:
                return True
        return bool(serde.dumps_typed(ours) == serde.dumps_typed(theirs))

    def _list(self, config: RunnableConfig | None) -> Iterator[CheckpointTuple]:
        """Yield the source's checkpoints; an error names the source and the place."""
        last = None
        try:
            forms: Any = partial(self._source.list, config), partial(self._source.alist, config)
            with closing(self._calls.items(*forms)) as listed:
                for last in listed:
                    yield last
        except _FATAL:
            raise
        except Exception as error:
            threads = "all threads" if config is None else _thread(config["configurable"]["thread_id"])
            after = "" if last is None else f", after checkpoint {short_repr(last.checkpoint['id'], 200)}"
            _fail(f"{type(self._source).__name__} can't list {threads}{after}", error)

    def _paths(self, config: RunnableConfig) -> PathsAt:
        """Return the paths of a thread's tasks in the source, as far as they can be read."""
        thread_id = config["configurable"]["thread_id"]
        if not isinstance(self._source, BasePostgresSaver):
            return paths_at(self._source, thread_id, self._calls)
        _, paths = self._inventory(self._source, thread_id)
        return lambda *key: paths.get(key, {})

    def _inventory(self, saver: BasePostgresSaver, thread_id: str) -> tuple[Inventory, dict[Key, dict[str, str]]]:
        """Return the inventory of a thread in one of our savers, and the paths of its tasks."""
        backend = saver._backend
        inventory, paths = Inventory(), dict[Key, dict[str, str]]()
        rows = self._calls.call(backend.run_blocking, backend.run, take_inventory, thread_id)
        for namespace, checkpoint_id, task_id, task_path, count in rows:
            inventory[namespace, checkpoint_id] = 1
            if task_id is not None:
                inventory[namespace, checkpoint_id, task_id] = count
                paths.setdefault((namespace, checkpoint_id), {})[task_id] = task_path
        return inventory, paths

    @contextmanager
    def _transaction(self) -> Iterator[BasePostgresSaver]:
        """Yield the target on a connection of its own, in a transaction that is committed unless there is an error."""
        backend = self._target._backend
        # A thread's own history may have forks.
        if backend.provider.is_callers:
            yield self._target._within(backend, refuses_forks=False)
            return
        backend, provider = pinned(backend)
        run = backend.call_blocking, backend.call
        self._calls.call(*run, provider.begin)
        try:
            yield self._target._within(backend, refuses_forks=False)
        except BaseException as error:
            self._calls.call(*run, provider.end, error)
            raise
        self._calls.call(*run, provider.end)


def _name_of(thread_id: Any) -> str:
    """Return the target's id of a thread: an in-memory saver may have a number, of which graphs take the text."""
    if not isinstance(thread_id, str) and thread_id is not None:
        with suppress(Exception):
            hash(thread_id)  # savers look it up in a dict
            thread_id = str(thread_id)
    return checked_thread_id(thread_id, "a thread's id")


def _thread(thread_id: Any) -> str:
    return f"thread {short_repr(thread_id, 200)}"


def _config(thread_id: str, namespace: str, checkpoint_id: str | None) -> RunnableConfig:
    named = {"thread_id": thread_id, "checkpoint_ns": namespace}
    return {"configurable": {**named, "checkpoint_id": checkpoint_id} if checkpoint_id else named}


def _special(found: CheckpointTuple | None) -> list[Any]:
    """Return the writes that a later one replaces: errors, interrupts, answers to them."""
    writes = found.pending_writes or () if found else ()
    return sorted((write for write in writes if write[1] in WRITES_IDX_MAP), key=lambda write: write[:2])


def _writes(found: CheckpointTuple, paths: PathsAt) -> Iterator[tuple[list[tuple[str, Any]], str, str]]:
    """Yield the arguments of the calls that store a checkpoint's writes again, in the same order.

    LangGraph lists writes in the order of their tasks' paths, without the paths. A task with an unknown path gets a
    number instead: it sorts as the path did among the others, and before the paths of later tasks.
    """
    tasks: dict[str, list[tuple[str, Any]]] = {}
    for task_id, channel, value in found.pending_writes or ():
        tasks.setdefault(task_id, []).append((channel, value))
    known = paths(*key_of(found)) if tasks else {}
    for number, (task_id, writes) in enumerate(tasks.items()):
        path = known.get(task_id, f"{number:06}")
        # Special writes are put by calls of their own: they would take up indexes of the others.
        for is_special in (True, False):
            if some := [write for write in writes if (write[0] in WRITES_IDX_MAP) is is_special]:
                yield some, task_id, path


def _report(here: Inventory, there: Inventory) -> TransferReport:
    """Return the report of one thread, from its inventories in the source and, before, in the target."""
    new = here - there
    return TransferReport(int(bool(new)), *counts(new), int(not new), *counts(here & there))


def _fail(summary: str, error: Exception) -> NoReturn:
    """Raise a TransferError without values: those that a driver's message quotes are left out."""
    kind = type(error).__name__
    if is_from_driver(error):
        diagnosis = diagnosis_of(error)
        raise_from(TransferError(f"{summary}: {kind}: {diagnosis.message or diagnosis.name}"), error)
    raise TransferError(f"{summary}: {kind}: {safe_str(error)}") from error
