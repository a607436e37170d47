"""The numbers of `stats --prometheus`, in Prometheus's text format, version 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from checkpoint_store import __version__
from checkpoint_store.cli.connection import looking
from checkpoint_store.cli.text import printable
from checkpoint_store.storage.checkpoint_time import time_of

if TYPE_CHECKING:
    from datetime import datetime

    from checkpoint_store.database.backend import Backend
    from checkpoint_store.storage.catalog import Catalog
    from checkpoint_store.storage.diagnosis import Measurements

CONNECT_SECONDS, STATEMENT_SECONDS, LOCK_SECONDS = 10.0, 10.0, 2.0
"""Limits for connecting, of a statement and of its wait for a lock: jobs that come every minute must not pile up."""


class Gauge(NamedTuple):
    """A metric that may go up and down, with its samples."""

    name: str
    """Without the prefix."""
    help: str
    samples: Iterable[tuple[Mapping[str, str], float | None]]
    """Labels, beside those of the database, and values; a sample without a value is left out."""


def print_metrics(url: str, schema: str | None, threads: int | None) -> None:
    """Print the numbers of a database.

    Args:
        url: The database.
        schema: The PostgreSQL schema of the tables.
        threads: The number of threads, the largest, whose sizes are printed; with None no table is read whole.
    """
    from checkpoint_store.storage.catalog import catalog
    from checkpoint_store.storage.diagnosis import measurements
    from checkpoint_store.storage.thread_stats import largest_threads

    async def read(backend: Backend) -> tuple[Catalog, Measurements, Sequence[Any]]:
        measured = await backend.run(measurements, STATEMENT_SECONDS, LOCK_SECONDS)
        largest = [] if threads is None else await backend.run(largest_threads, threads)
        return await backend.run(catalog), measured, largest

    found, measured, largest = looking(url, schema, read, connect_timeout=CONNECT_SECONDS)
    labels = {"database": measured.server.database, "schema": schema or ""}
    of_threads = Gauge(
        "thread_bytes",
        "Bytes of a thread as stored, of the largest threads.",
        [({"thread_id": thread}, size) for thread, _, size in largest],
    )
    for line in exposition([*_of_schema(found), *_of_tables(measured), *_of_server(measured), of_threads], labels):
        typer.echo(line)


def exposition(gauges: Iterable[Gauge], labels: Mapping[str, str]) -> Iterator[str]:
    """Return the lines of metrics, each sample with some labels; a metric without samples is left out."""
    for gauge in gauges:
        name, samples = f"checkpoint_store_{gauge.name}", [one for one in gauge.samples if one[1] is not None]
        if samples:
            yield f"# HELP {name} {_escaped(gauge.help)}"
            yield f"# TYPE {name} gauge"
        for own, value in samples:
            pairs = ",".join(f'{label}="{_quoted(text)}"' for label, text in {**labels, **own}.items())
            yield f"{name}{{{pairs}}} {value}"


def _of_schema(found: Catalog) -> list[Gauge]:
    from checkpoint_store.schema import HEAD

    versions = {"revision": found.revision or "", "head": HEAD, "version": __version__}
    return [
        Gauge("info", "The revision of the tables, and that of this version of the library.", [(versions, 1)]),
        Gauge(
            "at_head", "Whether the tables are at the revision of this version.", [({}, int(found.revision == HEAD))]
        ),
    ]


def _of_tables(measured: Measurements) -> list[Gauge]:
    sizes, tables = measured.sizes, measured.statistics
    times = [time_of(checkpoint_id) for checkpoint_id in measured.ends] or [None, None]
    invalid = sum(not index.is_valid and not index.is_being_built for index in measured.indexes)
    return [
        Gauge(
            "table_bytes",
            "Bytes of a table on disk, with its indexes and large values.",
            [({"table": name}, size) for name, _, size in sizes],
        ),
        Gauge(
            "table_rows",
            "Rows of a table, by the last VACUUM or ANALYZE.",
            [({"table": name}, rows) for name, rows, _ in sizes],
        ),
        Gauge("table_dead_rows", "Dead rows of a table, an estimate.", [({"table": t.table}, t.dead) for t in tables]),
        Gauge(
            "table_dead_bytes",
            "Bytes on disk that dead rows of a table occupy, an estimate.",
            [({"table": table.table}, table.dead_bytes) for table in tables],
        ),
        Gauge(
            "table_last_vacuum_timestamp_seconds",
            "When a table was last vacuumed.",
            [({"table": table.table}, _seconds(table.vacuumed_at)) for table in tables],
        ),
        Gauge(
            "oldest_checkpoint_timestamp_seconds",
            "When the oldest checkpoint of a root graph was made.",
            [({}, _seconds(times[0]))],
        ),
        Gauge(
            "newest_checkpoint_timestamp_seconds",
            "When the newest checkpoint of a root graph was made.",
            [({}, _seconds(times[-1]))],
        ),
        Gauge("invalid_indexes", "Indexes of the tables that are not valid.", [({}, invalid)]),
    ]


def _of_server(measured: Measurements) -> list[Gauge]:
    server, connections, sessions = measured.server, measured.connections, measured.sessions
    idle = sum((one.state or "").startswith("idle in transaction") and bool(one.tables) for one in sessions)
    return [
        Gauge("server_info", "The version of PostgreSQL.", [({"server_version": server.version}, 1)]),
        Gauge("server_connections", "Connections to the server.", [({}, connections.all)]),
        Gauge(
            "server_connections_limit",
            "Connections that the server has for roles that are not superusers.",
            [({}, server.max_connections - server.reserved_connections)],
        ),
        Gauge("database_connections", "Connections to the database.", [({}, connections.of_database)]),
        Gauge(
            "idle_in_transaction_sessions",
            "Sessions that hold locks on the tables while their clients do nothing.",
            [({}, idle)],
        ),
        Gauge(
            "waiting_sessions", "Sessions that wait for locks on the tables.", [({}, sum(s.waits for s in sessions))]
        ),
        Gauge(
            "transaction_id_age",
            "Transactions since the oldest row of the database that is not frozen; near 2,147 million writes stop.",
            [({}, server.transaction_age)],
        ),
    ]


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else round(time.timestamp(), 3)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(text: str) -> str:
    # What is not printable is escaped before: no terminal is moved, and no line is broken.
    return _escaped(printable(text)).replace('"', r"\"")
