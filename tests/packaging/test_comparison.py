"""The page that compares savers is true: ours are tried, others are tried or read."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver as StockSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store import AsyncPostgresSaver

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
PAGE = (REPOSITORY / "docs/explanation/comparison.md").read_text()

POSTGRES, SQLITE = "langgraph-checkpoint-postgres", "langgraph-checkpoint-sqlite"

SOURCES: list[tuple[str, Callable[..., Any], tuple[str, ...], tuple[str, ...]]] = [
    (POSTGRES, StockSaver._cursor, ("async with self.lock, ", "self.pipe.sync()"), ()),
    (POSTGRES, StockSaver.__init__, ("conn: _ainternal.Conn",), ()),
    (POSTGRES, StockSaver.aput, ("cur.executemany(", "cur.execute("), ()),
    (POSTGRES, StockSaver.alist, ("async with self._cursor() as cur", "cur.fetchall()"), ()),
    (POSTGRES, StockSaver.setup, ("cur.execute(migration)",), ("lock",)),
    (POSTGRES, StockSaver.get_tuple, ("get_running_loop() is self.loop",), ()),
    (POSTGRES, StockSaver.put, ("run_coroutine_threadsafe",), ("get_running_loop",)),
    (POSTGRES, StockSaver.put_writes, ("run_coroutine_threadsafe",), ("get_running_loop",)),
    (POSTGRES, StockSaver.aprune, ("_refuse_delta_threads",), ()),
    (
        SQLITE,
        AsyncSqliteSaver.aput,
        ("await self.setup()", "dumps_typed(checkpoint)", "self.lock", "conn.commit()"),
        (),
    ),
]
"""Functions of other savers, what is in their source, and what is not."""


def is_the_version_read(distribution: str) -> bool:
    version = metadata.version(distribution)
    return f"`{distribution}` {version}" in PAGE and f"{distribution.rpartition('-')[2]} {version}" in README


@pytest.mark.parametrize(
    ("distribution", "function", "there", "absent"), SOURCES, ids=lambda each: getattr(each, "__qualname__", "")
)
def test_other_savers_are_as_the_page_says(
    distribution: str, function: Callable[..., Any], there: tuple[str, ...], absent: tuple[str, ...]
) -> None:
    """As long as it is the version that the page is about; a newer one has to be read again."""
    if not is_the_version_read(distribution):
        pytest.skip(f"{distribution} {metadata.version(distribution)} is not what the page is about")
    source = inspect.getsource(function)
    assert all(text in source for text in there)
    assert not any(text in source for text in absent)


def test_other_savers_lack_what_the_page_says_they_lack() -> None:
    """Whoever inherits the base class's method, which raises, has none."""
    if is_the_version_read(POSTGRES):
        for name in ("adelete_for_runs", "acopy_thread"):
            assert getattr(StockSaver, name) is getattr(BaseCheckpointSaver, name)
        assert not hasattr(StockSaver, "alist_threads")
        assert not metadata.distribution(POSTGRES).entry_points
    if is_the_version_read(SQLITE):
        for name in ("aprune", "adelete_for_runs", "acopy_thread"):
            assert getattr(AsyncSqliteSaver, name) is getattr(BaseCheckpointSaver, name)


async def test_a_put_is_one_statement(engine: AsyncEngine, saver: AsyncPostgresSaver) -> None:
    """Values that need blobs included."""
    seen: list[str] = []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *call: seen.append(call[2]))
    await saver.aget_tuple({"configurable": {"thread_id": "t", "checkpoint_ns": ""}})  # what is asked once is asked now
    seen.clear()

    await saver.aput(*call_of("t", {"messages": [1], "files": {"a": 1}}))

    (statement,) = seen
    assert "checkpoint_blobs" in statement


async def test_a_call_that_waits_holds_up_all_of_the_stock_savers_and_none_of_ours(
    engine: AsyncEngine, saver: AsyncPostgresSaver, url: str
) -> None:
    """One thread's row is locked, by somebody else; another thread is read meanwhile, or has to wait for the lock."""
    other: Any = {"configurable": {"thread_id": "other", "checkpoint_ns": ""}}
    locked = call_of("locked", {})
    await saver.aput(*locked)
    connecting: dict[str, Any] = {"autocommit": True, "row_factory": dict_row, "prepare_threshold": 0}
    async with (
        AsyncConnectionPool(url, kwargs=connecting, min_size=2, open=False) as pool,
        await psycopg.AsyncConnection.connect(url) as host,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as observer,
    ):

        async def waits(put: asyncio.Task[Any]) -> None:
            """Return when the put waits for the row."""
            query = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            while not put.done() and not (await (await observer.execute(query)).fetchone() or (0,))[0]:
                pass

        stock = StockSaver(pool)
        for each, is_free in ((saver, True), (stock, False)):
            await host.execute("SELECT 1 FROM checkpoints WHERE thread_id = 'locked' FOR UPDATE")
            put = asyncio.create_task(each.aput(*locked))
            await waits(put)
            if is_free:
                assert await each.aget_tuple(other) is None
            else:
                assert stock.lock.locked()
            assert not put.done()
            await host.rollback()
            await put


def call_of(thread_id: str, values: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """The arguments of a put."""
    versions = dict.fromkeys(values, "1")
    checkpoint = {**empty_checkpoint(), "id": "1", "channel_values": values, "channel_versions": versions}
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}, checkpoint, {}, versions


def test_every_line_is_proved() -> None:
    """By a test, a page, or a place in the stock saver's source."""
    rows = re.findall(r"^\| ([^|]+) \|.*\| ([^|]+) \|$", PAGE.partition("## Other")[0], re.MULTILINE)
    rows = [(what, proof) for what, proof in rows if what.strip("- ") and proof != "proved by"]
    assert len(rows) > 25
    for what, proof in rows:
        assert re.search(r"`tests/|\]\(|`\w+\.py`", proof), what
