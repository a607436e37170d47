"""The factory of docs/how-to/agent-server.md, called as the Agent Server does: once in each thread that runs a loop."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from threading import Barrier
from typing import Any

import psycopg
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from checkpoint_store import AsyncPostgresSaver

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "agent-server.md").read_text()
GRAPH, LISTING, SETTINGS = (
    re.findall(rf"^`{name}`, [^\n]+:\n\n```\w+\n(.+?)^```$", PAGE, re.DOTALL | re.MULTILINE)[0]
    for name in (r"agent\.py", r"checkpointer\.py", r"langgraph\.json")
)
ASKED_FOR = [
    *("aput", "aput_writes", "aget_tuple", "alist"),
    *("adelete_thread", "acopy_thread", "adelete_for_runs", "aprune"),
]
LOOPS = 4
OPEN = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

Factory = Callable[[], AbstractAsyncContextManager[AsyncPostgresSaver]]


@pytest.fixture
def factory(url: str, monkeypatch: pytest.MonkeyPatch) -> Factory:
    """The page's function, on a database of its own."""
    monkeypatch.setenv("CHECKPOINT_STORE_URL", url)
    module: dict[str, Any] = {}
    exec(LISTING, module)  # noqa: S102 - it is our page
    return module["checkpointer"]


def ask(state: MessagesState) -> dict[str, Any]:
    return {"messages": [("ai", interrupt("Send it?"))]}


def graph_on(saver: BaseCheckpointSaver[str]) -> Any:
    return StateGraph(MessagesState).add_node(ask).add_edge(START, "ask").compile(checkpointer=saver)


def thread(name: str) -> RunnableConfig:
    return {"configurable": {"thread_id": name}}


def test_each_loop_has_a_saver_and_they_work_at_once(factory: Factory, url: str) -> None:
    """A job interrupts on one loop, a request resumes it on another; each saver closes its connections."""
    interrupted = Barrier(LOOPS)

    async def job(number: int) -> list[str]:
        async with factory() as saver:
            graph = graph_on(saver)
            await asyncio.gather(
                *(graph.ainvoke({"messages": ["Hello"]}, thread(f"{number}-{each}")) for each in range(8))
            )
            await asyncio.to_thread(interrupted.wait, 60)
            other = (number + 1) % LOOPS
            states = await asyncio.gather(
                *(graph.ainvoke(Command(resume=f"by {number}"), thread(f"{other}-{each}")) for each in range(8))
            )
            return [state["messages"][-1].content for state in states]

    with ThreadPoolExecutor(LOOPS) as threads:
        answers = list(threads.map(lambda number: asyncio.run(job(number)), range(LOOPS)))
    assert answers == [[f"by {number}"] * 8 for number in range(LOOPS)]
    with psycopg.connect(url) as conn:
        assert conn.execute(OPEN).fetchone() == (0,)


async def test_the_graph_remembers_with_the_factorys_saver(factory: Factory) -> None:
    """The server puts the saver into the graph of the page, and calls the factory again after a restart."""
    module: dict[str, Any] = {}
    exec(GRAPH, module)  # noqa: S102 - it is our page
    for count in (1, 3):
        async with factory() as saver:
            graph = module["graph"].copy({"checkpointer": saver})
            state = await graph.ainvoke({"messages": [("user", "Hello")]}, thread("chat"))
            assert state["messages"][-1].content == f"That was message {count}."


async def test_the_saver_has_every_method_that_the_server_asks_for(factory: Factory) -> None:
    """The server looks whether a class has its own; without it a request fails, or is slow."""
    async with factory() as saver:
        missing = [name for name in ASKED_FOR if getattr(type(saver), name) is getattr(BaseCheckpointSaver, name)]
    assert missing == []
    assert [name for name in ASKED_FOR if f"`{name}`" not in PAGE] == []


def test_the_settings_name_the_function_not_a_saver() -> None:
    """A saver would be used by every loop."""
    file, _, name = json.loads(SETTINGS)["checkpointer"]["path"].rpartition(":")
    assert file == "./checkpointer.py"
    assert f"async def {name}()" in LISTING
