"""A stored checkpoint, its values as plain data, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from checkpoint_store.cli import values
from checkpoint_store.cli.clean import clean, moment
from checkpoint_store.cli.safe_decode import inert
from checkpoint_store.serde.records import Row
from checkpoint_store.sql.read import TASKS
from checkpoint_store.storage.thread_list import time_of


class Checkpoint(NamedTuple):
    """A checkpoint, and which of its channels to tell."""

    row: Row
    checkpoint: dict[str, Any]
    only: list[str] | None

    @classmethod
    def of(cls, row: Row, only: list[str] | None) -> Checkpoint:
        """Return what a row tells, of all channels or some."""
        document = inert("json", row.checkpoint.encode())
        return cls(row, document if isinstance(document, dict) else {}, only)

    @property
    def metadata(self) -> Any:
        """The metadata, whatever it is."""
        return inert("json", self.row.metadata.encode())

    @property
    def channels(self) -> dict[str, Any]:
        """The inert values by channel."""
        inline = self.checkpoint.get("channel_values")
        found = dict(inline) if isinstance(inline, dict) else {}
        for channel, kind, blob in _zip(self.row.blob_channels, self.row.blob_types, self.row.blobs):
            found[channel] = inert(kind, blob)
        if self.row.send_types:
            # Before format 4 the sends of a step were kept with the parent; LangGraph finds them in this channel.
            found[TASKS] = [inert(kind, blob) for kind, blob in _zip(self.row.send_types, self.row.sends)]
        return {name: found[name] for name in sorted(found) if self.only is None or name in self.only}

    @property
    def writes(self) -> list[tuple[str, str, Any]]:
        """Task, channel and inert value of each pending write."""
        row = self.row
        found = _zip(row.write_task_ids, row.write_channels, row.write_types, row.writes)
        return [
            (task, channel, inert(kind, blob))
            for task, channel, kind, blob in found
            if self.only is None or channel in self.only
        ]

    @property
    def absent(self) -> list[str]:
        """The channels that have a version here but no value: empty ones, and what is rebuilt from earlier writes."""
        versions, known = self.checkpoint.get("channel_versions"), self.channels
        names = sorted(versions) if isinstance(versions, dict) else []
        return [name for name in names if name not in known and (self.only is None or name in self.only)]

    def lines(self, limits: values.Limits, *, title: bool = True) -> list[str]:
        """Everything as text, with its name or without."""
        row, told = self.row, []
        if title:
            graph = f", namespace {row.checkpoint_ns}" if row.checkpoint_ns else ""
            told.append(clean(f"thread {row.thread_id}{graph}"))
            told.append(clean(f"checkpoint {row.checkpoint_id}, {moment(time_of(row.checkpoint_id))} UTC"))
            told.append(clean(f"parent {row.parent_checkpoint_id or '-'}"))
        told += values.lines(self.metadata, limits, "metadata: ")
        told.append("channels:")
        for name, value in self.channels.items():
            told += [f"  {line}" for line in values.lines(value, limits, f"{clean(name)}: ")]
        told += [f"  {clean(name)}: (no value at this checkpoint)" for name in self.absent]
        if self.writes:
            told.append("writes:")
        for task, name, value in self.writes:
            told += [f"  {line}" for line in values.lines(value, limits, f"{clean(task)}  {clean(name)}: ")]
        return told

    def document(self) -> dict[str, Any]:
        """Everything as JSON."""
        row = self.row
        return {
            "thread_id": row.thread_id,
            "checkpoint_ns": row.checkpoint_ns,
            "checkpoint_id": row.checkpoint_id,
            "parent_checkpoint_id": row.parent_checkpoint_id,
            "time": time_of(row.checkpoint_id),
            "metadata": values.plain(self.metadata),
            "channels": {name: values.plain(value) for name, value in self.channels.items()},
            "channels_without_value": self.absent,
            "writes": [
                {"task_id": task, "channel": name, "value": values.plain(value)} for task, name, value in self.writes
            ],
        }

    def parts(self) -> dict[str, Any]:
        """Whatever two checkpoints may differ in, by name."""
        writes = {f"write {task} {name}": value for task, name, value in self.writes}
        channels = {f"channel {name}": value for name, value in self.channels.items()}
        return {"metadata": self.metadata, **channels, **writes}


def _zip(*arrays: Sequence[Any] | None) -> list[tuple[Any, ...]]:
    return [] if arrays[0] is None else list(zip(*[array or () for array in arrays], strict=True))
