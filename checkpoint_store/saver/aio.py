"""The two savers: how they are made, set up and closed. What they do is in `contract` and `lifecycle`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
)

from checkpoint_store.database.async_backend import AsyncBackend
from checkpoint_store.database.closing import closing
from checkpoint_store.database.factory import backend_for, backend_within
from checkpoint_store.database.group_commit import AsyncPipeline
from checkpoint_store.database.retry import RETRY_SECONDS
from checkpoint_store.migrations import LOCK_SECONDS
from checkpoint_store.saver.factory import on_own_engine
from checkpoint_store.saver.retention import RetentionMixin
from checkpoint_store.url import Pooler


class AsyncPostgresSaver(RetentionMixin):
    """Keeps LangGraph's checkpoints in PostgreSQL, on an engine or connection of SQLAlchemy's asyncio.

    Its sync methods work from any thread but the event loop's own.

    Args:
        conn: An `AsyncEngine`, whose pool is shared, or an open `AsyncConnection`, in whose transaction everything runs
            and which is committed by the caller.
        pipe: What lets concurrent writes share commits; made for the same engine. None for a commit each.
        serde: What encodes values; LangGraph's `JsonPlusSerializer` by default.
        schema: The PostgreSQL schema of the tables; by default the one that the `search_path` resolves to.
        share_pages: Whether large values are stored as pages that a thread's values share. The stock saver can't read
            those, so by default only in tables that we have made and it has not set up since; asked once a minute.
        refuse_forks: Whether a checkpoint is stored only if its parent is the newest of its namespace, and refused with
            `Conflict` otherwise. Time travel, which forks on purpose, is then refused too.
        require_encryption: Whether stored values that are not encrypted are refused, with `NotEncrypted`; for a `serde`
            that encrypts.
        retry_timeout: For how long, in seconds, a call is made again that failed by something that passes, such as a
            server that restarts; 0 for never. In a transaction of the caller's none ever is.
        pooler: `"transaction"` for an engine that works through a pooler in transaction mode, such as PgBouncer; it is
            made with `checkpoint_store.url.pooler_options()`. With a connection it changes nothing.
        read_engine: The engine of a streaming replica, of the same kind as `conn`. History, lists and older checkpoints
            are read there; the newest checkpoint, and threads that this process has just written, never are.

    Raises:
        UnusableConnection: If `conn`, `pipe` or `read_engine` is something else.
        InvalidOption: If `pipe` comes with a connection, or was made for another engine; or if an option is of
            another kind than it has to be.
    """

    def __init__(
        self,
        conn: AsyncEngine | AsyncConnection,
        pipe: AsyncPipeline | None = None,
        serde: SerializerProtocol | None = None,
        *,
        schema: str | None = None,
        share_pages: bool | None = None,
        refuse_forks: bool = False,
        require_encryption: bool = False,
        retry_timeout: float = RETRY_SECONDS,
        pooler: Pooler | None = None,
        read_engine: AsyncEngine | None = None,
    ) -> None:
        options: Any = {"pooler": pooler, "read_engine": read_engine}
        source = backend_for(conn, pipe, schema, share_pages, retry_timeout, sync=False, **options)
        super().__init__(source, serde, refuse_forks=refuse_forks, require_encryption=require_encryption)
        if isinstance(source, AsyncBackend):
            source.event_loop.adopt()

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
        refuse_forks: bool = False,
        require_encryption: bool = False,
        retry_timeout: float = RETRY_SECONDS,
        pooler: Pooler | None = None,
        read_engine: AsyncEngine | None = None,
        **engine_options: Any,
    ) -> AsyncIterator[AsyncPostgresSaver]:
        """Make a saver with an engine of its own, which is disposed at the end of the block.

        Args:
            conn_string: `postgresql://user:password@host:5432/database`, with libpq's parameters if any.
            pipeline: Whether concurrent writes share commits (see `AsyncPipeline`).
            serde: What encodes values; LangGraph's `JsonPlusSerializer` by default.
            schema: The PostgreSQL schema of the tables.
            share_pages: Whether large values are stored as pages; by default where the stock saver does not read.
            refuse_forks: Whether a checkpoint whose parent is not the newest is refused.
            require_encryption: Whether stored values that are not encrypted are refused.
            retry_timeout: For how long, in seconds, a call is made again that failed by something that passes.
            pooler: `"transaction"` for a URL of PgBouncer's, or of another pooler, in transaction mode.
            read_engine: The engine of a streaming replica for reads that may lag; it stays yours.
            **engine_options: For `create_async_engine`, such as `pool_size=20`. By default the pool keeps 8 connections
                and opens no more.

        Yields:
            The saver.

        Raises:
            InvalidURL: If the connection string can't be used.
            InvalidOption: If an option can't be used.
        """
        saver = on_own_engine(
            cls,
            conn_string,
            pipeline,
            engine_options,
            serde=serde,
            schema=schema,
            share_pages=share_pages,
            refuse_forks=refuse_forks,
            require_encryption=require_encryption,
            retry_timeout=retry_timeout,
            pooler=pooler,
            read_engine=read_engine,
        )
        async with closing(saver.aclose):
            yield saver

    def bind(
        self,
        conn_or_session: AsyncConnection | AsyncSession | async_scoped_session[Any],
        *,
        bind_arguments: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make a saver like this one that works in a transaction of yours.

        It never begins, commits, rolls back or tries again: what it stores becomes visible with your commit and is gone
        with your rollback. Each call waits for those before it on the same connection, and so does the end of the
        transaction. A session is flushed first.

        Bound in an open transaction the saver is over when that ends. Bound before, it may begin the first one, as any
        statement does, and goes on in those that you begin; it never begins another. Make one for each transaction.

        Args:
            conn_or_session: An open connection, or a session, which is asked for its connection at each call.
            bind_arguments: For a session of several engines, which of them has the tables, as for
                `AsyncSession.connection`. By default the session decides, as for a DELETE of checkpoints; where it
                can't, it is the engine of this saver.

        Returns:
            The saver: the same class, serializer, schema and `share_pages`; without the pipeline.

        Raises:
            UnusableConnection: If it is something else, or of an engine that we can't work on.
            InvalidOption: If `bind_arguments` come with a connection.
        """
        return self._within(backend_within(conn_or_session, self._backend, bind_arguments, sync=False))

    async def setup(self, *, timeout: float = LOCK_SECONDS) -> None:
        """Bring the tables to what this version needs; does nothing, in one round trip, where they are.

        Safe to call from many processes at once: one migrates, the others wait. Only migrating needs the right to
        create tables. A database of the stock saver is adopted in place.

        Args:
            timeout: How long to wait for others that migrate or use the tables, in seconds.

        Raises:
            MigrationLocked: If they took longer; names the transactions that were in the way.
            MigrationError: If the migration failed; it has been rolled back.
            Unavailable: If the server can't be reached.
        """
        await self._backend.setup(timeout)
