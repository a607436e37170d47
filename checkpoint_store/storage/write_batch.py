"""The changes that `put` and `put_writes` ask for, and the binds of the one statement that stores many; no I/O."""

from __future__ import annotations

import secrets
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from checkpoint_store.schema import PAGED
from checkpoint_store.serde import pages
from checkpoint_store.sql.arrays import array_binds
from checkpoint_store.sql.write import COMPLETE, COUNTED, NEEDS, UNGATED
from checkpoint_store.storage.page_cache import PageCache, Place

Binds = dict[str, Any]

Rows = dict[tuple[Any, ...], tuple[Any, ...]]
"""Rows by primary key."""


ASK_BYTES = 64 * 1024
"""The bytes of pages from which on the database is asked which of them it has: less is sent sooner."""


@dataclass(eq=False, slots=True)
class Put:
    """A checkpoint with the blobs that are new in it."""

    binds: Binds
    """Those of `sql.write.put_checkpoint`."""
    pages: Mapping[bytes, bytes] = field(default_factory=dict)
    """The pages of all its blobs that are recipes, by digest."""
    digests: Mapping[Place, Iterable[bytes]] = field(default_factory=dict)
    """Those of each channel."""
    continues: bool = False
    """Whether it is stored only if it continues the newest checkpoint of its namespace."""
    thread_id: str = field(init=False)
    """The thread it belongs to."""
    sequence: str = field(init=False)
    """Changes with the same one are stored in the order of the calls: those of the checkpoints of a thread."""

    def __post_init__(self) -> None:
        self.thread_id = self.sequence = self.binds["thread_id"]

    @property
    def page_bytes(self) -> int:
        """The bytes of its pages."""
        return sum(map(len, self.pages.values()))

    @property
    def has_large_pages(self) -> bool:
        """Whether it is worth asking the database which of its pages it has."""
        return self.page_bytes > ASK_BYTES


def paged(binds: Binds, page_cache: PageCache, continues: bool = False) -> Put:
    """Return a put with its large msgpack values cut into pages."""
    thread_id, namespace = binds["thread_id"], binds["checkpoint_ns"]
    types, blobs = list(binds["types"]), list(binds["blobs"])
    found: dict[bytes, bytes] = {}
    digests: dict[Place, Iterable[bytes]] = {}
    for number, channel in enumerate(binds["channels"]):
        if pages.is_large(types[number], blobs[number]):
            place = (namespace, channel)
            cut = pages.cut(blobs[number], page_cache.before(thread_id, place))
            page_cache.keep(thread_id, place, cut)
            types[number], blobs[number] = PAGED, cut.recipe
            found.update(cut.pages)
            digests[place] = cut.pages.keys()
    return Put({**binds, "types": types, "blobs": blobs}, found, digests, continues)


@dataclass(eq=False, slots=True)
class Writes:
    """The pending writes of a task."""

    binds: Binds
    """Those of `sql.write.put_writes`."""
    continues: ClassVar[bool] = False
    """They belong to a checkpoint, whether it is the newest or not."""
    thread_id: str = field(init=False)
    """The thread they belong to."""
    sequence: str = field(init=False)
    """Changes with the same one are stored in the order of the calls: those of the writes of a task."""

    def __post_init__(self) -> None:
        self.thread_id = self.binds["thread_id"]
        self.sequence = f"{self.thread_id}\0{self.binds['task_id']}"  # no thread id has the character


Change = Put | Writes


def size_of(change: Change) -> int:
    """Return the approximate number of bytes that a change sends."""
    size = sum(map(len, change.binds["blobs"]))
    if isinstance(change, Put):
        size += len(change.binds["checkpoint"]) + change.page_bytes
    return size


def merged(changes: Sequence[Change], known: Mapping[str, Container[bytes]]) -> Binds:
    """Return the binds of `sql.write.store` for changes made one after the other.

    Where two of them touch one row, the row is what the calls would have left there one after the other. Rows are
    sorted by key, so that two processes that store the same ones wait for each other instead of deadlocking.

    Args:
        changes: The changes, in order.
        known: The pages that the database may have of some of their threads: they are not sent, but needed. For the
            other threads all pages are sent.

    Returns:
        Arrays by name; none of a table without rows, nor of gates and pages where no thread has pages.
    """
    batch = _Batch()
    for change in changes:
        batch.gates.setdefault(change.thread_id, (UNGATED, 0))
        if isinstance(change, Writes):
            batch.add_writes(change)
        else:
            batch.add_put(change, known.get(change.thread_id))
    return batch.binds()


class _Batch:
    """The rows of several changes, by table."""

    def __init__(self) -> None:
        self.gates: dict[str, tuple[int, int]] = {}
        self._needed: dict[str, dict[bytes, None]] = {}
        self._pages: Rows = {}
        self._blobs: Rows = {}
        self._checkpoints: Rows = {}
        self._writes: Rows = {}

    def add_writes(self, change: Writes) -> None:
        """Add the pending writes of a task."""
        binds = change.binds
        task = (binds["thread_id"], binds["checkpoint_ns"], binds["checkpoint_id"], binds["task_id"])
        for idx, *row in zip(*[binds[name] for name in ("idxs", "channels", "types", "blobs")], strict=True):
            write = (*task, idx)
            if idx < 0 or write not in self._writes:
                self._writes[write] = (binds["task_path"], *row)

    def add_put(self, change: Put, known: Container[bytes] | None) -> None:
        """Add a checkpoint, its blobs, and its pages unless they are known."""
        binds = change.binds
        graph = (binds["thread_id"], binds["checkpoint_ns"])
        values = [binds[name] for name in ("channels", "versions", "types", "blobs")]
        for channel, version, *value in zip(*values, strict=True):
            self._blobs.setdefault((*graph, channel, version), tuple(value))
        key = (*graph, binds["checkpoint_id"])
        # A checkpoint stored again keeps its parent.
        parent = self._checkpoints[key][0] if key in self._checkpoints else binds["parent_checkpoint_id"]
        kept = (binds["parent_checkpoint_id"], binds["kept"])
        self._checkpoints[key] = (parent, binds["checkpoint"], binds["metadata"], *kept)
        if change.pages:
            self._add_pages(change, known)

    def _add_pages(self, change: Put, known: Container[bytes] | None) -> None:
        thread_id = change.thread_id
        # A new row's epoch is none that it had before: older versions compare it with what they remember.
        self.gates[thread_id] = (COMPLETE, secrets.randbits(62)) if known is None else (NEEDS, 0)
        for digest, page in change.pages.items():
            if known is None or digest not in known:
                self._pages[thread_id, digest] = (page,)
            else:
                self._needed.setdefault(thread_id, {})[digest] = None

    def binds(self) -> Binds:
        """Return all rows as parallel arrays."""
        graph = ("thread_id", "checkpoint_ns")
        blob = (*graph, "channel", "version", "type", "blob")
        checkpoint = ("checkpoint_id", "parent_checkpoint_id", "checkpoint", "metadata", "keeps_from", "kept")
        write = (*graph, "checkpoint_id", "task_id", "idx", "task_path", "channel", "type", "blob")
        tables = (
            ("blob_", blob, self._blobs),
            ("checkpoint_", (*graph, *checkpoint), self._checkpoints),
            ("write_", write, self._writes),
        )
        binds: Binds = {}
        if any(kind != UNGATED for kind, _ in self.gates.values()):
            # Also where none is sent: so there are fewer statements.
            pages = array_binds(("thread_id", "digest", "page"), _by_key(self._pages), "page_")
            binds = {**self._gate_binds(), **pages}
        for prefix, columns, rows in tables:
            if rows:
                binds |= array_binds(columns, _by_key(rows), prefix)
        return binds

    def _gate_binds(self) -> Binds:
        digests: list[bytes] = []
        gates: Rows = {}
        for thread_id, gate in self.gates.items():
            first = len(digests) + 1
            digests += self._needed.get(thread_id, ())
            gates[thread_id,] = (*gate, first, len(digests))
        columns = ("thread_id", "kind", "epoch", "first", "last")
        return {**array_binds(columns, _by_key(gates), "gate_"), "needed_digests": digests}


def parts_of(binds: Binds) -> frozenset[str]:
    """Return the parts of `sql.write.store` that binds are for."""
    parts = {name for name in ("gate", *COUNTED) if f"{name}_thread_ids" in binds}
    if any(kept is not None for kept in binds.get("checkpoint_kepts", ())):
        parts.add("kept")
    return frozenset(parts)


def _by_key(rows: Rows) -> list[tuple[Any, ...]]:
    return [(*key, *rows[key]) for key in sorted(rows)]
