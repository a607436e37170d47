"""The two savers: how they are made, set up and closed. What they do is in `contract`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from checkpoint_store.contract import Contract
from checkpoint_store.errors import InvalidOption, UnusableConnection
from checkpoint_store.migrations import LOCK_SECONDS
from checkpoint_store.pipeline import AsyncPipeline
from checkpoint_store.source import ConnectionSource, EngineSource, Source
from checkpoint_store.source.retrying import RETRY_SECONDS
from checkpoint_store.statements import statements_of
from checkpoint_store.url import engine_arguments


class AsyncPostgresSaver(Contract):
    """Keeps LangGraph's checkpoints in PostgreSQL, on an engine or connection of SQLAlchemy's asyncio.

    Its sync methods work from any thread but the event loop's own.

    Args:
        conn: An `AsyncEngine`, whose pool is shared, or an open `AsyncConnection`, in whose transaction everything runs
            and which is committed by the caller.
        pipe: What lets concurrent writes share commits; made for the same engine. None for a commit each.
        serde: What encodes values; LangGraph's `JsonPlusSerializer` by default.
        schema: The PostgreSQL schema of the tables; by default the one that the `search_path` resolves to.
        share_pages: Whether large values are stored as pages that a thread's values share. The stock saver can't read
            those, so by default only where it has not set up the tables.
        retry_timeout: For how long, in seconds, a call is made again that failed by something that passes, such as a
            server that restarts; 0 for never. On a connection of the caller's none ever is.

    Raises:
        UnusableConnection: If `conn` or `pipe` is something else.
        InvalidOption: If `pipe` comes with a connection, or was made for another engine, or `retry_timeout` is no time.
    """

    def __init__(
        self,
        conn: AsyncEngine | AsyncConnection,
        pipe: AsyncPipeline | None = None,
        serde: SerializerProtocol | None = None,
        *,
        schema: str | None = None,
        share_pages: bool | None = None,
        retry_timeout: float = RETRY_SECONDS,
    ) -> None:
        source = _source(conn, pipe, schema, share_pages, retry_timeout)
        source.bridge.adopt()
        super().__init__(source, serde)

    @classmethod
    @asynccontextmanager
    async def from_conn_string(
        cls,
        conn_string: str,
        *,
        pipeline: bool = False,
        serde: SerializerProtocol | None = None,
        schema: str | None = None,
        share_pages: bool | None = None,
        retry_timeout: float = RETRY_SECONDS,
        **engine_options: Any,
    ) -> AsyncIterator[AsyncPostgresSaver]:
        """Make a saver with an engine of its own, which is disposed at the end of the block.

        Args:
            conn_string: `postgresql://user:password@host:5432/database`, with libpq's parameters if any.
            pipeline: Whether concurrent writes share commits (see `AsyncPipeline`).
            serde: What encodes values; LangGraph's `JsonPlusSerializer` by default.
            schema: The PostgreSQL schema of the tables.
            share_pages: Whether large values are stored as pages; by default where the stock saver has no tables.
            retry_timeout: For how long, in seconds, a call is made again that failed by something that passes.
            **engine_options: For `create_async_engine`, such as `pool_size=20`.

        Yields:
            The saver.

        Raises:
            InvalidURL: If the connection string can't be used.
        """
        engine = _engine(conn_string, engine_options)
        pipe = AsyncPipeline(engine) if pipeline else None
        saver = cls(engine, pipe, serde, schema=schema, share_pages=share_pages, retry_timeout=retry_timeout)
        saver._source.owned = True
        try:
            yield saver
        finally:
            await saver.aclose()

    async def setup(self, *, timeout: float = LOCK_SECONDS) -> None:
        """Bring the tables to what this version needs; does nothing, in one round trip, where they are.

        Safe to call from many processes at once: one migrates, the others wait. Only migrating needs the right to
        create tables. A database of the stock saver is adopted in place.

        Args:
            timeout: How long to wait for another process that migrates, in seconds.

        Raises:
            MigrationLocked: If it took longer.
            MigrationError: If the migration failed; it has been rolled back.
            Unavailable: If the server can't be reached.
        """
        await self._source.setup(timeout)


class PostgresSaver(Contract):
    """Keeps LangGraph's checkpoints in PostgreSQL for sync code, from any number of threads.

    An `AsyncEngine` is driven by an event loop in a thread of its own, so it works in a plain script, in a notebook,
    and beside a running loop. Its async methods work from any loop.

    Args:
        conn: An `AsyncEngine`, not yet used on another loop, or an open `AsyncConnection` of the running loop.
        pipe: What lets concurrent writes share commits; made for the same engine. None for a commit each.
        serde: What encodes values; LangGraph's `JsonPlusSerializer` by default.
        schema: The PostgreSQL schema of the tables; by default the one that the `search_path` resolves to.
        share_pages: Whether large values are stored as pages that a thread's values share. The stock saver can't read
            those, so by default only where it has not set up the tables.
        retry_timeout: For how long, in seconds, a call is made again that failed by something that passes, such as a
            server that restarts; 0 for never. On a connection of the caller's none ever is.

    Raises:
        UnusableConnection: If `conn` or `pipe` is something else.
        InvalidOption: If `pipe` comes with a connection, or was made for another engine, or `retry_timeout` is no time.
    """

    def __init__(
        self,
        conn: AsyncEngine | AsyncConnection,
        pipe: AsyncPipeline | None = None,
        serde: SerializerProtocol | None = None,
        *,
        schema: str | None = None,
        share_pages: bool | None = None,
        retry_timeout: float = RETRY_SECONDS,
    ) -> None:
        source = _source(conn, pipe, schema, share_pages, retry_timeout)
        if isinstance(conn, AsyncConnection):
            source.bridge.adopt()
        else:
            source.bridge.start()
        super().__init__(source, serde)

    @classmethod
    @contextmanager
    def from_conn_string(
        cls,
        conn_string: str,
        *,
        pipeline: bool = False,
        serde: SerializerProtocol | None = None,
        schema: str | None = None,
        share_pages: bool | None = None,
        retry_timeout: float = RETRY_SECONDS,
        **engine_options: Any,
    ) -> Iterator[PostgresSaver]:
        """Make a saver with an engine of its own, which is disposed at the end of the block.

        Args:
            conn_string: `postgresql://user:password@host:5432/database`, with libpq's parameters if any.
            pipeline: Whether concurrent writes share commits (see `AsyncPipeline`).
            serde: What encodes values; LangGraph's `JsonPlusSerializer` by default.
            schema: The PostgreSQL schema of the tables.
            share_pages: Whether large values are stored as pages; by default where the stock saver has no tables.
            retry_timeout: For how long, in seconds, a call is made again that failed by something that passes.
            **engine_options: For `create_async_engine`, such as `pool_size=20`.

        Yields:
            The saver.

        Raises:
            InvalidURL: If the connection string can't be used.
        """
        engine = _engine(conn_string, engine_options)
        pipe = AsyncPipeline(engine) if pipeline else None
        saver = cls(engine, pipe, serde, schema=schema, share_pages=share_pages, retry_timeout=retry_timeout)
        saver._source.owned = True
        try:
            yield saver
        finally:
            saver.close()

    def setup(self, *, timeout: float = LOCK_SECONDS) -> None:
        """Bring the tables to what this version needs, as `AsyncPostgresSaver.setup`."""
        self._source.setup_blocking(timeout)

    def close(self) -> None:
        """Close the saver, as `aclose`."""
        self._source.close_blocking()


def _source(conn: object, pipe: object, schema: str | None, share_pages: bool | None, retry_timeout: float) -> Source:
    sql = statements_of(schema)
    if isinstance(conn, AsyncConnection) and conn.sync_connection is None:
        raise UnusableConnection(
            "conn is an AsyncConnection that is not open. Use `async with engine.connect() as conn`."
        )
    if not isinstance(conn, (AsyncEngine, AsyncConnection)):
        raise UnusableConnection(
            f"conn is a {type(conn).__module__}.{type(conn).__qualname__}; it has to be an AsyncEngine or an open "
            "AsyncConnection of SQLAlchemy. From a connection string, use from_conn_string()."
        )
    if (conn.dialect.name, conn.dialect.driver) != ("postgresql", "asyncpg"):
        raise UnusableConnection(
            f"conn speaks {conn.dialect.name}+{conn.dialect.driver}; the saver needs "
            'create_async_engine("postgresql+asyncpg://...")'
        )
    if pipe is not None and not isinstance(pipe, AsyncPipeline):
        raise UnusableConnection(f"pipe is a {type(pipe).__qualname__}; it has to be an AsyncPipeline or None")
    if isinstance(conn, AsyncEngine):
        # Variants made with execution_options() share the dialect.
        if pipe is not None and pipe.engine.dialect is not conn.dialect:
            raise InvalidOption(
                "pipe was made for another engine. Use AsyncPipeline(engine) with the saver's own engine."
            )
        return EngineSource(conn, sql, pipe, share_pages, retry_timeout)
    if pipe is not None:
        raise InvalidOption(
            "pipe can't be used with a connection: what is written there is committed by its owner. Pass the engine."
        )
    return ConnectionSource(conn, sql, share_pages)


def _engine(conn_string: str, options: dict[str, Any]) -> AsyncEngine:
    url, connect_args = engine_arguments(conn_string)
    return create_async_engine(url, **{**options, "connect_args": {**connect_args, **options.get("connect_args", {})}})
