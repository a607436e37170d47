"""The nodes that ran in a step, and those that come next, as channel versions tell without the graph.

A node is due at a checkpoint if a channel that triggers it has a value, and a newer version than the node has seen:
LangGraph's `prepare_next_tasks`. Only the graph knows which channels trigger which nodes. Here the names that a
StateGraph gives its channels tell, and what nodes have seen in other checkpoints of the graph.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from checkpoint_store.cli.safe_decode import Call, safe_decode
from checkpoint_store.serde.records import Summary

UNKNOWN = "(unknown)"
"""Stands for the node of a Send that can't be read: it is large, or encrypted."""

# LangGraph's names (langgraph/_internal/_constants.py, langgraph/graph/state.py).
_START, _SENDS, _BRANCH, _JOIN = "__start__", "__pregel_tasks", "branch:to:", "join:"
_INTERRUPT, _BUMPS = "__interrupt__", "__snapshot_bumps__"
_PULLED, _PUSHED = "~__pregel_pull, ", "~__pregel_push, "

Triggers = Mapping[str, Set[str]]
"""The nodes that a channel triggers, by channel, as far as checkpoints of the graph show it."""


@dataclass(frozen=True)
class Versions:
    """The versions of a checkpoint's channels, those that its nodes have seen, and which channels have a value."""

    current: Mapping[str, Any]
    seen: Mapping[str, Mapping[str, Any]]
    values: Mapping[str, Any]
    """The values of channels that trigger nodes; that of any other channel is None."""
    started: Set[str] = frozenset()
    """The nodes of which tasks have stored writes."""

    @classmethod
    def of(cls, row: Summary) -> Versions:
        """Return the versions in a row."""
        seen = _object(row.seen)
        marks = seen.get(_BUMPS)
        nodes = {node: one for node, one in seen.items() if isinstance(one, dict) and node not in (_INTERRUPT, _BUMPS)}
        if isinstance(marks, dict):
            nodes = {node: dict(_without_bumps(node, one, marks)) for node, one in nodes.items()}
        values: dict[str, Any] = dict.fromkeys(row.inline or ())
        for channel, kind, blob in zip(row.channels or (), row.types or (), row.blobs or (), strict=True):
            is_trigger = channel == _SENDS or channel.startswith((_BRANCH, _JOIN))
            values[channel] = safe_decode(kind, blob) if is_trigger else None
        paths = {path for path in [*(row.begun or ()), *(row.finished or ())] if path.startswith(_PULLED)}
        return cls(_object(row.versions), nodes, values, {path.removeprefix(_PULLED) for path in paths})

    def triggers(self) -> Iterator[tuple[str, str]]:
        """Yield the channels that have triggered a node, and the node."""
        for node, seen in self.seen.items():
            for channel in seen:
                yield channel, node

    @property
    def sends(self) -> list[str]:
        """The nodes of the Sends that are due, in their order."""
        if _SENDS not in self.values:
            return []
        value = self.values[_SENDS]
        return list(map(_node_of, value)) if isinstance(value, list) else [UNKNOWN]

    def due(self, triggers: Triggers, finished: Iterable[str] = ()) -> list[str]:
        """Return the nodes that come next, each as often as it is to run, without the tasks that have finished.

        Args:
            triggers: Which channels trigger which nodes, beside those with the names that a StateGraph gives them.
            finished: The paths of tasks.
        """
        # A Send's path may end with a number that says whether a task has called it.
        done = {path[: len(_PUSHED) + 10] if path.startswith(_PUSHED) else path for path in finished}
        sends = [node for place, node in enumerate(self.sends) if f"{_PUSHED}{place:010}" not in done]
        pulled = {
            node
            for channel, version in self.current.items()
            if self._is_available(channel)
            for node in triggers.get(channel) or self._named(channel)
            if _is_newer(version, self.seen.get(node, {}).get(channel))
        }
        return [*sends, *sorted(node for node in pulled if f"{_PULLED}{node}" not in done)]

    def ran_since(self, parent: Versions | None) -> list[str]:
        """Return the nodes that ran since the parent; without one, those that ran last."""
        if parent is None:
            seen = [(version, node) for node, one in self.seen.items() for version in one.values()]
            newest = max((_order(version) for version, _ in seen), default=None)
            return sorted({node for version, node in seen if _order(version) == newest})
        # A task that a Send or another task has started has seen nothing.
        pulled = [node for node, seen in self.seen.items() if seen and seen != parent.seen.get(node)]
        return [*parent.sends, *sorted(pulled)]

    def _named(self, channel: str) -> Set[str]:
        """Return the node that a channel of a StateGraph triggers by its name; of a workflow the one that has begun."""
        if channel.startswith(_BRANCH):
            return {channel.removeprefix(_BRANCH)}
        if channel.startswith(_JOIN):
            return {channel.rpartition(":")[2]}
        return self.started or {_START} if channel == _START else frozenset()

    def _is_available(self, channel: str) -> bool:
        if channel not in self.values:
            return False
        value = self.values[channel]
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], bool):
            # Of a deferred node, which waits until all others have ended.
            value, is_last = value
            if not is_last:
                return False
        if channel.startswith(_JOIN):
            names = _names(value)
            return len("+".join(names)) == len(channel.removeprefix(_JOIN).rpartition(":")[0])
        return True


def triggers_of(versions: Iterable[Versions]) -> Triggers:
    """Return the nodes that a channel triggers, as checkpoints of one graph show it."""
    found: dict[str, set[str]] = defaultdict(set)
    for one in versions:
        for channel, node in one.triggers():
            found[channel].add(node)
    return found


def described(nodes: Sequence[str]) -> str:
    """Return nodes as text, each once."""
    return ", ".join(node if count == 1 else f"{node} x{count}" for node, count in Counter(nodes).items())


def _object(text: str | None) -> dict[str, Any]:
    found = safe_decode("json", text.encode()) if text else None
    return found if isinstance(found, dict) else {}


def _without_bumps(node: str, seen: Mapping[str, Any], marks: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the versions that a node has read: a snapshot of a DeltaChannel has advanced others, and noted them."""
    for channel, version in seen.items():
        if marks.get(f"{node}|{channel}") != version:
            yield channel, version
        elif f"{node}:{channel}" in marks:
            yield channel, marks[f"{node}:{channel}"]


def _names(value: Any) -> list[str]:
    """Return the names in a set, which `safe_decode` shows as the call that makes it."""
    if isinstance(value, Call) and value.arguments:
        value = value.arguments[0]
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _node_of(send: Any) -> str:
    if isinstance(send, Call):
        keywords = {key: value for key, value in send.keywords if isinstance(key, str)}
        node = send.arguments[0] if send.arguments else keywords.get("node")
        if isinstance(node, str):
            return node
    return UNKNOWN


def _is_newer(version: Any, seen: Any) -> bool:
    return seen is None or _order(version) > _order(seen)


def _order(version: Any) -> tuple[float, str]:
    """Return what versions are ordered by: numbers, or texts that begin with one."""
    is_number = isinstance(version, (int, float)) and not isinstance(version, bool)
    return (version, "") if is_number else (0, str(version))
