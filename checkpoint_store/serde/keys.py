"""What a caller names -> the key it is stored under, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from checkpoint_store.errors import InvalidConfig, short_repr
from checkpoint_store.serde.arguments import as_int

KEY_BYTES = 2600
"""How much text the columns of a primary key may hold together, in bytes of UTF-8.

PostgreSQL's index rows end at 2,704 bytes (https://www.postgresql.org/docs/current/btree.html), headers included.
"""


class Key(NamedTuple):
    """What a config names: a checkpoint, or with no `checkpoint_id` the newest of a thread's namespace."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str | None


class Listing(NamedTuple):
    """What a list is to hold; None leaves open."""

    thread_id: str | None
    checkpoint_ns: str | None
    checkpoint_id: str | None
    before: str | None
    filter: str | None
    limit: int | None


def key_of(config: Mapping[str, Any]) -> Key:
    """Return the key that a config names.

    Raises:
        InvalidConfig: If there is no usable thread id, or the namespace or checkpoint id is no usable text.
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
        _checkpoint_id(configurable, "config"),
    )


def listing_of(
    config: Mapping[str, Any] | None, before: Mapping[str, Any] | None, metadata_filter: str | None, limit: int | None
) -> Listing:
    """Return what a list is to hold.

    Args:
        config: Names a thread, and a namespace and checkpoint if it has them; None or `{}` for all threads.
        before: A config with a `checkpoint_id`; the list holds smaller ids only.
        metadata_filter: JSON text of what the metadata must contain.
        limit: How many checkpoints at most.

    Raises:
        InvalidConfig: If any of them can't be used.
    """
    thread = namespace = checkpoint = earlier = None
    if config is not None and not (isinstance(config, Mapping) and not config):
        thread, namespace, checkpoint = key_of(config)
        if config["configurable"].get("checkpoint_ns") is None:
            namespace = None
    if before is not None:
        earlier = _checkpoint_id(_configurable(before, "before"), "before")
        if earlier is None:
            raise InvalidConfig('before["configurable"] has no "checkpoint_id"; it names the checkpoint to list before')
    if limit is not None:
        limit = limit_of(limit, "checkpoints")
    return Listing(thread, namespace, checkpoint, earlier, metadata_filter, limit)


def limit_of(limit: object, things: str) -> int:
    """Return how many things a list is to have at most.

    Raises:
        InvalidConfig: If it is no such number.
    """
    if (found := as_int(limit)) is None or found < 0:
        raise InvalidConfig(f"limit is {short_repr(limit)}; it is a number of {things}, 0 or more, or None for all")
    return found


def copy_of(source: object, target: object) -> tuple[str, str]:
    """Return the ids of a thread that is to be copied and of its copy.

    Raises:
        InvalidConfig: If either can't be a thread id, or both are the same.
    """
    pair = checked_thread_id(source, "source_thread_id"), checked_thread_id(target, "target_thread_id")
    if pair[0] == pair[1]:
        raise InvalidConfig(f"source and target are both the thread {short_repr(pair[0])}; a copy needs another id")
    return pair


def checked_thread_id(value: object, name: str = "thread_id") -> str:
    """Return a thread id if it can be one.

    Raises:
        InvalidConfig: If it is no string, or empty, or not one that PostgreSQL can hold in an index.
    """
    if not issubclass(type(value), str):
        raise InvalidConfig(
            f"{name} is {short_repr(value)} ({type(value).__name__}); thread ids are non-empty strings. Use "
            "str(thread_id)."
        )
    if not (text := plain_text(value, name)):
        raise InvalidConfig(f"{name} is empty; thread ids are non-empty strings")
    return text


def _checkpoint_id(configurable: Mapping[str, Any], name: str) -> str | None:
    """Return the checkpoint id in a config's `configurable`, or None where there is none."""
    value = configurable.get("checkpoint_id")
    return None if value is None else plain_text(value, f'{name}["configurable"]["checkpoint_id"]') or None


def plain_text(value: object, name: str) -> str:
    """Return a string if PostgreSQL's text can hold it.

    Raises:
        InvalidConfig: If it is no string, or too long for any key, or has a NUL or a lone surrogate.
    """
    kind = type(value)
    if not issubclass(kind, str):
        raise InvalidConfig(f"{name} is {short_repr(value)} ({kind.__name__}); it has to be a string")
    text: str = value if kind is str else str.__str__(value)  # type: ignore[assignment]
    try:
        if len(text) * 4 > KEY_BYTES:
            check_key(**{name: text})
        if "\x00" not in text:
            text.encode()
            return text
    except UnicodeEncodeError:
        pass
    raise InvalidConfig(f"{name} is {short_repr(text)}; PostgreSQL's text holds neither NUL nor lone surrogates")


def check_key(**columns: str) -> None:
    """Check that the columns of a primary key fit its index together.

    Raises:
        InvalidConfig: If they don't; the message names the longest.
    """
    if sum(map(len, columns.values())) * 4 <= KEY_BYTES:
        return
    sizes = {name: len(value.encode()) for name, value in columns.items()}
    if sum(sizes.values()) > KEY_BYTES:
        longest = max(sizes, key=sizes.__getitem__)
        raise InvalidConfig(
            f"{longest} {short_repr(columns[longest])} has {sizes[longest]:,} bytes; {', '.join(columns)} may have "
            f"{KEY_BYTES:,} together, which is what PostgreSQL's index holds. Use a shorter one, such as a hash of it."
        )


def _configurable(config: object, name: str) -> Mapping[str, Any]:
    configurable = config.get("configurable") if isinstance(config, Mapping) else None
    if not isinstance(configurable, Mapping):
        raise InvalidConfig(
            f'{name} is a {type(config).__qualname__}; it needs a "configurable" dict, '
            'such as {"configurable": {"thread_id": "1"}}'
        )
    return configurable
