"""The commands `show` and `diff`: one checkpoint, or two, with their values as plain data."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from checkpoint_store.cli import output, values
from checkpoint_store.cli.connection import Json, Schema, Thread, Url, looking
from checkpoint_store.cli.safe_decode import safe_decode
from checkpoint_store.cli.text import moment, printable
from checkpoint_store.errors import ThreadNotFound
from checkpoint_store.serde.keys import Key, checked_thread_id, plain_text
from checkpoint_store.serde.records import Row
from checkpoint_store.storage.checkpoint_time import time_of

if TYPE_CHECKING:
    from checkpoint_store.database.backend import Backend

Namespace = Annotated[
    str, typer.Option("--namespace", metavar="NS", help='The graph: "" for the root graph, "node:task" for a subgraph.')
]


def show(
    thread: Thread,
    checkpoint: Annotated[
        str | None, typer.Argument(help="Its id, or how that begins; the newest by default.", show_default=False)
    ] = None,
    namespace: Namespace = "",
    channel: Annotated[
        list[str] | None, typer.Option(metavar="NAME", show_default=False, help="Only this channel; may be repeated.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Show values completely, however long they are.")] = False,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Show a checkpoint's values, as plain data.

    Also its metadata, and what tasks have written after it. Nothing is imported and nothing is called, whatever a row
    contains: an object is shown as the call that its serializer would make. Encrypted and pickled values stay closed.

    \b
    Example:
      checkpoint-store show user-42
      checkpoint-store show user-42 1f0c4a3e-0000 --channel messages --full
    """
    row = looking(url, schema, lambda backend: _find(backend, thread, namespace, checkpoint))
    shown = Checkpoint.of(row, channel)
    if as_json:
        output.document(shown.document())
        return
    for line in [*shown.title(), *shown.lines(values.UNLIMITED if full else values.Limits())]:
        output.line(line)


def diff(
    thread: Thread,
    a: Annotated[str, typer.Argument(help="A checkpoint's id, or how it begins.", show_default=False)],
    b: Annotated[str, typer.Argument(help="Another one's.", show_default=False)],
    namespace: Namespace = "",
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Show what differs between two checkpoints.

    Metadata, values and pending writes are compared. Values are read as plain data, as by `show`.

    \b
    Example:
      checkpoint-store diff user-42 1f0c4a3e-0000 1f0c4a40-0000
    """

    async def read(backend: Backend) -> list[Row]:
        return [await _find(backend, thread, namespace, one) for one in (a, b)]

    old, new = [Checkpoint.of(row, None) for row in looking(url, schema, read)]
    if as_json:
        before, after = old.parts(), new.parts()
        changed = {
            name: {side: values.as_json(part[name]) for side, part in (("a", before), ("b", after)) if name in part}
            for name in before | after
            if before.get(name) != after.get(name)
        }
        output.document({"a": old.row.checkpoint_id, "b": new.row.checkpoint_id, "changed": changed})
        return
    styles = {"+": "green", "-": "red", "@": "cyan"}
    (a, before_lines), (b, after_lines) = [
        (printable(one.row.checkpoint_id), one.lines(values.UNLIMITED)) for one in (old, new)
    ]
    for line in difflib.unified_diff(before_lines, after_lines, a, b, n=1, lineterm=""):
        output.line(line, styles.get(line[0], ""))


async def _find(backend: Backend, thread: str, namespace: str, checkpoint_id: str | None) -> Row:
    """Return the row of a checkpoint, named by its id or the start of it; the newest by default."""
    from checkpoint_store.storage.read import find_checkpoint
    from checkpoint_store.storage.read import history as history_rows
    from checkpoint_store.storage.refusals import not_found

    key = Key(
        checked_thread_id(thread, "THREAD"),
        plain_text(namespace, "--namespace"),
        plain_text(checkpoint_id, "CHECKPOINT") if checkpoint_id else None,
    )
    row = await backend.run(find_checkpoint, key)
    if row is not None:
        return Row._make(row)
    if not (await backend.run(history_rows, thread, 1)).rows:
        raise not_found(thread)
    graph = f"in the namespace {namespace!r}" if namespace else "of the root graph"
    wanted = f"checkpoint {checkpoint_id!r}" if checkpoint_id else "checkpoint"
    raise ThreadNotFound(f"the thread {thread!r} has no {wanted} {graph}")


class Checkpoint(NamedTuple):
    """A stored checkpoint with its values as plain data, and the channels of it to show."""

    row: Row
    checkpoint: dict[str, Any]
    only: list[str] | None

    @classmethod
    def of(cls, row: Row, only: list[str] | None) -> Checkpoint:
        """Return the checkpoint of a row, with all channels or some."""
        document = safe_decode("json", row.checkpoint.encode())
        return cls(row, document if isinstance(document, dict) else {}, only)

    @property
    def metadata(self) -> Any:
        """The decoded metadata."""
        return safe_decode("json", self.row.metadata.encode())

    @property
    def channels(self) -> dict[str, Any]:
        """The decoded values by channel."""
        from checkpoint_store.sql.read import TASKS

        inline = self.checkpoint.get("channel_values")
        found = dict(inline) if isinstance(inline, dict) else {}
        for channel, kind, blob in _zip(self.row.blob_channels, self.row.blob_types, self.row.blobs):
            found[channel] = safe_decode(kind, blob)
        if self.row.send_types:
            # Before format 4 the sends of a step were stored with the parent; LangGraph reads them from this channel.
            found[TASKS] = [safe_decode(kind, blob) for kind, blob in _zip(self.row.send_types, self.row.sends)]
        return {name: found[name] for name in sorted(found) if self.only is None or name in self.only}

    @property
    def writes(self) -> list[tuple[str, str, Any]]:
        """Task, channel and decoded value of each pending write."""
        row = self.row
        found = _zip(row.write_task_ids, row.write_channels, row.write_types, row.writes)
        return [
            (task, channel, safe_decode(kind, blob))
            for task, channel, kind, blob in found
            if self.only is None or channel in self.only
        ]

    @property
    def absent(self) -> list[str]:
        """The channels with a version here but no value: empty ones, and those rebuilt from earlier writes."""
        versions, known = self.checkpoint.get("channel_versions"), self.channels
        names = sorted(versions) if isinstance(versions, dict) else []
        return [name for name in names if name not in known and (self.only is None or name in self.only)]

    def title(self) -> list[str]:
        """Return its thread, its id and its parent as text."""
        row = self.row
        graph = f", namespace {row.checkpoint_ns}" if row.checkpoint_ns else ""
        return [
            printable(f"thread {row.thread_id}{graph}"),
            printable(f"checkpoint {row.checkpoint_id}, {moment(time_of(row.checkpoint_id))} UTC"),
            printable(f"parent {row.parent_checkpoint_id or '-'}"),
        ]

    def lines(self, limits: values.Limits) -> list[str]:
        """Return its metadata, values and writes as text."""
        lines = [*values.lines(self.metadata, limits, "metadata: "), "channels:"]
        for name, value in self.channels.items():
            lines += [f"  {line}" for line in values.lines(value, limits, f"{printable(name)}: ")]
        lines += [f"  {printable(name)}: (no value at this checkpoint)" for name in self.absent]
        if self.writes:
            lines.append("writes:")
        for task, name, value in self.writes:
            lines += [f"  {line}" for line in values.lines(value, limits, f"{printable(f'{task}  {name}')}: ")]
        return lines

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        row = self.row
        return {
            "thread_id": row.thread_id,
            "checkpoint_ns": row.checkpoint_ns,
            "checkpoint_id": row.checkpoint_id,
            "parent_checkpoint_id": row.parent_checkpoint_id,
            "time": time_of(row.checkpoint_id),
            "metadata": values.as_json(self.metadata),
            "channels": {name: values.as_json(value) for name, value in self.channels.items()},
            "channels_without_value": self.absent,
            "writes": [
                {"task_id": task, "channel": name, "value": values.as_json(value)} for task, name, value in self.writes
            ],
        }

    def parts(self) -> dict[str, Any]:
        """Return the parts to compare by name."""
        writes = {f"write {task} {name}": value for task, name, value in self.writes}
        channels = {f"channel {name}": value for name, value in self.channels.items()}
        return {"metadata": self.metadata, **channels, **writes}


def _zip(*arrays: Sequence[Any] | None) -> list[tuple[Any, ...]]:
    return [] if arrays[0] is None else list(zip(*[array or () for array in arrays], strict=True))
