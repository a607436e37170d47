"""Graphs under test: each one compiled on our savers, and on LangGraph's own in-memory saver as the model."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.pregel import Pregel
from langgraph.types import StateSnapshot
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver
from checkpoint_store.cli import main
from tests.conftest import REPOSITORY, Setting
from tests.integration.commands import Cli, Done


class Agent:
    """A graph and its saver, driven through LangGraph's async API, or through its sync API in a worker thread."""

    def __init__(self, graph: Pregel, *, blocking: bool) -> None:
        self.graph = graph
        self.blocking = blocking

    async def _call(self, method: str, *args: Any, **options: Any) -> Any:
        if self.blocking:
            return await asyncio.to_thread(getattr(self.graph, method), *args, **options)
        return await getattr(self.graph, f"a{method}")(*args, **options)

    async def _read(self, method: str, *args: Any, **options: Any) -> list[Any]:
        if self.blocking:
            return await asyncio.to_thread(lambda: list(getattr(self.graph, method)(*args, **options)))
        return [item async for item in getattr(self.graph, f"a{method}")(*args, **options)]

    async def invoke(self, input: Any, config: RunnableConfig, **options: Any) -> Any:
        return await self._call("invoke", input, config, **options)

    async def stream(self, input: Any, config: RunnableConfig, **options: Any) -> list[Any]:
        return await self._read("stream", input, config, **options)

    async def state(self, config: RunnableConfig, *, subgraphs: bool = False) -> StateSnapshot:
        return await self._call("get_state", config, subgraphs=subgraphs)

    async def history(self, config: RunnableConfig, **criteria: Any) -> list[StateSnapshot]:
        return await self._read("get_state_history", config, **criteria)

    async def update(self, config: RunnableConfig, values: Any, **options: Any) -> RunnableConfig:
        return await self._call("update_state", config, values, **options)

    async def bulk_update(self, config: RunnableConfig, supersteps: Any) -> RunnableConfig:
        return await self._call("bulk_update_state", config, supersteps)

    async def story(self, config: RunnableConfig) -> list[Any]:
        """A thread's whole history, newest first, without the ids and times that no two runs share."""
        history = await self.history(config)
        ids = [snapshot.config["configurable"]["checkpoint_id"] for snapshot in history]
        return [
            (
                snapshot.values,
                snapshot.next,
                {key: value for key, value in snapshot.metadata.items() if key != "parents"},
                list(snapshot.metadata.get("parents", {})),
                snapshot.parent_config and ids.index(snapshot.parent_config["configurable"]["checkpoint_id"]),
                [
                    (task.name, task.error and str(task.error), [asked.value for asked in task.interrupts], task.result)
                    for task in snapshot.tasks
                ],
            )
            for snapshot in history
        ]


Agents = Callable[[Callable[[BaseCheckpointSaver[str]], Pregel]], tuple[Agent, Agent]]


@pytest.fixture
async def psycopg_saver(url: str, setting: Setting) -> AsyncIterator[AsyncPostgresSaver]:
    """Our saver on an async engine of psycopg's."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+psycopg"))
    yield AsyncPostgresSaver(engine, AsyncPipeline(engine) if setting.pipeline else False, share_pages=setting.pages)
    await engine.dispose()


@pytest.fixture
def sync_psycopg_saver(url: str, setting: Setting) -> Iterator[PostgresSaver]:
    """Our saver on a sync engine."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    yield PostgresSaver(engine, share_pages=setting.pages)
    engine.dispose()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On psycopg only some graphs run every time."""
    for item in items:
        is_on_psycopg = "psycopg_saver" in item.name and item.path.name.startswith("test_graph_")
        if is_on_psycopg and not (item.path.name == "test_graph_interrupts.py" and "plain" in item.name):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(
    params=[
        ("saver", "async"),
        ("saver", "sync"),
        ("sync_saver", "sync"),
        ("sync_saver", "async"),
        ("psycopg_saver", "async"),
        ("sync_psycopg_saver", "sync"),
    ],
    ids="-".join,
)
def agents(request: pytest.FixtureRequest, setting: Setting) -> Agents:
    """Compile a graph twice, on one of our savers and on the in-memory one, both driven through the same API.

    (`setting` is named, since pytest has to know of it beforehand.)

    Takes a function of a saver that returns the compiled graph; returns our agent and the model's.
    """
    name, api = request.param
    ours = request.getfixturevalue(name)

    def compile_twice(compiled_on: Callable[[BaseCheckpointSaver[str]], Pregel]) -> tuple[Agent, Agent]:
        blocking = api == "sync"
        return Agent(compiled_on(ours), blocking=blocking), Agent(compiled_on(InMemorySaver()), blocking=blocking)

    return compile_twice


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process, on `url`, with an answer to what it asks."""
    monkeypatch.setenv("CHECKPOINT_STORE_URL", url)

    def run(*arguments: str, answer: str = "") -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        code = main(arguments)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def transcripts() -> Any:
    """The script that makes the documentation's transcripts, for the threads in them."""
    spec = importlib.util.spec_from_file_location("transcripts", REPOSITORY / "docs" / "transcripts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
