"""The options of a saver, and of the engine that a saver makes from a connection string: their types and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Generic, Literal, TypedDict, TypeVar

from sqlalchemy import Engine, Pool
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store.url import Pooler

E = TypeVar("E")


class SaverOptions(TypedDict, Generic[E], total=False):
    """The keyword options of both savers, however they are made; `E` is the type of `read_engine`."""

    schema: str | None
    """The PostgreSQL schema of the tables; by default the one that the `search_path` resolves to."""
    share_pages: bool | None
    """Whether large values are stored as pages that a thread's values share. The stock saver can't read those, so by
    default only in tables that we have made and it has not set up since; the database is asked once a minute."""
    refuse_forks: bool
    """Whether a checkpoint is stored only if its parent is the newest of its namespace, and refused with `Conflict`
    otherwise. Time travel, which forks on purpose, is then refused too. False by default."""
    require_encryption: bool
    """Whether stored values that are not encrypted are refused, with `NotEncrypted`; needs a `serde` that encrypts.
    False by default."""
    retry_timeout: float
    """For how long, in seconds, a call is retried that failed with a transient error, such as a server that restarts;
    0 for never. In a transaction of the caller's none ever is."""
    pooler: Pooler | None
    """`"transaction"` for an engine that works through a pooler in transaction mode, such as PgBouncer: it must be made
    with `checkpoint_store.url.pooler_options()`. With a connection it changes nothing."""
    read_engine: E | None
    """The engine of a streaming replica, of the same kind as the saver's; it stays yours. History, lists and older
    checkpoints are read there; the newest checkpoint, and threads that this process has just written, never are."""


class ConnectionOptions(SaverOptions[AsyncEngine | Engine], total=False):
    """The keyword options of `from_conn_string`: those of the saver, and of SQLAlchemy's `create_async_engine`.

    They are the same for `create_engine`, by which a `PostgresSaver` on psycopg is made.
    """

    pool_size: int
    """The number of connections that the pool keeps; 8 by default."""
    max_overflow: int
    """The number of connections that may be open beyond those; 0 by default."""
    pool_timeout: float | None
    pool_recycle: int
    pool_pre_ping: bool
    pool_use_lifo: bool
    pool_reset_on_return: Literal["rollback", "commit"] | bool | None
    pool_logging_name: str
    pool: Pool | None
    poolclass: type[Pool] | None
    connect_args: dict[str, Any]
    """Arguments for the driver's `connect`, beside those of the connection string. Those of asyncpg alone have a
    `PostgresSaver` work on asyncpg."""
    echo: bool | Literal["debug"] | None
    echo_pool: bool | Literal["debug"] | None
    enable_from_linting: bool
    execution_options: Mapping[str, Any]
    hide_parameters: bool
    logging_name: str
    plugins: list[str]
    query_cache_size: int


def check_names(options: Mapping[str, Any], saver: str) -> None:
    """Raise a `TypeError` if an option is not a saver's, as for a keyword argument that a function does not have."""
    for name in options:
        if name not in SaverOptions.__optional_keys__:
            raise TypeError(f"{saver}() got an unexpected keyword argument {name!r}{suggestion(name, SaverOptions)}")


def suggestion(name: str, kind: type[Any]) -> str:
    """Return the end of a message about an unknown option: the known one that is most like it, if any."""
    similar = get_close_matches(name, sorted(kind.__optional_keys__), 1)
    return f"; did you mean {similar[0]!r}?" if similar else ""
