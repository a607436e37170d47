"""A pytest plugin for LangGraph's own tests: those on PostgreSQL, with our savers in the place of the stock saver's.

CHECKPOINT_STORE_NIGHTLY_SAVER is `stock` or `ours`. Their fixtures make a database for each test; so do ours, from a
template at head.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from importlib import import_module

import psycopg
import pytest
from databases import SERVER, database, drop_template, make_template
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver
from checkpoint_store.url import engine_arguments

IS_OURS = os.environ["CHECKPOINT_STORE_NIGHTLY_SAVER"] == "ours"


@contextmanager
def on_psycopg(url: str) -> Iterator[PostgresSaver]:
    with PostgresSaver.from_conn_string(url) as saver:
        yield saver


@contextmanager
def on_asyncpg(url: str) -> Iterator[PostgresSaver]:
    with PostgresSaver.from_conn_string(url.replace("postgresql:", "postgresql+asyncpg:", 1)) as saver:
        yield saver


@contextmanager
def on_a_hosts_engine(url: str) -> Iterator[PostgresSaver]:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
    yield PostgresSaver(engine)
    engine.dispose()


@asynccontextmanager
async def on_own_engine_aio(url: str) -> AsyncIterator[AsyncPostgresSaver]:
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        yield saver


@asynccontextmanager
async def on_a_hosts_engine_aio(url: str) -> AsyncIterator[AsyncPostgresSaver]:
    address, connect_args = engine_arguments(url)
    engine = create_async_engine(address, connect_args=connect_args)
    yield AsyncPostgresSaver(engine)
    await engine.dispose()


@asynccontextmanager
async def on_a_pipeline_aio(url: str) -> AsyncIterator[AsyncPostgresSaver]:
    address, connect_args = engine_arguments(url)
    engine = create_async_engine(address, connect_args=connect_args)
    async with AsyncPipeline(engine) as pipe:
        yield AsyncPostgresSaver(engine, pipe)
    await engine.dispose()


SYNC = {"postgres": on_psycopg, "postgres_pipe": on_asyncpg, "postgres_pool": on_a_hosts_engine}
ASYNC = {
    "postgres_aio": on_own_engine_aio,
    "postgres_aio_pipe": on_a_pipeline_aio,
    "postgres_aio_pool": on_a_hosts_engine_aio,
}


def in_a_database(
    saver: Callable[[str], AbstractContextManager[PostgresSaver]],
) -> Callable[[], AbstractContextManager[PostgresSaver]]:
    """Return a function like their fixtures': a saver on a database of its own."""

    @contextmanager
    def checkpointer() -> Iterator[PostgresSaver]:
        with database() as url, saver(url) as one:
            one.setup()  # as theirs: some tests measure how long a run takes, and not how long it takes to connect
            yield one

    return checkpointer


def in_a_database_aio(
    saver: Callable[[str], AbstractAsyncContextManager[AsyncPostgresSaver]],
) -> Callable[[], AbstractAsyncContextManager[AsyncPostgresSaver]]:
    """Return a function like their fixtures': a saver on a database of its own."""

    @asynccontextmanager
    async def checkpointer() -> AsyncIterator[AsyncPostgresSaver]:
        with database() as url:
            async with saver(url) as one:
                await one.setup()
                yield one

    return checkpointer


def pytest_sessionstart() -> None:
    """Point their fixtures to our server, and to our savers; their conftest.py is loaded by now."""
    for module in ("tests.conftest_checkpointer", "tests.conftest_store"):
        import_module(module).DEFAULT_POSTGRES_URI = SERVER  # type: ignore[attr-defined]
    if IS_OURS:
        theirs = import_module("tests.conftest")
        for name, saver in SYNC.items():
            setattr(theirs, f"_checkpointer_{name}", in_a_database(saver))
        for name, saver_aio in ASYNC.items():
            setattr(theirs, f"_checkpointer_{name}", in_a_database_aio(saver_aio))
        make_template()


def pytest_sessionfinish() -> None:
    """Drop the template."""
    if IS_OURS:
        drop_template()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests whose saver is on PostgreSQL, and that need no Redis."""
    kept = []
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        saver = params.get("sync_checkpointer") or params.get("async_checkpointer") or ""
        if saver in {*SYNC, *ASYNC} and params.get("cache") != "redis":
            kept.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
