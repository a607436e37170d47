"""An async engine whose connections are closed with the event loop they were opened on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store.database.event_loop import EventLoop
from checkpoint_store.url import connector, engine_arguments


@contextmanager
def engine_for_one_test(conn_string: str) -> Iterator[AsyncEngine]:
    """Make an engine for sync code to set up and tear down, whatever loops it is used on, one after the other.

    A loop that ends closes the engine's connections itself: asyncio.run() and whatever else runs a loop first close its
    async generators, of which there is one for each loop. Those of a loop that goes on after the test are closed here,
    and so is the loop in a thread of its own that an async saver's sync methods have started.
    """
    url, arguments = engine_arguments(conn_string)
    connect = connector(conn_string)
    closers: dict[asyncio.AbstractEventLoop, AsyncGenerator[None]] = {}

    async def dispose_at_the_end() -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await engine.dispose()

    async def connect_here(**options: Any) -> Any:
        loop = asyncio.get_running_loop()
        if loop not in closers:
            closers[loop] = dispose_at_the_end()
            await anext(closers[loop])
        return await connect(**options)

    engine = create_async_engine(url, connect_args={**arguments, "async_creator_fn": connect_here})
    yield engine
    EventLoop.of(engine.dialect).stop()
    for loop, closer in closers.items():
        if not (loop.is_closed() or loop.is_running()):
            loop.run_until_complete(closer.aclose())
