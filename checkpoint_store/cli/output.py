"""Results on standard output: for people in a terminal, the same as plain text in a pipe, or as JSON.

Nothing here interprets what is stored: no markup, no emoji codes, no links, no highlighting.
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

from checkpoint_store.cli.clean import clean

RIGHT = ">"
"""In front of a column's name: its numbers stand at the right."""


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under the names of their columns; in a pipe every cell whole, whatever the width."""
    cells = [[clean(str(cell)) for cell in row] for row in rows]
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
    """Print a line, however long it is."""
    Console().print(Text(clean(text), style=style), soft_wrap=True, highlight=False)


def document(content: Any) -> None:
    """Print JSON, in ASCII: it can neither disturb a terminal nor be cut by its encoding."""
    text = json.dumps(content, indent=2, default=_plain)
    Console().print(Text(text), soft_wrap=True, highlight=False)


def note(text: str) -> None:
    """Tell what is no result, on standard error."""
    print(clean(text), file=sys.stderr)  # noqa: T201


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Show how far something has come, on standard error if that is a terminal; yields what is told the number."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.completed:,}"), TextColumn(unit), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done: shown.update(task, completed=done)


def _plain(value: object) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__qualname__} has no JSON")
