"""The statements that ask a database for its state and our role; no I/O."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, Text, case, cast, column, func, select, table

from checkpoint_store.schema import VERSION_TABLE, Tables, quoted
from checkpoint_store.sql.expressions import param, text_literal


def role(_: Tables) -> Select[Any]:
    """Select the database role that statements run as."""
    return select(func.current_user())


def adoption(_: Tables) -> Select[Any]:
    """Select whether the stock saver has set up tables, the comment on ours, and the database's name.

    Binds: `stock` and `version`, the qualified names of their version table and ours.
    """
    comment = func.obj_description(func.to_regclass(param("version")), text_literal("pg_class"))
    return select(func.to_regclass(param("stock")).is_not(None), comment, func.current_database())


def revision(t: Tables) -> Select[Any]:
    """Select the revisions that Alembic has recorded for a schema, with the database's name and encoding."""
    version = table(VERSION_TABLE, column("version_num"), schema=None if t.schema is None else quoted(t.schema))
    encoding = func.current_setting(text_literal("server_encoding"))
    return select(version.c.version_num, func.current_database(), encoding)


def log_position(_: Tables) -> Select[Any]:
    """Select the position at which the write-ahead log ends, including the part that is not flushed yet."""
    return select(cast(func.pg_current_wal_insert_lsn(), Text))


def replayed_position(_: Tables) -> Select[Any]:
    """Select the position up to which the write-ahead log is replayed; NULL on a server that is not a replica."""
    replayed = cast(func.pg_last_wal_replay_lsn(), Text)
    return select(case((func.pg_is_in_recovery(), replayed)))
