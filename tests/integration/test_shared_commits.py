"""Savers share the commits of concurrent writes without being asked, where nobody can tell the difference."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import asyncpg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver
from checkpoint_store.database.direct_executor import AsyncpgExecutor

pytestmark = pytest.mark.shortcut

TENANT: ContextVar[str] = ContextVar("TENANT")


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that go straight to the driver: a listener would change what is tested."""
    seen: list[str] = []
    fetch = AsyncpgExecutor.fetch

    def noted(self: AsyncpgExecutor, statement: Any, binds: Any) -> Any:
        if "pg_extension" not in (text := statement.sql(self.engine.dialect)):
            seen.append(text)  # not the first call's question whether there is Citus
        return fetch(self, statement, binds)

    monkeypatch.setattr(AsyncpgExecutor, "fetch", noted)
    return seen


async def put(saver: Any, thread_id: str) -> None:
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    await saver.aput(config, empty_checkpoint(), {}, {})


async def stored(url: str) -> int:
    conn = await asyncpg.connect(url)
    try:
        return int(await conn.fetchval("SELECT count(*) FROM checkpoints"))
    finally:
        await conn.close()


async def test_all_savers_on_an_engine_share_commits(url: str, engine: AsyncEngine, statements: list[str]) -> None:
    """200 puts by a saver for each request: a handful of statements."""
    await asyncio.gather(*[put(AsyncPostgresSaver(engine), f"t{number}") for number in range(200)])

    assert len(statements) < 20
    assert await stored(url) == 200


async def test_a_saver_from_a_url_shares_commits(url: str, statements: list[str]) -> None:
    """The async one, and the sync one on an event loop of its own."""
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        await asyncio.gather(*[put(saver, f"t{number}") for number in range(200)])
    assert len(statements) < 20

    statements.clear()
    with PostgresSaver.from_conn_string(url.replace("postgresql://", "postgresql+asyncpg://")) as sync_saver:
        await asyncio.gather(*[put(sync_saver, f"s{number}") for number in range(200)])
    assert len(statements) < 40
    assert await stored(url) == 400


@pytest.mark.parametrize("way", ["pipe", "pipeline"])
async def test_false_switches_it_off(url: str, engine: AsyncEngine, statements: list[str], way: str) -> None:
    """A commit for each call."""
    if way == "pipe":
        saver = AsyncPostgresSaver(engine, False)
        await asyncio.gather(*[put(saver, f"t{number}") for number in range(50)])
    else:
        async with AsyncPostgresSaver.from_conn_string(url, pipeline=False) as own:
            await asyncio.gather(*[put(own, f"t{number}") for number in range(50)])
    assert len(statements) == 50


@pytest.mark.parametrize("count", [1, 2, 8])
async def test_a_few_callers_do_not_wait_for_each_other(
    url: str, engine: AsyncEngine, statements: list[str], count: int
) -> None:
    """Each has a commit of its own at once, as without sharing."""
    saver = AsyncPostgresSaver(engine)

    async def work(number: int) -> None:
        for _ in range(5):
            await put(saver, f"t{number}")

    await asyncio.gather(*map(work, range(count)))

    assert len(statements) == 5 * count
    assert await stored(url) == 5 * count


async def test_savers_with_other_options_do_not_share(engine: AsyncEngine, statements: list[str]) -> None:
    """One that never retries is not retried with others, nor are they given up with it."""
    patient, hasty = AsyncPostgresSaver(engine), AsyncPostgresSaver(engine, retry_timeout=0)

    await asyncio.gather(*[put(saver, f"{number}") for number in range(60) for saver in (patient, hasty)])

    assert patient._backend._target != hasty._backend._target  # type: ignore[attr-defined]
    assert len(statements) < 60


@pytest.mark.parametrize("heard", ["checkout", "begin", "before_cursor_execute"])
async def test_what_listeners_set_for_one_caller_is_not_set_for_others(
    url: str, heard: str, statements: list[str]
) -> None:
    """Each tenant's rows are stored under its own name, whatever event the host's listener is for."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})

    def name(first: Any, second: Any = None, *_: Any) -> None:
        tenant = TENANT.get("nobody")
        if heard == "checkout":
            cursor = first.cursor()
        elif heard == "begin":
            cursor = first.connection.cursor()
        else:
            cursor = second
        cursor.execute(f"SET application_name = '{tenant}'")

    conn = await asyncpg.connect(url)
    await conn.execute("ALTER TABLE checkpoints ADD tenant text DEFAULT current_setting('application_name')")
    event.listen(engine.sync_engine, heard, name)
    saver = AsyncPostgresSaver(engine)

    async def work(number: int) -> None:
        TENANT.set(f"tenant {number}")
        await put(saver, f"tenant {number}")

    await asyncio.gather(*[asyncio.create_task(work(number)) for number in range(40)])

    assert await conn.fetchval("SELECT count(*) FROM checkpoints WHERE tenant = thread_id") == 40
    await conn.close()
    await engine.dispose()


async def test_a_pipeline_of_ones_own_shares_in_spite_of_listeners(engine: AsyncEngine) -> None:
    """Who asks for it knows the listeners."""
    seen: list[str] = []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
    saver = AsyncPostgresSaver(engine, AsyncPipeline(engine))

    await asyncio.gather(*[put(saver, f"t{number}") for number in range(200)])

    assert len(seen) < 20


def test_one_engine_on_several_loops(url: str) -> None:
    """With NullPool an engine may be used by one loop after the other; commits are shared on each."""
    from sqlalchemy import NullPool

    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}, poolclass=NullPool)

    async def crowd(name: str) -> None:
        await asyncio.gather(*[put(AsyncPostgresSaver(engine), f"{name} {number}") for number in range(30)])

    for name in ("first", "second"):
        asyncio.run(crowd(name))
    assert asyncio.run(stored(url)) == 60
