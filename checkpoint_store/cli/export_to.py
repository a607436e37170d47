"""The commands `export` and `import`: a thread as a file of JSON lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from checkpoint_store.cli import files, output
from checkpoint_store.cli.connection import NOTHING_CHANGED, Json, Schema, Thread, Url, looking, on_backend
from checkpoint_store.cli.text import counted
from checkpoint_store.errors import ThreadExists
from checkpoint_store.serde.keys import checked_thread_id

if TYPE_CHECKING:
    from checkpoint_store.database.backend import Backend
    from checkpoint_store.tools.thread_export import ThreadRows


def export(
    thread: Thread,
    file: Annotated[str, typer.Argument(help='The file; "-" for standard output.')] = files.STANDARD,
    no_values: Annotated[
        bool, typer.Option("--no-values", help="Leave out values, keeping their types, sizes and digests.")
    ] = False,
    url: Url = "",
    schema: Schema = None,
) -> None:
    """Write a thread to a file, as it is stored.

    A line of JSON for each row of the thread, as of one moment, for `import`: into another database, or back. Values
    are copied byte for byte, encrypted ones too; none is decoded, so no code of the application is needed.

    Without values it is for bug reports: the ids, steps, channels, versions and sizes stay. Equal values still have
    equal digests, from which they can't be found.

    \b
    Example:
      checkpoint-store export user-42 user-42.jsonl
      checkpoint-store export user-42 --no-values | gzip > report.jsonl.gz
    """
    checked_thread_id(thread, "THREAD")
    with files.written(file) as write:

        async def work(backend: Backend) -> ThreadRows:
            from checkpoint_store.tools.thread_export import export_thread

            return await export_thread(backend, thread, lambda line: write(line.decode()), values=not no_values)

        done = looking(url, schema, work)
    if file != files.STANDARD:
        output.line(f"exported {_described(done)}")


def import_(
    file: Annotated[str, typer.Argument(help='A file of `export`; "-" for standard input.', show_default=False)],
    as_: Annotated[
        str | None, typer.Option("--as", metavar="THREAD", show_default=False, help="The id to store it under.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="First delete what is stored for that id.")] = False,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Store a thread from a file of `export`.

    It is stored in one transaction, completely or not at all, and is byte for byte what was exported. An id for which
    something is stored is refused. Threads of other savers' databases are copied by `import-from` instead.

    A file without values gives a thread with the same steps and channels, all of whose values are null.

    \b
    Example:
      checkpoint-store import user-42.jsonl
      gunzip -c report.jsonl.gz | checkpoint-store import - --as report
    """
    target = None if as_ is None else checked_thread_id(as_, "--as")
    with files.read(file) as opened:

        async def work(backend: Backend) -> ThreadRows:
            from checkpoint_store.tools.thread_export import import_thread

            return await import_thread(backend, opened, target, replace=replace)

        try:
            done = on_backend(url, schema, work, NOTHING_CHANGED)
        except ThreadExists as error:
            raise ThreadExists(f"{error}: name another id by --as, or add --replace") from None
    if as_json:
        output.document(done)
        return
    output.line(f"imported {_described(done)}")
    if not done.with_values:
        output.note("the file was made without values: all are null")
    if done.incomplete_values:
        output.note(f"{counted(done.incomplete_values, 'value')} can't be read: pages were missing in the export too")


def _described(done: ThreadRows) -> str:
    counts = {"checkpoint": done.checkpoints, "value": done.values, "page": done.pages, "write": done.writes}
    without = "" if done.with_values else ", without values"
    return f"{done.thread_id}: {', '.join(counted(count, noun) for noun, count in counts.items())}{without}"
