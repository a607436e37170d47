"""Decoding of rows into the checkpoints and channel histories that LangGraph expects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata, CheckpointTuple, DeltaChannelHistory, PendingWrite
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.types import TASKS

from checkpoint_store.errors import NotEncrypted, UnreadableValue, safe_str, short_repr
from checkpoint_store.serde import encryption, jsonb, messages
from checkpoint_store.serde.encoder import ValuedChannels
from checkpoint_store.serde.keys import Key, Location, next_version
from checkpoint_store.serde.records import Ancestor, Row, lineage, transposed

LARGE_BYTES = 64 * 1024
"""Rows with more bytes of values are decoded in a worker thread, so that they don't hold up the event loop."""


class Decoder:
    """Decodes with one serializer.

    Args:
        serde: The saver's serializer.
        encrypted_only: Whether stored values in clear are refused.
    """

    def __init__(self, serde: SerializerProtocol, *, encrypted_only: bool = False) -> None:
        self._serde = serde
        self._encrypted_only = encrypted_only
        self._shortens = messages.reads(serde)
        self._binds = not self._shortens and encryption.binding_of(serde) is not None

    def decode_checkpoint(self, row: Row, valued: ValuedChannels | None = None) -> CheckpointTuple:
        """Return a row of `read.checkpoints` as LangGraph expects it, and note in `valued` which channels have values.

        Raises:
            UnreadableValue: If the serializer can't decode a value.
        """
        try:
            found = self._decoded(row, Location(row.thread_id, row.checkpoint_ns, row.checkpoint_id))
        except UnreadableValue as error:
            error.config = cast("dict[str, Any]", _config(row, row.checkpoint_id))
            raise
        if valued is not None:
            valued.note(row, row.checkpoint_id, found.checkpoint["channel_values"])
        return found

    def _decoded(self, row: Row, location: Location) -> CheckpointTuple:
        checkpoint = jsonb.stored_object(row.checkpoint, "the checkpoint", location)
        metadata = jsonb.stored_object(row.metadata, "the metadata", location)
        versions = checkpoint.get("channel_versions")
        values = checkpoint["channel_values"] = checkpoint.get("channel_values") or {}
        if type(versions) is not dict or type(values) is not dict:
            raise _wrong_shape(location)
        if self._encrypted_only:
            for channel in values.keys() - set(row.blob_channels or ()):
                raise _in_clear(location, channel)
        for channel, kind, blob in transposed(row.blob_channels, row.blob_types, row.blobs):
            values[channel] = self._load_value(kind, blob, location, channel, versions.get(channel))
        if row.send_types:
            # Before format 4 LangGraph kept the sends of a step with the parent; it finds them in a channel since.
            at = encryption.of_write(row.checkpoint_ns, row.parent_checkpoint_id, TASKS)
            sends = transposed(row.send_types, row.sends)
            values[TASKS] = [self._load(kind, blob, location, TASKS, at) for kind, blob in sends]
            versions[TASKS] = _newest(versions.values(), location) if versions else next_version(None)
        writes = transposed(row.write_task_ids, row.write_channels, row.write_types, row.writes)
        return CheckpointTuple(
            config=_config(row, row.checkpoint_id),
            checkpoint=cast("Checkpoint", checkpoint),
            metadata=cast("CheckpointMetadata", metadata),
            parent_config=_config(row, row.parent_checkpoint_id) if row.parent_checkpoint_id else None,
            pending_writes=self._load_writes(writes, location),
        )

    def decode_history(
        self, key: Key, channels: Sequence[str], rows: Iterable[Ancestor]
    ) -> dict[str, DeltaChannelHistory]:
        """Return the writes of a checkpoint's ancestors to each channel, oldest first, and the value they began with.

        Raises:
            UnreadableValue: If the serializer can't decode a value.
        """
        history: dict[str, DeltaChannelHistory] = {channel: {"writes": []} for channel in channels}
        for ancestor in lineage(rows):
            location = Location(key.thread_id, key.checkpoint_ns, ancestor.checkpoint_id)
            if not ancestor.sound:
                raise _wrong_shape(location)
            writes = transposed(ancestor.write_task_ids, ancestor.write_channels, ancestor.write_types, ancestor.writes)
            for write in reversed(self._load_writes(writes, location)):
                history[write[1]]["writes"].append(write)
            for channel, seed in self._seeds(ancestor, location):
                history[channel]["seed"] = seed
        for entry in history.values():
            entry["writes"].reverse()
        return history

    def _seeds(self, ancestor: Ancestor, location: Location) -> Iterable[tuple[str, Any]]:
        for channel, version, kind, blob, inline in transposed(
            *(ancestor.value_channels, ancestor.value_versions, ancestor.value_types, ancestor.value_blobs),
            ancestor.value_inlines,
        ):
            # A blob wins over what is inline: that is only the mark of a snapshot then.
            if kind is not None:
                yield channel, self._load_value(kind, blob, location, channel, version)
            elif self._encrypted_only:
                raise _in_clear(location, channel)
            else:
                yield channel, jsonb.stored(inline, f"channel {short_repr(channel)}", location)

    def _load_value(self, kind: str | None, blob: bytes | None, location: Location, channel: str, version: Any) -> Any:
        at = encryption.of_value(location.checkpoint_ns, channel, version) if self._binds else ()
        return self._load(kind, blob, location, channel, at)

    def _load_writes(self, rows: Iterable[tuple[Any, ...]], location: Location) -> list[PendingWrite]:
        thread_id, checkpoint_ns, checkpoint_id, _ = location
        writes = []
        for task_id, channel, kind, blob in rows:
            at = encryption.of_write(checkpoint_ns, checkpoint_id, channel) if self._binds else ()
            of_task = Location(thread_id, checkpoint_ns, checkpoint_id, task_id)
            writes.append((task_id, channel, self._load(kind, blob, of_task, channel, at)))
        return writes

    def _load(
        self, kind: str | None, blob: bytes | None, location: Location, channel: str, at: encryption.Place
    ) -> Any:
        if self._encrypted_only and "+" not in (kind or ""):
            raise _in_clear(location, channel)
        if blob is None and kind != "null":
            raise UnreadableValue(
                f"{location}, channel {short_repr(channel)}: the stored value of type {short_repr(kind)}, or a page of "
                "it, is missing. Rows of checkpoint_pages were deleted, or not restored from a backup."
            )
        try:
            stored = (cast("str", kind), cast("bytes", blob))
            if self._shortens:
                return messages.loads_typed(self._serde, *stored)
            return encryption.loads(self._serde, *stored, at) if self._binds else self._serde.loads_typed(stored)
        except Exception as error:
            raise UnreadableValue(
                f"{location}, channel {short_repr(channel)}: {type(self._serde).__name__} can't decode the stored "
                f"value of type {short_repr(kind)} ({type(error).__name__}: {safe_str(error)}). "
                f"{self._way_out(kind or '')}"
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


def is_large(*arrays: Sequence[bytes | None] | None) -> bool:
    """Return whether blobs take long to decode."""
    return sum(sum(map(len, filter(None, array or ()))) for array in arrays) > LARGE_BYTES


def _in_clear(location: Location, channel: str) -> NotEncrypted:
    return NotEncrypted(
        f"{location}, channel {short_repr(channel)}: the stored value is not encrypted, and require_encryption refuses "
        "it. encryption.reencrypt() encrypts what was stored before; what was stored since was stored in clear."
    )


def _wrong_shape(location: Location) -> UnreadableValue:
    return UnreadableValue(f"{location}: channel_versions and channel_values must be JSON objects")


def _newest(versions: Iterable[Any], location: Location) -> Any:
    try:
        return max(versions)
    except TypeError:
        raise UnreadableValue(f"{location}: channel_versions has both strings and numbers") from None


def _config(row: Row, checkpoint_id: str) -> RunnableConfig:
    ids = {"thread_id": row.thread_id, "checkpoint_ns": row.checkpoint_ns, "checkpoint_id": checkpoint_id}
    return {"configurable": ids}
