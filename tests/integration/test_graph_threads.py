"""Sync calls on the async saver: from any other thread they work, on the loop's own they raise instead of waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from operator import add
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.graph import START, StateGraph
from langgraph.pregel import Pregel
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver
from checkpoint_store.errors import WrongThread

THREAD = {"configurable": {"thread_id": "thread", "checkpoint_ns": ""}}


class Log(TypedDict):
    log: Annotated[list[str], add]


def noting(saver: BaseCheckpointSaver[str]) -> Pregel:
    graph = StateGraph(Log)
    graph.add_node("note", lambda state: {"log": [f"{len(state['log'])} before"]})
    graph.add_edge(START, "note")
    return graph.compile(checkpointer=saver)


SYNC_METHODS: dict[str, Callable[[AsyncPostgresSaver], Any]] = {
    "get": lambda saver: saver.get(THREAD),
    "get_tuple": lambda saver: saver.get_tuple(THREAD),
    "list": lambda saver: next(iter(saver.list(THREAD))),
    "list of everything": lambda saver: list(saver.list(None)),
    "put": lambda saver: saver.put(THREAD, empty_checkpoint(), {"step": 7}, {}),
    "put_writes": lambda saver: saver.put_writes(
        {"configurable": {**THREAD["configurable"], "checkpoint_id": "1"}}, [("log", "x")], "task"
    ),
    "delete_thread": lambda saver: saver.delete_thread("thread"),
    "get_delta_channel_history": lambda saver: saver.get_delta_channel_history(config=THREAD, channels=["log"]),
    "invoke": lambda saver: noting(saver).invoke({"log": ["again"]}, THREAD),
    "stream": lambda saver: list(noting(saver).stream({"log": ["again"]}, THREAD)),
    "get_state": lambda saver: noting(saver).get_state(THREAD),
    "get_state_history": lambda saver: list(noting(saver).get_state_history(THREAD)),
    "update_state": lambda saver: noting(saver).update_state(THREAD, {"log": ["by hand"]}),
}


@pytest.mark.parametrize("method", SYNC_METHODS)
async def test_a_sync_call_on_the_loops_own_thread_raises(saver: AsyncPostgresSaver, method: str) -> None:
    """Each one says at once what is wrong, where the stock saver would wait for itself, and changes nothing."""
    await noting(saver).ainvoke({"log": ["start"]}, THREAD)
    before = [found async for found in saver.alist(None)]

    with pytest.raises(WrongThread, match="async method"):
        SYNC_METHODS[method](saver)

    assert [found async for found in saver.alist(None)] == before


@pytest.mark.parametrize("method", SYNC_METHODS)
async def test_the_same_call_from_another_thread_works(saver: AsyncPostgresSaver, method: str) -> None:
    """What raises on the loop's thread is answered while the loop runs, with nobody awaiting the saver."""
    await noting(saver).ainvoke({"log": ["start"]}, THREAD)

    await asyncio.to_thread(SYNC_METHODS[method], saver)


async def test_a_list_begun_in_a_thread_does_not_go_on_in_the_loop(saver: AsyncPostgresSaver) -> None:
    """An iterator that wanders from its thread to the loop's raises when it needs the server again."""
    agent = noting(saver)
    for _ in range(8):
        await agent.ainvoke({"log": ["start"]}, THREAD)
    found = await asyncio.to_thread(saver.list, THREAD)
    await asyncio.to_thread(next, found)

    with pytest.raises(WrongThread, match="async method"):
        list(found)


async def test_sync_graphs_fill_every_thread_of_the_loops_executor(saver: AsyncPostgresSaver) -> None:
    """More runs at once than the executor has threads, with values large enough to be encoded beside the loop.

    The stock saver needs a free thread of the same executor for each of its writes, and none is left.
    """
    agent = noting(saver)
    large = [f"line {n} " * 20 for n in range(2_000)]

    ended = await asyncio.gather(
        *(
            asyncio.to_thread(agent.invoke, {"log": large}, {"configurable": {"thread_id": f"thread-{n}"}})
            for n in range(48)
        )
    )

    assert [state["log"][-1] for state in ended] == ["2000 before"] * 48


async def test_threads_and_the_loop_write_at_the_same_time(saver: AsyncPostgresSaver) -> None:
    """Sync runs in threads and async runs on the loop share one saver; every thread has exactly its own steps."""
    agent = noting(saver)

    def config(name: str) -> dict[str, Any]:
        return {"configurable": {"thread_id": name}}

    with ThreadPoolExecutor(16) as threads:
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(loop.run_in_executor(threads, agent.invoke, {"log": [f"{n}"]}, config(f"sync-{n}")) for n in range(16)),
            *(agent.ainvoke({"log": [f"{n}"]}, config(f"async-{n}")) for n in range(16)),
        )

    for n in range(16):
        for kind in ("sync", "async"):
            stored = [found async for found in saver.alist(config(f"{kind}-{n}"))]
            assert [found.metadata["step"] for found in stored] == [1, 0, -1]
            assert stored[0].checkpoint["channel_values"]["log"] == [f"{n}", "1 before"]


async def test_a_thread_with_a_loop_of_its_own_may_call_too(saver: AsyncPostgresSaver) -> None:
    """What counts is the loop of the engine, not whether some loop runs in the calling thread."""
    await noting(saver).ainvoke({"log": ["start"]}, THREAD)

    async def elsewhere() -> Any:
        return saver.get_tuple(THREAD)

    found = await asyncio.to_thread(asyncio.run, elsewhere())

    assert found == await saver.aget_tuple(THREAD)


async def test_an_async_call_from_another_loop_raises(saver: AsyncPostgresSaver) -> None:
    """An engine belongs to one loop; from a second one the error says so, before asyncpg fails in its own words."""
    await noting(saver).ainvoke({"log": ["start"]}, THREAD)

    async def elsewhere() -> None:
        with pytest.raises(WrongThread, match="another event loop"):
            await saver.aget_tuple(THREAD)
        with pytest.raises(WrongThread, match="another event loop"):
            [found async for found in saver.alist(THREAD)]

    await asyncio.to_thread(asyncio.run, elsewhere())

    assert await saver.aget_tuple(THREAD) is not None


def test_a_sync_call_after_the_loop_has_ended_raises(url: str) -> None:
    """Nobody is left to run the call, so it does not wait for anybody."""
    savers: list[AsyncPostgresSaver] = []

    async def make() -> None:
        engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
        saver = AsyncPostgresSaver(engine)
        await noting(saver).ainvoke({"log": ["start"]}, THREAD)
        savers.append(saver)
        await engine.dispose()

    asyncio.run(make())

    with pytest.raises(WrongThread, match="does not run"):
        savers[0].get_tuple(THREAD)


async def test_savers_on_one_engine_may_be_called_from_threads_alike(engine: AsyncEngine) -> None:
    """Each saver made on the engine answers, whichever of them was there first."""
    first, second = AsyncPostgresSaver(engine), AsyncPostgresSaver(engine)

    await asyncio.to_thread(first.put, THREAD, empty_checkpoint(), {"step": 1}, {})

    assert await asyncio.to_thread(second.get_tuple, THREAD) == await first.aget_tuple(THREAD)
