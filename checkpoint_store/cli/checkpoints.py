"""The commands `show` and `diff`: one checkpoint, or two, with their values as plain data."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from difflib import unified_diff
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer

from checkpoint_store.cli import output, values
from checkpoint_store.cli.arguments import checkpoint_named
from checkpoint_store.cli.connection import Json, Schema, Thread, Url, looking
from checkpoint_store.cli.delta_channels import delta_channels, is_in_parts, rebuilt, unwrapped
from checkpoint_store.cli.safe_decode import safe_decode
from checkpoint_store.cli.shortened_diff import shortened
from checkpoint_store.cli.text import moment, printable
from checkpoint_store.errors import InvalidOption, ThreadNotFound
from checkpoint_store.serde.keys import Key, checked_thread_id, plain_text
from checkpoint_store.serde.records import Ancestor, Row, transposed
from checkpoint_store.storage.checkpoint_time import time_of

if TYPE_CHECKING:
    from checkpoint_store.database.backend import Backend

Namespace = Annotated[
    str, typer.Option("--namespace", metavar="NS", help='The graph: "" for the root graph, "node:task" for a subgraph.')
]
Full = Annotated[bool, typer.Option("--full", help="Show values completely, however long they are.")]


def show(
    thread: Thread,
    checkpoint: Annotated[
        str | None, typer.Argument(help="Its id, or how that begins; the newest by default.", show_default=False)
    ] = None,
    namespace: Namespace = "",
    channel: Annotated[
        list[str] | None, typer.Option(metavar="NAME", show_default=False, help="Only this channel; may be repeated.")
    ] = None,
    full: Full = False,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Show a checkpoint's values, as plain data.

    Also its metadata, and what tasks have written after it. Nothing is imported and nothing is called, whatever a row
    contains: an object is shown as the call that its serializer would make. Encrypted and pickled values stay closed.
    The value of a delta channel is put together from what earlier steps wrote: messages by their ids, lists at the end.

    \b
    Example:
      checkpoint-store show user-42
      checkpoint-store show user-42 1f0c4a3e-0000 --channel messages --full
    """
    found = looking(url, schema, lambda backend: _find(backend, thread, namespace, checkpoint, channel))
    if as_json:
        output.document(found.document())
        return
    # In a pipe as wide as ever; on a terminal within the list of channels, which is indented.
    width = min(values.Limits.width, (output.width() or 1000) - 2)
    limits = values.UNLIMITED if full else values.Limits(width=width)
    for line in [*found.title(), *found.lines(limits), *found.notes()]:
        output.line(line)


def diff(
    thread: Thread,
    a: Annotated[
        str | None,
        typer.Argument(help="A checkpoint's id, or how it begins; the newest by default.", show_default=False),
    ] = None,
    b: Annotated[str | None, typer.Argument(help="Another one's; without it A's parent.", show_default=False)] = None,
    namespace: Namespace = "",
    full: Full = False,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Show what differs between two checkpoints.

    With two ids from A to B, with one from its parent to it, without any from the newest's parent to the newest.
    Metadata, values and pending writes are compared; they are printed as by `show`.

    \b
    Example:
      checkpoint-store diff user-42
      checkpoint-store diff user-42 1f0c4a3e-0000 1f0c4a40-0000
    """

    async def read(backend: Backend) -> list[Checkpoint]:
        one = await _find(backend, thread, namespace, a)
        if b is not None:
            return [one, await _find(backend, thread, namespace, b)]
        if (parent := one.row.parent_checkpoint_id) is None:
            raise ThreadNotFound(f"checkpoint {one.row.checkpoint_id!r} has no parent to compare it with: name two")
        return [await _find(backend, thread, namespace, parent), one]

    old, new = looking(url, schema, read)
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
    for line in differences(old, new, full=full):
        output.line(line, styles.get(line[0], ""))


async def _find(
    backend: Backend, thread: str, namespace: str, checkpoint_id: str | None, only: list[str] | None = None
) -> Checkpoint:
    """Return a checkpoint, named by its id or the start of it; the newest by default."""
    from checkpoint_store.cli.findings.finding import listed
    from checkpoint_store.storage import read
    from checkpoint_store.storage.refusals import not_found
    from checkpoint_store.storage.thread_rows import count_rows

    key = Key(
        checked_thread_id(thread, "THREAD"),
        plain_text(namespace, "--namespace"),
        checkpoint_named(checkpoint_id, "CHECKPOINT"),
    )
    row = await backend.run(read.find_checkpoint, key)
    if row is not None:
        found = Checkpoint.of(Row._make(row), only)
        if unknown := [name for name in only or () if name not in found.names]:
            names = listed(sorted(found.names), 20) or "none"
            raise InvalidOption(f"--channel {unknown[0]!r}: the checkpoint has no such channel. It has {names}")
        if channels := found.delta_channels:
            ancestors = await backend.run(read.delta_history, key._replace(checkpoint_id=row[2]), channels)
            found.rebuilt.update(rebuilt(map(Ancestor._make, ancestors), channels))
        return found
    if not any((await backend.run(count_rows, thread)).values()):
        raise not_found(thread)
    graph = f"in the namespace {namespace!r}" if namespace else "of the root graph"
    wanted = f"checkpoint {checkpoint_id!r}" if checkpoint_id else "checkpoint"
    raise ThreadNotFound(f"the thread {thread!r} has no {wanted} {graph}")


@dataclass(frozen=True)
class Checkpoint:
    """A stored checkpoint with its values as plain data, and the channels of it to show."""

    row: Row
    checkpoint: dict[str, Any]
    only: list[str] | None
    rebuilt: dict[str, Any] = field(default_factory=dict)
    """The values of delta channels, which are stored with its ancestors."""

    @classmethod
    def of(cls, row: Row, only: list[str] | None) -> Checkpoint:
        """Return the checkpoint of a row, with all channels or some."""
        document = safe_decode("json", row.checkpoint.encode())
        return cls(row, document if isinstance(document, dict) else {}, only)

    @cached_property
    def metadata(self) -> Any:
        """The decoded metadata."""
        return safe_decode("json", self.row.metadata.encode())

    @property
    def channels(self) -> dict[str, Any]:
        """The values by channel."""
        found = self.stored | self.rebuilt
        return {name: found[name] for name in sorted(found)}

    @cached_property
    def stored(self) -> dict[str, Any]:
        """The decoded values that are stored with it."""
        from checkpoint_store.sql.read import TASKS

        inline = self.checkpoint.get("channel_values")
        found = dict(inline) if isinstance(inline, dict) else {}
        for channel, kind, blob in transposed(self.row.blob_channels, self.row.blob_types, self.row.blobs):
            found[channel] = unwrapped(safe_decode(kind, blob))
        if self.row.send_types:
            # Before format 4 the sends of a step were stored with the parent; LangGraph reads them from this channel.
            found[TASKS] = [safe_decode(kind, blob) for kind, blob in transposed(self.row.send_types, self.row.sends)]
        return {name: value for name, value in found.items() if self.only is None or name in self.only}

    @property
    def delta_channels(self) -> list[str]:
        """The channels to rebuild from writes of its ancestors."""
        return delta_channels(self.metadata, self.absent)

    @cached_property
    def writes(self) -> list[tuple[str, str, Any]]:
        """Task, channel and decoded value of each pending write."""
        row = self.row
        found = transposed(row.write_task_ids, row.write_channels, row.write_types, row.writes)
        return [
            (task, channel, safe_decode(kind, blob))
            for task, channel, kind, blob in found
            if self.only is None or channel in self.only
        ]

    @property
    def names(self) -> set[str]:
        """The names of all channels that have a value, a version or a pending write here, also of those not to show."""
        from checkpoint_store.sql.read import TASKS

        parts = [self.checkpoint.get("channel_values"), self.checkpoint.get("channel_versions")]
        found = {name for part in parts if isinstance(part, dict) for name in part}
        return found.union(self.row.blob_channels or (), self.row.write_channels or (), [TASKS][: bool(self.row.sends)])

    @property
    def absent(self) -> list[str]:
        """The channels with a version here but no value: empty ones, and delta channels that could not be rebuilt."""
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

    def lines(self, limits: values.Limits, broken: Container[str] = ()) -> list[str]:
        """Return its metadata, values and writes as text; `broken` names the `parts` that are never on one line."""

        def part(name: str, title: str, value: Any) -> list[str]:
            return values.lines(value, limits, f"{printable(title)}: ", broken=name in broken)

        lines = [*part("metadata", "metadata", self.metadata), "channels:"]
        for name, value in self.channels.items():
            lines += [f"  {line}" for line in part(f"channel {name}", name, value)]
        lines += [f"  {printable(name)}: (no value at this checkpoint)" for name in self.absent]
        if self.writes:
            lines.append("writes:")
        for task, name, value in self.writes:
            lines += [f"  {line}" for line in part(f"write {task} {name}", f"{task}  {name}", value)]
        return lines

    def notes(self) -> list[str]:
        """Return a line about the channels that were rebuilt, if there are any."""
        whole = [name for name, value in sorted(self.rebuilt.items()) if not is_in_parts(value)]
        return [printable(f"put together from a snapshot and the writes since: {', '.join(whole)}")] if whole else []

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
            "channels_rebuilt": sorted(self.rebuilt),
            "writes": [
                {"task_id": task, "channel": name, "value": values.as_json(value)} for task, name, value in self.writes
            ],
        }

    def parts(self) -> dict[str, Any]:
        """Return the parts to compare by name."""
        writes = {f"write {task} {name}": value for task, name, value in self.writes}
        channels = {f"channel {name}": value for name, value in self.channels.items()}
        return {"metadata": self.metadata, **channels, **writes}


def differences(old: Checkpoint, new: Checkpoint, *, full: bool) -> list[str]:
    """Return what differs between two checkpoints, as lines of a unified diff."""
    ids, both = [printable(one.row.checkpoint_id) for one in (old, new)], (old.parts(), new.parts())
    lines: list[str] = []
    # What differs may be beyond the limits, or in what is left out where it is empty.
    for limits in (values.UNLIMITED,) if full else (values.COMPLETE, values.UNLIMITED):
        # What is on one line in one of them, and is not in the other, would seem to differ as a whole.
        long = {name for parts in both for name, part in parts.items() if len(values.lines(part, limits, name)) > 1}
        before, after = [one.lines(limits, long) for one in (old, new)]
        lines = list(unified_diff(before, after, ids[0], ids[1], n=1, lineterm=""))
        if lines or both[0] == both[1]:
            break
    return lines if full else [*lines[:2], *shortened(lines[2:], values.Limits())]
