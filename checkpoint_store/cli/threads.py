"""The commands `threads`, `copy` and `delete`: threads listed, copied and deleted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from checkpoint_store.cli import output
from checkpoint_store.cli.connection import Json, Schema, Url, Yes, confirm, looking, on_backend
from checkpoint_store.cli.output import Column
from checkpoint_store.cli.stats import stored_stats
from checkpoint_store.cli.text import counted, moment, short_id, size
from checkpoint_store.errors import InvalidConfig, ThreadExists
from checkpoint_store.serde.keys import checked_thread_id, copy_of

if TYPE_CHECKING:
    from checkpoint_store.database.backend import Backend
    from checkpoint_store.storage.thread_list import ThreadSummary
    from checkpoint_store.storage.thread_stats import ThreadStats

Cursor = Annotated[str | None, typer.Option(metavar="CURSOR", show_default=False, help="Go on where a list has ended.")]
Filter = Annotated[
    str | None,
    typer.Option("--filter", metavar="JSON", show_default=False, help="What the newest metadata must contain."),
]
Prefix = Annotated[str | None, typer.Option(metavar="TEXT", show_default=False, help="What the ids begin with.")]


def threads(
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=0, help="How many; 0 for all.")] = 20,
    cursor: Cursor = None,
    order: Annotated[str, typer.Option(metavar="ORDER", help='"newest" or "thread_id".')] = "newest",
    metadata_filter: Filter = None,
    prefix: Prefix = None,
    count: Annotated[bool, typer.Option("--count", help="Count each thread's checkpoints.")] = False,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """List threads, the last used first.

    The cost depends on --limit, not on the number of threads.

    \b
    Example:
      checkpoint-store threads --limit 50 --count
      checkpoint-store threads --filter '{"user": "ada"}' --json
    """
    from checkpoint_store.storage.thread_list import ThreadCursor, list_threads, listing_of

    options: Any = {"cursor": cursor, "order": order, "metadata_filter": _metadata(metadata_filter), "prefix": prefix}
    try:
        request = listing_of(limit=limit or None, count=count, **options)
    except InvalidConfig as error:
        raise InvalidConfig(f"--{error}") from None

    async def read(backend: Backend) -> list[ThreadSummary]:
        cursor, found = ThreadCursor(request), []
        while cursor.has_next:
            found += cursor.advance(await backend.run(list_threads, cursor.conditions, cursor.binds))
        return found

    found = looking(url, schema, read)
    next_cursor = found[-1].cursor if found and len(found) == limit else None
    if as_json:
        output.document({"threads": found, "next_cursor": next_cursor})
        return
    _print(found, count)
    if next_cursor:
        output.note(f"there may be more: --cursor {next_cursor}")


def copy(
    source: Annotated[str, typer.Argument(help="The thread to copy.", show_default=False)],
    target: Annotated[str, typer.Argument(help="The id of the copy.", show_default=False)],
    replace: Annotated[bool, typer.Option("--replace", help="First delete what the target has.")] = False,
    url: Url = "",
    schema: Schema = None,
) -> None:
    """Copy a thread under another id.

    It is copied completely, on the server and in one transaction. The thread may be in use: the copy is what it was at
    one moment. A target for which something is stored is refused.

    \b
    Example:
      checkpoint-store copy user-42 user-42-before-the-upgrade
    """
    from checkpoint_store.database.retry import RETRY_SECONDS
    from checkpoint_store.storage.copy_thread import copy_thread as copy_thread_rows

    pair = copy_of(source, target)
    try:
        rows = on_backend(
            *(url, schema, lambda backend: backend.run(copy_thread_rows, pair, replace, {})),
            retry_timeout=RETRY_SECONDS,
        )
    except ThreadExists:
        raise ThreadExists(
            f"something is stored for the thread {target!r}: delete it, choose another id, or add --replace"
        ) from None
    output.line(f"copied {source} to {target}: {counted(rows, 'row')}")


def delete(
    threads: Annotated[list[str], typer.Argument(metavar="THREAD...", help="Their ids.", show_default=False)],
    yes: Yes = False,
    url: Url = "",
    schema: Schema = None,
) -> None:
    """Delete threads, with everything stored for them.

    Each thread is deleted in one transaction. Stop what uses it first: a run under way stores its next checkpoint.

    \b
    Example:
      checkpoint-store delete user-42
      checkpoint-store delete --yes user-42 user-43
    """
    from checkpoint_store.database.retry import RETRY_SECONDS
    from checkpoint_store.storage.delete_thread import delete_thread as delete_thread_rows

    threads = list(dict.fromkeys(checked_thread_id(one, "THREAD") for one in threads))

    async def read(backend: Backend) -> list[ThreadStats]:
        return [await stored_stats(backend, one) for one in threads]

    found = on_backend(url, schema, read)
    if not yes:
        for one in found:
            output.note(f"{one.thread_id}: {counted(one.checkpoints, 'checkpoint')}, {size(one.bytes)}")
        confirm(f"Shall {'it' if len(found) == 1 else 'they'} be deleted for good?")

    async def work(backend: Backend) -> None:
        for one in found:
            await backend.run(delete_thread_rows, one.thread_id)
            output.line(f"deleted {one.thread_id}: {counted(one.checkpoints, 'checkpoint')}, {size(one.bytes)}")

    advice = "threads that were named as deleted are deleted, the others are as they were"
    on_backend(url, schema, work, advice, retry_timeout=RETRY_SECONDS)


def _metadata(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidConfig('--filter must be a JSON object, such as {"user": "ada"}')
    return found


def _print(found: list[ThreadSummary], count: bool) -> None:
    rows = []
    for one in found:
        step, source = one.metadata.get("step", "-"), one.metadata.get("source", "-")
        row = (one.thread_id, short_id(one.checkpoint_id), moment(one.updated_at), step, source, one.checkpoints)
        rows.append(row if count else row[:-1])
    columns = [
        Column("THREAD", cut=True),
        Column("CHECKPOINT", rank=1),
        Column("UPDATED (UTC)", rank=4),
        Column("STEP", right=True, rank=2),
        Column("SOURCE", rank=3),
        Column("CHECKPOINTS", right=True),
    ]
    output.table(columns if count else columns[:-1], rows)
