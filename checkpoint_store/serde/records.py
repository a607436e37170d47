"""Rows of checkpoints by the names of their columns, as statements select them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast


class Row(NamedTuple):
    """A row of `read.checkpoints`; arrays are None where nothing is stored."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_checkpoint_id: str | None
    checkpoint: str
    metadata: str
    blob_channels: Sequence[str] | None
    blob_types: Sequence[str] | None
    blobs: Sequence[bytes | None] | None
    write_task_ids: Sequence[str] | None
    write_channels: Sequence[str] | None
    write_types: Sequence[str | None] | None
    writes: Sequence[bytes] | None
    send_types: Sequence[str | None] | None
    sends: Sequence[bytes] | None


class Summary(NamedTuple):
    """A row of `sql.history`: a checkpoint without its values; arrays are None where nothing is stored."""

    checkpoint_ns: str
    checkpoint_id: str
    parent_checkpoint_id: str | None
    metadata: str
    added: int
    """The bytes of the checkpoint, of its pending writes, and of values and pages that its parent does not have."""
    tasks: int
    """The number of tasks that have stored writes."""
    marks: Sequence[str] | None
    """The channels of interrupts and errors to which they wrote."""
    begun: Sequence[str] | None
    """The paths of those that were interrupted, have failed, or were resumed."""
    finished: Sequence[str] | None
    """The paths of those that have finished."""
    versions: str | None
    """The versions of its channels, as JSON."""
    seen: str | None
    """The versions that each node has seen, as JSON."""
    inline: Sequence[str] | None
    """The channels with a value in the checkpoint itself."""
    channels: Sequence[str] | None
    """The channels with a stored value that the parent does not have, and those that wait for several tasks."""
    types: Sequence[str] | None
    blobs: Sequence[bytes | None] | None
    """The values of those that trigger tasks, unless they are large."""


class Ancestor(NamedTuple):
    """A row of `delta_history`; arrays are None where nothing is stored."""

    checkpoint_id: str
    parent_checkpoint_id: str | None
    first: bool
    sound: bool
    """Whether the checkpoint's channel values and versions are objects."""
    write_task_ids: Sequence[str] | None
    write_channels: Sequence[str] | None
    write_types: Sequence[str | None] | None
    writes: Sequence[bytes] | None
    value_channels: Sequence[str] | None
    value_versions: Sequence[str | None] | None
    value_types: Sequence[str | None] | None
    value_blobs: Sequence[bytes | None] | None
    value_inlines: Sequence[str | None] | None


class StoredPage(NamedTuple):
    """A page of a thread, as `checkpoint_pages` has it."""

    digest: bytes
    page: bytes


class StoredValue(NamedTuple):
    """A channel's value of a thread, as `checkpoint_blobs` has it: a recipe as it is."""

    checkpoint_ns: str
    channel: str
    version: str
    type: str
    blob: bytes | None


class StoredCheckpoint(NamedTuple):
    """A checkpoint of a thread, as `checkpoints` has it; JSON as text."""

    checkpoint_ns: str
    checkpoint_id: str
    parent_checkpoint_id: str | None
    type: str | None
    checkpoint: str
    metadata: str


class StoredWrite(NamedTuple):
    """A pending write of a thread, as `checkpoint_writes` has it."""

    checkpoint_ns: str
    checkpoint_id: str
    task_id: str
    idx: int
    task_path: str
    channel: str
    type: str | None
    blob: bytes


def transposed(*arrays: Sequence[Any] | None) -> Iterable[tuple[Any, ...]]:
    """Return the rows of parallel arrays, which are None where there is no row."""
    return () if arrays[0] is None else zip(*cast("tuple[Sequence[Any], ...]", arrays), strict=True)


def lineage(rows: Iterable[Ancestor]) -> Iterator[Ancestor]:
    """Yield ancestors from the parent to the oldest, each once, also where they form a cycle."""
    ancestors: dict[str, Ancestor] = {}
    start = None
    for row in rows:
        # Twice only where parents form a cycle; then the first visit sought the most channels.
        ancestors.setdefault(row.checkpoint_id, row)
        start = row.checkpoint_id if row.first else start
    while (ancestor := ancestors.pop(start, None) if start else None) is not None:
        yield ancestor
        start = ancestor.parent_checkpoint_id
