"""The statements that ask a database for its state and our role; no I/O."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from checkpoint_store.schema import HEAD, VERSION_TABLE, Tables, quoted
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


_ENCODING = sa.func.current_setting(ex.text_literal("server_encoding"))


def revision(t: Tables) -> sa.Select[Any]:
    """Select the revisions that Alembic has recorded for a schema, with the database's name and encoding."""
    return sa.select(_version(t).c.version_num, sa.func.current_database(), _ENCODING)


def is_at_head(t: Tables) -> sa.Select[Any]:
    """Select a row if the schema is at head, in a database that can hold any text."""
    is_head = _version(t).c.version_num == ex.text_literal(HEAD)
    return sa.select(ex.ONE).where(is_head, ex.text_literal("UTF8") == _ENCODING)


def _version(t: Tables) -> sa.TableClause:
    schema = None if t.schema is None else quoted(t.schema)
    return sa.table(VERSION_TABLE, sa.column("version_num"), schema=schema)


def log_position(_: Tables) -> sa.Select[Any]:
    """Select the position at which the write-ahead log ends, including the part that is not flushed yet."""
    return sa.select(sa.cast(sa.func.pg_current_wal_insert_lsn(), sa.Text))


def replayed_position(_: Tables) -> sa.Select[Any]:
    """Select the position up to which the write-ahead log is replayed; NULL on a server that is not a replica."""
    replayed = sa.cast(sa.func.pg_last_wal_replay_lsn(), sa.Text)
    return sa.select(sa.case((sa.func.pg_is_in_recovery(), replayed)))
