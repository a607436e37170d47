"""A history as lines of text: a tree, with forks to the side and subgraphs inside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple

from rich.cells import cell_len

from checkpoint_store.cli.entries import ERROR, INTERRUPT, Entry, Key
from checkpoint_store.cli.tasks import described
from checkpoint_store.cli.text import counted, label, moment, printable, short_id, shortened, size


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
        step, source = label(entry.metadata.get("step"), "?"), label(entry.metadata.get("source"), "?")
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
                f"{start}{printable(f'{step:>2} {source:<6}')}",
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


def _title(namespace: str) -> str:
    """Return the name of a subgraph's node, and the start of its task's id."""
    node, _, task = namespace.rpartition("|")[2].partition(":")
    return f"{node} ({task[:8]})" if task else node
