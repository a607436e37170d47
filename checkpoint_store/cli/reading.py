"""The commands that look: at threads, their history, one checkpoint, what differs, what it all occupies."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from checkpoint_store.cli import output, tree, values
from checkpoint_store.cli.checkpoint import Checkpoint
from checkpoint_store.cli.clean import clean, counted, moment, short, size
from checkpoint_store.cli.connection import Json, Schema, Url, connected
from checkpoint_store.database.backend import Backend
from checkpoint_store.errors import InvalidConfig, ThreadNotFound
from checkpoint_store.saver.threads import listed
from checkpoint_store.serde.keys import Key, checked_thread_id, plain_text
from checkpoint_store.serde.records import Row
from checkpoint_store.sql.history import ERROR, INTERRUPT
from checkpoint_store.storage.checkpoints import find_checkpoint
from checkpoint_store.storage.checkpoints import history as history_rows
from checkpoint_store.storage.thread_list import ThreadSummary, listing_of, stats_of
from checkpoint_store.storage.threads import largest_threads, not_found, table_sizes, thread_stats

Thread = Annotated[str, typer.Argument(help="The thread's id.", show_default=False)]
Namespace = Annotated[
    str, typer.Option("--namespace", metavar="NS", help='The graph: "" for the root graph, "node:task" for a subgraph.')
]
Full = Annotated[bool, typer.Option("--full", help="Show values whole, however long they are.")]


def threads(
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="How many; 0 for all.")] = 20,
    cursor: Annotated[
        str | None, typer.Option(metavar="CURSOR", show_default=False, help="Go on where a list has ended.")
    ] = None,
    order: Annotated[str, typer.Option(metavar="ORDER", help='"newest" or "thread_id".')] = "newest",
    where: Annotated[
        str | None,
        typer.Option("--filter", metavar="JSON", show_default=False, help="What the newest metadata must contain."),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(metavar="TEXT", show_default=False, help="What the ids begin with.")
    ] = None,
    count: Annotated[bool, typer.Option("--count", help="Count each thread's checkpoints.")] = False,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """List threads, the last used first.

    A page costs the same however many threads there are.

    \b
    Example:
      checkpoint-store threads --limit 50 --count
      checkpoint-store threads --filter '{"user": "ada"}' --json
    """
    metadata = _metadata(where)
    try:
        listing = listing_of(
            limit=limit or None,
            cursor=cursor,
            order=order,  # type: ignore[arg-type]
            metadata_filter=metadata,
            prefix=prefix,
            count=count,
        )
    except InvalidConfig as error:
        raise InvalidConfig(f"--{error}") from None

    async def read(source: Backend) -> list[ThreadSummary]:
        return [summary async for summary in listed(source, listing)]

    found = connected(url, schema, read)
    following = found[-1].cursor if found and len(found) == limit else None
    if as_json:
        output.document({"threads": found, "next_cursor": following})
        return
    columns = ["THREAD", "CHECKPOINT", "UPDATED (UTC)", ">STEP", "SOURCE", *([">CHECKPOINTS"] if count else [])]
    rows = [
        (
            one.thread_id,
            short(one.checkpoint_id),
            moment(one.updated_at),
            *_told(one.metadata),
            *([one.checkpoints] if count else []),
        )
        for one in found
    ]
    output.table(columns, rows)
    if following:
        output.note(f"there may be more: --cursor {following}")


def history(
    thread: Thread,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="How many checkpoints, the newest; 0 for all.")] = 200,
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
    checked_thread_id(thread, "THREAD")

    async def read(source: Backend) -> Sequence[Any]:
        # One more tells whether there are more.
        return await source.run(history_rows, thread, limit + 1 if limit else 2**31 - 1)

    rows = connected(url, schema, read)
    if not rows:
        raise not_found(thread)
    more = bool(limit) and len(rows) > limit
    entries = [tree.Entry.of(row) for row in rows[: limit or None]]
    if as_json:
        document = [
            {
                "checkpoint_ns": one.namespace,
                "checkpoint_id": one.checkpoint_id,
                "parent_checkpoint_id": one.parent_id,
                "time": one.time,
                "metadata": values.plain(one.metadata),
                "bytes_added": one.added,
                "tasks": one.tasks,
                "interrupted": INTERRUPT in one.marks,
                "failed": ERROR in one.marks,
            }
            for one in entries
        ]
        output.document({"thread_id": thread, "checkpoints": document, "complete": not more})
        return
    namespaces = len({entry.namespace for entry in entries})
    added = size(sum(entry.added for entry in entries))
    output.line(
        f"{thread}: {counted(len(entries), 'checkpoint')} in {counted(namespaces, 'namespace')}, {added}", "bold"
    )
    for line in tree.drawn(entries):
        output.line(line)
    if more:
        output.note(f"older ones are left out: --limit {limit * 10}, or --limit 0 for all")


def show(
    thread: Thread,
    checkpoint: Annotated[
        str | None, typer.Argument(help="Its id, or how that begins; the newest by default.", show_default=False)
    ] = None,
    namespace: Namespace = "",
    channel: Annotated[
        list[str] | None, typer.Option(metavar="NAME", show_default=False, help="Only this channel; may be repeated.")
    ] = None,
    full: Full = False,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Show a checkpoint's values, as plain data.

    Also its metadata, and what tasks have written after it. Nothing is imported and nothing is called, whatever a row
    contains: an object is shown as the call that its serializer would make. Encrypted and pickled values stay closed.

    \b
    Example:
      checkpoint-store show user-42
      checkpoint-store show user-42 1f0c4a3e-0000 --channel messages --full
    """
    found = connected(url, schema, lambda source: _checkpoint(source, thread, namespace, checkpoint))
    told = Checkpoint.of(found, channel)
    if as_json:
        output.document(told.document())
        return
    for line in told.lines(values.WHOLE if full else values.Limits()):
        output.line(line)


def diff(
    thread: Thread,
    a: Annotated[str, typer.Argument(help="A checkpoint's id, or how it begins.", show_default=False)],
    b: Annotated[str, typer.Argument(help="Another one's.", show_default=False)],
    namespace: Namespace = "",
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Show what differs between two checkpoints.

    Metadata, values and pending writes are compared. Values are read as plain data, as by `show`.

    \b
    Example:
      checkpoint-store diff user-42 1f0c4a3e-0000 1f0c4a40-0000
    """

    async def read(source: Backend) -> tuple[Row, Row]:
        return await _checkpoint(source, thread, namespace, a), await _checkpoint(source, thread, namespace, b)

    one, other = [Checkpoint.of(row, None) for row in connected(url, schema, read)]
    if as_json:
        before, after = one.parts(), other.parts()
        names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        changed = {
            name: {side: values.plain(part[name]) for side, part in (("a", before), ("b", after)) if name in part}
            for name in names
        }
        output.document({"a": one.row.checkpoint_id, "b": other.row.checkpoint_id, "changed": changed})
        return
    styles = {"+": "green", "-": "red", "@": "cyan"}
    old, new = (told.lines(values.WHOLE, title=False) for told in (one, other))
    a, b = (clean(told.row.checkpoint_id) for told in (one, other))
    for line in difflib.unified_diff(old, new, a, b, n=1, lineterm=""):
        output.line(line, styles.get(line[0], ""))


def stats(
    thread: Annotated[str | None, typer.Argument(help="A thread's id; all by default.", show_default=False)] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many threads or channels, the largest; 0 for all.")
    ] = 10,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Tell what occupies how much.

    Of a thread its tables and channels; without one the tables and the largest threads, for which every row of the
    tables is looked at, though no large value is read: on a large database this takes its time.

    \b
    Example:
      checkpoint-store stats
      checkpoint-store stats user-42
    """
    if thread is None:
        _all_stats(url, schema, limit, as_json)
        return
    checked_thread_id(thread, "THREAD")

    async def read(source: Backend) -> Any:
        return await source.run(thread_stats, thread)

    found = stats_of(thread, *connected(url, schema, read))
    if not found.bytes:
        raise not_found(thread)
    if as_json:
        tables = {name: table._asdict() for name, table in found.tables.items()}
        channels = [channel._asdict() for channel in found.channels]
        output.document({"thread_id": thread, "bytes": found.bytes, "tables": tables, "channels": channels})
        return
    output.line(f"{thread}: {counted(found.checkpoints, 'checkpoint')}, {size(found.bytes)}", "bold")
    output.table(
        ["TABLE", ">ROWS", ">SIZE"],
        [(name, f"{table.rows:,}", size(table.bytes)) for name, table in found.tables.items() if table.rows],
    )
    output.line()
    output.table(
        ["GRAPH", "CHANNEL", ">VALUES", ">WRITES", ">SIZE"],
        [
            (one.graph or "-", one.channel, f"{one.values:,}", f"{one.writes:,}", size(one.bytes))
            for one in found.channels[: limit or None]
        ],
    )


COMMANDS = (threads, history, show, diff, stats)


def _all_stats(url: str, schema: str | None, limit: int, as_json: bool) -> None:
    async def read(source: Backend) -> tuple[Any, Any]:
        most = limit or 2**31 - 1
        return await source.run(table_sizes), await source.run(largest_threads, most)

    tables, largest = connected(url, schema, read)
    if as_json:
        output.document(
            {
                "tables": {name: {"rows": rows, "bytes_on_disk": count} for name, rows, count in tables},
                "largest_threads": [
                    {"thread_id": name, "checkpoints": checkpoints, "bytes": count}
                    for name, checkpoints, count in largest
                ],
            }
        )
        return
    output.table(
        ["TABLE", ">ROWS (ABOUT)", ">ON DISK"],
        [(name, "-" if rows is None else f"{rows:,}", size(count)) for name, rows, count in tables],
    )
    output.line()
    output.table(
        ["LARGEST THREADS", ">CHECKPOINTS", ">SIZE"],
        [(name, f"{checkpoints:,}", size(count)) for name, checkpoints, count in largest],
    )


async def _checkpoint(source: Backend, thread: str, namespace: str, checkpoint_id: str | None) -> Row:
    key = Key(
        checked_thread_id(thread, "THREAD"),
        plain_text(namespace, "--namespace"),
        plain_text(checkpoint_id, "CHECKPOINT") if checkpoint_id else None,
    )
    row = await source.run(find_checkpoint, key)
    if row is None:
        if not await source.run(history_rows, thread, 1):
            raise not_found(thread)
        graph = f"in the namespace {namespace!r}" if namespace else "of the root graph"
        what = f"checkpoint {checkpoint_id!r}" if checkpoint_id else "checkpoint"
        raise ThreadNotFound(f"the thread {thread!r} has no {what} {graph}")
    return Row._make(row)


def _told(metadata: Any) -> tuple[Any, Any]:
    """Return a checkpoint's step and source, as far as its metadata has them."""
    known = metadata if isinstance(metadata, dict) else {}
    return known.get("step", "-"), known.get("source", "-")


def _metadata(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidConfig('--filter has to be a JSON object, such as {"user": "ada"}')
    return found
