"""Threads of any other LangGraph saver -> one of ours: through the contract that all savers keep, and resumable.

    with SqliteSaver.from_conn_string("checkpoints.sqlite") as old, PostgresSaver.from_conn_string(url) as new:
        new.setup()
        report = copy_threads(old, new)

A thread is copied in one transaction, and counted before that is committed: whenever it ends, by an error, by Ctrl-C or
by `kill -9`, each thread is in the target as a whole or not at all, and the next call goes on with those that are not.

It is written in sync style, once. Sync code calls it as it is; for async code it runs in one of SQLAlchemy's greenlets.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NoReturn

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver, CheckpointTuple
from sqlalchemy.util import greenlet_spawn

from checkpoint_store.conninfo.driver_errors import diagnosis_of, is_from_driver, raise_from
from checkpoint_store.database.pinned_provider import pinned
from checkpoint_store.errors import (
    AccessDenied,
    Closed,
    InvalidConfig,
    InvalidOption,
    NotSetUp,
    TransferError,
    Unavailable,
    WrongThread,
    WrongTransaction,
    safe_str,
    short_repr,
)
from checkpoint_store.saver.base import BasePostgresSaver
from checkpoint_store.serde import validation
from checkpoint_store.serde.arguments import callback, has_methods
from checkpoint_store.serde.keys import checked_thread_id
from checkpoint_store.storage.checkpoints import take_inventory
from checkpoint_store.storage.delete_thread import delete_threads
from checkpoint_store.tools.saver_calls import Awaiting, Calling, Calls
from checkpoint_store.tools.task_paths import PathsAt, paths_at

Inventory = Counter[tuple[str, ...]]
"""What there is of a thread: each namespace and checkpoint once; with a task, as often as it has writes there."""

Progress = Callable[["TransferReport"], None]

_HOPELESS = (AccessDenied, Closed, NotSetUp, Unavailable, WrongThread, WrongTransaction)
"""After these the next thread would not fare better, and they say best themselves what is wrong."""


@dataclass(frozen=True)
class TransferReport:
    """What was copied, and what was in the target already.

    A thread that had gone on in the source since it was copied counts as copied; of its checkpoints and writes, those
    that had been there count as skipped.
    """

    threads: int = 0
    checkpoints: int = 0
    writes: int = 0
    """Pending writes: what tasks stored after a checkpoint."""
    skipped_threads: int = 0
    skipped_checkpoints: int = 0
    skipped_writes: int = 0
    failed_threads: int = 0
    """Those that `on_error` was told of."""

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
    """Copy threads from any LangGraph saver into one of ours, whole: all namespaces, forks and pending writes.

    Ids, parents, metadata, values, versions and the order of writes are kept. It can be called again and again: a
    thread that is there is skipped, one that has gone on in the source is copied anew, and one that has gone on in the
    target is left as it is.

    Args:
        source: The saver to read, by its sync methods, or by its async ones if it has no others. It is not changed.
        target: The saver to write. On a connection of yours everything becomes part of your transaction.
        thread_ids: Which threads; None for all, for which a saver of others is read once more, to find them.
        on_progress: Called after each thread with the report so far.
        on_error: Called with a thread's id and its error; the thread is then left out. By default the error is raised.

    Returns:
        How much was copied, and how much was there.

    Raises:
        TransferError: If a thread can't be copied; nothing of it is stored, and all that was copied before it is.
        InvalidConfig: If `thread_ids` are no thread ids; nothing is copied.
        InvalidOption: If the target is not one of ours, or another argument can't be used; nothing is copied.
        NotSetUp: If the target's tables are missing.
        Unavailable: If the target's server can't be reached.
    """
    return _Transfer(source, target, Calling()).run(thread_ids, on_progress, on_error)


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
    return await greenlet_spawn(_Transfer(source, target, Awaiting()).run, thread_ids, on_progress, on_error)


class _Transfer:
    """One call of `copy_threads`.

    Args:
        source: The saver to read.
        target: The saver to write.
        calls: How they are called.
    """

    def __init__(self, source: BaseCheckpointSaver[Any], target: BasePostgresSaver, calls: Calls) -> None:
        if not (has_methods(source, "list") or has_methods(source, "alist")):
            raise InvalidOption(f"source is {short_repr(source)}; it has to be a LangGraph saver, with list or alist")
        if not isinstance(target, BasePostgresSaver):
            raise InvalidOption(
                f"target is a {type(target).__module__}.{type(target).__qualname__}; it has to be an "
                "AsyncPostgresSaver or a PostgresSaver of checkpoint_store"
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
                if on_error is None or isinstance(error, _HOPELESS):
                    raise
                on_error(thread_id, error)
                report += TransferReport(failed_threads=1)
            if on_progress is not None:
                on_progress(report)
        return report

    def _threads(self, thread_ids: Iterable[str] | None) -> Mapping[Any, int]:
        """Return the threads to copy, each with how many checkpoints it has at least."""
        if thread_ids is not None:
            if isinstance(thread_ids, str) or not isinstance(thread_ids, Iterable):
                raise InvalidConfig(
                    f"thread_ids is {short_repr(thread_ids)}; it has to be a list of thread ids, or None"
                )
            given = validation.members_of(thread_ids, "thread_ids", InvalidConfig)
            names = [_name_of(one) for one in given]  # all of them, before anything is copied
            return {name if issubclass(type(one), str) else one: 1 for one, name in zip(given, names, strict=True)}
        source = self._source
        if isinstance(source, BasePostgresSaver):  # which knows its threads without reading them
            by_id: Any = (
                partial(source.list_threads, order="thread_id"),
                partial(source.alist_threads, order="thread_id"),
            )
            return dict.fromkeys((thread.thread_id for thread in self._calls.listed(*by_id)), 1)
        return Counter(found.config["configurable"]["thread_id"] for found in self._list(None))

    def _copy(self, thread_id: Any, expected: int) -> TransferReport:
        """Copy one thread, in one transaction, unless it is there."""
        config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
        name = _name_of(thread_id)
        told = short_repr(name, 200)
        with self._transaction() as target:
            there, _ = self._inventory(target, name)
            if there:
                here, special = self._look(config)
                new, others = here - there, there - here
                if new and others:
                    raise TransferError(
                        f"thread {told} has gone on in the source and in the target since it was copied: only the "
                        f"source has {_first(new)}, only the target {_first(others)}. Leave it out, or delete it in "
                        "the target to have it copied again."
                    )
                if not new:
                    if not others:
                        self._compare(target, name, special)
                    return _report(here, there)
                self._delete(target, name, there)
            here = self._put(target, name, config)
            if (listed := _counts(here)[0]) < expected:
                raise TransferError(
                    f"thread {told}: the source lists {listed} checkpoints, where {expected} or more were expected. "
                    "Is the thread id right, does the source list all namespaces of a thread, was it deleted meanwhile?"
                )
            stored, _ = self._inventory(target, name)
            if stored != here:
                raise TransferError(
                    f"thread {told}: read {_told(here)}, but stored {_told(stored)}; they differ at "
                    f"{_first((here - stored) + (stored - here))}. The source has something twice that put_writes "
                    "stores once, such as two errors of a task."
                )
        return _report(here, there)

    def _delete(self, target: BasePostgresSaver, name: str, there: Inventory) -> None:
        """Delete a thread from the target, unless it has more than was seen there: somebody has gone on with it."""
        at, (again, _) = target._backend, self._inventory(target, name)
        deleted = self._calls.call(at.run_blocking, at.run, delete_threads, [name])
        # Counted as well, for what was committed since it was looked at again.
        if again != there or deleted.checkpoints != _counts(there)[0]:
            raise TransferError(
                f"thread {short_repr(name, 200)} has gone on in the target while the source was read. Nothing was "
                "changed: stop what writes to it, and copy it again."
            )

    def _put(self, target: BasePostgresSaver, name: str, config: RunnableConfig) -> Inventory:
        """Put a thread's checkpoints, each with its writes. Returns what was put."""
        here, paths = Inventory(), self._paths(config)
        # A value is stored under its version and serves all checkpoints that name it, so it goes with the first one. As
        # all of them are committed at once, it does not matter that this is the newest.
        stored: set[tuple[str, str, str]] = set()
        for found in self._list(config):
            key, checkpoint = _key(found), found.checkpoint
            try:
                new_versions = {
                    channel: version
                    for channel, version in checkpoint["channel_versions"].items()
                    if channel in checkpoint["channel_values"] and (key[0], channel, str(version)) not in stored
                }
                put = _config(name, key[0], _parent_id(found)), checkpoint, found.metadata or {}, new_versions
                self._calls.call(target.put, target.aput, *put)
                for writes in _writes(found, paths):
                    self._calls.call(target.put_writes, target.aput_writes, _config(name, *key), *writes)
            except _HOPELESS:
                raise
            except Exception as error:
                _fail(f"{_place(name, *key)} can't be stored", error)
            stored.update((key[0], channel, str(version)) for channel, version in new_versions.items())
            here.update(_inventory(found))
        return here

    def _look(self, config: RunnableConfig) -> tuple[Inventory, dict[tuple[str, str], list[Any]]]:
        """Return what the source has of a thread, and by checkpoint those writes that a later one replaces."""
        here, special = Inventory(), {}
        for found in self._list(config):
            here.update(_inventory(found))
            if some := _special(found):
                special[_key(found)] = some
        return here, special

    def _compare(self, target: BasePostgresSaver, name: str, special: dict[tuple[str, str], list[Any]]) -> None:
        """Make sure that a thread that has as much on both sides was not resumed on one of them."""
        for key, some in special.items():
            found = self._calls.call(target.get_tuple, target.aget_tuple, _config(name, *key))
            if not self._is_same(some, _special(found)):
                raise TransferError(
                    f"{_place(name, *key)}: the source has another interrupt, "
                    "answer or error than the target, and which is newer can't be told. Leave the thread out, or "
                    "delete it in the target to have it copied again."
                )

    def _is_same(self, ours: list[Any], theirs: list[Any]) -> bool:
        serde = self._target.serde
        ours = [(*names, serde.loads_typed(serde.dumps_typed(value))) for *names, value in ours]
        with suppress(Exception):  # an array has no truth
            if ours == theirs:
                return True
        return bool(serde.dumps_typed(ours) == serde.dumps_typed(theirs))

    def _list(self, config: RunnableConfig | None) -> Iterator[CheckpointTuple]:
        """List the source's checkpoints, in the first way that it has, and name what goes wrong there."""
        last = None
        try:
            ways: Any = partial(self._source.list, config), partial(self._source.alist, config)
            with closing(self._calls.listed(*ways)) as listed:
                for last in listed:
                    yield last
        except _HOPELESS:
            raise
        except Exception as error:
            whose = (
                "all threads" if config is None else f"thread {short_repr(config['configurable']['thread_id'], 200)}"
            )
            where = "" if last is None else f", after checkpoint {short_repr(last.checkpoint['id'], 200)}"
            _fail(f"{type(self._source).__name__} can't list {whose}{where}", error)

    def _paths(self, config: RunnableConfig) -> PathsAt:
        """Return what tells the paths of a thread's tasks in the source, where that is to be had."""
        thread_id = config["configurable"]["thread_id"]
        if not isinstance(self._source, BasePostgresSaver):
            return paths_at(self._source, thread_id, self._calls)
        _, paths = self._inventory(self._source, thread_id)
        return lambda *key: paths.get(key, {})

    def _inventory(
        self, saver: BasePostgresSaver, thread_id: str
    ) -> tuple[Inventory, dict[tuple[str, str], dict[str, str]]]:
        """Return what one of ours has of a thread, and the paths of its tasks."""
        source = saver._backend
        found, paths = Inventory(), dict[tuple[str, str], dict[str, str]]()
        rows = self._calls.call(source.run_blocking, source.run, take_inventory, thread_id)
        for namespace, checkpoint_id, task_id, task_path, count in rows:
            found[namespace, checkpoint_id] = 1
            if task_id is not None:
                found[namespace, checkpoint_id, task_id] = count
                paths.setdefault((namespace, checkpoint_id), {})[task_id] = task_path
        return found, paths

    @contextmanager
    def _transaction(self) -> Iterator[BasePostgresSaver]:
        """Yield the target on a connection of its own, in a transaction that is committed unless there is an error."""
        source, bound = self._target._backend, copy.copy(self._target)
        bound._refuses_forks = False  # those of the history are no conflicts
        if source.provider.is_callers:
            yield bound
            return
        bound._backend, provider = pinned(source)
        run = bound._backend.call_blocking, bound._backend.call
        self._calls.call(*run, provider.begin)
        try:
            yield bound
        except BaseException as error:
            self._calls.call(*run, provider.end, error)
            raise
        self._calls.call(*run, provider.end)


def _name_of(thread_id: Any) -> str:
    """Return what the target calls a thread: an in-memory saver may know it by a number, of which graphs take the text.

    Raises:
        InvalidConfig: If that can't be a thread id.
    """
    if not issubclass(type(thread_id), str) and thread_id is not None:
        with suppress(Exception):
            hash(thread_id)  # those by which a saver finds it have one
            thread_id = str(thread_id)
    return checked_thread_id(thread_id, "a thread's id")


def _config(thread_id: str, namespace: str, checkpoint_id: str | None) -> RunnableConfig:
    named = {"thread_id": thread_id, "checkpoint_ns": namespace}
    return {"configurable": {**named, "checkpoint_id": checkpoint_id} if checkpoint_id else named}


def _key(found: CheckpointTuple) -> tuple[str, str]:
    return found.config["configurable"].get("checkpoint_ns") or "", found.checkpoint["id"]


def _parent_id(found: CheckpointTuple) -> str | None:
    return found.parent_config["configurable"].get("checkpoint_id") if found.parent_config else None


def _inventory(found: CheckpointTuple) -> Inventory:
    """Return what a checkpoint adds to its thread's inventory."""
    key = _key(found)
    return Inventory([key, *[(*key, task_id) for task_id, _, _ in found.pending_writes or ()]])


def _special(found: CheckpointTuple | None) -> list[Any]:
    """Return the writes that a later one replaces: errors, interrupts, answers to them."""
    writes = found.pending_writes or () if found else ()
    return sorted((write for write in writes if write[1] in WRITES_IDX_MAP), key=lambda write: write[:2])


def _writes(found: CheckpointTuple, paths: PathsAt) -> Iterator[tuple[list[tuple[str, Any]], str, str]]:
    """Return the arguments of the calls that store a checkpoint's writes again, in the same order.

    The contract has them ordered by the paths of their tasks, but not the paths. Where these are not to be had, tasks
    get a number instead: it sorts as the path did among the others, and before the paths of tasks still to be done.
    """
    tasks: dict[str, list[tuple[str, Any]]] = {}
    for task_id, channel, value in found.pending_writes or ():
        tasks.setdefault(task_id, []).append((channel, value))
    known = paths(*_key(found)) if tasks else {}
    for number, (task_id, writes) in enumerate(tasks.items()):
        path = known.get(task_id, f"{number:06}")
        # In calls of their own, because these would take up places by which the others are known.
        for is_special in (True, False):
            if some := [write for write in writes if (write[0] in WRITES_IDX_MAP) is is_special]:
                yield some, task_id, path


def _report(here: Inventory, there: Inventory) -> TransferReport:
    """Return the report of one thread, from what the source has of it and what the target had."""
    new = here - there
    return TransferReport(int(bool(new)), *_counts(new), int(not new), *_counts(here & there))


def _counts(inventory: Inventory) -> tuple[int, int]:
    """Return the numbers of checkpoints and of writes."""
    checkpoints = sum(len(item) == 2 for item in inventory)
    return checkpoints, inventory.total() - checkpoints


def _told(inventory: Inventory) -> str:
    return "{} checkpoints and {} writes".format(*_counts(inventory))


def _place(name: str, namespace: str, checkpoint_id: str) -> str:
    return (
        f"thread {short_repr(name, 200)}, namespace {short_repr(namespace, 200)}, checkpoint "
        f"{short_repr(checkpoint_id, 200)}"
    )


def _first(inventory: Inventory) -> str:
    namespace, checkpoint_id, *task_id = min(inventory)
    task = f", writes of task {short_repr(task_id[0], 200)}" if task_id else ""
    return f"namespace {short_repr(namespace, 200)}, checkpoint {short_repr(checkpoint_id, 200)}{task}"


def _fail(what: str, error: Exception) -> NoReturn:
    """Raise an error that names a thread; what a driver of the source's says may quote values."""
    kind = type(error).__name__
    if is_from_driver(error):
        said = diagnosis_of(error)
        raise_from(TransferError(f"{what}: {kind}: {said.message or said.name}"), error)
    raise TransferError(f"{what}: {kind}: {safe_str(error)}") from error
