"""Results on standard output: tables and lines for a terminal, the same as plain text for a pipe, and JSON.

Stored text is not interpreted: no markup, no emoji codes, no links, no highlighting.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from checkpoint_store.cli.text import printable, shortened

if TYPE_CHECKING:
    from checkpoint_store.cli.progress import Advance


class Column(NamedTuple):
    """A column of a table."""

    name: str
    right: bool = False
    """Whether its cells are aligned to the right."""
    rank: int = 0
    """When it is left out of a terminal that is too narrow: the highest rank first, 0 never."""
    cut: bool = False
    """Whether its cells are cut in the middle if that is not enough; others are never cut."""


def table(columns: Sequence[Column], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under the names of their columns, fitted to the terminal; in a pipe nothing is left out or cut."""
    lines = [[column.name for column in columns], *[[printable(str(cell)) for cell in row] for row in rows]]
    widths = [max(map(cell_len, cells)) for cells in zip(*lines, strict=True)]
    console = Console()
    if console.is_terminal:
        widths = _fitted(columns, widths, console.width)
    for number, cells in enumerate(lines):
        shown = [
            _padded(shortened(cell, width), width, column.right)
            for cell, width, column in zip(cells, widths, columns, strict=True)
            if width
        ]
        line(_GAP.join(shown).rstrip(), "" if number else "bold")


_GAP = "  "

_LEAST = 37
"""The characters that a cell has at least after it was cut: a UUID and the mark of the cut."""


def _fitted(columns: Sequence[Column], widths: Sequence[int], most: int) -> list[int]:
    """Return the widths with which a table fits into a line: 0 for a column that is left out."""
    fitted = list(widths)

    def excess() -> int:
        shown = [width for width in fitted if width]
        return sum(shown) + len(_GAP) * (len(shown) - 1) - most

    for place in sorted(range(len(columns)), key=lambda place: columns[place].rank, reverse=True):
        if columns[place].rank and excess() > 0:
            fitted[place] = 0
    for place, column in enumerate(columns):
        if column.cut and excess() > 0:
            fitted[place] = max(min(fitted[place], _LEAST), fitted[place] - excess())
    return fitted


def _padded(cell: str, width: int, right: bool) -> str:
    padding = " " * (width - cell_len(cell))
    return padding + cell if right else cell + padding


def width() -> int | None:
    """Return the width of the terminal in cells; None in a pipe, where lines may be of any length."""
    console = Console()
    return console.width if console.is_terminal else None


def line(text: str = "", style: str = "") -> None:
    """Print a line, without wrapping it."""
    Console().print(Text(printable(text), style=style), soft_wrap=True, highlight=False)


def document(content: Any) -> None:
    """Print JSON in ASCII, which is safe for every terminal and encoding."""
    text = json.dumps(content, indent=2, default=_as_json).replace("\x7f", "\\u007f")
    Console().print(Text(text), soft_wrap=True, highlight=False)


def note(text: str) -> None:
    """Print a line that is not a result, on standard error."""
    print(printable(text), file=sys.stderr)  # noqa: T201


_hints: list[str] = []


def hint(text: str) -> None:
    """Have a line about what to do next printed after the result; of several only the last, which knows most."""
    _hints[:] = [text]


@contextmanager
def hinting() -> Iterator[None]:
    """Print the hint of a command that was done."""
    _hints.clear()
    yield
    for text in _hints:
        note(text)


@contextmanager
def progress(title: str, unit: str) -> Iterator[Advance]:
    """Show progress on standard error, if that is a terminal: a bar, and with a total the time that is left."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total=None: None  # noqa: ARG005
        return
    from checkpoint_store.cli.progress import bar

    with bar(console, title, unit) as advance:
        yield advance


def _as_json(value: object) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__qualname__} is not JSON")
