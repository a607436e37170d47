"""Who takes part: a class each, that opens a saver on an empty database, migrated by the saver's own `setup()`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, ClassVar, Literal, TypeVar, cast

import asyncpg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver as StockSyncSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver as StockSaver
from psycopg import AsyncConnection, Connection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.serde.encoder import Encoder, ValuedChannels
from checkpoint_store.sql.statements import statements_of

T = TypeVar("T")

POOL_SIZE = 10
"""Of the stock saver's pools."""
# What the stock saver's documentation asks of a connection.
STOCK_CONNECTION: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}

Saver = BaseCheckpointSaver[Any]


class Contender(ABC):
    """A way to run a saver. The measures treat all of them alike; the report tells them apart by `role`."""

    name: ClassVar[str]
    role: ClassVar[Literal["ours", "stock", "reference"]]


class InPlace:
    """A sync saver behind the async methods, for `in_place`: the same work for both kinds."""

    def __init__(self, saver: Saver) -> None:
        self._saver = saver

    async def setup(self) -> None:
        self._saver.setup()  # type: ignore[attr-defined]

    async def aput(self, *arguments: Any) -> RunnableConfig:
        return self._saver.put(*arguments)

    async def aput_writes(self, *arguments: Any) -> None:
        self._saver.put_writes(*arguments)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._saver.get_tuple(config)

    async def alist(self, config: RunnableConfig | None, **options: Any) -> AsyncIterator[CheckpointTuple]:
        for found in self._saver.list(config, **options):
            yield found

    async def adelete_thread(self, thread_id: str) -> None:
        self._saver.delete_thread(thread_id)


AnySaver = Saver | InPlace


def in_place(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits, such as one that calls nothing but `InPlace`, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    raise RuntimeError("the coroutine waits for an event loop")


class AsyncContender(Contender):
    """A contender for the async methods."""

    @abstractmethod
    def open(self, url: str) -> AbstractAsyncContextManager[Saver]:
        """A saver that is set up and ready, for as long as the context lasts."""


class SyncContender(Contender):
    """A contender for the sync methods."""

    @abstractmethod
    def open(self, url: str) -> AbstractContextManager[Saver]:
        """A saver that is set up and ready, for as long as the context lasts."""


class Ours(AsyncContender):
    """`AsyncPostgresSaver` from a URL, with no option set."""

    name = "ours"
    role = "ours"
    options: ClassVar[dict[str, Any]] = {}

    @asynccontextmanager
    async def open(self, url: str) -> AsyncIterator[Saver]:
        async with AsyncPostgresSaver.from_conn_string(url, **self.options) as saver:
            await saver.setup()
            yield saver


class OursPlain(Ours):
    """The same with a commit for every call."""

    name = "ours, plain"
    options: ClassVar = {"pipeline": False}


class OursOnHostEngine(AsyncContender):
    """`AsyncPostgresSaver` on an engine of the application's, with the pool that SQLAlchemy gives it."""

    name = "ours, host's engine"
    role = "ours"

    @asynccontextmanager
    async def open(self, url: str) -> AsyncIterator[Saver]:
        engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
        saver = AsyncPostgresSaver(engine)
        try:
            await saver.setup()
            yield saver
        finally:
            await saver.aclose()
            await engine.dispose()


class FloorSaver(AsyncPostgresSaver):
    """Our saver, but its `aput` is nothing except asyncpg running our statement, with what was encoded before."""

    def __init__(self, engine: AsyncEngine, driver: asyncpg.Connection) -> None:
        super().__init__(engine)
        self._driver = driver
        self._dialect = engine.dialect
        self._statement = statements_of(None).put_checkpoint
        self._sql = self._statement.sql(engine.dialect)
        self._prepared: dict[str, tuple[Any, RunnableConfig]] = {}

    def prepare(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> None:
        """Encode the arguments of a coming `aput`."""
        encoder = Encoder(self.serde)
        binds, _, config = encoder.encode_checkpoint(config, checkpoint, metadata, new_versions, ValuedChannels())
        self._prepared[binds["checkpoint_id"]] = (self._statement.bound(self._dialect, binds)[1], config)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint; one that was not prepared is encoded now."""
        if checkpoint["id"] not in self._prepared:
            self.prepare(config, checkpoint, metadata, new_versions)
        parameters, stored = self._prepared.pop(checkpoint["id"])
        await self._driver.fetch(self._sql, *parameters)
        return stored


class Floor(AsyncContender):
    """Bare asyncpg with the same SQL: what `aput` costs without a saver. The other methods are ours."""

    name = "bare asyncpg"
    role = "reference"

    @asynccontextmanager
    async def open(self, url: str) -> AsyncIterator[FloorSaver]:
        engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
        driver = await asyncpg.connect(url)
        saver = FloorSaver(engine, driver)
        try:
            await saver.setup()
            yield saver
        finally:
            await driver.close()
            await saver.aclose()
            await engine.dispose()


class InMemory(AsyncContender):
    """LangGraph's own saver that keeps everything in the process and loses it with it: what no database can be."""

    name = "in memory"
    role = "reference"

    @asynccontextmanager
    async def open(self, url: str) -> AsyncIterator[Saver]:  # noqa: ARG002 - it needs no database
        yield InMemorySaver()


class StockConnection(AsyncContender):
    """The stock saver on one connection: its fastest mode for a single caller."""

    name = "stock connection"
    role = "stock"
    pipeline: ClassVar[bool] = False

    @asynccontextmanager
    async def open(self, url: str) -> AsyncIterator[Saver]:
        # Its setup() creates indexes concurrently, which a pipeline refuses.
        async with StockSaver.from_conn_string(url) as saver:
            await saver.setup()
        async with StockSaver.from_conn_string(url, pipeline=self.pipeline) as saver:
            yield saver


class StockPipeline(StockConnection):
    """The stock saver on one connection in libpq's pipeline mode."""

    name = "stock pipeline"
    pipeline = True


class StockPool(AsyncContender):
    """The stock saver on a connection pool."""

    name = "stock pool"
    role = "stock"

    @asynccontextmanager
    async def open(self, url: str) -> AsyncIterator[Saver]:
        pool: AsyncConnectionPool[AsyncConnection[DictRow]] = AsyncConnectionPool(
            url, min_size=POOL_SIZE, max_size=POOL_SIZE, kwargs=STOCK_CONNECTION, open=False
        )
        async with pool:
            saver = StockSaver(pool)
            await saver.setup()
            yield saver


class OursSync(SyncContender):
    """`PostgresSaver` from a URL, with no option set."""

    name = "ours"
    role = "ours"

    @contextmanager
    def open(self, url: str) -> Iterator[Saver]:
        with PostgresSaver.from_conn_string(url) as saver:
            saver.setup()
            yield saver


class StockSyncConnection(SyncContender):
    """The stock sync saver on one connection."""

    name = "stock connection"
    role = "stock"

    @contextmanager
    def open(self, url: str) -> Iterator[Saver]:
        with StockSyncSaver.from_conn_string(url) as saver:
            saver.setup()
            yield saver


class StockSyncPool(SyncContender):
    """The stock sync saver on a connection pool."""

    name = "stock pool"
    role = "stock"

    @contextmanager
    def open(self, url: str) -> Iterator[Saver]:
        pool: ConnectionPool[Connection[DictRow]] = ConnectionPool(
            url, min_size=POOL_SIZE, max_size=POOL_SIZE, kwargs=STOCK_CONNECTION, open=False
        )
        with pool:
            saver = StockSyncSaver(pool)
            saver.setup()
            yield saver


STOCK: tuple[AsyncContender, ...] = (StockConnection(), StockPipeline(), StockPool())
SYNC: tuple[SyncContender, ...] = (OursSync(), StockSyncConnection(), StockSyncPool())
