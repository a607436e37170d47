"""How many connections a saver opens: those that a pool keeps, and none for a burst."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import Engine, NullPool, QueuePool, StaticPool, event, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.errors import InvalidOption
from checkpoint_store.transfer import acopy_threads
from checkpoint_store.url import POOL_SIZE


def connects_of(engine: Engine) -> list[object]:
    """The connections that an engine opens from now on."""
    opened: list[object] = []
    event.listen(engine, "connect", lambda connection, _: opened.append(connection))
    return opened


def engine_of(saver: AsyncPostgresSaver | PostgresSaver) -> Engine:
    return saver._backend.provider.engine


@asynccontextmanager
async def host(url: str, **options: Any) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), **options)
    yield engine
    await engine.dispose()


async def put(saver: AsyncPostgresSaver, number: int) -> None:
    config: Any = {"configurable": {"thread_id": f"{number}", "checkpoint_ns": ""}}
    await saver.aput(config, empty_checkpoint(), {}, {})


async def burst(saver: AsyncPostgresSaver, calls: int) -> None:
    """Many calls at once, and when all have ended as many again."""
    for _ in range(3):
        await asyncio.gather(*[put(saver, number) for number in range(calls)])


async def test_a_saver_of_its_own_engine_opens_no_connection_for_a_burst(url: str) -> None:
    """64 runs at once share the connections that the pool keeps: none is closed and opened anew."""
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        opened = connects_of(engine_of(saver))
        await burst(saver, 64)

    assert 1 <= len(opened) <= POOL_SIZE


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize(
    ("options", "size", "overflow"),
    [
        ({}, POOL_SIZE, 0),
        ({"pool_size": 20}, 20, 0),
        ({"max_overflow": 3}, POOL_SIZE, 3),
        ({"pool_size": 2, "max_overflow": -1}, 2, -1),
        ({"pool_size": 0}, 0, -1),
    ],
)
def test_what_the_caller_says_of_the_pool_holds(driver: str, options: dict[str, Any], size: int, overflow: int) -> None:
    """What is left open is set by us."""
    with PostgresSaver.from_conn_string(f"postgresql+{driver}://h/app", **options) as saver:
        pool = engine_of(saver).pool
        assert isinstance(pool, QueuePool)
        assert (pool.size(), pool._max_overflow) == (size, overflow)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("kind", [NullPool, StaticPool])
def test_a_pool_of_the_callers_kind_is_left_alone(driver: str, kind: type[Any]) -> None:
    """It may know no sizes."""
    with PostgresSaver.from_conn_string(f"postgresql+{driver}://h/app", poolclass=kind) as saver:
        assert type(engine_of(saver).pool) is kind


def test_a_pool_that_is_none_is_named() -> None:
    """By our error."""
    with (
        pytest.raises(InvalidOption, match="an option for the engine"),
        PostgresSaver.from_conn_string("postgresql://h/app", poolclass="QueuePool"),
    ):
        pass


@pytest.mark.parametrize("overflow", [10, -1], ids=["overflow", "no-limit"])
async def test_of_a_hosts_pool_calls_leave_the_overflow_to_the_host(url: str, overflow: int) -> None:
    """All savers on it together take as many connections as the pool keeps."""
    async with host(url, pool_size=3, max_overflow=overflow) as engine:
        opened = connects_of(engine.sync_engine)
        savers = [AsyncPostgresSaver(engine), AsyncPostgresSaver(engine)]
        await asyncio.gather(*[burst(saver, 30) for saver in savers])

        assert 1 <= len(opened) <= 3


async def test_a_pool_without_a_limit_has_none_for_calls(url: str) -> None:
    """`pool_size=0`: nobody ever waits for a connection."""
    async with host(url, pool_size=0) as engine:
        saver = AsyncPostgresSaver(engine)
        assert isinstance(saver._backend.provider.slot, nullcontext)  # type: ignore[attr-defined]
        assert isinstance(saver._backend.provider.long_slot, nullcontext)  # type: ignore[attr-defined]
        await burst(saver, 20)


async def test_a_host_that_holds_all_that_the_pool_keeps_holds_no_call_up(url: str) -> None:
    """A call then has a connection of the overflow."""
    async with host(url, pool_size=2, max_overflow=1, pool_timeout=5) as engine, AsyncExitStack() as held:
        saver = AsyncPostgresSaver(engine)
        for _ in range(2):
            conn = await held.enter_async_context(engine.connect())
            await conn.execute(text("SELECT 1"))
        await asyncio.wait_for(burst(saver, 4), 60)


async def test_threads_are_copied_within_an_engine_whose_pool_keeps_one_connection(
    url: str, make_saver: Callable[[AsyncEngine, str], Any]
) -> None:
    """One copy reads and writes at the same time, and there may be several: the overflow is there for that."""
    async with host(url, pool_size=1, max_overflow=3, pool_timeout=5) as engine:
        source, targets = AsyncPostgresSaver(engine), [await make_saver(engine, name) for name in ("a", "b")]
        for number in range(5):
            await put(source, number)

        reports = await asyncio.wait_for(asyncio.gather(*[acopy_threads(source, one) for one in targets]), 60)

    assert [report.threads for report in reports] == [5, 5]


@pytest.fixture
def make_saver() -> Callable[[AsyncEngine, str], Any]:
    """Makes a saver on a schema of its own."""

    async def make(engine: AsyncEngine, schema: str) -> AsyncPostgresSaver:
        async with engine.begin() as conn:
            await conn.execute(text(f"CREATE SCHEMA {schema}"))
        saver = AsyncPostgresSaver(engine, schema=schema)
        await saver.setup()
        return saver

    return make
