"""The two facades: what LangGraph calls, in LangGraph's names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from checkpoint_store import changes, codec, jsonb, operations
from checkpoint_store.changes import Put, Writes
from checkpoint_store.codec import Ancestor, Codec, Row
from checkpoint_store.config import Listing, key_of, listing_of, plain_text
from checkpoint_store.config import thread_id as checked_thread_id
from checkpoint_store.errors import InvalidConfig, InvalidOption, UnstorableValue, UnusableConnection
from checkpoint_store.migrations import LOCK_SECONDS
from checkpoint_store.paging import Pages
from checkpoint_store.pipeline import AsyncPipeline
from checkpoint_store.source import ConnectionSource, EngineSource, Source
from checkpoint_store.statements import statements_of
from checkpoint_store.url import engine_arguments

T = TypeVar("T")

CUT_BYTES = 1024 * 1024
"""From so many bytes on values are cut into pages in a worker thread."""


class _Saver(BaseCheckpointSaver[str]):
    """LangGraph's contract, async and sync, on one source of connections."""

    def __init__(self, source: Source, serde: SerializerProtocol | None) -> None:
        super().__init__(serde=serde)
        # Everything but `serde` is shared by the copies that LangGraph's with_allowlist() makes.
        self._source = source

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Get one checkpoint: the one that `config` names, or the newest of its thread and namespace.

        Args:
            config: Needs `configurable.thread_id`; `checkpoint_ns` defaults to the root graph's `""`.

        Returns:
            The checkpoint with its channel values and its pending writes in the order LangGraph applies them, or None.

        Raises:
            InvalidConfig: If there is no usable `thread_id`.
            NotSetUp: If the tables are missing.
            UnreadableValue: If the serializer can't decode a stored value.
            Unavailable: If the server can't be reached.
        """
        row = await self._source.run(operations.get_checkpoint, self._source.shelf, key_of(config))
        return None if row is None else await self._decode(Row._make(row))

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Get one checkpoint, as `aget_tuple`."""
        row = self._source.run_blocking(operations.get_checkpoint, self._source.shelf, key_of(config))
        return None if row is None else self._codec.decode_checkpoint(Row._make(row))

    def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """List checkpoints, newest first.

        They are read in pages, each by a statement of its own: no connection is held while you iterate, no more than
        one page is in memory, and what is stored meanwhile is not in the list.

        Args:
            config: Names the thread, and a namespace or checkpoint if it has one; None for all threads.
            filter: What the metadata must contain (PostgreSQL's `@>`: nested dicts match by their members).
            before: A config with a `checkpoint_id`: list only smaller ids.
            limit: How many at most; None for all.

        Returns:
            An async iterator of checkpoints.

        Raises:
            InvalidConfig: If an argument can't be used.
            NotSetUp: If the tables are missing.
            UnreadableValue: If the serializer can't decode a stored value.
            Unavailable: If the server can't be reached.
        """
        return self._alist(_listing(config, filter, before, limit))

    async def _alist(self, listing: Listing) -> AsyncIterator[CheckpointTuple]:
        pages = Pages(listing)
        while pages.has_next:
            rows = await self._source.run(operations.list_page, self._source.shelf, listing, (pages.last, pages.size))
            for row in pages.turn([Row._make(row) for row in rows]):
                yield await self._decode(row)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """List checkpoints, newest first, as `alist`."""
        self._source.check_sync()
        return self._list(_listing(config, filter, before, limit))

    def _list(self, listing: Listing) -> Iterator[CheckpointTuple]:
        pages = Pages(listing)
        while pages.has_next:
            rows = self._source.run_blocking(
                operations.list_page, self._source.shelf, listing, (pages.last, pages.size)
            )
            for row in pages.turn([Row._make(row) for row in rows]):
                yield self._codec.decode_checkpoint(row)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint: when this returns it is committed, with all its values or not at all.

        On a connection of the caller's it is committed with the caller's transaction.

        Args:
            config: Names the thread and namespace; its `checkpoint_id`, if any, becomes the parent.
            checkpoint: The checkpoint. One that has been stored under its id is replaced.
            metadata: JSON that lists can be filtered by; strings and numbers of the config's metadata are added to it.
            new_versions: The channels whose values are new, and their versions. Other channels keep the stored value.

        Returns:
            The config that names the stored checkpoint.

        Raises:
            InvalidConfig: If there is no usable `thread_id`.
            UnstorableValue: If a value fits neither JSONB nor the serializer; nothing has been written.
            NotSetUp: If the tables are missing.
            Unavailable: If the server can't be reached.
        """
        binds = await self._encode(
            checkpoint["channel_values"].values(),
            self._codec.encode_checkpoint,
            *(config, checkpoint, metadata, new_versions),
        )
        put = Put(binds)
        if changes.has_large(binds) and await self._shares_pages():
            put = await _call(changes.size_of(put) > CUT_BYTES, changes.paged, binds, self._source.shelf)
        await self._source.store(put)
        return codec.next_config(binds)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, as `aput`."""
        binds = self._codec.encode_checkpoint(config, checkpoint, metadata, new_versions)
        put = Put(binds)
        if changes.has_large(binds) and self._shares_pages_blocking():
            put = changes.paged(binds, self._source.shelf)
        self._source.store_blocking(put)
        return codec.next_config(binds)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task produced after a checkpoint: when this returns it is committed, all of it or nothing.

        Args:
            config: Names the checkpoint; needs `checkpoint_id`.
            writes: Pairs of channel and value. Writes stored before for the same task stay as they are, unless all of
                these are to LangGraph's special channels (errors, interrupts, resumes), which replace.
            task_id: The task that made them.
            task_path: Where the task stands in its step; it decides the order in which writes are applied.

        Raises:
            InvalidConfig: If the config names no checkpoint.
            UnstorableValue: If the serializer can't hold a value; nothing has been written.
            NotSetUp: If the tables are missing.
            Unavailable: If the server can't be reached.
        """
        writes = list(writes)
        encoded = await self._encode(
            (value for _, value in writes), self._codec.encode_writes, config, writes, task_id, task_path
        )
        if writes:
            await self._source.store(Writes(*encoded))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task produced after a checkpoint, as `aput_writes`."""
        writes = list(writes)
        encoded = self._codec.encode_writes(config, writes, task_id, task_path)
        if writes:
            self._source.store_blocking(Writes(*encoded))
        else:
            self._source.check_sync()

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete everything stored for a thread, in all its namespaces, atomically.

        Args:
            thread_id: The thread; it need not exist.

        Raises:
            InvalidConfig: If it can't be a thread id.
            NotSetUp: If the tables are missing.
            Unavailable: If the server can't be reached.
        """
        await self._source.transact(operations.delete_thread, checked_thread_id(thread_id))

    def delete_thread(self, thread_id: str) -> None:
        """Delete everything stored for a thread, as `adelete_thread`."""
        self._source.transact_blocking(operations.delete_thread, checked_thread_id(thread_id))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Get what a checkpoint's ancestors contribute to delta channels, by following parents.

        Args:
            config: Names the checkpoint, or with no `checkpoint_id` the newest of its thread and namespace.
            channels: Channel names.

        Returns:
            For each channel its writes, oldest first, back to the nearest ancestor that has a value for it, and that
            value as `seed`; no `seed` where none has.

        Raises:
            InvalidConfig: If there is no usable `thread_id`.
            NotSetUp: If the tables are missing.
            UnreadableValue: If the serializer can't decode a stored value.
            Unavailable: If the server can't be reached.
        """
        if not channels:
            return {}
        key, channels = key_of(config), [plain_text(channel, "channel") for channel in channels]
        rows = [Ancestor._make(row) for row in await self._source.run(operations.delta_history, key, channels)]
        is_large = sum(codec.size_of(row.writes, row.value_blobs) for row in rows) > codec.LARGE_BYTES
        return await _call(is_large, self._codec.decode_history, key, channels, rows)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Get what a checkpoint's ancestors contribute to delta channels, as `aget_delta_channel_history`."""
        if not channels:
            self._source.check_sync()
            return {}
        key, channels = key_of(config), [plain_text(channel, "channel") for channel in channels]
        rows = [Ancestor._make(row) for row in self._source.run_blocking(operations.delta_history, key, channels)]
        return self._codec.decode_history(key, channels, rows)

    def get_next_version(self, current: str | None, channel: None) -> str:  # noqa: ARG002 - the contract's
        """Return the version that follows a channel's current one, as the stock saver makes it."""
        return codec.next_version(current)

    async def aclose(self) -> None:
        """Close the saver: an engine made from a URL is disposed, one that was handed in is left as it is."""
        await self._source.close()

    async def _shares_pages(self) -> bool:
        source = self._source
        if source.shares_pages is None:
            source.shares_pages = not await source.run(operations.is_adopted)
        return source.shares_pages

    def _shares_pages_blocking(self) -> bool:
        source = self._source
        if source.shares_pages is None:
            source.shares_pages = not source.run_blocking(operations.is_adopted)
        return source.shares_pages

    @property
    def _codec(self) -> Codec:
        # LangGraph replaces `serde` on copies of a saver, so nothing may be derived from it for long.
        return Codec(self.serde)

    async def _encode(self, values: Any, encode: Callable[..., T], *args: Any) -> T:
        return await _call(codec.is_large(values), encode, *args)

    async def _decode(self, row: Row) -> CheckpointTuple:
        is_large = codec.size_of(row.blobs, row.writes) > codec.LARGE_BYTES
        return await _call(is_large, self._codec.decode_checkpoint, row)


class AsyncPostgresSaver(_Saver):
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

    Raises:
        UnusableConnection: If `conn` or `pipe` is something else.
        InvalidOption: If `pipe` comes with a connection, or was made for another engine.
    """

    def __init__(
        self,
        conn: AsyncEngine | AsyncConnection,
        pipe: AsyncPipeline | None = None,
        serde: SerializerProtocol | None = None,
        *,
        schema: str | None = None,
        share_pages: bool | None = None,
    ) -> None:
        source = _source(conn, pipe, schema, share_pages)
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
        **engine_options: Any,
    ) -> AsyncIterator[AsyncPostgresSaver]:
        """Make a saver with an engine of its own, which is disposed at the end of the block.

        Args:
            conn_string: `postgresql://user:password@host:5432/database`, with libpq's parameters if any.
            pipeline: Whether concurrent writes share commits (see `AsyncPipeline`).
            serde: What encodes values; LangGraph's `JsonPlusSerializer` by default.
            schema: The PostgreSQL schema of the tables.
            share_pages: Whether large values are stored as pages; by default where the stock saver has no tables.
            **engine_options: For `create_async_engine`, such as `pool_size=20`.

        Yields:
            The saver.

        Raises:
            InvalidURL: If the connection string can't be used.
        """
        engine = _engine(conn_string, engine_options)
        pipe = AsyncPipeline(engine) if pipeline else None
        saver = cls(engine, pipe, serde, schema=schema, share_pages=share_pages)
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


class PostgresSaver(_Saver):
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

    Raises:
        UnusableConnection: If `conn` or `pipe` is something else.
        InvalidOption: If `pipe` comes with a connection, or was made for another engine.
    """

    def __init__(
        self,
        conn: AsyncEngine | AsyncConnection,
        pipe: AsyncPipeline | None = None,
        serde: SerializerProtocol | None = None,
        *,
        schema: str | None = None,
        share_pages: bool | None = None,
    ) -> None:
        source = _source(conn, pipe, schema, share_pages)
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
        **engine_options: Any,
    ) -> Iterator[PostgresSaver]:
        """Make a saver with an engine of its own, which is disposed at the end of the block.

        Args:
            conn_string: `postgresql://user:password@host:5432/database`, with libpq's parameters if any.
            pipeline: Whether concurrent writes share commits (see `AsyncPipeline`).
            serde: What encodes values; LangGraph's `JsonPlusSerializer` by default.
            schema: The PostgreSQL schema of the tables.
            share_pages: Whether large values are stored as pages; by default where the stock saver has no tables.
            **engine_options: For `create_async_engine`, such as `pool_size=20`.

        Yields:
            The saver.

        Raises:
            InvalidURL: If the connection string can't be used.
        """
        engine = _engine(conn_string, engine_options)
        pipe = AsyncPipeline(engine) if pipeline else None
        saver = cls(engine, pipe, serde, schema=schema, share_pages=share_pages)
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


def _source(conn: object, pipe: object, schema: str | None, share_pages: bool | None) -> Source:
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
        return EngineSource(conn, sql, pipe, share_pages)
    if pipe is not None:
        raise InvalidOption(
            "pipe can't be used with a connection: what is written there is committed by its owner. Pass the engine."
        )
    return ConnectionSource(conn, sql, share_pages)


async def _call(is_large: bool, function: Callable[..., T], *args: Any) -> T:
    """Call a function that encodes or decodes, in a worker thread if it would hold up the event loop."""
    return await asyncio.to_thread(function, *args) if is_large else function(*args)


def _engine(conn_string: str, options: dict[str, Any]) -> AsyncEngine:
    url, connect_args = engine_arguments(conn_string)
    return create_async_engine(url, **{**options, "connect_args": {**connect_args, **options.get("connect_args", {})}})


def _listing(
    config: RunnableConfig | None, metadata: dict[str, Any] | None, before: RunnableConfig | None, limit: int | None
) -> Listing:
    try:
        text = jsonb.encode(jsonb.document(metadata, "filter")) if metadata else None
    except UnstorableValue as error:
        raise InvalidConfig(str(error)) from None
    except RecursionError:
        raise InvalidConfig("filter is nested too deeply, or contains itself") from None
    return listing_of(config, before, text, limit)
