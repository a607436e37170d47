"""Values of LangGraph's delta channels, which store what each step adds: put together as plain data, by no reducer.

Which reducer a channel has is known to the graph only. Messages are merged as LangGraph merges them, by their ids, the
files of deepagents by their names, and other lists are appended; of anything else the parts are shown as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from checkpoint_store.cli.safe_decode import Call, safe_decode
from checkpoint_store.serde.records import Ancestor, lineage, transposed

_COUNTERS = "counters_since_delta_snapshot"
_PARTS, _SNAPSHOT = "DeltaChannel", "langgraph._DeltaSnapshot"
_OVERWRITE, _OVERWRITE_MARK = "langgraph.types.Overwrite", "__overwrite__"
_MESSAGES, _REMOVAL, _ALL = "langchain_core.messages.", ".RemoveMessage", "__remove_all__"
_MESSAGE_KINDS = frozenset({"user", "human", "assistant", "ai", "tool", "system", "function", "remove"})
_FILE = {"content", "modified_at"}

NOTHING = object()
"""The value of a channel before the first write."""


def delta_channels(metadata: Any, without_value: Iterable[str]) -> list[str]:
    """Return those channels without a value whose value is made of earlier writes: a checkpoint's metadata says so."""
    counters = metadata.get(_COUNTERS) if isinstance(metadata, dict) else None
    return [channel for channel in without_value if channel in counters] if isinstance(counters, dict) else []


def unwrapped(value: Any) -> Any:
    """Return the value of a snapshot, and any other as it is."""
    if isinstance(value, Call) and value.name == _SNAPSHOT and len(value.arguments) == 1:
        return value.arguments[0]
    return value


def is_in_parts(value: Any) -> bool:
    """Return whether a rebuilt value is a snapshot and writes side by side."""
    return isinstance(value, Call) and value.name == _PARTS


def rebuilt(rows: Iterable[Ancestor], channels: Sequence[str]) -> dict[str, Any]:
    """Return the values of channels at a checkpoint.

    Args:
        rows: Its ancestors, as `storage.read.delta_history` returns them.
        channels: The channels.
    """
    writes: dict[str, list[Any]] = {channel: [] for channel in channels}
    seeds: dict[str, Any] = {}
    for ancestor in lineage(rows):
        stored = list(transposed(ancestor.write_channels, ancestor.write_types, ancestor.writes))
        for channel, kind, blob in reversed(stored):
            writes[channel].append(safe_decode(kind, blob))
        values = (ancestor.value_channels, ancestor.value_types, ancestor.value_blobs, ancestor.value_inlines)
        for channel, kind, blob, inline in transposed(*values):
            # A blob wins over what is inline: that is only the mark of a snapshot then.
            seeds[channel] = safe_decode("json", (inline or "").encode()) if kind is None else safe_decode(kind, blob)
    return {
        channel: combined(unwrapped(seeds.get(channel, NOTHING)), written[::-1])
        for channel, written in writes.items()
        if written or channel in seeds
    }


def combined(base: Any, writes: Sequence[Any]) -> Any:
    """Return a value with writes applied to it, the oldest first, or both side by side; `NOTHING` before all."""
    for place in range(len(writes) - 1, -1, -1):
        is_overwrite, value = _overwrite(writes[place])
        if is_overwrite:
            base, writes = value, writes[place + 1 :]
            break
    if not writes:
        return [] if base is NOTHING else base
    items = [item for write in writes for item in (write if isinstance(write, list) else [write])]
    state = [] if base is NOTHING or base is None else base
    if base is NOTHING or isinstance(base, dict):
        parts = [*([] if base is NOTHING else [base]), *writes]
        if all(map(_are_files, parts)):
            return _joined(parts)
    are_lists = isinstance(state, list) and all(isinstance(write, list) or _is_message(write) for write in writes)
    if not are_lists:
        before = [] if base is NOTHING else [("snapshot", base)]
        return Call(_PARTS, [], [*before, ("writes", list(writes))])
    if any(map(_is_message, [*state, *items])):
        return _merged(state, items)
    return [*state, *items]


def _merged(state: list[Any], messages: list[Any]) -> list[Any]:
    """Return messages with others added: one with a known id replaces it, a removal deletes it."""
    for place in range(len(messages) - 1, -1, -1):
        if _is_removal(messages[place]) and _id(messages[place]) == _ALL:
            state, messages = [], messages[place + 1 :]
            break
    places = {name: place for place, message in enumerate(state) if (name := _id(message)) is not None}
    found = list(state)
    for message in messages:
        if (name := _id(message)) is None:
            found.append(message)
        elif _is_removal(message):
            if name in places:
                found[places.pop(name)] = NOTHING
        elif name in places:
            found[places[name]] = message
        else:
            places[name] = len(found)
            found.append(message)
    return [message for message in found if message is not NOTHING]


def _are_files(part: Any) -> bool:
    """Return whether this is a write of files in deepagents' state, where None deletes one."""
    if not isinstance(part, dict):
        return False
    return all(file is None or (isinstance(file, dict) and file.keys() >= _FILE) for file in part.values())


def _joined(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for part in parts:
        for name, file in part.items():
            if file is None:
                files.pop(name, None)
            else:
                files[name] = file
    return files


def _overwrite(write: Any) -> tuple[bool, Any]:
    """Return whether a write replaces the value, and by what; LangGraph has three forms of it."""
    if isinstance(write, Call) and write.name == _OVERWRITE:
        members = dict(_named(write))
        value = members.get("value", write.arguments[0] if write.arguments else None)
    elif isinstance(write, dict) and write.keys() == {_OVERWRITE_MARK}:
        value = write[_OVERWRITE_MARK]
    elif isinstance(write, dict) and write.get("type") == _OVERWRITE_MARK and "value" in write:
        value = write["value"]
    else:
        return False, None
    return True, NOTHING if value is None else value


def _is_message(value: Any) -> bool:
    if isinstance(value, Call):
        return value.name.startswith(_MESSAGES)
    return isinstance(value, dict) and (value.get("role") in _MESSAGE_KINDS or value.get("type") in _MESSAGE_KINDS)


def _is_removal(value: Any) -> bool:
    return isinstance(value, Call) and value.name.startswith(_MESSAGES) and value.name.endswith(_REMOVAL)


def _id(message: Any) -> str | None:
    members: Mapping[str, Any] = message if isinstance(message, dict) else {}
    if isinstance(message, Call):
        members = dict(_named(message))
    found = members.get("id")
    return found if isinstance(found, str) else None


def _named(call: Call) -> Iterable[tuple[str, Any]]:
    return [(name, value) for name, value in call.keywords if isinstance(name, str)]
