"""What type checkers make of the public API: `make types` runs mypy and pyright over it, nothing runs it.

An ignored error is one that a user would be told of, so that it has to be there is checked as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Unpack, assert_type

from alembic.runtime.environment import EnvironmentContext
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import MessagesState, StateGraph
from sqlalchemy import Connection, Engine, Table, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from checkpoint_store import (
    AsyncPipeline,
    AsyncPostgresSaver,
    CheckpointStoreError,
    Conflict,
    ConnectionOptions,
    PostgresSaver,
    SaverOptions,
    SweepReport,
    ThreadLock,
    ThreadLocked,
    ThreadStats,
    ThreadSummary,
    Unavailable,
    WrongTransaction,
    conversion,
    distribution,
    errors,
    migrations,
    partitioning,
    telemetry,
)
from checkpoint_store.embedded import EmbeddedPostgres
from checkpoint_store.encryption import KeyRing, Reencryption, count_unencrypted, reencrypt
from checkpoint_store.expiry import Expiry, Sweeper, SweepOptions
from checkpoint_store.schema import Tables, checkpoints, metadata
from checkpoint_store.transfer import TransferReport, acopy_threads, copy_threads
from checkpoint_store.url import pooler_options


async def async_savers(engine: AsyncEngine, connection: AsyncConnection) -> None:
    async with AsyncPostgresSaver.from_conn_string("", pipeline=True, serde=JsonPlusSerializer(), pool_size=5) as saver:
        assert_type(saver, AsyncPostgresSaver)
        assert_type(saver.retries, int)
        await saver.setup(timeout=5)
    contract: BaseCheckpointSaver[str] = AsyncPostgresSaver(engine, None, JsonPlusSerializer(), schema="agents")
    AsyncPostgresSaver(connection)
    AsyncPostgresSaver(engine, retry_timeout=0)
    AsyncPostgresSaver(engine, pooler="transaction", read_engine=engine)
    AsyncPostgresSaver(engine, pooler="session")  # type: ignore[arg-type]
    AsyncPostgresSaver(engine, share_page=True)  # type: ignore[call-arg]
    AsyncPostgresSaver(engine, read_engine=engine.sync_engine)  # type: ignore[arg-type]
    AsyncPostgresSaver.from_conn_string("", refuse_forks=True, echo="debug", share_page=True)  # type: ignore[call-arg]
    AsyncPostgresSaver("postgresql://localhost")  # type: ignore[arg-type]
    assert_type(contract.get_next_version(None, None), str)


async def async_methods(saver: AsyncPostgresSaver, config: RunnableConfig, checkpoint: Checkpoint) -> None:
    described: CheckpointMetadata = {"source": "loop", "step": 1}
    assert_type(await saver.aput(config, checkpoint, described, {}), RunnableConfig)
    assert_type(await saver.aget_tuple(config), CheckpointTuple | None)
    assert_type(await saver.aget(config), Checkpoint | None)
    async for found in saver.alist(config, filter={"step": 1}, before=config, limit=5):
        assert_type(found, CheckpointTuple)
    history = await saver.aget_delta_channel_history(config=config, channels=["messages"])
    assert_type(history, Mapping[str, DeltaChannelHistory])
    await saver.aput_writes(config, [("messages", 1)], "task", "path")
    await saver.adelete_thread("1")
    await saver.acopy_thread("1", "2", replace=True)
    async for thread in saver.alist_threads(limit=5, order="thread_id", filter={"step": 1}, prefix="1", count=True):
        assert_type(thread, ThreadSummary)
        assert_type((thread.updated_at, thread.cursor), tuple[datetime | None, str])
    assert_type(await saver.aget_thread_stats("1"), ThreadStats)
    await saver.acheck()
    await saver.aclose()


def sync_savers(saver: PostgresSaver, config: RunnableConfig, checkpoint: Checkpoint) -> None:
    with PostgresSaver.from_conn_string("") as made:
        assert_type(made, PostgresSaver)
        made.setup()
    PostgresSaver.from_conn_string("", pool_size="5")  # type: ignore[arg-type]
    PostgresSaver.from_conn_string("", pool_size=5, max_overflow=0, share_page=True)  # type: ignore[call-arg]
    PostgresSaver.from_conn_string("", read_engine=create_engine(""))
    assert_type(saver.put(config, checkpoint, {}, {}), RunnableConfig)
    assert_type(saver.get_tuple(config), CheckpointTuple | None)
    for found in saver.list(None):
        assert_type(found, CheckpointTuple)
    saver.put_writes(config, [("messages", 1)], "task")
    saver.delete_thread("1")
    saver.copy_thread("1", "2")
    for thread in saver.list_threads(order="oldest"):  # type: ignore[arg-type]
        assert_type(thread, ThreadSummary)
    assert_type([channel.bytes for channel in saver.get_thread_stats("1").channels], list[int])
    saver.check()
    saver.close()


def hosts(
    engine: AsyncEngine,
    connection: AsyncConnection,
    session: AsyncSession,
    scoped: async_scoped_session[AsyncSession],
) -> None:
    saver = AsyncPostgresSaver(engine)
    assert_type(saver.bind(connection), AsyncPostgresSaver)
    assert_type(saver.bind(session, bind_arguments={"bind": engine}), AsyncPostgresSaver)
    assert_type(Own(engine).bind(scoped), Own)
    PostgresSaver(engine, AsyncPipeline(engine))
    PostgresSaver(connection)
    PostgresSaver(engine).bind(session)
    AsyncPostgresSaver(session)  # type: ignore[arg-type]
    saver.bind(engine)  # type: ignore[arg-type]
    AsyncPostgresSaver(engine.sync_engine)  # type: ignore[arg-type]


def sync_hosts(engine: Engine, connection: Connection, session: Session, scoped: scoped_session[Session]) -> None:
    saver = PostgresSaver(engine, serde=JsonPlusSerializer(), schema="agents", share_pages=True)
    PostgresSaver(connection)
    assert_type(saver.bind(connection), PostgresSaver)
    assert_type(saver.bind(session), PostgresSaver)
    assert_type(saver.bind(scoped), PostgresSaver)
    PostgresSaver(engine, read_engine=engine)
    PostgresSaver(engine, share_page=True)  # type: ignore[call-arg]
    PostgresSaver(session)  # type: ignore[arg-type]
    AsyncPipeline(engine)  # type: ignore[arg-type]


class Own(AsyncPostgresSaver):
    pass


class Audited(PostgresSaver):
    def __init__(self, conn: Engine, audit: str, **options: Unpack[SaverOptions[Engine]]) -> None:
        super().__init__(conn, **options)
        self.audit = audit


@asynccontextmanager
async def opened(url: str, **options: Unpack[ConnectionOptions]) -> AsyncIterator[Own]:
    """A host hands the options on, and its own callers are checked as well."""
    async with Own.from_conn_string(url, **options) as saver:
        assert_type(saver, Own)
        yield saver


def handed_on(engine: Engine, options: SaverOptions[Engine]) -> None:
    assert_type(Audited(engine, "log", **options).audit, str)
    assert_type(options.get("retry_timeout"), float | None)
    Audited(engine, "log", retry_timeout="1")  # type: ignore[arg-type]
    opened("", pool_size=5, refuse_forks=True)
    opened("", refuse_fork=True)  # type: ignore[call-arg]


async def graphs(saver: AsyncPostgresSaver, sync_saver: PostgresSaver, builder: StateGraph[MessagesState]) -> None:
    graph = builder.compile(checkpointer=saver)
    graph.copy({"checkpointer": saver.bind(AsyncSession())})
    builder.compile(checkpointer=sync_saver)


async def async_lifecycle(saver: AsyncPostgresSaver) -> None:
    assert_type(await saver.aprune(["1"], keep=5), SweepReport)
    assert_type(await saver.aprune(["1"], strategy="delete"), SweepReport)
    assert_type(await saver.adelete_for_runs(["run"]), SweepReport)
    swept = await saver.asweep(older_than=timedelta(days=90), keep_last=3, spare_active=True, dry_run=True)
    assert_type((swept.threads, swept.checkpoints, swept.writes, swept.blobs, swept.pages, swept.bytes), Six)
    await saver.asweep(keep_last=1, batch_size=100, on_progress=lambda report: print(report.checkpoints))  # noqa: T201
    await saver.asweep(older_than=90)  # type: ignore[arg-type]
    rules = [Expiry.never({"pinned": True}), Expiry(idle=timedelta(days=30), age=timedelta(days=365))]
    await saver.asweep(expiry=rules, keep=is_kept, before_delete=archive)
    await saver.asweep(expiry=tuple(rules), keep=lambda thread: thread.metadata == {}, before_delete=print)
    await saver.asweep(expiry=[Expiry(idle=30)])  # type: ignore[arg-type]
    async with Sweeper(saver, timedelta(hours=1), expiry=rules, before_delete=archive) as sweeper:
        assert_type(sweeper, Sweeper)
    Sweeper(saver, timedelta(hours=1), dry_run=True)  # type: ignore[call-arg]
    options: SweepOptions = {"expiry": rules, "batch_size": 10}
    Sweeper(saver, timedelta(hours=1), **options)
    await saver.aprune("1", keep="5")  # type: ignore[arg-type]


def sync_lifecycle(saver: PostgresSaver) -> None:
    assert_type(saver.prune(["1"], keep=5), SweepReport)
    assert_type(saver.delete_for_runs(["run"]), SweepReport)
    assert_type(saver.sweep(keep_last=3), SweepReport)
    saver.sweep(timedelta(days=90))  # type: ignore[call-arg]
    saver.sweep(expiry=[Expiry(age=timedelta(days=365))], keep=lambda _: False, before_delete=print)
    saver.sweep(expiry=[Expiry.never()], before_delete=archive)  # type: ignore[arg-type]
    with Sweeper(saver, timedelta(hours=1), keep_last=3) as sweeper:
        assert_type(sweeper, Sweeper)


async def is_kept(thread: ThreadSummary) -> bool:
    return thread.checkpoints == 1


async def archive(threads: list[ThreadSummary]) -> None:
    assert_type(threads[0].metadata, dict[str, Any])


Six = tuple[int, int, int, int, int, int]


async def pipelines(engine: AsyncEngine) -> None:
    async with AsyncPipeline(engine, flushes=4) as pipe:
        assert_type(pipe, AsyncPipeline)
        AsyncPostgresSaver(engine, pipe)
    await pipe.aclose()


async def converted(engine: AsyncEngine, sync_engine: Engine) -> None:
    assert_type(await conversion.share(engine, schema="agents", batch_size=10, on_progress=print), int)
    assert_type(await conversion.inline(sync_engine), int)
    await conversion.share("postgresql://localhost")  # type: ignore[arg-type]


async def transferred(old: InMemorySaver, saver: AsyncPostgresSaver, sync_saver: PostgresSaver) -> None:
    failed: dict[str, Exception] = {}
    assert_type(await acopy_threads(old, saver, ["1"], on_error=failed.__setitem__), TransferReport)
    report = copy_threads(sync_saver, sync_saver, on_progress=print)
    assert_type((report.threads, report.checkpoints, report.writes), tuple[int, int, int])
    copy_threads(saver, old)  # type: ignore[arg-type]


def caught(saver: PostgresSaver, config: RunnableConfig) -> None:
    try:
        saver.get(config)
    except errors.NotSetUp as error:
        assert_type(error, errors.NotSetUp)
    except (errors.MigrationError, Unavailable) as error:
        _: CheckpointStoreError = error
    except (Conflict, ThreadLocked, WrongTransaction) as error:
        assert_type(error, Conflict | ThreadLocked | WrongTransaction)
    error_types: list[type[errors.CheckpointStoreError]] = [errors.MigrationLocked, errors.Closed, errors.WrongThread]
    values: list[type[ValueError]] = [errors.InvalidConfig, errors.InvalidURL, errors.InvalidOption]
    raise (error_types[0] if values else errors.UnstorableValue)


async def locks(saver: AsyncPostgresSaver, sync_saver: PostgresSaver) -> None:
    async with saver.thread_lock("1", timeout=30) as lock:
        assert_type(lock, ThreadLock)
        assert_type(lock.lost, bool)
    with sync_saver.thread_lock("1", timeout=None):
        pass
    saver.thread_lock(1)  # type: ignore[arg-type]


async def encrypted(engine: AsyncEngine, sync_engine: Engine) -> None:
    ring = EncryptedSerializer(KeyRing.aes(b"new", b"old"))
    AsyncPostgresSaver(engine, serde=ring, require_encryption=True, refuse_forks=True)
    PostgresSaver.from_conn_string("", serde=ring, require_encryption=True, refuse_forks=True)
    assert_type(await reencrypt(engine, None, ring, schema="agents", on_progress=print), Reencryption)
    in_clear = await count_unencrypted(sync_engine)
    assert_type((in_clear.blobs, in_clear.writes, in_clear.scalars), tuple[int, int, int])
    KeyRing.aes("new")  # type: ignore[arg-type]


def servers() -> None:
    with EmbeddedPostgres(settings={"fsync": "off", "max_connections": 20}) as server:
        assert_type(server.url, str)
    made: AbstractContextManager[PostgresSaver] = PostgresSaver.from_conn_string(server.url, pooler="transaction")
    opened: AbstractAsyncContextManager[AsyncPostgresSaver] = AsyncPostgresSaver.from_conn_string(server.url)
    del made, opened
    assert_type(pooler_options("psycopg"), dict[str, Any])


def watched(saver: AsyncPostgresSaver) -> None:
    telemetry.instrument(saver, thread_ids=True)
    telemetry.uninstrument(saver)


def divided(conn: Connection) -> None:
    partitioning.partition(conn, "agents", partitions=16)
    assert_type(partitioning.sql(partitions=4), str)
    assert_type(distribution.distribute(conn, "agents", timeout=5).changes, tuple[str, ...])
    assert_type(distribution.current(conn), distribution.Distribution | None)
    assert_type(distribution.sql("agents"), str)


def tables() -> None:
    every: Iterator[Table] = iter(Tables("agents").all)
    del every
    assert Tables("agents").checkpoints.schema == "agents"
    assert checkpoints.metadata is metadata
    assert Tables("agents", metadata=metadata).metadata is metadata


async def schema_and_alembic(conn: Connection, connection: AsyncConnection, context: EnvironmentContext) -> None:
    migrations.upgrade(conn, "agents", revision="head", timeout=5)
    migrations.downgrade(conn, revision="-1")
    await connection.run_sync(migrations.check, "agents")
    assert_type(await connection.run_sync(migrations.current), str | None)
    assert_type(migrations.offline_sql("agents"), str)
    assert_type(migrations.grants("app", "agents"), str)
    context.configure(connection=conn, include_object=migrations.not_ours)
