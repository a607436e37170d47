"""The commands that change what is stored: copy, delete, prune, sweep, and whether large values are pages."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store import conversion, operations
from checkpoint_store.cli import output
from checkpoint_store.cli.clean import counted, size
from checkpoint_store.cli.connection import Schema, Url, Yes, connected, on_engine
from checkpoint_store.config import copy_of, thread_id
from checkpoint_store.errors import ThreadExists, ThreadNotFound
from checkpoint_store.source import Source
from checkpoint_store.threads import ThreadStats, stats_of


class Form(str, Enum):
    """How large values are stored."""

    share = "share"
    inline = "inline"


def copy(
    url: Url,
    source: Annotated[str, typer.Argument(help="The thread to copy.", show_default=False)],
    target: Annotated[str, typer.Argument(help="The id of the copy.", show_default=False)],
    replace: Annotated[bool, typer.Option("--replace", help="First delete what the target has.")] = False,
    schema: Schema = None,
) -> None:
    """Copy a thread under another id.

    All of it is copied, on the server and in one transaction. The thread may be in use: the copy is what it was at one
    moment. A target that has something is refused.

    \b
    Example:
      checkpoint-store copy user-42 user-42-before-the-upgrade
    """
    pair = copy_of(source, target)

    async def work(at: Source) -> int:
        try:
            return await at.transact(operations.copy_thread, pair, replace)
        except ThreadExists:
            raise ThreadExists(
                f"something is stored for the thread {target!r}: delete it, choose another id, or add --replace"
            ) from None

    rows = connected(url, schema, work)
    output.line(f"copied {source} to {target}: {counted(rows, 'row')}")


def delete(
    url: Url,
    threads: Annotated[list[str], typer.Argument(metavar="THREAD...", help="Their ids.", show_default=False)],
    yes: Yes = False,
    schema: Schema = None,
) -> None:
    """Delete all that is stored for threads.

    Each thread is deleted in one transaction. Stop what uses it first: a run under way stores what it is doing.

    \b
    Example:
      checkpoint-store delete user-42
      checkpoint-store delete --yes user-42 user-43
    """
    threads = list(dict.fromkeys(thread_id(one, "THREAD") for one in threads))

    async def look(source: Source) -> list[ThreadStats]:
        return [stats_of(one, *await source.run(operations.thread_stats, one)) for one in threads]

    found = connected(url, schema, look)
    for one in found:
        if not one.bytes:
            raise ThreadNotFound(f"nothing is stored for the thread {one.thread_id!r}")
    if not yes:
        for one in found:
            output.note(f"{one.thread_id}: {counted(one.checkpoints, 'checkpoint')}, {size(one.bytes)}")
        typer.confirm(f"Shall {'it' if len(found) == 1 else 'they'} be deleted for good?", abort=True, err=True)

    async def work(source: Source) -> None:
        for one in found:
            await source.transact(operations.delete_thread, one.thread_id)
            output.line(f"deleted {one.thread_id}: {counted(one.checkpoints, 'checkpoint')}, {size(one.bytes)}")

    connected(url, schema, work, "threads that were named as deleted are gone, the others are as they were")


def pages(
    url: Url,
    form: Annotated[Form, typer.Argument(help='"share" or "inline".', show_default=False)],
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="How many values to rewrite at a time.")] = 20,
    schema: Schema = None,
) -> None:
    """Turn large values into shared pages, or back.

    "share" makes long threads small. "inline" makes them readable for langgraph-checkpoint-postgres; stop what shares
    pages first. The database may be in use, and what was interrupted goes on with what is left.

    \b
    Example:
      checkpoint-store pages share
    """

    async def work(engine: AsyncEngine) -> int:
        convert = conversion.share if form is Form.share else conversion.inline
        with output.progress("rewriting", "values") as told:
            return await convert(engine, schema=schema, batch_size=batch_size, on_progress=told)

    advice = "what was rewritten stays so, and every value is whole; the same command goes on with the rest"
    done = on_engine(url, work, advice)
    output.line(f"{'shared' if form is Form.share else 'inlined'} {counted(done, 'value')}")


COMMANDS = (copy, delete, pages)
