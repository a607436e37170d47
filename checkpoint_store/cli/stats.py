"""The command `stats`: sizes of tables, threads and channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from checkpoint_store.cli import output
from checkpoint_store.cli.arguments import most
from checkpoint_store.cli.connection import Json, Schema, Url, looking
from checkpoint_store.cli.output import Column
from checkpoint_store.cli.prometheus import print_metrics
from checkpoint_store.cli.text import counted, size
from checkpoint_store.errors import InvalidOption
from checkpoint_store.serde.keys import checked_thread_id

if TYPE_CHECKING:
    from checkpoint_store.database.backend import Backend
    from checkpoint_store.storage.thread_stats import ThreadStats


def stats(
    thread: Annotated[str | None, typer.Argument(help="A thread's id; all by default.", show_default=False)] = None,
    limit: Annotated[
        int,
        typer.Option("--limit", "-n", metavar="N", min=0, help="How many threads or channels, the largest; 0 for all."),
    ] = 10,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print what is cheap to know as metrics, for a file or a cron job.")
    ] = False,
    threads: Annotated[
        bool, typer.Option("--threads", help="With --prometheus, the sizes of the largest threads too.")
    ] = False,
) -> None:
    """Show the sizes of tables, threads and channels.

    Of a thread its tables and channels; without one the tables and the largest threads, for which every row of the
    tables is read, though no large value: on a large database this takes its time. With --prometheus no table is read.

    \b
    Example:
      checkpoint-store stats
      checkpoint-store stats user-42
      checkpoint-store stats --prometheus > checkpoint_store.prom
    """
    if (prometheus and (thread is not None or as_json)) or (threads and not prometheus):
        raise InvalidOption("--prometheus is for the whole database, without THREAD and --json; --threads goes with it")
    if prometheus:
        print_metrics(url, schema, most(limit) if threads else None)
        return
    if thread is None:
        _print_database(url, schema, most(limit), as_json)
    else:
        checked_thread_id(thread, "THREAD")
        stats = looking(url, schema, lambda backend: stored_stats(backend, thread))
        _print_thread(stats, most(limit), as_json)


async def stored_stats(backend: Backend, thread: str) -> ThreadStats:
    """Return the sizes of a thread, or raise `ThreadNotFound`."""
    from checkpoint_store.storage.refusals import not_found
    from checkpoint_store.storage.thread_stats import stats_of, thread_stats

    stats = stats_of(thread, *await backend.run(thread_stats, thread))
    if not stats.bytes:
        raise not_found(thread)
    return stats


def _print_thread(stats: ThreadStats, limit: int, as_json: bool) -> None:
    if as_json:
        tables = {name: table._asdict() for name, table in stats.tables.items()}
        channels = [channel._asdict() for channel in stats.channels]
        output.document({"thread_id": stats.thread_id, "bytes": stats.bytes, "tables": tables, "channels": channels})
        return
    output.line(f"{stats.thread_id}: {counted(stats.checkpoints, 'checkpoint')}, {size(stats.bytes)}", "bold")
    output.table(
        [Column("TABLE"), Column("ROWS", right=True), Column("SIZE", right=True)],
        [(name, f"{table.rows:,}", size(table.bytes)) for name, table in stats.tables.items() if table.rows],
    )
    output.line()
    output.table(
        [
            Column("GRAPH", cut=True),
            Column("CHANNEL", cut=True),
            Column("VALUES", right=True, rank=1),
            Column("WRITES", right=True, rank=2),
            Column("SIZE", right=True),
        ],
        [
            (one.graph or "-", one.channel, f"{one.values:,}", f"{one.writes:,}", size(one.bytes))
            for one in stats.channels[:limit]
        ],
    )


def _print_database(url: str, schema: str | None, limit: int, as_json: bool) -> None:
    from checkpoint_store.storage.diagnosis import table_statistics
    from checkpoint_store.storage.probes import are_distributed
    from checkpoint_store.storage.thread_stats import largest_threads, table_sizes

    async def read(backend: Backend) -> tuple[Any, Any]:
        # Of tables that Citus has distributed, only the workers have statistics.
        known = [] if await backend.run(are_distributed) else await backend.run(table_statistics)
        current = {one.table: one.current_rows for one in known if one.current_rows is not None}
        sizes = [(name, current.get(name, rows), count) for name, rows, count in await backend.run(table_sizes)]
        return sizes, await backend.run(largest_threads, limit)

    tables, largest = looking(url, schema, read)
    if as_json:
        sizes = {name: {"rows": rows, "bytes_on_disk": count} for name, rows, count in tables}
        threads = [dict(zip(("thread_id", "checkpoints", "bytes"), row, strict=True)) for row in largest]
        output.document({"tables": sizes, "largest_threads": threads})
        return
    output.table(
        [Column("TABLE"), Column("ROWS (ABOUT)", right=True), Column("ON DISK", right=True)],
        [(name, "-" if rows is None else f"{rows:,}", size(count)) for name, rows, count in tables],
    )
    output.line()
    output.table(
        [Column("LARGEST THREADS", cut=True), Column("CHECKPOINTS", right=True, rank=1), Column("SIZE", right=True)],
        [(name, f"{checkpoints:,}", size(count)) for name, checkpoints, count in largest],
    )
