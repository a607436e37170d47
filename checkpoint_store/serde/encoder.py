"""Encoding of checkpoints and pending writes into the binds of the statements that store them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from checkpoint_store.errors import InvalidConfig, UnstorableValue, safe_str, short_repr
from checkpoint_store.serde import encryption, jsonb, keys, messages, pages
from checkpoint_store.serde.arguments import as_str, is_mapping
from checkpoint_store.serde.keys import Key, Location, key_of, plain_text
from checkpoint_store.serde.records import Row

Binds = dict[str, Any]

LARGE_ITEMS = 100
"""A container of more items is encoded in a worker thread; a chat message takes some 10 us to encode."""

INLINE_CHARACTERS = 1024 * 1024
"""Longer strings are stored as blobs: inline every step would store them anew, and JSONB's strings end at 256 MB."""

MAX_BYTES = 1_000_000_000
"""The largest size of a call's values together. PostgreSQL's messages, rows and arrays end at 1 GiB, with all that
belongs to them (https://www.postgresql.org/docs/current/limits.html)."""

MAX_THREADS = 1024
"""The number of threads and namespaces of which a saver remembers the channels with values; some 500 bytes each."""

_STRINGS = frozenset({str})

_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})


class EncodedCheckpoint(NamedTuple):
    """A checkpoint that is ready to be stored."""

    binds: Binds
    """Those of `write.put_checkpoint`."""
    has_large: bool
    """Whether a blob is large enough to be cut into pages. An encrypted one never is: nothing of it stays the same."""
    config: RunnableConfig
    """The config that names the checkpoint."""


class ValuedChannels:
    """The channels with a value in the checkpoint that a saver has read or stored last, by thread and namespace.

    Nearly every checkpoint has channels without a value that are as they were: empty ones. That the parent's row has no
    value of them either needs no asking where this saver has just read or stored it, since an id names one content.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[str, frozenset[str]]] = {}

    def of(self, key: Key) -> frozenset[str] | None:
        """Return those of the checkpoint that a key names, or more; None if that is not known."""
        checkpoint_id, channels = self._last.get((key.thread_id, key.checkpoint_ns), (None, None))
        return channels if checkpoint_id == key.checkpoint_id else None

    def note(self, graph: Row | Location, checkpoint_id: str, channels: Iterable[str]) -> None:
        """Remember those of a checkpoint of a thread's namespace."""
        if len(self._last) >= MAX_THREADS:
            self._last.clear()  # at once, since threads share this: what is not known is asked for
        self._last[graph.thread_id, graph.checkpoint_ns] = (checkpoint_id, frozenset(channels))


class Encoder:
    """Encodes with one serializer.

    Args:
        serde: The saver's serializer. Scalars are stored inline, in the clear and searchable, only where the serializer
            is LangGraph's own plain one; one that encrypts or otherwise has its say gets every value.
    """

    def __init__(self, serde: SerializerProtocol) -> None:
        self._serde = serde
        self._inlines = messages.writes(serde)
        self._binds = not self._inlines and encryption.binding_of(serde) is not None

    def encode_checkpoint(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
        valued: ValuedChannels,
    ) -> EncodedCheckpoint:
        """Encode a checkpoint, and those of its values that are new.

        Raises:
            InvalidConfig: If the config or the checkpoint's id can't be a key.
            UnstorableValue: If a value fits neither JSONB nor the serializer.
        """
        _check_shape(config, checkpoint, new_versions)
        thread_id, checkpoint_ns, parent_id = key = key_of(config)
        location = Location(thread_id, checkpoint_ns)
        checkpoint_id = plain_text(checkpoint["id"], 'checkpoint["id"]')
        if not checkpoint_id:
            raise InvalidConfig(f'{location}: checkpoint["id"] is empty; it would name the newest checkpoint')
        ids = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id}
        keys.check_key(ids)
        inline, channels, versions, types, blobs = self._split(checkpoint, new_versions, location)
        kept = _kept(checkpoint, new_versions, valued.of(key)) if parent_id else {}
        merged = _merged(config, metadata, location)
        has_large = _check_sizes(channels, types, blobs, location)
        if not _are_short_ascii(*ids.values(), *channels, *versions):  # as nearly all are: then any key of them fits
            keys.check_blob_keys(location, channels, versions)
        binds = {
            **ids,
            "parent_checkpoint_id": parent_id,
            "checkpoint": jsonb.checkpoint_text(checkpoint, inline, location),
            "metadata": jsonb.text_of(merged, "metadata", location),
            "kept": jsonb.text_of(kept, "channel_versions", location) if kept else None,
            "channels": channels,
            "versions": versions,
            "types": types,
            "blobs": blobs,
        }
        valued.note(location, checkpoint_id, [*checkpoint["channel_values"], *kept])  # nothing refuses it any more
        return EncodedCheckpoint(binds, has_large, {"configurable": ids})

    def encode_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> Binds:
        """Return the binds of `write.put_writes`; of several writes to a special channel the last one counts.

        Special are LangGraph's channels for errors, interrupts and resumes.

        Raises:
            InvalidConfig: If the config names no checkpoint, or the task can't be part of a key.
            UnstorableValue: If the serializer can't hold a value.
        """
        thread_id, checkpoint_ns, checkpoint_id = key_of(config)
        if checkpoint_id is None:
            raise InvalidConfig('config["configurable"] has no "checkpoint_id"; writes belong to a checkpoint')
        task_id, task_path = plain_text(task_id, "task_id"), plain_text(task_path, "task_path")
        task = {
            "thread_id": thread_id,
            "checkpoint_ns": checkpoint_ns,
            "checkpoint_id": checkpoint_id,
            "task_id": task_id,
        }
        keys.check_key(task)
        location = Location(thread_id, checkpoint_ns, None, task_id)
        rows = {}
        for idx, (channel, value) in enumerate(writes):
            at = encryption.of_write(checkpoint_ns, checkpoint_id, channel) if self._binds else ()
            rows[WRITES_IDX_MAP.get(channel, idx)] = (channel, *self._dump(value, location, channel, at))
        # Sorted, so that two writers of the same rows lock them in the same order.
        idxs = sorted(rows)
        channels, types, blobs = [], [], []
        for idx in idxs:
            channel, kind, blob = rows[idx]
            channels.append(channel)
            types.append(kind)
            blobs.append(blob)
        _check_sizes(channels, types, blobs, location)
        if not _are_short_ascii(*channels):
            keys.check_channels(channels, location)
        return {
            **task,
            "task_path": task_path,
            "idxs": idxs,
            "channels": channels,
            "types": types,
            "blobs": blobs,
        }

    def _split(
        self, checkpoint: Checkpoint, new_versions: ChannelVersions, location: Location
    ) -> tuple[dict[str, Any], list[str], list[str], list[str], list[bytes]]:
        """Return the values that are stored inline, and channels, versions, types and bytes of new blobs."""
        values, known = checkpoint["channel_values"], checkpoint["channel_versions"]
        inline: dict[str, Any] = {}
        channels, versions, types, blobs = [], [], [], []
        for name in sorted(values):
            value = values[name]
            channel = name if type(name) is str else as_str(name)
            is_scalar = jsonb.holds(value)
            if is_scalar and self._inlines and not (type(value) is str and len(value) > INLINE_CHARACTERS):
                inline[channel] = jsonb.scalar(value)
                continue
            version = new_versions.get(channel)
            if type(value) is _DeltaSnapshot:
                # The stock saver's mark of a snapshot: it looks for one here before it prunes.
                inline[channel] = True
            elif version is None and channel in known and not is_scalar:
                continue  # unchanged, so stored when it was new
            # A scalar that is unchanged may have been stored inline, by a saver without this serializer.
            version = known.get(channel) if version is None else version
            if version is None:
                raise UnstorableValue(
                    f"{location}, channel {short_repr(channel)}: neither new_versions nor channel_versions has a "
                    "version for it, so nothing could find the value again"
                )
            text = version if type(version) is str else keys.version_text(version, location, channel)
            at = encryption.of_value(location.checkpoint_ns, channel, text) if self._binds else ()
            kind, blob = self._dump(value, location, channel, at)
            channels.append(channel)
            versions.append(text)
            types.append(kind)
            blobs.append(blob)
        return inline, channels, versions, types, blobs

    def _dump(self, value: Any, location: Location, channel: str, at: encryption.Place) -> tuple[str, bytes]:
        try:
            if self._inlines:
                kind, blob = messages.dumps_typed(self._serde, value)
            elif self._binds:
                kind, blob = encryption.dumps(self._serde, value, at)
            else:
                kind, blob = self._serde.dumps_typed(value)
        except Exception as error:
            raise UnstorableValue(
                f"{location}, channel {short_repr(channel)}: {type(value).__name__} is not serializable by "
                f"{type(self._serde).__name__} ({safe_str(error)}). Store a plain value, or pass a serializer that "
                "takes it, such as serde=JsonPlusSerializer(pickle_fallback=True)."
            ) from error
        return kind, blob if type(blob) is bytes else bytes(blob)


def pairs_of(writes: object) -> list[tuple[str, Any]]:
    """Return a caller's writes as pairs of channel and value.

    Raises:
        UnstorableValue: If they are not pairs.
    """
    if isinstance(writes, (list, tuple)):
        pairs: Sequence[Any] = writes
    elif isinstance(writes, Iterable) and not isinstance(writes, str):
        pairs = keys.members_of(writes, "writes", UnstorableValue)
    else:
        pairs = [writes]
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UnstorableValue(
                f"writes must be pairs of a channel's name and a value; a {type(pair).__qualname__} among them is not"
            )
    # A node may name its channels by members of an enum, which are strings with a hash of their own.
    return [pair if type(pair[0]) is str else (as_str(pair[0]), pair[1]) for pair in pairs]


def takes_long(values: Iterable[Any]) -> bool:
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


def values_of(checkpoint: object) -> Iterable[Any]:
    """Return the channel values of a caller's checkpoint, none if it is not one."""
    values = checkpoint.get("channel_values") if is_mapping(checkpoint) else None
    return values.values() if is_mapping(values) else ()


def _check_shape(config: RunnableConfig, checkpoint: object, new_versions: object) -> None:
    """Check that a caller's checkpoint is one, before anything in it is looked at."""
    wrong = ""
    if not is_mapping(checkpoint) or "id" not in checkpoint:
        wrong = f"checkpoint must be a dict with an id, not a {type(checkpoint).__qualname__}"
    elif not is_mapping(new_versions):
        wrong = f"new_versions must be a dict by channel, not a {type(new_versions).__qualname__}"
    else:
        for name in ("channel_values", "channel_versions"):
            if not is_mapping(part := checkpoint.get(name)):
                wrong = f"checkpoint[{name!r}] must be a dict by channel, not a {type(part).__qualname__}"
            elif not _STRINGS.issuperset(map(type, part)) and (
                odd := [one for one in part if not isinstance(one, str)]
            ):
                wrong = f"checkpoint[{name!r}] must have strings as keys, not {short_repr(odd[0])}"
    if wrong:
        key = key_of(config)  # if that can't be used either, it is the config's error that is raised
        raise UnstorableValue(f"{Location(key.thread_id, key.checkpoint_ns)}: {wrong}")


def _check_sizes(channels: Sequence[str], types: Sequence[str], blobs: Sequence[bytes], location: Location) -> bool:
    """Check that blobs can be sent and stored together. Returns whether one is large enough to be cut into pages.

    Raises:
        UnstorableValue: If they can't; names the channel of the largest.
    """
    size = sum(map(len, blobs))
    if size > MAX_BYTES:
        largest, channel = max(zip(map(len, blobs), channels, strict=True))
        raise UnstorableValue(
            f"{location}, channel {short_repr(channel)}: its value has {largest:,} bytes, and all that is to be stored "
            f"at once {size:,}; PostgreSQL takes {MAX_BYTES:,}. Store it elsewhere, and in the channel where it is."
        )
    return size >= pages.LARGE_BYTES and any(map(pages.is_large, types, blobs))


def _are_short_ascii(*texts: str) -> bool:
    joined = "".join(texts)
    return len(joined) <= keys.KEY_BYTES and joined.isascii() and "\x00" not in joined


def _merged(config: RunnableConfig, metadata: CheckpointMetadata, location: Location) -> CheckpointMetadata:
    """Return metadata with the config's, as LangGraph merges them."""
    try:
        return get_serializable_checkpoint_metadata(config, metadata)
    except Exception as error:
        raise UnstorableValue(
            f"{location}: metadata can't be merged with the config's ({type(error).__name__}: {safe_str(error)}); "
            "both must be dicts with strings as keys"
        ) from error


def _kept(checkpoint: Checkpoint, new_versions: ChannelVersions, valued: frozenset[str] | None) -> ChannelVersions:
    """Return the versions of channels that are as they were though they have no value here.

    They are empty, or this step's graph does not know them: then what the parent has inline has to come along.

    Args:
        checkpoint: The checkpoint.
        new_versions: The versions of channels that are not as they were.
        valued: The channels that may have a value in the parent; None for any.
    """
    values = checkpoint["channel_values"]
    return {
        channel: version
        for channel, version in checkpoint["channel_versions"].items()
        if channel not in values and channel not in new_versions and (valued is None or channel in valued)
    }
