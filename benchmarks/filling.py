"""Databases filled on the server: a million rows in seconds."""

from __future__ import annotations

from collections.abc import Iterable

import psycopg
from psycopg import sql

TABLES = ("checkpoints", "checkpoint_writes", "checkpoint_blobs", "checkpoint_pages", "checkpoint_threads")

KEPT = "kept"
"""The schema of what threads are copied from."""

# Checkpoints whose ids are version 6 UUIDs a millisecond apart, each ten of a run.
NUMBERED = """
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)
SELECT {thread}, '',
       lpad(to_hex(t >> 28), 8, '0') || '-' || lpad(to_hex(t >> 12 & 65535), 4, '0') || '-6'
           || lpad(to_hex(t & 4095), 3, '0') || '-8000-' || lpad(to_hex(i), 12, '0'),
       jsonb_build_object('v', 4, 'channel_values', jsonb_build_object('n', i), 'channel_versions', '{{}}'::jsonb),
       jsonb_build_object('step', i % 10, 'source', 'loop', 'run_id', 'run-' || i / 10)
FROM generate_series({first}, {last}) AS i, LATERAL (SELECT 139900000000000000 + i::bigint * 10000 AS t) AS at
"""


def add_numbered(url: str, thread: str, first: int, last: int) -> None:
    """Add checkpoints without values, in threads that an expression of `i`, their number, names."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(NUMBERED.format(thread=thread, first=first, last=last))
        conn.execute("VACUUM ANALYZE checkpoints")


def keep(url: str, source: str | None = None) -> None:
    """Put what a database stores aside, to be copied as often as it is needed.

    Args:
        url: The database.
        source: Another one, to take what that has put aside.
    """
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA {KEPT}")
        for table in _tables(conn):
            conn.execute(sql.SQL("CREATE TABLE {} AS TABLE {}").format(_kept(table), sql.Identifier(table)))
            conn.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(table)))
            if source:
                conn.execute(sql.SQL("TRUNCATE {}").format(_kept(table)))
                _transfer(source, conn, table)
        conn.execute("ANALYZE")


def copy(url: str, threads: Iterable[str]) -> None:
    """Replace all that is stored by copies of what was put aside, one for each of some threads."""
    with psycopg.connect(url, autocommit=True) as conn:
        for table in _tables(conn):
            names = [name for name in _columns(conn, table) if name != "thread_id"]
            query = "INSERT INTO {table} (thread_id, {columns}) SELECT new.thread_id, {columns} FROM {kept}, {new}"
            conn.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(table)))
            conn.execute(
                sql.SQL(query).format(
                    table=sql.Identifier(table),
                    columns=sql.SQL(", ").join(map(sql.Identifier, names)),
                    kept=_kept(table),
                    new=sql.SQL("unnest(%s::text[]) AS new (thread_id)"),
                ),
                (list(threads),),
            )
        conn.execute("VACUUM ANALYZE")
        # So that nobody writes out what another one has filled.
        conn.execute("CHECKPOINT")


def _tables(conn: psycopg.Connection) -> list[str]:
    found = conn.execute(
        "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NOT NULL", ([*TABLES],)
    )
    return [name for (name,) in found]


def _columns(conn: psycopg.Connection, table: str) -> list[str]:
    query = "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
    return [name for (name,) in conn.execute(query, (table,))]


def _transfer(source: str, conn: psycopg.Connection, table: str) -> None:
    columns = sql.SQL(", ").join(map(sql.Identifier, _columns(conn, table)))
    rows = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT binary)").format(columns, _kept(table))
    into = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(_kept(table), columns)
    with psycopg.connect(source) as other, other.cursor().copy(rows) as lines, conn.cursor().copy(into) as target:
        for line in lines:
            target.write(line)


def _kept(table: str) -> sql.Composable:
    return sql.Identifier(KEPT, table)
