"""The commands `prune` and `sweep`: old checkpoints deleted, of some threads or of all."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from checkpoint_store.cli import output
from checkpoint_store.cli.connection import Json, Schema, Url, on_backend, on_engine
from checkpoint_store.cli.stats import stored_stats
from checkpoint_store.cli.text import counted, size
from checkpoint_store.errors import InvalidOption
from checkpoint_store.serde.keys import checked_thread_id
from checkpoint_store.storage.sweep_report import SweepReport

if TYPE_CHECKING:
    from checkpoint_store.database.backend import Backend
    from checkpoint_store.saver.aio import AsyncPostgresSaver

OlderThan = Annotated[
    str | None, typer.Option(metavar="AGE", show_default=False, help="Delete what is older: 90m, 12h, 30d, 8w.")
]
KeepLast = Annotated[
    int | None, typer.Option(metavar="N", min=1, show_default=False, help="How many to keep of each namespace.")
]
SpareActive = Annotated[bool, typer.Option("--spare-active", help="Leave threads alone that have anything younger.")]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="How many checkpoints to delete in one transaction.")]


def prune(
    threads: Annotated[list[str], typer.Argument(metavar="THREAD...", help="Their ids.", show_default=False)],
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
    report = _run_on_saver(url, schema, lambda saver: saver.aprune(threads, keep=keep), advice)
    _print("removed", report, as_json)


def sweep(
    older_than: OlderThan = None,
    keep_last: KeepLast = None,
    spare_active: SpareActive = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count; delete nothing.")] = False,
    batch_size: BatchSize = 1_000,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Delete old checkpoints of all threads.

    A checkpoint stays if either option asks for it: if it is younger, or among the newest. With --older-than alone a
    thread is deleted altogether once everything in it is older. The database may be in use, also by another sweep.

    \b
    Example:
      checkpoint-store sweep --older-than 30d --dry-run
      checkpoint-store sweep --older-than 30d --keep-last 3
    """
    if spare_active and older_than is None:
        raise InvalidOption("--spare-active needs --older-than, the age from which a thread is not active")
    if older_than is None and keep_last is None:
        raise InvalidOption("sweep needs --older-than or --keep-last, or both: without them everything stays")
    age = None if older_than is None else age_of(older_than)

    async def work(saver: AsyncPostgresSaver) -> SweepReport:
        with output.progress("sweeping", "checkpoints") as advance:
            return await saver.asweep(
                older_than=age,
                keep_last=keep_last,
                spare_active=spare_active,
                dry_run=dry_run,
                batch_size=batch_size,
                on_progress=lambda report: advance(report.checkpoints),
            )

    advice = "what was removed stays so, and every thread is complete; the same command goes on with the rest"
    report = _run_on_saver(url, schema, work, advice)
    _print("would remove" if dry_run else "removed", report, as_json)


def age_of(text: str) -> timedelta:
    """Return the duration that a text such as `30d` or `1d12h` names, or raise `InvalidOption`."""
    parts = _AGE.fullmatch(text.strip())
    age = timedelta(**{unit: int(count or 0) for unit, count in parts.groupdict().items()}) if parts else None
    if not age:
        wanted = "more than zero" if parts and parts[0] else "a number with a unit: s, m, h, d or w"
        raise InvalidOption(f"--older-than must be {wanted}, as in 30d or 1d12h, not {text!r}")
    return age


# Eight digits of every unit are within the bounds of a timedelta.
_AGE = re.compile(
    "".join(rf"(?:(?P<{unit}>\d{{1,8}}){unit[0]})?" for unit in ("weeks", "days", "hours", "minutes", "seconds"))
)


def _run_on_saver(
    url: str, schema: str | None, work: Callable[[AsyncPostgresSaver], Awaitable[SweepReport]], advice: str
) -> SweepReport:
    from checkpoint_store.saver.aio import AsyncPostgresSaver

    return on_engine(url, schema, lambda engine: work(AsyncPostgresSaver(engine, schema=schema)), advice)


def _print(action: str, report: SweepReport, as_json: bool) -> None:
    if as_json:
        output.document(report._asdict())
        return
    counts = [(report.writes, "pending write"), (report.blobs, "value"), (report.pages, "page")]
    rest = ", ".join(counted(count, noun) for count, noun in counts)
    of = f"{counted(report.checkpoints, 'checkpoint')} of {counted(report.threads, 'thread')}"
    output.line(f"{action} {of}, {rest}: {size(report.bytes)}")
