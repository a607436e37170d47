"""How a saver notices that its tables are distributed, and what its connections are like then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from checkpoint_store import AsyncPostgresSaver, CheckpointStoreError, PostgresSaver
from tests.citus.cluster import distribute, migrate, run

THREAD: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


def large(number: int) -> tuple[Any, ...]:
    """The arguments of a put whose value is stored as pages."""
    version = f"{number:032}.0"
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = {"messages": [f"{number} {place:0300}" for place in range(200)]}
    checkpoint["channel_versions"] = {"messages": version}
    return checkpoint, {"source": "loop", "step": number}, {"messages": version}


async def test_a_saver_notices_that_its_tables_were_distributed(empty_citus_url: str) -> None:
    """Its engine had asked before; the first call that Citus refuses is repeated with the other statements."""
    migrate(empty_citus_url)
    async with AsyncPostgresSaver.from_conn_string(empty_citus_url) as saver:
        stored = await saver.aput(THREAD, *large(1))
        distribute(empty_citus_url)

        stored = await saver.aput(stored, *large(2))
        found = await saver.aget_tuple(stored)

    assert found is not None
    assert found.metadata["step"] == 2
    assert saver._backend.sql.are_distributed


async def test_a_bound_saver_knows_it_after_a_call_that_failed(empty_citus_url: str) -> None:
    """The host's transaction has failed; in its next one the saver has the other statements."""
    migrate(empty_citus_url)
    engine = create_async_engine(make_url(empty_citus_url).set(drivername="postgresql+asyncpg"))
    saver = AsyncPostgresSaver(engine)
    async with AsyncSession(engine) as session, session.begin():
        await saver.bind(session).aput(THREAD, *large(1))
    distribute(empty_citus_url)

    async def put(number: int) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await saver.bind(session).aput(THREAD, *large(number))

    with pytest.raises(Exception, match="0A000"):
        await put(2)
    await put(3)
    await engine.dispose()


async def test_own_connections_do_not_ask_for_generic_plans(citus_url: str) -> None:
    """Citus finds the node of a thread when it plans, and refuses to plan for all."""
    async with AsyncPostgresSaver.from_conn_string(citus_url) as saver:
        await saver.aget_tuple(THREAD)
        async with saver._backend._engine.connect() as conn:  # type: ignore[attr-defined]
            assert await conn.scalar(text("SHOW plan_cache_mode")) == "auto"


def test_psycopgs_neither(citus_url: str) -> None:
    """The sync saver's."""
    with PostgresSaver.from_conn_string(citus_url) as saver:
        for number in range(8):
            saver.put(THREAD, *large(number))
            saver.get_tuple(THREAD)
        with saver._backend.provider.engine.connect() as conn:
            assert conn.scalar(text("SHOW plan_cache_mode")) == "auto"
            assert conn.scalar(text("SHOW citus.override_table_visibility")) == "off"


async def test_a_type_is_looked_up_in_the_catalog_itself(citus_url: str) -> None:
    """By default Citus filters the catalog, and asyncpg's question for the type of an array takes a second."""
    async with AsyncPostgresSaver.from_conn_string(citus_url) as saver:
        await saver.aput(THREAD, *large(1))
        async with saver._backend._engine.connect() as conn:  # type: ignore[attr-defined]
            assert await conn.scalar(text("SHOW citus.override_table_visibility")) == "off"


async def test_connections_that_ask_for_generic_plans_are_told_so(citus_url: str) -> None:
    """It is recommended for a single server."""
    settings = {"server_settings": {"plan_cache_mode": "force_generic_plan"}}
    url = make_url(citus_url).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, connect_args=settings)
    with pytest.raises(CheckpointStoreError, match="must not have plan_cache_mode=force_generic_plan"):
        await AsyncPostgresSaver(engine).aput(THREAD, *large(1))
    await engine.dispose()


async def test_a_schema_on_one_node_works_too(empty_citus_url: str) -> None:
    """`citus_schema_distribute`: Citus refuses there what it refuses of distributed tables."""
    async with AsyncPostgresSaver.from_conn_string(empty_citus_url, schema="tenant") as saver:
        await saver.setup()
        run(empty_citus_url, "SELECT citus_schema_distribute('tenant')")
        stored = await saver.aput(THREAD, *large(1))
        assert await saver.aget_tuple(stored) is not None
        await saver.acopy_thread("t", "copy")
        assert (await saver.aprune(["t", "copy"], strategy="delete")).checkpoints == 2


async def test_a_copy_notices_that_the_tables_were_distributed(empty_citus_url: str) -> None:
    """Citus takes the statement, but reads each table as of another moment: while the source is in use that shows."""
    migrate(empty_citus_url)
    async with (
        AsyncPostgresSaver.from_conn_string(empty_citus_url) as older,
        AsyncPostgresSaver.from_conn_string(empty_citus_url) as newer,
    ):
        stored = await older.aput(THREAD, *large(1))
        distribute(empty_citus_url)
        is_over = asyncio.Event()

        async def write() -> None:
            config, number = stored, 1
            while not is_over.is_set():
                number += 1
                config = await newer.aput(config, *large(number))

        writing = asyncio.create_task(write())
        for number in range(20):
            await older.acopy_thread("t", f"copy {number}")
        is_over.set()
        await writing
        newest = [await newer.aget_tuple({"configurable": {"thread_id": f"copy {number}"}}) for number in range(20)]

    assert older._backend.sql.are_distributed
    assert all(newest)
