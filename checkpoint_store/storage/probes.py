"""Questions to a database: its role, whose tables they are, its revisions, and how far a replica is."""

from __future__ import annotations

import logging

from checkpoint_store.schema import ADOPTED, HEAD, STOCK_TABLE, VERSION_TABLE, qualified
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.operation import Kind, operation

_warned: set[tuple[str, str]] = set()
"""The warnings that were logged, a database and its encoding or a schema: once in a process is enough."""

log = logging.getLogger("checkpoint_store")


@operation(Kind.PROBE)
def role(db: Executor, sql: Statements) -> str:
    """Return the database role that statements run as."""
    return str(db.fetch(sql.role, {})[0][0])


@operation(Kind.PROBE)
def is_adopted(db: Executor, sql: Statements, *, warns: bool = True) -> bool:
    """Return whether the stock saver may read the tables: it has set them up, or we did not make them."""
    schema = sql.tables.schema
    names = {"stock": qualified(STOCK_TABLE, schema), "version": qualified(VERSION_TABLE, schema)}
    is_stock, comment, database = db.fetch(sql.adoption, names)[0]
    was_found = (comment or "").startswith(ADOPTED)
    if warns and is_stock and not was_found and (database, schema or "") not in _warned:
        _warned.add((database, schema or ""))
        log.warning(
            'database "%s": the stock saver has set up the tables, so it may read them, and can\'t read shared pages. '
            "Large values are stored whole. Pass share_pages=True if it doesn't, share_pages=False to leave it so.",
            database,
        )
    return bool(is_stock) or was_found


@operation(Kind.PROBE)
def outlives_downgrade(db: Executor, sql: Statements) -> bool:
    """Return whether the tables stay when all revisions are undone: those that are adopted."""
    return is_adopted(db, sql, warns=False)


@operation(Kind.PROBE)
def revisions(db: Executor, sql: Statements) -> set[str]:
    """Return the revisions that the database is at, and warn of an encoding that can't hold every text."""
    rows = db.fetch(sql.revision, {})
    for _, database, encoding in rows:
        if encoding != "UTF8" and (database, encoding) not in _warned:
            _warned.add((database, encoding))
            log.warning(
                'database "%s" has the encoding %s, not UTF8: a checkpoint that has a character which it lacks is '
                "refused. Move, by pg_dump and pg_restore, to a database made with CREATE DATABASE ... ENCODING 'UTF8' "
                "TEMPLATE template0.",
                database,
                encoding,
            )
    return {row[0] for row in rows}


@operation(Kind.PROBE)
def is_at_head(db: Executor, sql: Statements) -> bool:
    """Return whether the database is at the revision of this version, and warn as `revisions` does."""
    # On a new connection the other statement takes two round trips: to be prepared, and to be executed.
    return (db.runs_scripts and db.run_script([(sql.is_at_head, {})]) > 0) or HEAD in revisions(db, sql)


@operation(Kind.READ)
def are_distributed(_: Executor, sql: Statements) -> bool:
    """Return whether Citus has distributed the tables, as is known before any operation on them."""
    return sql.are_distributed


def are_placed(db: Executor, sql: Statements) -> bool:
    """Return whether Citus has distributed the tables: the answer that `are_distributed` has from then on."""
    return bool(db.fetch(sql.has_citus, {}) and db.fetch(sql.placement, {"table": sql.checkpoints_name}))


@operation(Kind.PROBE)
def log_position(db: Executor, sql: Statements) -> int:
    """Return where the write-ahead log ends, in bytes."""
    return _position(db.fetch(sql.log_position, {})[0][0])


@operation(Kind.PROBE)
def replayed_position(db: Executor, sql: Statements) -> int | None:
    """Return the bytes of its primary's log that a replica has replayed; None on a server that is not a replica."""
    position = db.fetch(sql.replayed_position, {})[0][0]
    return position and _position(position)


def _position(text: str) -> int:
    # Two hexadecimal numbers of 32 bits: https://www.postgresql.org/docs/current/datatype-pg-lsn.html
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)
