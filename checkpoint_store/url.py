"""Connection strings, and the options of an engine that is made from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy import QueuePool

from checkpoint_store.conninfo.url import connector, engine_arguments
from checkpoint_store.errors import InvalidOption, short_repr
from checkpoint_store.serde.arguments import choice

__all__ = ["connector", "engine_arguments", "pooler_options"]

Pooler = Literal["transaction"]
"""The kind of pooler between an engine and its server: one that pools transactions."""

POOL_SIZE = 8
"""The number of connections in the pool of an engine of ours; it opens no more."""


def pool_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an engine of ours, with defaults for those of its pool.

    The pool has no overflow: such connections are closed when they are given back, and opened at the next burst; that
    costs half the rate.
    """
    if "pool" in options or not issubclass(options.get("poolclass") or QueuePool, QueuePool):
        return dict(options)
    return {"pool_size": POOL_SIZE, "max_overflow": 0, **options}


def pooler_options(driver: str = "asyncpg") -> dict[str, Any]:
    """Return the options of an engine that works through a pooler in transaction mode, such as PgBouncer.

        engine = create_async_engine("postgresql+asyncpg://app@pgbouncer:6432/app", **pooler_options())

    A pooler in that mode may lend another of the server's connections to each transaction, so nothing that belongs to
    one may be counted on in the next: above all no statement that was prepared there.

    Args:
        driver: `asyncpg` or `psycopg`.

    Returns:
        Keyword arguments for SQLAlchemy's `create_async_engine`, or with psycopg also for `create_engine`.

    Raises:
        InvalidOption: If it is another driver.
    """
    if choice(driver, "driver", ("asyncpg", "psycopg")) == "psycopg":
        return {"connect_args": {"prepare_threshold": None}}
    return {
        "connect_args": {
            # asyncpg's own cache. Without it asyncpg sends the text along each time it executes it.
            "statement_cache_size": 0,
            # SQLAlchemy's, and its names of prepared statements: they must not meet another client's by chance.
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"__checkpoint_store_{uuid4().hex}__",
        }
    }


def check_pooler(pooler: object) -> None:
    """Raise `InvalidOption` unless the option `pooler` is "transaction" or None."""
    if pooler is not None and not (isinstance(pooler, str) and pooler == "transaction"):
        raise InvalidOption(
            f"pooler must be 'transaction', for a pooler in transaction mode, not {short_repr(pooler)}. One in session "
            "mode is no different from the server itself: leave it out."
        )
