"""The command `history`: a thread's checkpoints as a tree, with forks to the side and subgraphs inside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import typer

from checkpoint_store.cli import output, values
from checkpoint_store.cli.connection import UNLIMITED, Json, Schema, Thread, Url, looking
from checkpoint_store.cli.safe_decode import safe_decode
from checkpoint_store.cli.text import counted, moment, printable, short_id, size
from checkpoint_store.serde.keys import checked_thread_id
from checkpoint_store.storage.checkpoint_time import time_of

INTERRUPT, ERROR = "__interrupt__", "__error__"  # as in sql/history.py
Key = tuple[str, str]
"""Namespace and checkpoint id."""


def history(
    thread: Thread,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=0, help="How many checkpoints, the newest; 0 for all.")
    ] = 200,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Draw a thread's checkpoints as a tree.

    The oldest come first; forks branch off, subgraphs stand within the step that ran them. A line has the step, what
    made it (input, loop, update, fork), how its id begins, its time in UTC, and how many bytes came with it: its new
    values, as far as they share nothing with its parent's, and what its tasks wrote.

    \b
    Example:
      checkpoint-store history user-42
    """
    from checkpoint_store.storage.read import history as history_rows
    from checkpoint_store.storage.refusals import not_found

    checked_thread_id(thread, "THREAD")
    # One more than the limit, to know if there are more.
    read = limit + 1 if limit else UNLIMITED
    rows = looking(url, schema, lambda backend: backend.run(history_rows, thread, read))
    if not rows:
        raise not_found(thread)
    entries = [Entry.of(row) for row in rows[: limit or None]]
    complete = len(entries) == len(rows)
    if as_json:
        documents = [entry.document() for entry in entries]
        output.document({"thread_id": thread, "checkpoints": documents, "complete": complete})
        return
    graphs = counted(len({entry.namespace for entry in entries}), "namespace")
    added = size(sum(entry.added for entry in entries))
    output.line(f"{thread}: {counted(len(entries), 'checkpoint')} in {graphs}, {added}", "bold")
    for line in draw(entries):
        output.line(line)
    if not complete:
        output.note(f"older ones are left out: --limit {limit * 10}, or --limit 0 for all")


@dataclass(frozen=True)
class Entry:
    """A checkpoint in a history."""

    namespace: str
    checkpoint_id: str
    parent_id: str | None
    metadata: dict[str, Any]
    added: int
    """The bytes that came with it."""
    tasks: int
    """The number of tasks with pending writes."""
    marks: Sequence[str]
    """LangGraph's channels for interrupts and errors among those writes."""

    @classmethod
    def of(cls, row: Sequence[Any]) -> Entry:
        """Return the entry of a row of `statements.history`."""
        namespace, checkpoint_id, parent_id, metadata, added, tasks, marks = row
        decoded = safe_decode("json", metadata.encode())
        known = decoded if isinstance(decoded, dict) else {}
        return cls(namespace, checkpoint_id, parent_id, known, added, tasks, sorted(marks or ()))

    @property
    def key(self) -> Key:
        """Its namespace and id."""
        return self.namespace, self.checkpoint_id

    @property
    def parent(self) -> Key | None:
        """The namespace and id of its parent, if it has one."""
        return (self.namespace, self.parent_id) if self.parent_id else None

    @property
    def time(self) -> datetime | None:
        """The time in its id, if there is one."""
        return time_of(self.checkpoint_id)

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "checkpoint_ns": self.namespace,
            "checkpoint_id": self.checkpoint_id,
            "parent_checkpoint_id": self.parent_id,
            "time": self.time,
            "metadata": values.as_json(self.metadata),
            "bytes_added": self.added,
            "tasks": self.tasks,
            "interrupted": INTERRUPT in self.marks,
            "failed": ERROR in self.marks,
        }


class _Line(NamedTuple):
    """A line to be drawn."""

    start: str
    """The branches before it."""
    rest: str
    """The branches before the lines below it."""
    content: Entry | str
    """A checkpoint, or the title of a subgraph."""


def draw(entries: Sequence[Entry]) -> list[str]:
    """Return the lines of a tree, with one for each checkpoint, whatever the parents are."""
    newest = max((entry.checkpoint_id for entry in entries if not entry.namespace), default=None)
    parents = {entry.parent for entry in entries}
    stored = {entry.key for entry in entries}
    left, right = [], []
    for start, _, entry in _Tree(entries).lines():
        if isinstance(entry, str):
            left.append(f"{start}{printable(entry)}")
            right.append("")
            continue
        step, source = entry.metadata.get("step", "?"), entry.metadata.get("source", "?")
        is_cut = entry.parent is not None and entry.parent not in stored
        left.append(f"{start}{'(...) ' if is_cut else ''}{printable(f'{step!s:>2} {source!s:<6}')}")
        notes = {
            "its parent is not stored": is_cut,
            "interrupt": INTERRUPT in entry.marks,
            "error": ERROR in entry.marks,
            f"waiting: writes of {counted(entry.tasks, 'task')}": entry.tasks and entry.key not in parents,
            "latest": entry.key == ("", newest),
        }
        cells = (short_id(entry.checkpoint_id), f"{moment(entry.time, precise=True):>23}", f"{size(entry.added):>9}")
        right.append("  ".join([*cells, ", ".join(note for note, applies in notes.items() if applies)]).rstrip())
    width = max(map(len, left), default=0)
    return [f"{one.ljust(width)}  {other}".rstrip() for one, other in zip(left, right, strict=True)]


class _Tree:
    """The checkpoints of a thread by their parents, walked without recursion: there may be ten thousand steps."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = sorted(entries, key=lambda entry: (entry.checkpoint_id, entry.namespace))
        self._children: dict[Key, list[Entry]] = defaultdict(list)
        self._subgraphs: dict[Key, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
        self._roots: dict[str, list[Entry]] = defaultdict(list)
        self._drawn: set[Key] = set()
        stored = {entry.key for entry in entries}
        for entry in self._entries:
            if entry.parent in stored and entry.parent != entry.key:
                self._children[entry.parent].append(entry)
            elif (host := _host(entry)) in stored and host != entry.key:
                self._subgraphs[host][entry.namespace].append(entry)
            else:
                self._roots[entry.namespace].append(entry)

    def lines(self) -> Iterator[_Line]:
        """Yield the lines in the order of the tree."""
        for namespace in sorted(self._roots):
            yield from self._grow(self._roots[namespace], namespace)
        # Parents that form a cycle have no root.
        for entry in self._entries:
            if entry.key not in self._drawn:
                yield from self._grow([entry], entry.namespace)

    def _grow(self, roots: Sequence[Entry], namespace: str) -> Iterator[_Line]:
        """Yield the lines of some checkpoints of a namespace, each with those below it."""
        if namespace:
            yield _Line("", "", _title(namespace))
        waiting = [_Line("", "", entry) for entry in reversed(roots)]
        while waiting:
            line = waiting.pop()
            if isinstance(line.content, str):
                yield line
            elif line.content.key not in self._drawn:
                self._drawn.add(line.content.key)
                yield line
                waiting += reversed([*self._inside(line.content, line.rest), *self._below(line.content, line.rest)])

    def _inside(self, entry: Entry, rest: str) -> Iterator[_Line]:
        """Yield the subgraphs that a checkpoint's step ran, with their first checkpoints."""
        start = rest + ("│ " if self._children[entry.key] else "  ")
        for namespace, roots in sorted(self._subgraphs[entry.key].items(), key=lambda item: item[1][0].checkpoint_id):
            yield _Line(start, start, _title(namespace))
            yield from [_Line(start, start, root) for root in roots]

    def _below(self, entry: Entry, rest: str) -> Iterator[_Line]:
        """Yield a checkpoint's children: one straight down, several as branches."""
        children = self._children[entry.key]
        if len(children) == 1:
            yield _Line(rest, rest, children[0])
            return
        for child in children:
            branch, below = ("└─", "  ") if child is children[-1] else ("├─", "│ ")
            yield _Line(rest + branch, rest + below, child)


def _host(entry: Entry) -> Key | None:
    """Return the key of the checkpoint with the step that ran a subgraph, of the subgraph's first checkpoint."""
    parents = entry.metadata.get("parents")
    if not entry.namespace or not isinstance(parents, dict):
        return None
    outer = entry.namespace.rpartition("|")[0]
    return outer, str(parents.get(outer))


def _title(namespace: str) -> str:
    """Return the name of a subgraph's node, and the start of its task's id."""
    node, _, task = namespace.rpartition("|")[2].partition(":")
    return f"{node} ({task[:8]})" if task else node
