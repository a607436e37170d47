"""The paths of tasks in other savers, which LangGraph's interface does not return.

`put_writes` takes the path of the task, and lists have writes in the order of paths, but not the paths. They matter
in a step that is not finished: the writes of a task that ends later are sorted among the others, by its path.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from sqlalchemy import URL, Dialect

from checkpoint_store.sql.compiled import Statement
from checkpoint_store.sql.copy_thread import task_paths
from checkpoint_store.tools.saver_calls import SaverCalls

log = logging.getLogger(__name__)

PathsAt = Callable[[str, str], Mapping[str, str]]
"""Takes a namespace and a checkpoint id, and returns the known paths of tasks by their ids."""


def paths_at(source: BaseCheckpointSaver[Any], thread_id: Any, calls: SaverCalls) -> PathsAt:
    """Return the paths of a thread's tasks in one of LangGraph's own savers; in others none are known."""
    if isinstance(source, InMemorySaver):
        writes = source.writes
        return lambda *key: {write[0]: write[3] for write in writes.get((thread_id, *key), {}).values()}
    paths: dict[tuple[str, str], dict[str, str]] = {}
    if (known := _known(source)) is not None:
        try:
            for namespace, checkpoint_id, task_id, path in _read(source, str(thread_id), calls, *known):
                paths.setdefault((namespace, checkpoint_id), {})[task_id] = path
        except Exception as error:  # any error of its driver: an old SQLite file has no such column
            log.warning("the paths of tasks can't be read from %s: %s", type(source).__name__, error)
    return lambda *key: paths.get(key, {})


def _known(source: BaseCheckpointSaver[Any]) -> tuple[Statement, Dialect] | None:
    """Return the statement to execute on the saver's `conn`, if its class is one of LangGraph's or derived from one."""
    if hasattr(source, "conn"):
        for base in type(source).__mro__:
            if base.__module__.startswith("langgraph.checkpoint.sqlite"):
                return Statement(task_paths, "writes"), URL.create("sqlite").get_dialect()()
            if base.__module__.startswith("langgraph.checkpoint.postgres"):
                return Statement(task_paths, "checkpoint_writes"), URL.create("postgresql+psycopg").get_dialect()()
    return None


def _read(source: Any, thread_id: str, calls: SaverCalls, statement: Statement, dialect: Dialect) -> Iterable[Any]:
    query = source.conn, *statement.bound(dialect, {"thread_id": thread_id})
    if (loop := getattr(source, "loop", None)) is None:
        rows = calls.call(_fetch, lambda *query: asyncio.to_thread(_fetch, *query), *query)
    else:  # an async saver; sync code is on another thread than its loop
        rows = calls.call(
            lambda *query: asyncio.run_coroutine_threadsafe(_fetch_async(*query), loop).result(), _fetch_async, *query
        )
    return [tuple(row.values() if isinstance(row, dict) else row) for row in rows]


def _fetch(conn: Any, *query: Any) -> list[Any]:
    with _connection(conn) as connection:
        rows: list[Any] = connection.execute(*query).fetchall()
    return rows


async def _fetch_async(conn: Any, *query: Any) -> list[Any]:
    async with _connection(conn) as connection:
        rows: list[Any] = await (await connection.execute(*query)).fetchall()
    return rows


def _connection(conn: Any) -> Any:
    """Return a context manager for a connection of a pool, or for a connection."""
    return conn.connection() if hasattr(conn, "getconn") else nullcontext(conn)
