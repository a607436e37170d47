"""The commands `prune` and `sweep`: old checkpoints deleted, of some threads or of all."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from checkpoint_store.cli import output
from checkpoint_store.cli.arguments import age_of, object_of
from checkpoint_store.cli.connection import Json, Schema, Url, on_backend, on_engine
from checkpoint_store.cli.stats import stored_stats
from checkpoint_store.cli.text import counted, moment, size
from checkpoint_store.errors import CheckpointStoreError, InvalidOption
from checkpoint_store.serde.keys import checked_thread_id
from checkpoint_store.storage.sweep_report import SweepReport

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from checkpoint_store.database.backend import Backend
    from checkpoint_store.expiry import Expiry
    from checkpoint_store.saver.aio import AsyncPostgresSaver
    from checkpoint_store.saver.retention import SweepOptions
    from checkpoint_store.storage.thread_list import ThreadSummary

OlderThan = Annotated[
    str | None, typer.Option(metavar="AGE", show_default=False, help="Delete what is older: 90m, 12h, 30d, 8w.")
]
KeepLast = Annotated[
    int | None, typer.Option(metavar="N", min=1, show_default=False, help="How many to keep of each namespace.")
]
Idle = Annotated[
    str | None,
    typer.Option(metavar="AGE", show_default=False, help="Delete threads in which nothing is younger."),
]
Age = Annotated[
    str | None,
    typer.Option(metavar="AGE", show_default=False, help="Delete threads whose first checkpoint is older."),
]
Filter = Annotated[
    str | None,
    typer.Option(metavar="JSON", show_default=False, help="Only threads whose newest metadata contains this."),
]
Never = Annotated[
    list[str] | None,
    typer.Option(metavar="JSON", show_default=False, help="Never threads whose newest metadata contains this."),
]
SpareActive = Annotated[bool, typer.Option("--spare-active", help="Leave threads alone that have anything younger.")]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="How many checkpoints to delete in one transaction.")]


def prune(
    threads: Annotated[list[str], typer.Argument(metavar="THREAD", help="Their ids.", show_default=False)],
    keep: Annotated[int, typer.Option(metavar="N", min=1, help="How many to keep of each namespace.")] = 1,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Delete older checkpoints of threads.

    The newest of each namespace stay, with what is needed to read them and to go on. The threads may be in use.

    \b
    Example:
      checkpoint-store prune user-42 user-43
      checkpoint-store prune user-42 --keep 10
    """
    threads = list(dict.fromkeys(checked_thread_id(one, "THREAD") for one in threads))

    async def check(backend: Backend) -> None:
        for one in threads:
            await stored_stats(backend, one)

    on_backend(url, schema, check)
    advice = "each thread is pruned or as it was; the same command goes on"
    report, room = _run_on_saver(url, schema, lambda saver: saver.aprune(threads, keep=keep), advice)
    _print(report, as_json)
    if room:
        output.note(room)


def sweep(
    older_than: OlderThan = None,
    keep_last: KeepLast = None,
    spare_active: SpareActive = False,
    idle: Idle = None,
    age: Age = None,
    filter: Filter = None,
    never: Never = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count; delete nothing.")] = False,
    batch_size: BatchSize = 1_000,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Delete old checkpoints of all threads, or threads that have expired.

    It does not ask: --dry-run shows first what would be deleted. A checkpoint stays if --older-than or --keep-last asks
    for it: if it is younger, or among the newest. With --older-than alone a thread is deleted altogether once
    everything in it is older. With --idle or --age a thread is deleted as a whole or stays as it is. The database may
    be in use, also by another sweep.

    \b
    Example:
      checkpoint-store sweep --older-than 30d --dry-run
      checkpoint-store sweep --older-than 30d --keep-last 3
      checkpoint-store sweep --idle 30d --age 365d --never '{"pinned": true}'
    """
    expiring = idle is not None or age is not None
    if spare_active and older_than is None:
        raise InvalidOption("--spare-active needs --older-than, the age from which a thread is not active")
    if expiring and (older_than is not None or keep_last is not None):
        raise InvalidOption("--idle and --age delete whole threads: sweep with --older-than or --keep-last by itself")
    if (filter is not None or never) and not expiring:
        raise InvalidOption("--filter and --never need --idle or --age")
    options: SweepOptions = {"batch_size": batch_size, "spare_active": spare_active}
    if expiring:
        options["expiry"] = _rules(idle, age, filter, never or ())
    elif older_than is None and keep_last is None:
        raise InvalidOption("sweep needs --older-than or --keep-last, --idle or --age: without them everything stays")
    else:
        options["older_than"] = None if older_than is None else age_of(older_than)
        options["keep_last"] = keep_last
    expired: list[ThreadSummary] = []
    report, room = _run_on_saver(url, schema, lambda saver: _swept(saver, options, dry_run, expired), _ADVICE)
    _print(report, as_json, dry_run=dry_run, expired=expired if expiring and dry_run else None)
    if room and not dry_run:
        output.note(room)


_ADVICE = "what was removed stays so, and every thread is complete; the same command goes on with the rest"


async def _swept(
    saver: AsyncPostgresSaver, options: SweepOptions, dry_run: bool, expired: list[ThreadSummary]
) -> SweepReport:
    """Sweep, and note for a dry run the threads that have expired."""
    from checkpoint_store.saver.retention import sweep_of

    def note(thread: ThreadSummary) -> bool:
        expired.append(thread)
        return False

    if dry_run and "expiry" in options:
        options = {**options, "keep": note}
    async with _progress(saver) as on_step:
        return await saver._asweep(sweep_of(**options, dry_run=dry_run, on_step=on_step))


@asynccontextmanager
async def _progress(saver: AsyncPostgresSaver) -> AsyncIterator[Callable[[int], None]]:
    """Show how many threads were looked at, and of how many: these are counted meanwhile."""
    import asyncio

    from checkpoint_store.storage.deletion import count_threads

    with output.progress("sweeping", "threads") as advance:
        counting = asyncio.create_task(saver._backend.run(count_threads)) if sys.stderr.isatty() else None

        def on_step(looked_at: int) -> None:
            is_known = counting is not None and counting.done() and not counting.exception()
            total = counting.result() if counting and is_known else 0
            # After the last of them come the leftovers, of which nobody knows the number.
            advance(looked_at, total if looked_at < total else None)

        try:
            yield on_step
        finally:
            if counting is not None:
                counting.cancel()
                await asyncio.gather(counting, return_exceptions=True)


def _rules(idle: str | None, age: str | None, filter: str | None, never: Sequence[str]) -> list[Expiry]:
    from checkpoint_store.expiry import Expiry

    rule = Expiry(
        idle=None if idle is None else age_of(idle, "--idle"),
        age=None if age is None else age_of(age, "--age"),
        filter=None if filter is None else object_of(filter, "--filter"),
    )
    return [*[Expiry.never(object_of(one, "--never")) for one in never], rule]


def _run_on_saver(
    url: str, schema: str | None, work: Callable[[AsyncPostgresSaver], Awaitable[SweepReport]], advice: str
) -> tuple[SweepReport, str]:
    """Run an async function on a saver. Returns its report, and a note about the room that was made, or nothing."""
    from checkpoint_store.saver.aio import AsyncPostgresSaver

    async def run(engine: AsyncEngine) -> tuple[SweepReport, str]:
        saver = AsyncPostgresSaver(engine, schema=schema)
        report = await work(saver)
        try:
            return report, await _room(saver._backend, report)
        except CheckpointStoreError:
            return report, ""  # the work is done all the same

    return on_engine(url, schema, run, advice)


async def _room(backend: Backend, report: SweepReport) -> str:
    """Return how many bytes a vacuum makes room for, when it comes, and how files shrink."""
    from checkpoint_store.storage.diagnosis import server, table_statistics
    from checkpoint_store.storage.probes import are_distributed

    removed = {
        "checkpoints": report.checkpoints,
        "checkpoint_writes": report.writes,
        "checkpoint_blobs": report.blobs,
        "checkpoint_pages": report.pages,
    }
    # Of tables that Citus has distributed, only the workers have statistics.
    if sum(removed.values()) < _MANY_ROWS or await backend.run(are_distributed):
        return ""
    tables = [one for one in await backend.run(table_statistics) if removed.get(one.table)]
    has_autovacuum = (await backend.run(server)).has_autovacuum
    off = [one.table for one in tables if one.is_autovacuum_off or not has_autovacuum]
    # The server counts dead rows late.
    missing = {one.table: one.vacuum_at - max(one.dead, removed[one.table]) for one in tables}
    last = max(missing, key=missing.__getitem__, default=None)
    if off:
        when = f"autovacuum is off for {' and '.join(off)}"
    elif last is None or missing[last] < 0:
        when = "autovacuum is due"
    else:
        when = f"autovacuum comes to {last} after {counted(missing[last] + 1, 'more dead row')}"
    return f"VACUUM makes about {size(report.bytes)} reusable ({when}); files shrink only by VACUUM FULL or pg_repack"


_MANY_ROWS = 1_000
"""The number of rows from which on the room that they leave is worth a line."""


def _print(
    report: SweepReport, as_json: bool, *, dry_run: bool = False, expired: Sequence[ThreadSummary] | None = None
) -> None:
    """Print what was removed, and of a dry run by age the threads that have expired."""
    if as_json:
        threads = {} if expired is None else {"expired": [one.thread_id for one in expired]}
        output.document({**report._asdict(), **threads})
        return
    if expired:
        columns = [
            output.Column("THREAD", cut=True),
            output.Column("UPDATED (UTC)"),
            output.Column("CHECKPOINTS", right=True, rank=1),
        ]
        rows = [(one.thread_id, moment(one.updated_at), f"{one.checkpoints or 0:,}") for one in expired]
        output.table(columns, rows)
    counts = [(report.writes, "pending write"), (report.blobs, "value"), (report.pages, "page")]
    rest = ", ".join(counted(count, noun) for count, noun in counts)
    of = f"{counted(report.checkpoints, 'checkpoint')} of {counted(report.threads, 'thread')}"
    output.line(f"{'would remove' if dry_run else 'removed'} {of}, {rest}: {size(report.bytes)}")
