"""Config, checkpoint and serializer <-> bind parameters; rows <-> what LangGraph gets; no I/O."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import TASKS, _DeltaSnapshot

from checkpoint_store.errors import InvalidConfig, NotEncrypted, UnreadableValue, UnstorableValue, safe_str, short_repr
from checkpoint_store.serde import associated_data, jsonb, validation
from checkpoint_store.serde.keys import Key, check_key, key_of, plain_text
from checkpoint_store.serde.records import Ancestor, Row

Binds = dict[str, Any]

LARGE_BYTES = 64 * 1024
"""From here on a value is decoded in a worker thread, so that it doesn't hold up the event loop."""

LARGE_ITEMS = 100
"""From so many items on a container is encoded in a worker thread; a chat message takes some 10 us to encode."""

INLINE_CHARACTERS = 1024 * 1024
"""Longer strings are stored as blobs: inline every step would store them anew, and JSONB's strings end at 256 MB."""

MOST_THREADS = 1024
"""Of how many threads and namespaces a saver remembers which channels have values; some 500 bytes each."""

_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})


class ValuedChannels:
    """Which channels have a value in the checkpoint that a saver has read or stored last, by thread and namespace.

    Nearly every checkpoint has channels without a value that are as they were: empty ones. That the parent's row has no
    value of them either needs no asking where this saver has just read or stored it, since an id names one content.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[str, frozenset[str]]] = {}

    def of(self, key: Key) -> frozenset[str] | None:
        """Return those of the checkpoint that a key names, or more; None if that is not known."""
        checkpoint_id, channels = self._last.get((key.thread_id, key.checkpoint_ns), (None, None))
        return channels if checkpoint_id == key.checkpoint_id else None

    def note(self, key: Key | Row, checkpoint_id: str, channels: Iterable[str]) -> None:
        """Remember those of a checkpoint in the thread and namespace of a key."""
        if len(self._last) >= MOST_THREADS:
            self._last.clear()  # at once, since threads share this: what is not known is asked for
        self._last[key.thread_id, key.checkpoint_ns] = (checkpoint_id, frozenset(channels))


class Codec:
    """Encodes and decodes with one serializer.

    Args:
        serde: The saver's serializer. Scalars are stored inline, in the clear and searchable, only where the serializer
            is LangGraph's own plain one; one that encrypts or otherwise has its say gets every value.
        encrypted_only: Whether to refuse stored values that are in clear.
    """

    def __init__(self, serde: SerializerProtocol, *, encrypted_only: bool = False) -> None:
        self._encrypted_only = encrypted_only
        self._serde = serde
        self._inlines = _is_plain(serde)
        self._binds = not self._inlines and associated_data.binding_of(serde) is not None

    def encode_checkpoint(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
        valued: ValuedChannels,
    ) -> Binds:
        """Return the binds of `statements.put_checkpoint`.

        Raises:
            InvalidConfig: If the config or the checkpoint's id can't be a key.
            UnstorableValue: If a value fits neither JSONB nor the serializer.
        """
        key = key_of(config)
        place = _place(key)
        validation.check_checkpoint(checkpoint, new_versions, place)
        checkpoint_id = plain_text(checkpoint["id"], 'checkpoint["id"]')
        if not checkpoint_id:
            raise InvalidConfig(f'{place}: checkpoint["id"] is empty; it would name the newest checkpoint')
        check_key(thread_id=key.thread_id, checkpoint_ns=key.checkpoint_ns, checkpoint_id=checkpoint_id)

        values = checkpoint["channel_values"]
        inline: dict[str, Any] = {}
        blobs: list[tuple[str, str, str, bytes]] = []
        for channel in sorted(values):
            value, channel = values[channel], str.__str__(channel)  # noqa: PLW2901 - it may be an Enum's
            held = jsonb.holds(value)
            if held and self._inlines and not (type(value) is str and len(value) > INLINE_CHARACTERS):
                inline[channel] = jsonb.scalar(value)
                continue
            version = new_versions.get(channel)
            if type(value) is _DeltaSnapshot:
                # The stock saver's mark of a snapshot: it looks for one here before it prunes.
                inline[channel] = True
            elif not held and version is None and channel in checkpoint["channel_versions"]:
                continue  # unchanged, so stored when it was new
            # A scalar that is unchanged may have been stored inline, by a saver without this serializer.
            version = checkpoint["channel_versions"].get(channel) if version is None else version
            if version is None:
                raise UnstorableValue(
                    f"{place}, channel {short_repr(channel)}: neither new_versions nor channel_versions has a version "
                    "for it, so nothing could find the value again"
                )
            text = validation.version_text(version, place, channel)
            at = associated_data.of_value(key.checkpoint_ns, channel, text)
            blobs.append((channel, text, *self._dump(value, place, channel, at)))
        validation.check_size([(channel, blob) for channel, _, _, blob in blobs], place)
        for channel, version, _, _ in blobs:
            check_key(thread_id=key.thread_id, checkpoint_ns=key.checkpoint_ns, channel=channel, version=version)

        document = _document(checkpoint, inline, place)
        kept = _kept(checkpoint, new_versions, valued.of(key)) if key.checkpoint_id else {}
        valued.note(key, checkpoint_id, [*values, *kept])
        channels, versions, types, contents = map(list, zip(*blobs, strict=True)) if blobs else ([], [], [], [])
        return {
            "thread_id": key.thread_id,
            "checkpoint_ns": key.checkpoint_ns,
            "checkpoint_id": checkpoint_id,
            "parent_checkpoint_id": key.checkpoint_id,
            "checkpoint": document,
            "metadata": jsonb.text_of(_merged(config, metadata, place), f"{place}: metadata"),
            "kept": _versions_text(kept) if kept else None,
            "channels": channels,
            "versions": versions,
            "types": types,
            "blobs": contents,
        }

    def encode_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> Binds:
        """Return the binds of `statements.put_writes`.

        Of several writes to one of LangGraph's special channels (errors, interrupts, resumes) the last one counts.

        Raises:
            InvalidConfig: If the config names no checkpoint, or the task can't be part of a key.
            UnstorableValue: If the serializer can't hold a value.
        """
        key = key_of(config)
        if key.checkpoint_id is None:
            raise InvalidConfig('config["configurable"] has no "checkpoint_id"; writes belong to a checkpoint')
        task_id = plain_text(task_id, "task_id")
        check_key(**key._asdict(), task_id=task_id)
        place = f"{_place(key)}, task {short_repr(task_id, 200)}"
        rows = {
            WRITES_IDX_MAP.get(channel, idx): (
                channel,
                *self._dump(
                    value, place, channel, associated_data.of_write(key.checkpoint_ns, key.checkpoint_id, channel)
                ),
            )
            for idx, (channel, value) in enumerate(writes)
        }
        validation.check_size([(channel, blob) for channel, _, blob in rows.values()], _place(key))
        # Sorted, so that two writers of the same rows lock them in the same order.
        idxs = sorted(rows)
        return {
            **key._asdict(),
            "task_id": task_id,
            "task_path": plain_text(task_path, "task_path"),
            "idxs": idxs,
            "channels": [rows[idx][0] for idx in idxs],
            "types": [rows[idx][1] for idx in idxs],
            "blobs": [rows[idx][2] for idx in idxs],
        }

    def decode_checkpoint(self, row: Row) -> CheckpointTuple:
        """Return a row of `statements.checkpoints` as LangGraph wants it.

        Raises:
            UnreadableValue: If the serializer can't decode a value.
        """
        try:
            return self._decoded(row, f"{_place(row)}, checkpoint {short_repr(row.checkpoint_id, 200)}")
        except UnreadableValue as error:
            error.config = cast("dict[str, Any]", _config(row, row.checkpoint_id))
            raise

    def _decoded(self, row: Row, place: str) -> CheckpointTuple:
        checkpoint = validation.stored_members(row.checkpoint, f"{place}: the checkpoint")
        versions = checkpoint.get("channel_versions")
        values = checkpoint["channel_values"] = checkpoint.get("channel_values") or {}
        if type(versions) is not dict or type(values) is not dict:
            raise UnreadableValue(f"{place}: channel_versions and channel_values are no JSON objects")
        for channel, kind, blob in _zip(row.blob_channels, row.blob_types, row.blobs):
            at = associated_data.of_value(row.checkpoint_ns, channel, versions.get(channel))
            values[channel] = self._load(kind, blob, place, channel, at)
        if self._encrypted_only:
            for channel in values.keys() - set(row.blob_channels or ()):
                raise _plain(place, channel)
        if row.send_types:
            # Before format 4 LangGraph kept the sends of a step with the parent; it finds them in a channel since.
            at = associated_data.of_write(row.checkpoint_ns, row.parent_checkpoint_id, TASKS)
            values[TASKS] = [self._load(kind, blob, place, TASKS, at) for kind, blob in _zip(row.send_types, row.sends)]
            versions[TASKS] = validation.newest(versions.values(), place) if versions else next_version(None)
        writes: list[PendingWrite] = [
            (
                task_id,
                channel,
                self._load(
                    *(kind, blob, f"{place}, task {short_repr(task_id, 200)}", channel),
                    associated_data.of_write(row.checkpoint_ns, row.checkpoint_id, channel),
                ),
            )
            for task_id, channel, kind, blob in _zip(
                row.write_task_ids, row.write_channels, row.write_types, row.writes
            )
        ]
        return CheckpointTuple(
            config=_config(row, row.checkpoint_id),
            checkpoint=cast("Checkpoint", checkpoint),
            metadata=cast("CheckpointMetadata", validation.stored_members(row.metadata, f"{place}: the metadata")),
            parent_config=_config(row, row.parent_checkpoint_id) if row.parent_checkpoint_id else None,
            pending_writes=writes,
        )

    def decode_history(
        self, key: Key, channels: Sequence[str], rows: Iterable[Ancestor]
    ) -> dict[str, DeltaChannelHistory]:
        """Return what the ancestors of a checkpoint contribute to each channel, oldest write first.

        Raises:
            UnreadableValue: If the serializer can't decode a value.
        """
        history: dict[str, DeltaChannelHistory] = {channel: {"writes": []} for channel in channels}
        ancestors: dict[str, Ancestor] = {}
        start = None
        for row in rows:
            # Twice only where parents form a cycle; then the first visit sought the most channels.
            ancestors.setdefault(row.checkpoint_id, row)
            start = row.checkpoint_id if row.first else start
        while (ancestor := ancestors.pop(start, None) if start else None) is not None:
            place = f"{_place(key)}, checkpoint {short_repr(ancestor.checkpoint_id, 200)}"
            if not ancestor.sound:
                raise UnreadableValue(f"{place}: channel_versions and channel_values are no JSON objects")
            writes = [
                (
                    task_id,
                    channel,
                    self._load(
                        *(kind, blob, f"{place}, task {short_repr(task_id, 200)}", channel),
                        associated_data.of_write(key.checkpoint_ns, ancestor.checkpoint_id, channel),
                    ),
                )
                for task_id, channel, kind, blob in _zip(
                    ancestor.write_task_ids, ancestor.write_channels, ancestor.write_types, ancestor.writes
                )
            ]
            for write in reversed(writes):
                history[write[1]]["writes"].append(write)
            for channel, version, kind, blob, inline in _zip(
                *(ancestor.value_channels, ancestor.value_versions, ancestor.value_types, ancestor.value_blobs),
                ancestor.value_inlines,
            ):
                # A blob wins over what is inline: that is only the mark of a snapshot then.
                if kind is None and self._encrypted_only:
                    raise _plain(place, channel)
                stored = (
                    validation.stored_json(inline, f"{place}, channel {short_repr(channel)}")
                    if kind is None
                    else self._load(
                        kind, blob, place, channel, associated_data.of_value(key.checkpoint_ns, channel, version)
                    )
                )
                history[channel]["seed"] = stored
            start = ancestor.parent_checkpoint_id
        for entry in history.values():
            entry["writes"].reverse()
        return history

    def _dump(self, value: Any, place: str, channel: str, at: associated_data.Place) -> tuple[str, bytes]:
        try:
            kind, blob = (
                associated_data.dumps(self._serde, value, at) if self._binds else self._serde.dumps_typed(value)
            )
        except Exception as error:
            raise UnstorableValue(
                f"{place}, channel {short_repr(channel)}: {type(value).__name__} is not serializable by "
                f"{type(self._serde).__name__} ({safe_str(error)}). Store a plain value, or pass a serializer "
                "that takes it, such as serde=JsonPlusSerializer(pickle_fallback=True)."
            ) from error
        if not jsonb.holds(channel):
            raise UnstorableValue(
                f"{place}: channel {short_repr(channel)} has a name that PostgreSQL's text can't hold"
            )
        return kind, blob if type(blob) is bytes else bytes(blob)

    def _load(self, kind: str | None, blob: bytes | None, place: str, channel: str, at: associated_data.Place) -> Any:
        if self._encrypted_only and "+" not in (kind or ""):
            raise _plain(place, channel)
        if blob is None and kind != "null":
            raise UnreadableValue(
                f"{place}, channel {short_repr(channel)}: the stored value of type {short_repr(kind)}, or a page of "
                "it, is missing. Rows of checkpoint_pages were deleted, or not restored from a backup."
            )
        try:
            stored = (cast("str", kind), cast("bytes", blob))
            return associated_data.loads(self._serde, *stored, at) if self._binds else self._serde.loads_typed(stored)
        except Exception as error:
            raise UnreadableValue(
                f"{place}, channel {short_repr(channel)}: {type(self._serde).__name__} can't decode the stored value "
                f"of type {short_repr(kind)} ({type(error).__name__}: {safe_str(error)}). {self._way_out(kind or '')}"
            ) from error

    def _way_out(self, kind: str) -> str:
        if "+aes" not in kind:
            return "Read it with the serializer it was written with."
        if isinstance(self._serde, EncryptedSerializer):
            return (
                "It is encrypted. The key that it was written with must be one of the serializer's: "
                "serde=EncryptedSerializer(KeyRing.aes(new_key, old_key))."
            )
        return "It is encrypted: pass serde=EncryptedSerializer(KeyRing.aes(key)), with the key it was written with."


def _plain(place: str, channel: str) -> NotEncrypted:
    return NotEncrypted(
        f"{place}, channel {short_repr(channel)}: the stored value is not encrypted, and require_encryption refuses "
        "it. encryption.reencrypt() encrypts what was stored before; what was stored since, somebody has stored in "
        "clear."
    )


def _is_plain(serde: object) -> bool:
    """Tell whether a serializer is LangGraph's own, or derived from it without another way to write."""
    return getattr(type(serde), "dumps_typed", None) is JsonPlusSerializer.dumps_typed


def next_version(current: str | int | float | None) -> str:
    """Return the version that follows, in the stock saver's format: sortable as text, and unique by chance."""
    try:
        number = 0 if current is None else int(current.split(".")[0] if isinstance(current, str) else current)
    except ValueError:
        raise UnreadableValue(f"{short_repr(current)} is no version of a channel; it begins with a number") from None
    return f"{number + 1:032}.{random.random():016}"


def next_config(binds: Binds) -> RunnableConfig:
    """Return the config that names a checkpoint just stored."""
    return _config(cast("Row", Key(binds["thread_id"], binds["checkpoint_ns"], None)), binds["checkpoint_id"])


def is_large(values: Iterable[Any]) -> bool:
    """Guess whether values take long to encode: whether one is a container of many items, or holds one.

    A node may be changing them in another thread, so what is gone through is a copy that is made in one go.
    """
    for value in values:
        if (kind := type(value)) in _CONTAINERS:
            if len(value) > LARGE_ITEMS:
                return True
            for item in list(value.values() if kind is dict else value):
                if type(item) in _CONTAINERS and len(item) > LARGE_ITEMS:
                    return True
    return False


def _merged(config: RunnableConfig, metadata: CheckpointMetadata, place: str) -> CheckpointMetadata:
    """Return metadata with the config's, as LangGraph merges them."""
    try:
        return get_serializable_checkpoint_metadata(config, metadata)
    except Exception as error:
        raise UnstorableValue(
            f"{place}: metadata can't be merged with the config's ({type(error).__name__}: {safe_str(error)}); "
            "both have to be dicts with strings as keys"
        ) from error


def _document(checkpoint: Checkpoint, inline: dict[str, Any], place: str) -> str:
    """Return a checkpoint as JSON text, with these channel values in it."""
    try:
        if any(type(version) is float for version in checkpoint["channel_versions"].values()):
            raise TypeError("JSONB would change some floats, and the blobs of their channels were not found again")
        encoded = jsonb.encode({**checkpoint, "channel_values": inline})
    except TypeError:
        # Rare enough to look at every part only now: it names the one that is no JSON, or makes JSON of it.
        rest: dict[str, Any] = {name: part for name, part in checkpoint.items() if name != "channel_values"}
        encoded = jsonb.text_of(rest, f"{place}: checkpoint")
        try:
            encoded = f'{encoded[:-1]},"channel_values":{jsonb.encode(inline)}}}'
        except TypeError:
            raise UnstorableValue(f"{place}: a channel has a name that PostgreSQL's text can't hold") from None
    if len(encoded) > jsonb.MOST_BYTES:
        raise UnstorableValue(f"{place}: the checkpoint has {len(encoded):,} bytes as JSON; JSONB holds less")
    if "\\u0000" in encoded and "\\u0000" in encoded.replace("\\\\", ""):
        raise UnstorableValue(f"{place}: a name in the checkpoint contains NUL, which PostgreSQL can't hold")
    return encoded


def _kept(checkpoint: Checkpoint, new_versions: ChannelVersions, valued: frozenset[str] | None) -> ChannelVersions:
    """Return the versions of channels that are as they were though they have no value here.

    They are empty, or this step's graph does not know them: then what the parent has inline has to come along.

    Args:
        checkpoint: The checkpoint.
        new_versions: Which channels are not as they were.
        valued: Which channels may have a value in the parent; None for any.
    """
    values = checkpoint["channel_values"]
    return {
        channel: version
        for channel, version in checkpoint["channel_versions"].items()
        if channel not in values and channel not in new_versions and (valued is None or channel in valued)
    }


def _versions_text(versions: ChannelVersions) -> str:
    try:
        return jsonb.encode(versions)
    except TypeError:  # a name or a version is of a class derived from those that are JSON
        return jsonb.text_of(versions, "channel_versions")


def _place(key: Key | Row) -> str:
    return f"thread {short_repr(key.thread_id, 200)}, namespace {short_repr(key.checkpoint_ns, 200)}"


def _config(key: Key | Row, checkpoint_id: str) -> RunnableConfig:
    return {
        "configurable": {
            "thread_id": key.thread_id,
            "checkpoint_ns": key.checkpoint_ns,
            "checkpoint_id": checkpoint_id,
        }
    }


def _zip(*arrays: Sequence[Any] | None) -> Iterable[tuple[Any, ...]]:
    """The rows of parallel arrays, which are None where there is no row."""
    return () if arrays[0] is None else zip(*cast("tuple[Sequence[Any], ...]", arrays), strict=True)
