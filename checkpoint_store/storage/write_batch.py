"""What `put` and `put_writes` want stored, and many of them as the binds of one statement; no I/O."""

from __future__ import annotations

import secrets
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from checkpoint_store.schema import PAGED
from checkpoint_store.serde import pages
from checkpoint_store.sql.arrays import array_binds
from checkpoint_store.sql.write import COMPLETE, NEEDS, UNGATED
from checkpoint_store.storage.page_cache import PageCache, Place

Binds = dict[str, Any]

Rows = dict[tuple[Any, ...], tuple[Any, ...]]
"""Rows by primary key."""


@dataclass(frozen=True)
class Put:
    """A checkpoint with the blobs that are new in it."""

    binds: Binds
    """Those of `statements.put_checkpoint`."""
    pages: Mapping[bytes, bytes] = field(default_factory=dict)
    """The pages of all its blobs that are recipes, by digest."""
    digests: Mapping[Place, Iterable[bytes]] = field(default_factory=dict)
    """Which of them belong to which channel."""
    continues: bool = False
    """Whether it is stored only if it continues the newest checkpoint of its namespace."""

    @property
    def thread_id(self) -> str:
        """The thread it belongs to."""
        return self.binds["thread_id"]  # type: ignore[no-any-return]


def paged(binds: Binds, page_cache: PageCache, continues: bool = False) -> Put:
    """Return a put whose large values are cut into pages, as far as they are msgpack."""
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


@dataclass(frozen=True)
class Writes:
    """The pending writes of a task."""

    binds: Binds
    """Those of `statements.put_writes`."""
    continues: ClassVar[bool] = False
    """They belong to a checkpoint, whether it is the newest or not."""

    @property
    def thread_id(self) -> str:
        """The thread they belong to."""
        return self.binds["thread_id"]  # type: ignore[no-any-return]


Change = Put | Writes


def size_of(change: Change) -> int:
    """Return about how many bytes a change sends."""
    size = sum(map(len, change.binds["blobs"]))
    if isinstance(change, Put):
        size += len(change.binds["checkpoint"]) + sum(map(len, change.pages.values()))
    return size


def merged(changes: Sequence[Change], known: Mapping[str, Container[bytes]]) -> Binds:
    """Return the binds of `statements.store` for changes made one after the other.

    Where two of them touch one row, the row is what the calls would have left there one after the other. Rows are
    sorted by key, so that two processes that store the same ones wait for each other instead of deadlocking.

    Args:
        changes: What to store, in order.
        known: What the database may have of some of their threads: pages that are not sent, but needed. For the other
            threads all pages are sent.
    """
    gates: dict[str, tuple[int, int]] = {change.thread_id: (UNGATED, 0) for change in changes}
    new_pages: Rows = {}
    needed: dict[str, dict[bytes, None]] = {}
    blobs: Rows = {}
    checkpoints: Rows = {}
    writes: Rows = {}
    for change in changes:
        binds, thread_id = change.binds, change.thread_id
        if isinstance(change, Writes):
            task = (thread_id, binds["checkpoint_ns"], binds["checkpoint_id"], binds["task_id"])
            for idx, *row in zip(*[binds[name] for name in ("idxs", "channels", "types", "blobs")], strict=True):
                write = (*task, idx)
                if idx < 0 or write not in writes:
                    writes[write] = (binds["task_path"], *row)
            continue
        graph = (thread_id, binds["checkpoint_ns"])
        for channel, version, kind, blob in zip(
            *[binds[name] for name in ("channels", "versions", "types", "blobs")], strict=True
        ):
            blobs.setdefault((*graph, channel, version), (kind, blob))
        key = (*graph, binds["checkpoint_id"])
        # A checkpoint stored again keeps its parent.
        parent = checkpoints[key][0] if key in checkpoints else binds["parent_checkpoint_id"]
        kept = (binds["parent_checkpoint_id"], binds["kept"])
        checkpoints[key] = (parent, binds["checkpoint"], binds["metadata"], *kept)
        if change.pages:
            there = known.get(thread_id)
            # A new row's epoch is none that it had before: older versions compare it with what they remember.
            gates[thread_id] = (COMPLETE, secrets.randbits(62)) if there is None else (NEEDS, 0)
            for digest, page in change.pages.items():
                if there is None or digest not in there:
                    new_pages[thread_id, digest] = (page,)
                else:
                    needed.setdefault(thread_id, {})[digest] = None
    digests: list[bytes] = []
    rows: Rows = {}
    for thread_id, gate in gates.items():
        first = len(digests) + 1
        digests += needed.get(thread_id, ())
        rows[thread_id,] = (*gate, first, len(digests))
    graph_columns = ("thread_id", "checkpoint_ns")
    of_write = (*graph_columns, "checkpoint_id", "task_id", "idx", "task_path", "channel", "type", "blob")
    return {
        **array_binds(("thread_id", "kind", "epoch", "first", "last"), _by_key(rows), "gate_"),
        "needed_digests": digests,
        **array_binds(("thread_id", "digest", "page"), _by_key(new_pages), "page_"),
        **array_binds((*graph_columns, "channel", "version", "type", "blob"), _by_key(blobs), "blob_"),
        **array_binds(
            (*graph_columns, "checkpoint_id", "parent_checkpoint_id", "checkpoint", "metadata", "keeps_from", "kept"),
            _by_key(checkpoints),
            "checkpoint_",
        ),
        **array_binds(of_write, _by_key(writes), "write_"),
    }


def _by_key(rows: Rows) -> list[tuple[Any, ...]]:
    return [(*key, *rows[key]) for key in sorted(rows)]
