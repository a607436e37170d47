"""Results on standard output: tables and lines for a terminal, the same as plain text for a pipe, and JSON.

Stored text is not interpreted: no markup, no emoji codes, no links, no highlighting.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from checkpoint_store.cli.text import printable

RIGHT = ">"
"""The first character of the name of a column that is aligned to the right."""


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under the names of their columns; in a pipe no cell is cut."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    names = [name.lstrip(RIGHT) for name in columns]
    right = [name.startswith(RIGHT) for name in columns]
    console = Console()
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
        for row in [names, *cells]:
            padded = [
                cell.rjust(width) if at_right else cell.ljust(width)
                for cell, width, at_right in zip(row, widths, right, strict=True)
            ]
            line("  ".join(padded).rstrip())
        return
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name, at_right in zip(names, right, strict=True):
        shown.add_column(Text(name), justify="right" if at_right else "left", overflow="fold")
    for row in cells:
        shown.add_row(*map(Text, row))
    console.print(shown)


def line(text: str = "", style: str = "") -> None:
    """Print a line, without wrapping it."""
    Console().print(Text(printable(text), style=style), soft_wrap=True, highlight=False)


def document(content: Any) -> None:
    """Print JSON in ASCII, which is safe for every terminal and encoding."""
    text = json.dumps(content, indent=2, default=_as_json)
    Console().print(Text(text), soft_wrap=True, highlight=False)


def note(text: str) -> None:
    """Print a line that is not a result, on standard error."""
    print(printable(text), file=sys.stderr)  # noqa: T201


@contextmanager
def progress(title: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Show progress on standard error, if that is a terminal; yields the function that sets the number."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn(title), BarColumn(), TextColumn("{task.completed:,}"), TextColumn(unit), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done: shown.update(task, completed=done)


def _as_json(value: object) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__qualname__} is not JSON")
