"""Private names of asyncpg that the checks of a borrowed connection go by mean what they are taken for."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store.database import liveness, pool
from checkpoint_store.errors import InvalidOption, WrongThread


@pytest.fixture(params=["asyncpg", "psycopg"])
def engine(request: pytest.FixtureRequest, url: str) -> AsyncEngine:
    return create_async_engine(make_url(url).set(drivername=f"postgresql+{request.param}"))


async def test_the_socket_of_a_connection_is_the_one_to_its_server(engine: AsyncEngine) -> None:
    """Its end is the end of the connection."""
    async with engine.connect() as conn:
        driver = (await conn.get_raw_connection()).driver_connection
        number = liveness.socket_of(driver)
        assert liveness.is_open(driver)

        ours = socket.socket(fileno=number)
        ours.shutdown(socket.SHUT_RDWR)
        ours.detach()

        assert liveness.has_ended(number)
        assert not liveness.is_open(driver)
        await conn.invalidate()
    await engine.dispose()


def test_a_connection_of_another_loop_is_refused(url: str) -> None:
    """While that loop runs the advice is another than when it has ended."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    loop = asyncio.new_event_loop()

    async def check(driver: Any) -> None:
        liveness.check_loop(driver)

    async def check_here_and_there() -> Any:
        async with engine.connect() as conn:
            driver = (await conn.get_raw_connection()).driver_connection
            await check(driver)
            with pytest.raises(WrongThread, match="of another event loop"):
                await asyncio.to_thread(asyncio.run, check(driver))
            return driver

    driver = loop.run_until_complete(check_here_and_there())
    with pytest.raises(WrongThread, match="that has ended"):
        asyncio.run(check(driver))
    loop.run_until_complete(engine.dispose())
    loop.close()


@pytest.mark.parametrize("size", [0, 100])
async def test_a_cache_of_asyncpgs_own_is_none_for_a_pooler(url: str, size: int) -> None:
    """As `prepared_statement_cache_size` of SQLAlchemy's adapter."""
    engine = create_async_engine(
        make_url(url).set(drivername="postgresql+asyncpg"),
        connect_args={"statement_cache_size": size, "prepared_statement_cache_size": 0},
    )
    async with engine.connect() as conn:
        pooled: Any = await conn.get_raw_connection()
        assert pool.is_for_pooler(pooled) is not bool(size)
        if size:
            with pytest.raises(InvalidOption, match="keeps prepared statements"):
                pool.check_is_for_pooler(pooled)
    await engine.dispose()
