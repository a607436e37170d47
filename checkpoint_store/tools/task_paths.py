"""The paths of tasks in other savers: all that copying a thread needs and LangGraph's contract does not tell.

`put_writes` takes the path of the task, and lists have writes in the order of paths, but not the paths. While a step is
half done they matter still: the writes of a task that ends later belong among the others, by its path.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from sqlalchemy import URL, Dialect

from checkpoint_store.sql.compiled import Statement
from checkpoint_store.sql.copy_thread import task_paths
from checkpoint_store.tools.saver_calls import Calls

log = logging.getLogger(__name__)

PathsAt = Callable[[str, str], Mapping[str, str]]
"""The paths of tasks by their ids, as far as they are known, at a checkpoint of a namespace."""


def paths_at(source: BaseCheckpointSaver[Any], thread_id: Any, calls: Calls) -> PathsAt:
    """Return what tells the paths of a thread's tasks; of LangGraph's own savers it does, of others it knows none.

    Args:
        source: The saver.
        thread_id: The thread, as the saver names it.
        calls: How the saver is called.
    """
    if isinstance(source, InMemorySaver):
        writes = source.writes
        return lambda *key: {write[0]: write[3] for write in writes.get((thread_id, *key), {}).values()}
    paths: dict[tuple[str, str], dict[str, str]] = {}
    if (known := _known(source)) is not None:
        try:
            for namespace, checkpoint_id, task_id, path in _read(source, str(thread_id), calls, *known):
                paths.setdefault((namespace, checkpoint_id), {})[task_id] = path
        except Exception as error:  # whatever its driver raises; an old SQLite file has no such column
            log.warning("the paths of tasks can't be read from %s: %s", type(source).__name__, error)
    return lambda *key: paths.get(key, {})


def _known(source: BaseCheckpointSaver[Any]) -> tuple[Statement, Dialect] | None:
    """Return what to execute on the saver's `conn`, if it is one of LangGraph's or derived from one."""
    if hasattr(source, "conn"):
        for base in type(source).__mro__:
            if base.__module__.startswith("langgraph.checkpoint.sqlite"):
                return Statement(task_paths("writes")), URL.create("sqlite").get_dialect()()
            if base.__module__.startswith("langgraph.checkpoint.postgres"):
                return Statement(task_paths("checkpoint_writes")), URL.create("postgresql+psycopg").get_dialect()()
    return None


def _read(source: Any, thread_id: str, calls: Calls, statement: Statement, dialect: Dialect) -> Iterable[Any]:
    query = source.conn, statement.sql(dialect), statement.parameters(dialect, {"thread_id": thread_id})
    if (loop := getattr(source, "loop", None)) is not None:  # an async saver, which is called from other threads too
        blocking = partial(_fetch_on, loop)
        rows = calls.call(blocking, _fetch_async, *query)
    else:
        rows = calls.call(_fetch, _fetch_in_thread, *query)
    return [tuple(row.values() if isinstance(row, dict) else row) for row in rows]


def _fetch(conn: Any, *query: Any) -> list[Any]:
    with _lent(conn) as lent:
        rows: list[Any] = lent.execute(*query).fetchall()
    return rows


async def _fetch_in_thread(conn: Any, *query: Any) -> list[Any]:
    return await asyncio.to_thread(_fetch, conn, *query)


async def _fetch_async(conn: Any, *query: Any) -> list[Any]:
    async with _lent(conn) as lent:
        rows: list[Any] = await (await lent.execute(*query)).fetchall()
    return rows


def _fetch_on(loop: asyncio.AbstractEventLoop, conn: Any, *query: Any) -> list[Any]:
    return asyncio.run_coroutine_threadsafe(_fetch_async(conn, *query), loop).result()


def _lent(conn: Any) -> Any:
    """Return a context that has a connection, of a pool or the one there is."""
    return conn.connection() if hasattr(conn, "getconn") else nullcontext(conn)
