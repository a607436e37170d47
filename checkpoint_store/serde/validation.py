"""What comes from callers, or from rows that anybody may have written: is it what it should be; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from checkpoint_store.errors import (
    CheckpointStoreError,
    InvalidConfig,
    UnreadableValue,
    UnstorableValue,
    safe_str,
    short_repr,
)
from checkpoint_store.serde import jsonb
from checkpoint_store.serde.keys import plain_text

MOST_BYTES = 1_000_000_000
"""How many bytes of values a call may store. PostgreSQL's messages, rows and arrays end at 1 GiB, with all that belongs
to them (https://www.postgresql.org/docs/current/limits.html)."""


def check_checkpoint(checkpoint: object, new_versions: object, place: str) -> None:
    """Check that a caller's checkpoint is one, before it is asked for its parts.

    Raises:
        UnstorableValue: If it is none.
    """
    if not isinstance(checkpoint, Mapping) or "id" not in checkpoint:
        raise UnstorableValue(f"{place}: checkpoint is no dict with an id ({type(checkpoint).__qualname__})")
    for name in ("channel_values", "channel_versions"):
        if not isinstance(part := checkpoint.get(name), Mapping):
            raise UnstorableValue(f"{place}: checkpoint[{name!r}] is no dict by channel ({type(part).__qualname__})")
        if odd := [channel for channel in part if not issubclass(type(channel), str)]:
            raise UnstorableValue(
                f"{place}: checkpoint[{name!r}] has the key {short_repr(odd[0])}; channels have names"
            )
    if not isinstance(new_versions, Mapping):
        raise UnstorableValue(f"{place}: new_versions is no dict by channel ({type(new_versions).__qualname__})")


def check_size(blobs: Sequence[tuple[str, bytes]], place: str) -> None:
    """Check that values, by channel, can be sent and stored together.

    Raises:
        UnstorableValue: If they can't; names the channel of the largest.
    """
    size = sum([len(blob) for _, blob in blobs])
    if size > MOST_BYTES:
        channel, largest = max(blobs, key=lambda blob: len(blob[1]))
        raise UnstorableValue(
            f"{place}, channel {short_repr(channel)}: its value has {len(largest):,} bytes, and all that is to be "
            f"stored at once {size:,}; PostgreSQL takes {MOST_BYTES:,}. Store it elsewhere, and in the channel where "
            "it is."
        )


def values_of(checkpoint: object) -> Iterable[Any]:
    """Return the channel values of what should be a checkpoint."""
    values = checkpoint.get("channel_values") if isinstance(checkpoint, Mapping) else None
    return values.values() if isinstance(values, Mapping) else ()


def pairs_of(writes: object) -> list[Any]:
    """Return what should be writes as pairs of channel and value.

    Raises:
        UnstorableValue: If they are none.
    """
    if isinstance(writes, Iterable) and not isinstance(writes, str):
        pairs = members_of(writes, "writes", UnstorableValue)
    else:
        pairs = [writes]
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not issubclass(type(pair[0]), str):
            raise UnstorableValue(
                f"writes have a {type(pair).__qualname__} among them that is no pair of a channel's name and a value"
            )
    # A node may name its channels by members of an enum, which are strings with a hash of their own.
    return [pair if type(pair[0]) is str else (str.__str__(pair[0]), pair[1]) for pair in pairs]


def names_of(channels: object) -> list[str]:
    """Return what should be the names of channels.

    Raises:
        InvalidConfig: If they are none.
    """
    if not isinstance(channels, Iterable) or isinstance(channels, str):
        raise InvalidConfig(f"channels are {short_repr(channels)}; pass a list of names")
    return [plain_text(channel, "channel") for channel in members_of(channels, "channels", InvalidConfig)]


def members_of(values: Iterable[Any], name: str, refusal: type[CheckpointStoreError]) -> list[Any]:
    """Return what a caller's iterable has in it, which it may refuse to tell.

    Raises:
        CheckpointStoreError: A `refusal`, if it raises; what it raised is the cause.
    """
    try:
        return list(values)
    except Exception as error:
        kind, raised = type(values).__qualname__, type(error).__qualname__
        raise refusal(f"{name}: a {kind} that raises {raised} when it is gone through; pass a list") from error


def version_text(version: object, place: str, channel: str) -> str:
    """Return a version as PostgreSQL's jsonb_each_text() will return it from the checkpoint.

    Raises:
        InvalidConfig: If it is a string that can't be a key.
        UnstorableValue: If it is neither a string nor a number.
    """
    if issubclass(type(version), str):
        return plain_text(version, "version")
    if not issubclass(type(version), (int, float)):
        raise UnstorableValue(
            f"{place}, channel {short_repr(channel)}: its version is {short_repr(version)}; versions are strings or "
            "numbers"
        )
    return jsonb.text_of(version, "version")


def newest(versions: Iterable[Any], place: str) -> Any:
    """Return the highest of a stored checkpoint's versions.

    Raises:
        UnreadableValue: If they can't be compared.
    """
    try:
        return max(versions)
    except TypeError:
        raise UnreadableValue(f"{place}: channel_versions has both strings and numbers") from None


def stored_json(text: str | None, what: str) -> Any:
    """Return the value of JSON text from a row.

    Raises:
        UnreadableValue: If Python can't hold it.
    """
    try:
        return jsonb.decode(text or "")
    except (ValueError, RecursionError) as error:
        raise UnreadableValue(
            f"{what} is JSON that Python can't hold ({type(error).__name__}: {safe_str(error)})"
        ) from error


def stored_members(text: str, what: str) -> dict[str, Any]:
    """Return the JSON object in a row.

    Raises:
        UnreadableValue: If it is something else.
    """
    if type(members := stored_json(text, what)) is not dict:
        raise UnreadableValue(f"{what} must be a JSON object, not a {type(members).__name__}")
    return members
