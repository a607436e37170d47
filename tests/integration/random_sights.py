"""What is seen of a random program: states, tuples, results and errors as plain values that can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langgraph.types import Interrupt

LEFT_OUT = {"ts", "timestamp", "created_at", "__pregel_checkpointer"}
VERSIONS = {"channel_versions", "versions_seen"}
JSON = {"config", "parent_config", "metadata"}
LONG = 50
"""A list of so many elements is seen as its text, which is quicker and tells their types too."""
CHANNELS = {"checkpoint", "channel_values", "values"}


def seen(value: Any, name: Any = None, *, in_order: bool = True) -> Any:
    """A value with its types told and without times; the order of keys counts in values only."""
    if name in VERSIONS:
        return _numbered(value)
    if isinstance(value, BaseException):
        return [type(value).__name__, str(value)]
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return [("type", type(value).__name__), *seen(value._asdict())]
    if isinstance(value, Mapping):
        in_order = in_order and name not in JSON
        parts = [(key, seen(each, key, in_order=in_order)) for key, each in value.items() if key not in LEFT_OUT]
        return parts if in_order and name not in CHANNELS else sorted(parts, key=repr)
    if isinstance(value, (list, tuple)) and (len(value) < LONG or hasattr(value[0], "_asdict")):
        parts = [seen(each, in_order=in_order) for each in value]
        # Interrupts are in the order in which tasks have ended.
        are_asked = name == "interrupts" or any(isinstance(each, Interrupt) for each in value)
        return [type(value).__name__, *(sorted(parts, key=repr) if are_asked else parts)]
    return repr(value)


def _numbered(versions: Any) -> Any:
    """Versions as their numbers: what follows the point is random."""
    if isinstance(versions, Mapping):
        return {name: _numbered(each) for name, each in sorted(versions.items())}
    return int(versions.split(".")[0]) if isinstance(versions, str) else repr(versions)


def first_difference(left: Any, right: Any, path: str = "") -> str | None:
    """Where two things that were seen differ first, and how."""
    if left == right:
        return None
    if not (isinstance(left, list) and isinstance(right, list)):
        return f"{path}:\n  model {shortly(left)}\n  ours  {shortly(right)}"
    one, other = (dict(side) if is_of_pairs(side) else dict(enumerate(side)) for side in (left, right))
    if one.keys() != other.keys():
        only = [
            shortly({key: side[key] for key in side if key not in less}) for side, less in ((one, other), (other, one))
        ]
        return f"{path}:\n  only model {only[0]}\n  only ours  {only[1]}"
    for key in one:
        if found := first_difference(one[key], other[key], f"{path}[{key}]"):
            return found
    return f"{path}: in another order\n  model {shortly([*one])}\n  ours  {shortly([*other])}"


def is_of_pairs(value: list[Any]) -> bool:
    keys = [repr(each[0]) for each in value if isinstance(each, tuple) and len(each) == 2]
    return len(keys) == len(value) == len(set(keys))


def shortly(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 400 else f"{text[:250]} ... {text[-100:]}"
