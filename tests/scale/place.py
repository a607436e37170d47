"""A database as one way of connecting shows it: its savers and engines, and one way to call them, async and sync."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.url import Pooler, pooler_options


class Calls:
    """The methods of a saver or a graph, called by one name and awaited, whether they are async or sync.

    Args:
        target: What has the methods.
        api: "async" for the methods whose names begin with an `a`; "sync" for the others, in a thread.
    """

    def __init__(self, target: Any, api: str) -> None:
        self.target = target
        self.api = api

    async def __call__(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method; an iterator's items are returned as a list."""
        if self.api == "sync":
            return await asyncio.to_thread(self._call, method, args, options)
        found = getattr(self.target, f"a{method}")(*args, **options)
        return [item async for item in found] if isinstance(found, AsyncIterator) else await found

    async def setup(self) -> None:
        """Bring the tables to head; the method has one name."""
        await (asyncio.to_thread(self.target.setup) if self.api == "sync" else self.target.setup())

    def _call(self, method: str, args: Any, options: Any) -> Any:
        found = getattr(self.target, method)(*args, **options)
        return list(found) if isinstance(found, Iterator) else found


@dataclass(frozen=True)
class Place:
    """How a database is reached."""

    url: str
    pooler: Pooler | None = None
    """The option of savers and engines."""
    replica: str | None = None
    """The URL of a streaming replica, for `read_engine`."""
    direct: str | None = None
    """The URL of the server itself, where `url` is a pooler's."""

    @asynccontextmanager
    async def saver(self, api: str, **options: Any) -> AsyncIterator[Calls]:
        """A saver on an engine of its own: on asyncpg, or the sync one on psycopg."""
        options |= {"pooler": self.pooler}
        if api == "async":
            if self.replica:
                options["read_engine"] = create_async_engine(_named(self.replica, "asyncpg"))
            async with AsyncPostgresSaver.from_conn_string(self.url, **options) as saver:
                yield Calls(saver, api)
            if self.replica:
                await options["read_engine"].dispose()
            return
        if self.replica:
            options["read_engine"] = create_engine(_named(self.replica, "psycopg"))
        with PostgresSaver.from_conn_string(self.url, **options) as sync_saver:
            yield Calls(sync_saver, api)
        if self.replica:
            options["read_engine"].dispose()

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[AsyncEngine]:
        """An engine of a host's."""
        options = pooler_options("asyncpg") if self.pooler else {}
        engine = create_async_engine(_named(self.url, "asyncpg"), **options)
        yield engine
        await engine.dispose()

    def sync_engine(self) -> Engine:
        """The same for sync code; it is the caller's to dispose of."""
        return create_engine(_named(self.url, "psycopg"), **(pooler_options("psycopg") if self.pooler else {}))


def _named(url: str, driver: str) -> Any:
    return make_url(url).set(drivername=f"postgresql+{driver}")
