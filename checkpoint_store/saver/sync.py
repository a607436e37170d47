"""The sync saver: how it is made, bound, set up and closed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Self, Unpack

from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from checkpoint_store.database.backend import AsyncBackend
from checkpoint_store.database.closing import closing_blocking
from checkpoint_store.database.factory import backend_for, backend_within
from checkpoint_store.database.group_commit import AsyncPipeline
from checkpoint_store.migrations.lock import LOCK_SECONDS
from checkpoint_store.options import ConnectionOptions, SaverOptions, check_names
from checkpoint_store.saver.factory import on_own_engine
from checkpoint_store.saver.retention import RetentionMixin


class PostgresSaver(RetentionMixin):
    """A saver of LangGraph's checkpoints in PostgreSQL for sync code, from any number of threads.

    On a sync engine (`postgresql+psycopg`) each call runs in the calling thread. An `AsyncEngine` is driven by an event
    loop in a thread of its own. Either works in a plain script, in a notebook, and beside a running loop. The async
    methods work from any loop; on a sync engine they call from worker threads.

    Args:
        conn: An `Engine`, whose pool is shared, or an open `Connection`, in whose transaction everything runs and which
            is committed by the caller. Or an `AsyncEngine`, not yet used on another loop, or an open `AsyncConnection`
            of the running loop.
        pipe: An `AsyncPipeline` of yours, for the same engine, in place of the one by which all savers on an engine
            share the commits of concurrent writes. False for a commit each.
        serde: The serializer of values; LangGraph's `JsonPlusSerializer` by default.
        options: `schema`, `share_pages`, `refuse_forks` and more: see `SaverOptions`.

    Raises:
        UnusableConnection: If `conn`, `pipe` or `read_engine` is something else.
        InvalidOption: If `pipe` comes with a connection or a sync engine, or was made for another one; or if an
            option can't be used.
    """

    def __init__(
        self,
        conn: AsyncEngine | AsyncConnection | Engine | Connection,
        pipe: AsyncPipeline | Literal[False] | None = None,
        serde: SerializerProtocol | None = None,
        **options: Unpack[SaverOptions[AsyncEngine | Engine]],
    ) -> None:
        check_names(options, "PostgresSaver")
        super().__init__(backend_for(conn, pipe, options, sync=True), serde, options)
        if isinstance(self._backend, AsyncBackend) and not self._backend.provider.is_callers:
            self._backend.event_loop.start()

    @classmethod
    @contextmanager
    def from_conn_string(
        cls,
        conn_string: str,
        *,
        pipeline: bool = True,
        serde: SerializerProtocol | None = None,
        **options: Unpack[ConnectionOptions],
    ) -> Iterator[Self]:
        """Make a saver with an engine of its own, as `AsyncPostgresSaver.from_conn_string`.

        It works on psycopg, in the calling thread, if that is installed, and on asyncpg otherwise; a driver in the
        connection string decides: `postgresql+psycopg://` or `postgresql+asyncpg://`.
        """
        saver = on_own_engine(cls, conn_string, pipeline, serde, options, sync=True)
        with closing_blocking(saver.close):
            yield saver

    def bind(
        self,
        conn_or_session: Connection
        | Session
        | scoped_session[Any]
        | AsyncConnection
        | AsyncSession
        | async_scoped_session[Any],
        *,
        bind_arguments: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make a saver like this one that works in a transaction of yours, as `AsyncPostgresSaver.bind`."""
        return self._within(backend_within(conn_or_session, self._backend, bind_arguments, sync=True))

    def setup(self, *, timeout: float = LOCK_SECONDS) -> None:
        """Bring the tables to the revision that this version needs, as `AsyncPostgresSaver.setup`."""
        self._backend.setup_blocking(timeout)

    def close(self) -> None:
        """Close the saver, as `aclose`."""
        self._backend.close_blocking()
