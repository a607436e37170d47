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
