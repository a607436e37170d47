"""The command `history`: a thread's checkpoints as a tree, or as a page for a browser."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from checkpoint_store.cli import output
from checkpoint_store.cli.arguments import checkpoint_named, most
from checkpoint_store.cli.connection import Json, Schema, Thread, Url, looking
from checkpoint_store.cli.entries import Entry, entries_of, read_history
from checkpoint_store.cli.files import STANDARD
from checkpoint_store.cli.history_tree import draw
from checkpoint_store.cli.text import counted, size
from checkpoint_store.errors import InvalidOption
from checkpoint_store.serde.keys import checked_thread_id

if TYPE_CHECKING:
    from checkpoint_store.storage.read import History


def history(
    thread: Thread,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            "-n",
            metavar="N",
            min=0,
            show_default="200",
            help="How many, the newest; 0 for all.",
        ),
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
    each branch has the nodes that come next. A terminal that is narrow gets no times, then no sizes. A page for a
    browser has all checkpoints, unless --limit says otherwise.

    \b
    Example:
      checkpoint-store history user-42
      checkpoint-store history user-42 --limit 20 --before 1f0c4a3e-0000
      checkpoint-store history user-42 --html user-42.html
    """
    checked_thread_id(thread, "THREAD")
    before = checkpoint_named(before, "--before")
    if (full and html is None) or (as_json and html is not None):
        raise InvalidOption("--full goes with --html FILE, and --json without it")
    if html is not None:
        _write_page(html, thread, most(limit or 0), before, url, schema, full=full)
        return
    drawn = most(200 if limit is None else limit)
    found = looking(url, schema, lambda backend: read_history(backend, thread, drawn, before))
    _print(thread, before, found, as_json=as_json)


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


def _title_of(thread: str, before: str | None, entries: Sequence[Entry], total: int) -> str:
    """Return the first line: how many checkpoints there are, and how many of them are drawn."""
    every = counted(total, "checkpoint") + (f" before {before}" if before else "")
    drawn = every if total == len(entries) else f"the newest {len(entries):,} of {every}"
    graphs = counted(len({entry.namespace for entry in entries}), "namespace")
    return f"{thread}: {drawn} in {graphs}, {size(sum(entry.added for entry in entries))}"
