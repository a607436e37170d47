"""The command `history`: a thread's checkpoints as a tree, with forks to the side and subgraphs inside."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.cells import cell_len

from checkpoint_store.cli import output, values
from checkpoint_store.cli.connection import UNLIMITED, Json, Schema, Thread, Url, looking
from checkpoint_store.cli.files import STANDARD
from checkpoint_store.cli.safe_decode import safe_decode
from checkpoint_store.cli.tasks import Versions, described, triggers_of
from checkpoint_store.cli.text import counted, moment, printable, short_id, shortened, size
from checkpoint_store.errors import InvalidOption, ThreadNotFound
from checkpoint_store.serde.keys import checked_thread_id, plain_text
from checkpoint_store.storage.checkpoint_time import time_of

if TYPE_CHECKING:
    from checkpoint_store.database.backend import Backend
    from checkpoint_store.storage.read import History

INTERRUPT, ERROR = "__interrupt__", "__error__"  # as in sql/history.py
Key = tuple[str, str]
"""Namespace and checkpoint id."""


def history(
    thread: Thread,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", metavar="N", min=0, show_default="200", help="How many, the newest; 0 for all."),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", show_default=False, help="Only ones older than this id, or how it begins."),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(metavar="FILE", show_default=False, help="Write a page for a browser, with the values."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="In a page: long values completely.")] = False,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Draw a thread's checkpoints as a tree.

    The oldest come first; forks branch off, subgraphs stand within the step that ran them. A line has the step, what
    made it (input, loop, update, fork), the nodes that ran, how its id begins, its time in UTC, and how many bytes came
    with it: its new values, as far as they share nothing with its parent's, and what its tasks wrote. The last line of
    each branch has the nodes that come next. A terminal that is narrow gets no times, then no sizes.

    \b
    Example:
      checkpoint-store history user-42
      checkpoint-store history user-42 --limit 20 --before 1f0c4a3e-0000
      checkpoint-store history user-42 --html user-42.html
    """
    from checkpoint_store.storage.read import history as read_history
    from checkpoint_store.storage.refusals import not_found

    checked_thread_id(thread, "THREAD")
    before = plain_text(before, "--before") if before else None
    if (full and html is None) or (as_json and html is not None):
        raise InvalidOption("--full goes with --html FILE, and --json without it")
    if html is not None:
        _write_page(html, thread, limit or UNLIMITED, before, url, schema, full=full)
        return
    limit = 200 if limit is None else limit

    async def read(backend: Backend) -> History:
        found = await backend.run(read_history, thread, limit or UNLIMITED, before)
        if found.rows:
            return found
        raise ThreadNotFound(f"thread {thread!r} has no checkpoint before {before!r}") if before else not_found(thread)

    _print(thread, before, looking(url, schema, read), as_json=as_json)


def _print(thread: str, before: str | None, found: History, *, as_json: bool) -> None:
    entries = entries_of(found)
    rest = None if found.total == len(entries) else entries[-1].checkpoint_id
    if as_json:
        documents = [entry.document() for entry in entries]
        more = {"complete": rest is None, "total": found.total, "next_before": rest}
        output.document({"thread_id": thread, "checkpoints": documents, **more})
        return
    output.line(_title_of(thread, before, entries, found.total), "bold")
    cut = {(row.checkpoint_ns, row.checkpoint_id) for row in found.parents}
    for line in draw(entries, cut=cut, continued=found.continued, ends=before is None, width=output.width()):
        output.line(line)
    if rest is not None:
        output.hint(f"older ones: --before {shlex.quote(rest)}, or --limit 0 for all")


def _write_page(
    file: str, thread: str, limit: int, before: str | None, url: str, schema: str | None, *, full: bool
) -> None:
    from checkpoint_store.cli.history_html.page import write

    count = looking(url, schema, lambda backend: write(backend, thread, file, limit, before, full=full))
    if file != STANDARD:
        output.line(f"{file}: {counted(count, 'checkpoint')}, values included, {size(Path(file).stat().st_size)}")


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
    ran: Sequence[str] = ()
    """The nodes that ran in the step that made it, each as often as it ran."""
    next: Sequence[str] = ()
    """The nodes that come next; of the last one of a branch those that have not finished."""

    @property
    def key(self) -> Key:
        """Its namespace and id."""
        return self.namespace, self.checkpoint_id

    @property
    def parent(self) -> Key | None:
        """The namespace and id of its parent, if it has one."""
        return (self.namespace, self.parent_id) if self.parent_id else None

    @property
    def host(self) -> Key | None:
        """Of a subgraph's checkpoint, the key of the one with the step that ran the subgraph."""
        parents = self.metadata.get("parents")
        if not self.namespace or not isinstance(parents, dict):
            return None
        outer = self.namespace.rpartition("|")[0]
        return outer, str(parents.get(outer))

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
            "ran": self.ran,
            "next": self.next,
            "bytes_added": self.added,
            "tasks": self.tasks,
            "interrupted": INTERRUPT in self.marks,
            "failed": ERROR in self.marks,
        }


def entries_of(found: History) -> list[Entry]:
    """Return the entries of the checkpoints that were found, in their order."""
    versions = {(row.checkpoint_ns, row.checkpoint_id): Versions.of(row) for row in [*found.rows, *found.parents]}
    by_graph: dict[str, list[Versions]] = defaultdict(list)
    for (namespace, _), one in versions.items():
        by_graph[_graph(namespace)].append(one)
    triggers = {graph: triggers_of(of_graph) for graph, of_graph in by_graph.items()}
    parents = {(row.checkpoint_ns, row.parent_checkpoint_id) for row in found.rows} | found.continued
    entries = []
    for row in found.rows:
        key = row.checkpoint_ns, row.checkpoint_id
        decoded = safe_decode("json", row.metadata.encode())
        metadata = decoded if isinstance(decoded, dict) else {}
        finished = () if key in parents else row.finished or ()
        ran: Sequence[str] = ()
        if metadata.get("source") == "loop":
            before = versions.get((row.checkpoint_ns, row.parent_checkpoint_id or ""))
            ran = versions[key].ran_since(before)
        following = versions[key].due(triggers[_graph(row.checkpoint_ns)], finished)
        own = (*key, row.parent_checkpoint_id, metadata, row.added, row.tasks, sorted(row.marks or ()))
        entries.append(Entry(*own, ran, following))
    return entries


def draw(
    entries: Sequence[Entry],
    *,
    cut: Set[Key] = frozenset(),
    continued: Set[Key] = frozenset(),
    ends: bool = True,
    width: int | None = None,
) -> list[str]:
    """Return the lines of a tree, with one for each checkpoint, whatever the parents are.

    Args:
        entries: The checkpoints.
        cut: The parents that are stored, but not among them.
        continued: Those of them that have children which are not among them.
        ends: Whether there are no newer ones.
        width: The cells that a line may fill; notes that don't fit get a line of their own.
    """
    newest = max((entry.checkpoint_id for entry in entries if ends and not entry.namespace), default=None)
    parents = {entry.parent for entry in entries} | continued
    known = {entry.key for entry in entries} | cut
    rows: list[_Row] = []
    for start, rest, entry in _Tree(entries).lines():
        if isinstance(entry, str):
            rows.append(_Row(rest, f"{start}{printable(entry)}"))
            continue
        step, source = entry.metadata.get("step", "?"), entry.metadata.get("source", "?")
        is_last = entry.key not in parents
        notes = {
            "older ones go on before it": entry.parent in cut,
            "its parent is not stored": entry.parent is not None and entry.parent not in known,
            "newer ones go on after it": entry.key in continued,
            "interrupt": INTERRUPT in entry.marks,
            "error": ERROR in entry.marks,
            f"next: {described(entry.next)}": is_last and entry.next,
            f"waiting: writes of {counted(entry.tasks, 'task')}": is_last and entry.tasks,
            "latest": entry.key == ("", newest),
        }
        rows.append(
            _Row(
                rest,
                f"{start}{printable(f'{step!s:>2} {source!s:<6}')}",
                printable(described(entry.ran)),
                short_id(entry.checkpoint_id),
                moment(entry.time, precise=True),
                size(entry.added),
                printable(", ".join(note for note, applies in notes.items() if applies)),
            )
        )
    return _fitted(rows, width)


class _Row(NamedTuple):
    """A line in its parts, each of them safe to print."""

    rest: str
    """The branches before the lines below it."""
    tree: str
    ran: str = ""
    checkpoint: str = ""
    time: str = ""
    added: str = ""
    notes: str = ""


_LEAST = 8
"""The characters of the nodes' names that are left on the narrowest terminal."""


def _fitted(rows: Sequence[_Row], most: int | None) -> list[str]:
    """Return lines that fill at most so many cells: with shorter times, then without, then without sizes."""
    columns = [[row[place] for row in rows if row.checkpoint] for place in range(1, 6)]
    times = columns[3]
    widths = [max(map(cell_len, cells), default=0) for cells in columns]

    def excess() -> int:
        shown = [width for width in widths if width]
        return 0 if most is None else sum(shown) + 2 * (len(shown) - 1) - most

    if excess() > 0:
        columns[3] = [time[5:19] if len(time) > 1 else time for time in times]
        widths[3] = max(map(len, columns[3]), default=0)
    for place in (3, 4):
        if excess() > 0:
            widths[place] = 0
    if excess() > 0:
        widths[1] = min(widths[1], max(_LEAST, widths[1] - excess()))
    cells = zip(*columns, strict=True)
    lines: list[str] = []
    for row in rows:
        lines += _lines(row, next(cells), widths, most) if row.checkpoint else [row.tree]
    return lines


def _lines(row: _Row, cells: Sequence[str], widths: Sequence[int], most: int | None) -> list[str]:
    """Return a checkpoint's line, and a second one for notes that don't fit."""
    shown = []
    for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        text = shortened(cell, width) if place == 1 else cell
        padding = " " * (width - cell_len(text))
        if width:
            shown.append(padding + text if place > 2 else text + padding)
    line = "  ".join(shown).rstrip()
    if not row.notes:
        return [line]
    whole = f"{'  '.join(shown)}  {row.notes}"
    return [whole] if most is None or cell_len(whole) <= most else [line, f"{row.rest}     {row.notes}"]


class _Line(NamedTuple):
    """A line to be drawn."""

    start: str
    """The branches before it."""
    rest: str
    """The branches before the lines below it."""
    content: Entry | str
    """A checkpoint, or the title of a subgraph."""


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
            elif (host := entry.host) in stored and host != entry.key:
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


def _title_of(thread: str, before: str | None, entries: Sequence[Entry], total: int) -> str:
    """Return the first line: how many checkpoints there are, and how many of them are drawn."""
    every = counted(total, "checkpoint") + (f" before {before}" if before else "")
    drawn = every if total == len(entries) else f"the newest {len(entries):,} of {every}"
    graphs = counted(len({entry.namespace for entry in entries}), "namespace")
    return f"{thread}: {drawn} in {graphs}, {size(sum(entry.added for entry in entries))}"


def _graph(namespace: str) -> str:
    """Return a namespace without the ids of tasks: the same for each call of a subgraph."""
    return "|".join(part.partition(":")[0] for part in namespace.split("|"))


def _title(namespace: str) -> str:
    """Return the name of a subgraph's node, and the start of its task's id."""
    node, _, task = namespace.rpartition("|")[2].partition(":")
    return f"{node} ({task[:8]})" if task else node
