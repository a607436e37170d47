"""The progress bar of a command that takes long; imported when one is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text


class Advance(Protocol):
    """The function that tells a progress bar how far the work is."""

    def __call__(self, done: int, total: int | None = None) -> None:
        """Set the number of things that are done, and of all, which may change, if it is known."""


@contextmanager
def bar(console: Console, title: str, unit: str) -> Iterator[Advance]:
    """Show a bar, the number of things that are done, and with a total the time that is left; removed at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), _TimeColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(title, total=None, count=f"0 {unit}")

        def advance(done: int, total: int | None = None) -> None:
            of = "" if total is None else f" of {total:,}"
            shown.update(task, completed=done, total=total, count=f"{done:,}{of} {unit}")

        yield advance


class _TimeColumn(ProgressColumn):
    """The time that is left where the total is known, otherwise the time that has passed."""

    def render(self, task: Task) -> Text:
        """Return the column's text."""
        seconds, word = (task.elapsed, "") if task.total is None else (task.time_remaining, " left")
        return Text("" if seconds is None else f"{timedelta(seconds=int(seconds))}{word}")
