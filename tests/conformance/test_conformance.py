"""LangGraph's own conformance suite, on every way to hold a saver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.conformance import validate
from langgraph.checkpoint.conformance.capabilities import ALL_CAPABILITIES, Capability
from langgraph.checkpoint.conformance.initializer import RegisteredCheckpointer
from langgraph.checkpoint.conformance.spec import (
    test_copy_thread,
    test_delete_for_runs,
    test_delete_thread,
    test_get_tuple,
    test_list,
    test_prune,
    test_put,
    test_put_writes,
)
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver

# The suite's own lists: a test that LangGraph adds is one to pass, and one that silently does not run is a failure.
SPEC = {
    Capability.PUT: test_put.ALL_PUT_TESTS,
    Capability.PUT_WRITES: test_put_writes.ALL_PUT_WRITES_TESTS,
    Capability.GET_TUPLE: test_get_tuple.ALL_GET_TUPLE_TESTS,
    Capability.LIST: test_list.ALL_LIST_TESTS,
    Capability.DELETE_THREAD: test_delete_thread.ALL_DELETE_THREAD_TESTS,
    Capability.DELETE_FOR_RUNS: test_delete_for_runs.ALL_DELETE_FOR_RUNS_TESTS,
    Capability.COPY_THREAD: test_copy_thread.ALL_COPY_THREAD_TESTS,
    Capability.PRUNE: test_prune.ALL_PRUNE_TESTS,
}

SaverContext = AbstractAsyncContextManager[BaseCheckpointSaver[str]]


class SyncMethods(BaseCheckpointSaver[str]):
    """The async contract, answered by the sync methods of another saver, each called in a worker thread."""

    def __init__(self, saver: BaseCheckpointSaver[str]) -> None:
        super().__init__(serde=saver.serde)
        self.saver = saver

    async def aput(self, *args: Any) -> Any:
        return await asyncio.to_thread(self.saver.put, *args)

    async def aput_writes(self, *args: Any, **task: Any) -> None:
        await asyncio.to_thread(self.saver.put_writes, *args, **task)

    async def aget_tuple(self, config: Any) -> CheckpointTuple | None:
        return await asyncio.to_thread(self.saver.get_tuple, config)

    async def alist(self, config: Any, **criteria: Any) -> AsyncIterator[CheckpointTuple]:
        for found in await asyncio.to_thread(lambda: list(self.saver.list(config, **criteria))):
            yield found

    async def adelete_thread(self, thread_id: str) -> None:
        await asyncio.to_thread(self.saver.delete_thread, thread_id)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        await asyncio.to_thread(self.saver.copy_thread, source_thread_id, target_thread_id)

    async def adelete_for_runs(self, run_ids: Any) -> None:
        await asyncio.to_thread(self.saver.delete_for_runs, run_ids)

    async def aprune(self, thread_ids: Any, **options: Any) -> None:
        await asyncio.to_thread(self.saver.prune, thread_ids, **options)


@asynccontextmanager
async def on_an_engine(url: str, engine: AsyncEngine, setting: Any) -> AsyncIterator[BaseCheckpointSaver[str]]:
    yield AsyncPostgresSaver(engine, AsyncPipeline(engine) if setting.pipeline else False, share_pages=setting.pages)


@asynccontextmanager
async def on_a_connection(url: str, engine: AsyncEngine, setting: Any) -> AsyncIterator[BaseCheckpointSaver[str]]:
    async with engine.begin() as connection:
        yield AsyncPostgresSaver(connection, share_pages=setting.pages)


@asynccontextmanager
async def from_a_url(url: str, engine: AsyncEngine, setting: Any) -> AsyncIterator[BaseCheckpointSaver[str]]:
    async with AsyncPostgresSaver.from_conn_string(url, pipeline=setting.pipeline, share_pages=setting.pages) as saver:
        yield saver


@asynccontextmanager
async def sync_methods_from_threads(
    url: str, engine: AsyncEngine, setting: Any
) -> AsyncIterator[BaseCheckpointSaver[str]]:
    async with on_an_engine(url, engine, setting) as saver:
        yield SyncMethods(saver)


@asynccontextmanager
async def sync_saver(url: str, engine: AsyncEngine, setting: Any) -> AsyncIterator[BaseCheckpointSaver[str]]:
    with PostgresSaver.from_conn_string(url, pipeline=setting.pipeline, share_pages=setting.pages) as saver:
        yield SyncMethods(saver)


@asynccontextmanager
async def async_methods_of_the_sync_saver(
    url: str, engine: AsyncEngine, setting: Any
) -> AsyncIterator[BaseCheckpointSaver[str]]:
    with PostgresSaver.from_conn_string(url, pipeline=setting.pipeline, share_pages=setting.pages) as saver:
        yield saver


@asynccontextmanager
async def on_an_async_psycopg_engine(
    url: str, engine: AsyncEngine, setting: Any
) -> AsyncIterator[BaseCheckpointSaver[str]]:
    psycopg = create_async_engine(make_url(url).set(drivername="postgresql+psycopg"))
    async with on_an_engine(url, psycopg, setting) as saver:
        yield saver
    assert psycopg.pool.checkedout() == 0  # type: ignore[attr-defined]
    await psycopg.dispose()


@asynccontextmanager
async def sync_saver_on_an_async_psycopg_engine(
    url: str, engine: AsyncEngine, setting: Any
) -> AsyncIterator[BaseCheckpointSaver[str]]:
    psycopg = create_async_engine(make_url(url).set(drivername="postgresql+psycopg"))
    saver = PostgresSaver(psycopg, AsyncPipeline(psycopg) if setting.pipeline else False, share_pages=setting.pages)
    yield SyncMethods(saver)
    saver.close()


@asynccontextmanager
async def async_methods_on_a_psycopg_engine(
    url: str, engine: AsyncEngine, setting: Any
) -> AsyncIterator[BaseCheckpointSaver[str]]:
    psycopg = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    yield PostgresSaver(psycopg, share_pages=setting.pages)
    assert psycopg.pool.checkedout() == 0  # type: ignore[attr-defined]
    psycopg.dispose()


@asynccontextmanager
async def on_a_psycopg_engine(url: str, engine: AsyncEngine, setting: Any) -> AsyncIterator[BaseCheckpointSaver[str]]:
    async with async_methods_on_a_psycopg_engine(url, engine, setting) as saver:
        yield SyncMethods(saver)


@asynccontextmanager
async def on_a_psycopg_connection(
    url: str, engine: AsyncEngine, setting: Any
) -> AsyncIterator[BaseCheckpointSaver[str]]:
    psycopg = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    with psycopg.begin() as connection:
        yield SyncMethods(PostgresSaver(connection, share_pages=setting.pages))
    psycopg.dispose()


@asynccontextmanager
async def bound_to_a_session(url: str, engine: AsyncEngine, setting: Any) -> AsyncIterator[BaseCheckpointSaver[str]]:
    async with AsyncSession(engine) as session, session.begin():
        yield AsyncPostgresSaver(engine, share_pages=setting.pages).bind(session)


@asynccontextmanager
async def bound_to_a_sync_session(
    url: str, engine: AsyncEngine, setting: Any
) -> AsyncIterator[BaseCheckpointSaver[str]]:
    psycopg = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    with Session(psycopg) as session, session.begin():
        yield SyncMethods(PostgresSaver(psycopg, share_pages=setting.pages).bind(session))
    psycopg.dispose()


HELD = [
    on_an_engine,
    on_a_connection,
    from_a_url,
    sync_methods_from_threads,
    sync_saver,
    async_methods_of_the_sync_saver,
    on_a_psycopg_engine,
    on_an_async_psycopg_engine,
    bound_to_a_session,
    pytest.param(bound_to_a_sync_session, marks=pytest.mark.slow),
    pytest.param(async_methods_on_a_psycopg_engine, marks=pytest.mark.slow),
    pytest.param(sync_saver_on_an_async_psycopg_engine, marks=pytest.mark.slow),
    pytest.param(on_a_psycopg_connection, marks=pytest.mark.slow),
]


def test_the_suite_has_tests_for_every_capability() -> None:
    """Nothing below passes because there was nothing to run."""
    assert SPEC.keys() == ALL_CAPABILITIES
    assert all(SPEC.values())


@pytest.mark.parametrize("capability", SPEC, ids=lambda capability: capability.value)
@pytest.mark.parametrize("held", HELD, ids=lambda held: held.__name__)
async def test_a_capability_passes_whole(
    held: Callable[[str, AsyncEngine, Any], SaverContext],
    capability: Capability,
    url: str,
    engine: AsyncEngine,
    setting: Any,
) -> None:
    """Every test that LangGraph has for the capability ran and passed; none was skipped."""

    async def saver() -> AsyncIterator[BaseCheckpointSaver[str]]:
        async with held(url, engine, setting) as opened:
            yield opened

    report = await validate(RegisteredCheckpointer(held.__name__, saver), capabilities={capability.value})

    result = report.results[capability.value]
    assert result.detected
    assert result.passed, "\n".join(result.failures)
    assert (result.tests_passed, result.tests_skipped) == (len(SPEC[capability]), 0)
