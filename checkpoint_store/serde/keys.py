"""Keys that rows are stored under: read from a caller's config, checked before any work, and named in messages."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from checkpoint_store.errors import CheckpointStoreError, InvalidConfig, UnreadableValue, UnstorableValue, short_repr
from checkpoint_store.serde import jsonb
from checkpoint_store.serde.arguments import as_int, as_str, is_mapping

KEY_BYTES = 2600
"""The largest size of the columns of a primary key together, in bytes of UTF-8.

PostgreSQL's index rows end at 2,704 bytes (https://www.postgresql.org/docs/current/btree.html), headers included.
"""


class Key(NamedTuple):
    """The name of a checkpoint, or with no `checkpoint_id` of the newest in a thread's namespace."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str | None


class Listing(NamedTuple):
    """The conditions of a list of checkpoints; None sets none."""

    thread_id: str | None
    checkpoint_ns: str | None
    checkpoint_id: str | None
    before: str | None
    filter: str | None
    limit: int | None


class Location(NamedTuple):
    """A thread's namespace, perhaps with a checkpoint and a task; as text it is the beginning of a message."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str | None = None
    task_id: str | None = None

    def __str__(self) -> str:
        names = ("thread", "namespace", "checkpoint", "task")
        parts = zip(names, self, strict=True)
        return ", ".join(f"{name} {short_repr(value, 200)}" for name, value in parts if value is not None)


def key_of(config: Mapping[str, Any]) -> Key:
    """Return the key that a config names.

    Raises:
        InvalidConfig: If there is no usable thread id, or the namespace or checkpoint id is not usable text.
    """
    configurable = _configurable(config, "config")
    if "thread_id" not in configurable:
        raise InvalidConfig(
            'config["configurable"] has no "thread_id". Pass config={"configurable": {"thread_id": "..."}}.'
        )
    namespace = configurable.get("checkpoint_ns")
    return Key(
        checked_thread_id(configurable["thread_id"], 'config["configurable"]["thread_id"]'),
        "" if namespace is None else plain_text(namespace, 'config["configurable"]["checkpoint_ns"]'),
        _checkpoint_id(configurable, 'config["configurable"]["checkpoint_id"]'),
    )


def listing_of(
    config: Mapping[str, Any] | None, before: Mapping[str, Any] | None, metadata_filter: str | None, limit: int | None
) -> Listing:
    """Return the conditions of a list.

    Args:
        config: Names a thread, and a namespace and checkpoint if it has them; None or `{}` for all threads.
        before: A config with a `checkpoint_id`; the list holds smaller ids only.
        metadata_filter: JSON text that the metadata must contain.
        limit: The largest number of checkpoints.

    Raises:
        InvalidConfig: If any of them can't be used.
    """
    thread = namespace = checkpoint = earlier = None
    if config is not None and not (is_mapping(config) and not config):
        thread, namespace, checkpoint = key_of(config)
        if config["configurable"].get("checkpoint_ns") is None:
            namespace = None
    if before is not None:
        earlier = _checkpoint_id(_configurable(before, "before"), 'before["configurable"]["checkpoint_id"]')
        if earlier is None:
            raise InvalidConfig('before["configurable"] has no "checkpoint_id"; it names the checkpoint to list before')
    if limit is not None:
        limit = limit_of(limit, "checkpoints")
    return Listing(thread, namespace, checkpoint, earlier, metadata_filter, limit)


def limit_of(limit: object, things: str) -> int:
    """Return the largest number of things in a list.

    Raises:
        InvalidConfig: If it is not such a number.
    """
    if (found := as_int(limit)) is None or found < 0:
        raise InvalidConfig(f"limit must be a number of {things}, 0 or more, or None for all, not {short_repr(limit)}")
    return found


def copy_of(source: object, target: object) -> tuple[str, str]:
    """Return the ids of a thread to copy and of its copy.

    Raises:
        InvalidConfig: If either can't be a thread id, or both are the same.
    """
    pair = checked_thread_id(source, "source_thread_id"), checked_thread_id(target, "target_thread_id")
    if pair[0] == pair[1]:
        raise InvalidConfig(f"source and target are both the thread {short_repr(pair[0])}; a copy needs another id")
    return pair


def checked_thread_id(value: object, name: str = "thread_id") -> str:
    """Return a thread id as plain text.

    Raises:
        InvalidConfig: If it is not a string, or empty, or not one that PostgreSQL can hold in an index.
    """
    if not isinstance(value, str):
        kind = type(value).__name__
        raise InvalidConfig(f"{name} must be a non-empty string, not {short_repr(value)} ({kind}). Use str(thread_id).")
    if not (text := plain_text(value, name)):
        raise InvalidConfig(f"{name} is empty; it must be a non-empty string")
    return text


def _checkpoint_id(configurable: Mapping[str, Any], name: str) -> str | None:
    value = configurable.get("checkpoint_id")
    return None if value is None else plain_text(value, name) or None


def plain_text(value: object, name: str) -> str:
    """Return a string that PostgreSQL's text can hold, of a `str` Enum the member's value.

    Raises:
        InvalidConfig: If it is not a string, or too long for any key, or has a NUL or a lone surrogate.
    """
    if type(value) is str and value.isascii() and "\x00" not in value and len(value) <= KEY_BYTES:
        return value  # as nearly all are
    if not isinstance(value, str):
        raise InvalidConfig(f"{name} must be a string, not {short_repr(value)} ({type(value).__name__})")
    text = as_str(value)
    if len(text) * 4 > KEY_BYTES:
        check_key({name: text})
    if not _is_text(text):
        raise InvalidConfig(f"{name} is {short_repr(text)}; PostgreSQL's text holds neither NUL nor lone surrogates")
    return text


def texts_of(values: object, name: str, item: str = "an id") -> list[str]:
    """Return a caller's list of strings as plain text, each of them once; `item` names one in messages.

    Raises:
        InvalidConfig: If it is not a list, or one of them can't be text of PostgreSQL's.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        shown = short_repr(values)
        raise InvalidConfig(f"{name} must be a list, such as [{shown}], not {shown}")
    members = members_of(values, name, InvalidConfig)
    return list(dict.fromkeys(plain_text(member, f"{item} in {name}") for member in members))


def members_of(values: Iterable[Any], name: str, refusal: type[CheckpointStoreError]) -> list[Any]:
    """Return the members of a caller's iterable, which may raise anything.

    Raises:
        CheckpointStoreError: A `refusal`, if it raises; the cause is its exception.
    """
    try:
        return list(values)
    except Exception as error:
        kind, raised = type(values).__qualname__, type(error).__qualname__
        raise refusal(f"{name} must be a list; this {kind} raises {raised} when it is iterated over") from error


def check_key(columns: Mapping[str, str]) -> None:
    """Check that the columns of a primary key fit its index together.

    Raises:
        InvalidConfig: If they don't; the message names the longest.
    """
    if len("".join(columns.values())) * 4 <= KEY_BYTES:
        return
    sizes = {name: len(value.encode(errors="surrogatepass")) for name, value in columns.items()}
    if sum(sizes.values()) > KEY_BYTES:
        longest = max(sizes, key=sizes.__getitem__)
        raise InvalidConfig(
            f"{longest} {short_repr(columns[longest])} has {sizes[longest]:,} bytes; {', '.join(columns)} may have "
            f"{KEY_BYTES:,} together, which is what PostgreSQL's index holds. Use a shorter one, such as a hash of it."
        )


def check_channels(channels: Iterable[str], location: object) -> None:
    """Check that PostgreSQL's text can hold the names of channels.

    Raises:
        UnstorableValue: If it can't hold one of them.
    """
    for channel in channels:
        if not _is_text(channel):
            raise UnstorableValue(
                f"{location}: channel {short_repr(channel)} has a name that PostgreSQL's text can't hold"
            )


def check_blob_keys(location: Location, channels: Sequence[str], versions: Sequence[str]) -> None:
    """Check that blobs, by channel and version, fit the index of their table.

    Raises:
        InvalidConfig: If one doesn't, or a version can't be text of PostgreSQL's.
        UnstorableValue: If a channel's name can't be.
    """
    check_channels(channels, location)
    thread_id, checkpoint_ns, *_ = location
    for channel, version in zip(channels, versions, strict=True):
        plain_text(version, "version")
        ids = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns}
        check_key({**ids, "channel": channel, "version": version})


def version_text(version: object, location: object, channel: str) -> str:
    """Return a channel's version as PostgreSQL's jsonb_each_text() will return it from the checkpoint.

    Raises:
        InvalidConfig: If it is a string that can't be part of a key.
        UnstorableValue: If it is neither a string nor a number.
    """
    if isinstance(version, str):
        return plain_text(version, "version")
    if not isinstance(version, (int, float)):
        raise UnstorableValue(
            f"{location}, channel {short_repr(channel)}: its version must be a string or a number, not "
            f"{short_repr(version)}"
        )
    return jsonb.text_of(version, "version")


def next_version(current: str | int | float | None) -> str:
    """Return the version that follows, in the stock saver's format: sortable as text, and unique by chance."""
    try:
        number = 0 if current is None else int(current.split(".")[0] if isinstance(current, str) else current)
    except ValueError:
        raise UnreadableValue(
            f"{short_repr(current)} is not a channel's version: it must begin with a number"
        ) from None
    return f"{number + 1:032}.{random.random():016}"


def _is_text(text: str) -> bool:
    return "\x00" not in text and (text.isascii() or jsonb.is_text(text))


def _configurable(config: object, name: str) -> Mapping[str, Any]:
    configurable = config.get("configurable") if is_mapping(config) else None
    if not is_mapping(configurable):
        raise InvalidConfig(
            f'{name} must have a "configurable" dict, such as {{"configurable": {{"thread_id": "1"}}}}; it is a '
            f"{type(config).__qualname__}"
        )
    return configurable
