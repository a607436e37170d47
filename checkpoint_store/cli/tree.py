"""A thread's history as a tree: a line for each checkpoint, oldest first; forks branch off, subgraphs stand within."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from checkpoint_store.cli.clean import clean, counted, moment, short, size
from checkpoint_store.cli.safe_decode import inert
from checkpoint_store.sql.history import ERROR, INTERRUPT
from checkpoint_store.storage.thread_list import time_of

Key = tuple[str, str]
"""Namespace and id."""


@dataclass(frozen=True)
class Entry:
    """A checkpoint in a history."""

    namespace: str
    checkpoint_id: str
    parent_id: str | None
    metadata: dict[str, Any]
    added: int
    """How many bytes came with it."""
    tasks: int
    """How many tasks have stored writes after it."""
    marks: Sequence[str]
    """LangGraph's channels of questions and errors that those wrote to."""

    @classmethod
    def of(cls, row: Sequence[Any]) -> Entry:
        """Return a row of `statements.history`."""
        namespace, checkpoint_id, parent_id, metadata, added, tasks, marks = row
        found = inert("json", metadata.encode())
        return cls(
            namespace,
            checkpoint_id,
            parent_id,
            found if isinstance(found, dict) else {},
            added,
            tasks,
            sorted(marks or ()),
        )

    @property
    def key(self) -> Key:
        """What it is stored under."""
        return self.namespace, self.checkpoint_id

    @property
    def time(self) -> datetime | None:
        """When it was made."""
        return time_of(self.checkpoint_id)


class _Line(NamedTuple):
    """Something that is still to be drawn."""

    first: str
    """What stands in front of it."""
    rest: str
    """What stands in front of what follows it."""
    what: Entry | str
    """A checkpoint, or the title of a subgraph's."""


def drawn(entries: Sequence[Entry]) -> list[str]:
    """Return the lines of a tree, whatever the parents say: each checkpoint has one line."""
    newest = max((entry.checkpoint_id for entry in entries if not entry.namespace), default=None)
    parents = {(entry.namespace, entry.parent_id) for entry in entries}
    left, right = [], []
    for line in _walk(sorted(entries, key=lambda entry: (entry.checkpoint_id, entry.namespace))):
        entry = line.what
        if isinstance(entry, str):
            left.append(f"{line.first}{clean(entry)}")
            right.append("")
            continue
        step, source = entry.metadata.get("step", "?"), entry.metadata.get("source", "?")
        left.append(f"{line.first}{clean(f'{step!s:>2} {source!s:<6}')}")
        notes = []
        if entry.parent_id is not None and line.first.endswith("(...) "):
            notes.append("its parent is not stored")
        if INTERRUPT in entry.marks:
            notes.append("interrupt")
        if ERROR in entry.marks:
            notes.append("error")
        if entry.tasks and entry.key not in parents:
            notes.append(f"waiting: writes of {counted(entry.tasks, 'task')}")
        if entry.key == ("", newest):
            notes.append("latest")
        cells = (short(entry.checkpoint_id), f"{moment(entry.time, precise=True):>23}", f"{size(entry.added):>9}")
        right.append("  ".join([*cells, ", ".join(notes)]).rstrip())
    width = max(map(len, left), default=0)
    return [f"{one.ljust(width)}  {other}".rstrip() for one, other in zip(left, right, strict=True)]


def _walk(entries: Sequence[Entry]) -> Iterator[_Line]:
    """Yield the checkpoints in the order of the tree, without recursion: a thread may be ten thousand steps long."""
    stored = {entry.key: entry for entry in entries}
    children: dict[Key, list[Entry]] = defaultdict(list)
    subgraphs: dict[Key, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    roots: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        parent = (entry.namespace, entry.parent_id or "")
        if entry.parent_id and parent in stored and parent != entry.key:
            children[parent].append(entry)
        elif (host := _host(entry, stored)) is not None:
            subgraphs[host][entry.namespace].append(entry)
        else:
            roots[entry.namespace].append(entry)

    drawn: set[Key] = set()
    waiting: list[_Line] = []

    def grow(entries: Sequence[Entry], namespace: str) -> Iterator[_Line]:
        waiting.extend(_Line("", "", entry) for entry in reversed(entries))
        if namespace:
            yield _Line("", "", _title(namespace))
        while waiting:
            line = waiting.pop()
            if isinstance(line.what, str):
                yield line
                continue
            entry = line.what
            if entry.key in drawn:
                continue
            drawn.add(entry.key)
            lost = "(...) " if entry.parent_id and (entry.namespace, entry.parent_id) not in stored else ""
            yield line._replace(first=line.first + lost)
            heirs = children[entry.key]
            below: list[_Line] = []
            inside = line.rest + ("│ " if heirs else "  ")
            for name, inner in sorted(subgraphs[entry.key].items(), key=lambda item: item[1][0].checkpoint_id):
                below.append(_Line(inside, inside, _title(name)))
                below += [_Line(inside, inside, one) for one in inner]
            for number, heir in enumerate(heirs):
                if len(heirs) == 1:
                    below.append(_Line(line.rest, line.rest, heir))
                elif number < len(heirs) - 1:
                    below.append(_Line(f"{line.rest}├─", f"{line.rest}│ ", heir))
                else:
                    below.append(_Line(f"{line.rest}└─", f"{line.rest}  ", heir))
            waiting.extend(reversed(below))

    for namespace in sorted(roots):
        yield from grow(roots[namespace], namespace)
    # Parents that form a cycle have no root.
    for entry in entries:
        if entry.key not in drawn:
            yield from grow([entry], entry.namespace)


def _host(entry: Entry, stored: dict[Key, Entry]) -> Key | None:
    """Return the checkpoint within whose step a subgraph's first checkpoint was made, if that is stored."""
    parents = entry.metadata.get("parents")
    if not entry.namespace or not isinstance(parents, dict):
        return None
    outer = entry.namespace.rpartition("|")[0]
    host = (outer, str(parents.get(outer)))
    return host if host in stored and host != entry.key else None


def _title(namespace: str) -> str:
    """Return the name of a subgraph's node, and how its task's id begins."""
    node, _, task = namespace.rpartition("|")[2].partition(":")
    return f"{node} ({task[:8]})" if task else node
