"""A thread as the records of a page: its checkpoints, their values and writes, each once.

A record is JSON text: a node of a value (see `nodes`) is a list or a string, any other record an object with one of the
members `checkpoint`, `value` and `write`. A checkpoint has the channels that are new or changed since its parent, in
which a stored value is named by its number, as `["v", 7]`; the value comes later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from checkpoint_store.cli.entries import Entry, Key
from checkpoint_store.cli.history_html.nodes import Nodes, Place, as_text
from checkpoint_store.cli.safe_decode import safe_decode
from checkpoint_store.schema import PAGED
from checkpoint_store.serde import pages
from checkpoint_store.serde.records import StoredCheckpoint, StoredValue, StoredWrite

_Channels = dict[str, str]
"""The text of the value in each channel of a checkpoint."""


class Document:
    """The records of a thread, made of its rows: first all checkpoints, then values and writes.

    Args:
        entries: The checkpoints to write, in the order of their namespaces and ids.
        outside: Those of their parents that are stored, but are not among them.
        emit: Gets each record.
        full: Keep long values completely.
    """

    def __init__(
        self, entries: Iterable[Entry], outside: Set[Key], emit: Callable[[str], None], *, full: bool = False
    ) -> None:
        self._outside = outside
        self._entries = list(entries)
        self._places = {entry.key: place for place, entry in enumerate(self._entries)}
        self._emit = emit
        self._nodes = Nodes(emit, full=full)
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._channels: dict[Key, _Channels] = {}

    def checkpoint(self, row: StoredCheckpoint) -> None:
        """Add a checkpoint, unless it is not among the entries."""
        key = (row.checkpoint_ns, row.checkpoint_id)
        if (place := self._places.get(key)) is None:
            return
        entry = self._entries[place]
        channels = self._channels[key] = self._channels_of(row)
        parent = self._places.get(entry.parent, -1) if entry.parent else -1
        # A parent that comes later, in a cycle, has no channels yet.
        before = self._channels.get(entry.parent, {}) if entry.parent and parent < place else {}
        record = {
            "checkpoint": place,
            "ns": entry.namespace,
            "id": entry.checkpoint_id,
            "parent": parent,
            "parentId": entry.parent_id,
            "isStored": entry.parent in self._outside,
            "host": self._places.get(entry.host, -1) if entry.host else -1,
            "time": int(entry.time.timestamp() * 1000) if entry.time else None,
            "step": _scalar(entry.metadata.get("step")),
            "source": _scalar(entry.metadata.get("source")),
            "ran": entry.ran,
            "next": entry.next,
            "added": entry.added,
            "tasks": entry.tasks,
            "marks": list(entry.marks),
            "gone": sorted(before.keys() - channels.keys()),
        }
        new = [(name, value) for name, value in channels.items() if before.get(name) != value]
        written = ",".join(f"[{as_text(name)},{value}]" for name, value in sorted(new))
        metadata = self._nodes.value(entry.metadata, Place(("metadata",)))
        self._emit(f'{as_text(record)[:-1]},"metadata":{metadata},"set":[{written}]}}')

    def value(self, row: StoredValue, found: Mapping[bytes, bytes]) -> None:
        """Add a stored value that a checkpoint has named, of the pages that were found."""
        number = self._numbers.get((row.checkpoint_ns, row.channel, row.version))
        if number is None or row.type == "empty":
            return
        kind, blob = _joined(row.type, row.blob, found)
        text = self._nodes.stored(Place((row.checkpoint_ns, row.channel)), kind, blob)
        self._emit(f'{{"value":{number},"bytes":{len(blob or b"")},"node":{text}}}')

    def write(self, row: StoredWrite) -> None:
        """Add a write of a checkpoint, unless that is not among the entries."""
        place = self._places.get((row.checkpoint_ns, row.checkpoint_id))
        if place is None:
            return
        node = self._nodes.stored(Place((row.checkpoint_ns, row.channel, "write")), row.type, row.blob)
        record = {
            "write": place,
            "task": row.task_id,
            "path": row.task_path,
            "channel": row.channel,
            "bytes": len(row.blob),
        }
        self._emit(f'{as_text(record)[:-1]},"node":{node}}}')

    def _channels_of(self, row: StoredCheckpoint) -> _Channels:
        """Return the channels of a checkpoint: inline values by themselves, others by the number of their version."""
        document = safe_decode("json", row.checkpoint.encode())
        document = document if isinstance(document, dict) else {}
        versions, inline = document.get("channel_versions"), document.get("channel_values")
        found: _Channels = {}
        for name, version in (versions if isinstance(versions, dict) else {}).items():
            number = self._numbers.setdefault((row.checkpoint_ns, name, _version(version)), len(self._numbers))
            found[name] = f'["v",{number}]'
        for name, value in (inline if isinstance(inline, dict) else {}).items():
            text = self._nodes.value(value, Place((row.checkpoint_ns, name)))
            # Of a delta channel this may be the mark of a snapshot, which is stored under the version.
            is_mark = value is True and name in found
            found[name] = f"{found[name][:-1]},{text}]" if is_mark else text
        return found


def _version(version: object) -> str:
    """Return the text of a version, as PostgreSQL makes it of JSON."""
    return version if isinstance(version, str) else json.dumps(version)


def _scalar(value: object) -> Any:
    """Return what may stand in a line of the tree."""
    return value if isinstance(value, (int, str)) else None


def _joined(kind: str, blob: bytes | None, found: Mapping[bytes, bytes]) -> tuple[str, bytes | None]:
    """Return the type and bytes of a value; of one in pages the joined ones, None if that is not possible."""
    if kind != PAGED or blob is None:
        return kind, blob
    try:
        return "msgpack", pages.join(blob, found)
    except (KeyError, ValueError):
        return "msgpack", None
