"""The statements that ask a database for its state and our role; no I/O."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from checkpoint_store.schema import VERSION_TABLE, Tables, quoted
from checkpoint_store.sql import expressions as ex


def role(_: Tables) -> sa.Select[Any]:
    """Select the database role that statements run as."""
    return sa.select(sa.func.current_user())


def adoption(_: Tables) -> sa.Select[Any]:
    """Select whether the stock saver has set up tables, the comment on ours, and the database's name.

    Binds: `stock` and `version`, the qualified names of their version table and ours.
    """
    comment = sa.func.obj_description(sa.func.to_regclass(ex.param("version")), ex.text_literal("pg_class"))
    return sa.select(sa.func.to_regclass(ex.param("stock")).is_not(None), comment, sa.func.current_database())


def revision(t: Tables) -> sa.Select[Any]:
    """Select the revisions that Alembic has recorded for a schema, with the database's name and encoding."""
    version = sa.table(VERSION_TABLE, sa.column("version_num"), schema=None if t.schema is None else quoted(t.schema))
    encoding = sa.func.current_setting(ex.text_literal("server_encoding"))
    return sa.select(version.c.version_num, sa.func.current_database(), encoding)


def log_position(_: Tables) -> sa.Select[Any]:
    """Select the position at which the write-ahead log ends, including the part that is not flushed yet."""
    return sa.select(sa.cast(sa.func.pg_current_wal_insert_lsn(), sa.Text))


def replayed_position(_: Tables) -> sa.Select[Any]:
    """Select the position up to which the write-ahead log is replayed; NULL on a server that is not a replica."""
    replayed = sa.cast(sa.func.pg_last_wal_replay_lsn(), sa.Text)
    return sa.select(sa.case((sa.func.pg_is_in_recovery(), replayed)))
