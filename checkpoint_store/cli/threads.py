"""The commands `threads`, `copy` and `delete`: threads listed, copied and deleted."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from checkpoint_store.cli import output, text, values
from checkpoint_store.cli.arguments import age_of, bytes_of, object_of
from checkpoint_store.cli.connection import Json, Schema, Url, Yes, confirm, looking, on_backend
from checkpoint_store.cli.output import Column
from checkpoint_store.cli.safe_decode import safe_decode
from checkpoint_store.cli.stats import stored_stats
from checkpoint_store.cli.text import age, counted, label, moment, short_id, size
from checkpoint_store.errors import InvalidConfig, ThreadExists
from checkpoint_store.serde.keys import checked_thread_id, copy_of

if TYPE_CHECKING:
    from checkpoint_store.database.backend import Backend
    from checkpoint_store.storage.thread_list import Order, ThreadListRequest, ThreadSummary
    from checkpoint_store.storage.thread_stats import ThreadStats

Cursor = Annotated[str | None, typer.Option(metavar="CURSOR", show_default=False, help="Go on where a list has ended.")]
Filter = Annotated[
    str | None,
    typer.Option("--filter", metavar="JSON", show_default=False, help="What the newest metadata must contain."),
]
Prefix = Annotated[str | None, typer.Option(metavar="TEXT", show_default=False, help="What the ids begin with.")]
OlderThan = Annotated[
    str | None, typer.Option(metavar="AGE", show_default=False, help="Last used longer ago than this: 12h, 30d, 8w.")
]
LargerThan = Annotated[
    str | None,
    typer.Option(metavar="SIZE", show_default=False, help="Larger than this: 500kB, 10MB. Every thread is measured."),
]


def threads(
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=0, help="How many; 0 for all.")] = 20,
    cursor: Cursor = None,
    order: Annotated[str, typer.Option(metavar="ORDER", help='"newest" or "thread_id".')] = "newest",
    metadata_filter: Filter = None,
    prefix: Prefix = None,
    older_than: OlderThan = None,
    larger_than: LargerThan = None,
    count: Annotated[bool, typer.Option("--count", help="Count each thread's checkpoints.")] = False,
    measure: Annotated[bool, typer.Option("--size/--no-size", help="Measure each thread, by reading its rows.")] = True,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """List threads, the last used first.

    The cost depends on --limit, not on the number of threads; but --larger-than reads the rows of thread after thread,
    until enough are found, and --older-than with --order thread_id passes all of them. Where the tables lack the index
    of an upgrade, options that pass over threads list them by their ids, and a note says so.

    \b
    Example:
      checkpoint-store threads --limit 50 --count
      checkpoint-store threads --older-than 30d --larger-than 10MB
      checkpoint-store threads --filter '{"user": "ada"}' --json
    """
    from checkpoint_store.storage.thread_list import listing_of

    least = -1 if larger_than is None else bytes_of(larger_than)
    options = _conditions(metadata_filter, older_than) | {"prefix": prefix, "count": count}

    def request(order: Any, cursor: str | None = None) -> ThreadListRequest:
        try:
            return listing_of(order=order, cursor=cursor, limit=None if larger_than else limit or None, **options)
        except InvalidConfig as error:
            raise InvalidConfig(f"--{error}") from None

    async def read(backend: Backend) -> list[tuple[ThreadSummary, int | None]]:
        by = await _order(backend, request(order), is_long=larger_than is not None or not 0 < limit <= _FEW)
        return await _read(backend, request(by, cursor), limit, least, measure=measure)

    request(order)  # what makes no sense is refused before connecting
    found = looking(url, schema, read)
    next_cursor = found[-1][0].cursor if found and len(found) == limit else None
    if as_json:
        documents = [{**vars(one), "metadata": values.as_json(one.metadata), "bytes": stored} for one, stored in found]
        output.document({"threads": documents, "next_cursor": next_cursor})
    else:
        _print(found, next_cursor, count=count, measured=measure or larger_than is not None)


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

    pair = copy_of(checked_thread_id(source, "SOURCE"), checked_thread_id(target, "TARGET"))
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
    threads: Annotated[list[str], typer.Argument(metavar="THREAD", help="Their ids.", show_default=False)],
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


async def _order(backend: Backend, request: ThreadListRequest, *, is_long: bool) -> Order:
    """Return the order of a list: by id where the newest threads would be sought by sorting the table many times."""
    from checkpoint_store.storage.catalog import catalog

    passes = is_long or request.before is not None or request.prefix is not None or request.filter is not None
    if request.order != "newest" or not passes or (await backend.run(catalog)).has_latest_index:
        return request.order
    output.note("listed by --order thread_id: to find the newest first, an index is needed that an upgrade adds")
    return "thread_id"


def _conditions(metadata_filter: str | None, older_than: str | None) -> dict[str, Any]:
    """Return the conditions of a list that options contain as text."""
    found: dict[str, Any] = {
        "metadata_filter": None if metadata_filter is None else object_of(metadata_filter, "--filter")
    }
    if older_than is not None:
        try:
            found["older_than"] = text.now() - age_of(older_than)
        except OverflowError:
            found["older_than"] = datetime.min.replace(tzinfo=UTC)  # no thread is that old
    return found


_FEW = 100
"""The threads that are found with few sorts of the table where it lacks the index."""


async def _read(
    backend: Backend, request: ThreadListRequest, limit: int, least: int, *, measure: bool
) -> list[tuple[ThreadSummary, int | None]]:
    """Return the threads of a list that are larger than so many bytes, with their bytes if they are measured."""
    from checkpoint_store.storage.thread_list import ThreadCursor, list_threads, thread_sizes

    cursor, passed = ThreadCursor(request, metadata_of=_metadata_of), 0
    found: list[tuple[ThreadSummary, int | None]] = []
    with output.progress("measuring", "threads") if least >= 0 else nullcontext() as advance:
        while cursor.has_next and (not limit or len(found) < limit):
            listed = cursor.advance(await backend.run(list_threads, cursor.conditions, cursor.binds))
            names = [one.thread_id for one in listed]
            sizes = await backend.run(thread_sizes, names) if names and (measure or least >= 0) else {}
            found += [(one, sizes.get(one.thread_id)) for one in listed if sizes.get(one.thread_id, 0) > least]
            passed += len(listed)
            if advance:
                advance(passed)
    return found[: limit or None]


def _metadata_of(_: str, stored: str | None) -> dict[str, Any]:
    """Return metadata as plain data: none if Python can't hold it, since one thread must not keep others off a list."""
    found = safe_decode("json", stored.encode()) if stored else {}
    return found if isinstance(found, dict) else {}


def _print(
    found: list[tuple[ThreadSummary, int | None]], next_cursor: str | None, *, count: bool, measured: bool
) -> None:
    columns = {
        "thread": Column("THREAD", cut=True),
        "checkpoint": Column("CHECKPOINT", rank=2),
        "updated": Column("UPDATED (UTC)", rank=5),
        "age": Column("AGE", right=True),
        "step": Column("STEP", right=True, rank=3),
        "source": Column("SOURCE", rank=4),
        "checkpoints": Column("CHECKPOINTS", right=True, rank=1),
        "size": Column("SIZE", right=True),
    }
    if not count:
        del columns["checkpoints"]
    if not measured:
        del columns["size"]
    rows = [
        {
            "thread": one.thread_id,
            "checkpoint": short_id(one.checkpoint_id),
            "updated": moment(one.updated_at),
            "age": age(one.updated_at),
            "step": label(one.metadata.get("step"), "-"),
            "source": label(one.metadata.get("source"), "-"),
            "checkpoints": f"{one.checkpoints or 0:,}",
            "size": size(stored or 0),
        }
        for one, stored in found
    ]
    output.table([*columns.values()], [[row[name] for name in columns] for row in rows])
    if next_cursor:
        output.hint(f"there may be more: --cursor {next_cursor}")
