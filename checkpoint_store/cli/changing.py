"""The commands that change what is stored: copy, delete, prune, sweep, and whether large values are pages."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store.cli import output
from checkpoint_store.cli.clean import counted, size
from checkpoint_store.cli.connection import Json, Schema, Url, Yes, confirm, connected, on_engine
from checkpoint_store.database.backend import Backend
from checkpoint_store.database.retry import RETRY_SECONDS
from checkpoint_store.errors import InvalidOption, ThreadExists
from checkpoint_store.serde.keys import checked_thread_id, copy_of
from checkpoint_store.storage.report import SweepReport
from checkpoint_store.storage.sweep import BATCH_SIZE
from checkpoint_store.storage.thread_list import ThreadStats, stats_of
from checkpoint_store.storage.threads import copy_thread as copy_thread_rows
from checkpoint_store.storage.threads import delete_thread as delete_thread_rows
from checkpoint_store.storage.threads import not_found, thread_stats
from checkpoint_store.tools import conversion

if TYPE_CHECKING:
    from checkpoint_store.saver.aio import AsyncPostgresSaver


class Form(StrEnum):
    """How large values are stored."""

    share = "share"
    inline = "inline"


def copy(
    source: Annotated[str, typer.Argument(help="The thread to copy.", show_default=False)],
    target: Annotated[str, typer.Argument(help="The id of the copy.", show_default=False)],
    replace: Annotated[bool, typer.Option("--replace", help="First delete what the target has.")] = False,
    url: Url = "",
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

    async def work(at: Backend) -> int:
        try:
            return await at.run(copy_thread_rows, pair, replace, {})
        except ThreadExists:
            raise ThreadExists(
                f"something is stored for the thread {target!r}: delete it, choose another id, or add --replace"
            ) from None

    rows = connected(url, schema, work, retry_timeout=RETRY_SECONDS)
    output.line(f"copied {source} to {target}: {counted(rows, 'row')}")


def delete(
    threads: Annotated[list[str], typer.Argument(metavar="THREAD...", help="Their ids.", show_default=False)],
    yes: Yes = False,
    url: Url = "",
    schema: Schema = None,
) -> None:
    """Delete all that is stored for threads.

    Each thread is deleted in one transaction. Stop what uses it first: a run under way stores what it is doing.

    \b
    Example:
      checkpoint-store delete user-42
      checkpoint-store delete --yes user-42 user-43
    """
    threads = list(dict.fromkeys(checked_thread_id(one, "THREAD") for one in threads))

    async def look(source: Backend) -> list[ThreadStats]:
        return [await _stored(source, one) for one in threads]

    found = connected(url, schema, look)
    if not yes:
        for one in found:
            output.note(f"{one.thread_id}: {counted(one.checkpoints, 'checkpoint')}, {size(one.bytes)}")
        confirm(f"Shall {'it' if len(found) == 1 else 'they'} be deleted for good?")

    async def work(source: Backend) -> None:
        for one in found:
            await source.run(delete_thread_rows, one.thread_id)
            output.line(f"deleted {one.thread_id}: {counted(one.checkpoints, 'checkpoint')}, {size(one.bytes)}")

    advice = "threads that were named as deleted are gone, the others are as they were"
    connected(url, schema, work, advice, retry_timeout=RETRY_SECONDS)


def pages(
    form: Annotated[Form, typer.Argument(help='"share" or "inline".', show_default=False)],
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="How many values to rewrite at a time.")] = 20,
    url: Url = "",
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
    done = on_engine(url, schema, work, advice)
    output.line(f"{'shared' if form is Form.share else 'inlined'} {counted(done, 'value')}")


def prune(
    threads: Annotated[list[str], typer.Argument(metavar="THREAD...", help="Their ids.", show_default=False)],
    keep: Annotated[int, typer.Option(metavar="N", min=1, help="How many to keep of each namespace.")] = 1,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Delete older checkpoints of threads.

    The newest of each namespace stay, with what they need to be read and gone on with. The threads may be in use.

    \b
    Example:
      checkpoint-store prune user-42 user-43
      checkpoint-store prune user-42 --keep 10
    """
    threads = list(dict.fromkeys(checked_thread_id(one, "THREAD") for one in threads))

    async def look(source: Backend) -> None:
        for one in threads:
            await _stored(source, one)

    async def work(saver: AsyncPostgresSaver) -> SweepReport:
        return await saver.aprune(threads, keep=keep)

    connected(url, schema, look)

    report = _with_saver(url, schema, work, "each thread is pruned or as it was; the same command goes on")
    _tell("removed", report, as_json)


def sweep(
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", show_default=False, help="What is older: 90m, 12h, 30d, 8w.")
    ] = None,
    keep_last: Annotated[
        int | None, typer.Option(metavar="N", min=1, show_default=False, help="Keep so many of each namespace.")
    ] = None,
    spare_active: Annotated[
        bool, typer.Option("--spare-active", help="Leave threads alone that have anything younger.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many checkpoints to remove in one transaction.")
    ] = BATCH_SIZE,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Delete old checkpoints of all threads.

    A checkpoint stays if either option asks for it: if it is younger, or one of so many. With --older-than alone a
    thread goes altogether once everything in it is older. The database may be in use, also by another sweep.

    \b
    Example:
      checkpoint-store sweep --older-than 30d --dry-run
      checkpoint-store sweep --older-than 30d --keep-last 3
    """
    if older_than is None and (spare_active or keep_last is None):
        raise InvalidOption(
            "--spare-active needs --older-than, which says since when a thread is active"
            if spare_active
            else "sweep needs --older-than or --keep-last, or both: without them everything stays"
        )
    age = None if older_than is None else age_of(older_than)

    async def work(saver: AsyncPostgresSaver) -> SweepReport:
        with output.progress("sweeping", "checkpoints") as told:
            return await saver.asweep(
                older_than=age,
                keep_last=keep_last,
                spare_active=spare_active,
                dry_run=dry_run,
                batch_size=batch_size,
                on_progress=lambda report: told(report.checkpoints),
            )

    report = _with_saver(
        url,
        schema,
        work,
        "what was removed stays so, and every thread is whole; the same command goes on with the rest",
    )
    _tell("would remove" if dry_run else "removed", report, as_json)


COMMANDS = (copy, prune, sweep, delete, pages)


def age_of(text: str) -> timedelta:
    """Return what an age such as `30d` or `1d12h` says.

    Raises:
        InvalidOption: If it is none.
    """
    parts = _AGE.fullmatch(text.strip())
    try:
        age = timedelta(**{unit: int(count) for unit, count in (parts.groupdict() if parts else {}).items() if count})
    except OverflowError:
        parts, age = None, timedelta(0)
    if not age:
        wanted = "more than zero" if parts and parts[0] else "a number with a unit: s, m, h, d or w"
        raise InvalidOption(f"--older-than is {text!r}; it is {wanted}, as in 30d or 1d12h")
    return age


_AGE = re.compile(
    r"(?:(?P<weeks>\d+)w)?(?:(?P<days>\d+)d)?(?:(?P<hours>\d+)h)?(?:(?P<minutes>\d+)m)?(?:(?P<seconds>\d+)s)?"
)


async def _stored(source: Backend, thread: str) -> ThreadStats:
    """Return what is stored for a thread, or raise if nothing is."""
    found = stats_of(thread, *await source.run(thread_stats, thread))
    if not found.bytes:
        raise not_found(thread)
    return found


def _with_saver(
    url: str, schema: str | None, work: Callable[[AsyncPostgresSaver], Awaitable[SweepReport]], advice: str
) -> SweepReport:
    from checkpoint_store.saver.aio import AsyncPostgresSaver

    return on_engine(url, schema, lambda engine: work(AsyncPostgresSaver(engine, schema=schema)), advice)


def _tell(what: str, report: SweepReport, as_json: bool) -> None:
    if as_json:
        output.document(report._asdict())
        return
    counts = [(report.writes, "pending write"), (report.blobs, "value"), (report.pages, "page")]
    rest = ", ".join(counted(count, noun) for count, noun in counts)
    of = f"{counted(report.checkpoints, 'checkpoint')} of {counted(report.threads, 'thread')}"
    output.line(f"{what} {of}, {rest}: {size(report.bytes)}")
