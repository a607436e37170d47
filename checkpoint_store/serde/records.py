"""Rows of checkpoints by the names of their columns, as statements select them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


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
