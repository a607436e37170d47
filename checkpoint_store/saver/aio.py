"""The async saver: how it is made, bound and set up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, Self, Unpack

from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session

from checkpoint_store.database.backend import AsyncBackend
from checkpoint_store.database.closing import closing
from checkpoint_store.database.factory import backend_for, backend_within
from checkpoint_store.database.group_commit import AsyncPipeline
from checkpoint_store.migrations.lock import LOCK_SECONDS
from checkpoint_store.options import ConnectionOptions, SaverOptions, check_names
from checkpoint_store.saver.factory import on_own_engine
from checkpoint_store.saver.retention import RetentionMixin


class AsyncPostgresSaver(RetentionMixin):
    """A saver of LangGraph's checkpoints in PostgreSQL, on an engine or connection of SQLAlchemy's asyncio.

    Its sync methods work from any thread but the event loop's own.

    Args:
        conn: An `AsyncEngine`, whose pool is shared, or an open `AsyncConnection`, in whose transaction everything runs
            and which is committed by the caller.
        pipe: An `AsyncPipeline` of yours, for the same engine, in place of the one by which all savers on an engine
            share the commits of concurrent writes. False for a commit each.
        serde: The serializer of values; LangGraph's `JsonPlusSerializer` by default.
        options: `schema`, `share_pages`, `refuse_forks` and more: see `SaverOptions`.

    Raises:
        UnusableConnection: If `conn`, `pipe` or `read_engine` is something else.
        InvalidOption: If `pipe` comes with a connection, or was made for another engine; or if an option can't be used.
    """

    def __init__(
        self,
        conn: AsyncEngine | AsyncConnection,
        pipe: AsyncPipeline | Literal[False] | None = None,
        serde: SerializerProtocol | None = None,
        **options: Unpack[SaverOptions[AsyncEngine]],
    ) -> None:
        check_names(options, "AsyncPostgresSaver")
        super().__init__(backend_for(conn, pipe, options, sync=False), serde, options)
        if isinstance(self._backend, AsyncBackend):
            self._backend.event_loop.adopt()

    @classmethod
    @asynccontextmanager
    async def from_conn_string(
        cls,
        conn_string: str,
        *,
        pipeline: bool = True,
        serde: SerializerProtocol | None = None,
        **options: Unpack[ConnectionOptions],
    ) -> AsyncIterator[Self]:
        """Make a saver with an engine of its own, which is disposed at the end of the block.

        Args:
            conn_string: `postgresql://user:password@host:5432/database`, with libpq's parameters if any.
            pipeline: Whether concurrent writes share commits (see `AsyncPipeline`).
            serde: The serializer of values; LangGraph's `JsonPlusSerializer` by default.
            options: Those of the saver and of `create_async_engine`, such as `pool_size`: see `ConnectionOptions`.

        Yields:
            The saver.

        Raises:
            InvalidURL: If the connection string can't be used.
            InvalidOption: If an option can't be used.
        """
        saver = on_own_engine(cls, conn_string, pipeline, serde, options, sync=False)
        async with closing(saver.aclose):
            yield saver

    def bind(
        self,
        conn_or_session: AsyncConnection | AsyncSession | async_scoped_session[Any],
        *,
        bind_arguments: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make a saver like this one that works in a transaction of yours.

        It never begins, commits, rolls back or retries: the checkpoints that it stores become visible with your commit
        and are gone with your rollback. Each call waits for those before it on the same connection, and so does the end
        of the transaction. A session is flushed first.

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
        """Bring the tables to the revision that this version needs; where they have it, one round trip and no more.

        Safe to call from many processes at once: one migrates, the others wait. Only migrating needs the right to
        create tables. A database of the stock saver is adopted in place.

        Args:
            timeout: The longest wait for others that migrate or use the tables, in seconds.

        Raises:
            MigrationLocked: If they took longer; names the transactions that were in the way.
            MigrationError: If the migration failed; it has been rolled back.
            Unavailable: If the server can't be reached.
        """
        await self._backend.setup(timeout)
