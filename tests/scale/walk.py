"""A walk through the capabilities of the library at one place: the threads it makes, and what is read again."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Self

from langgraph.checkpoint.base import empty_checkpoint

from tests.scale.place import Calls, Place

PAGES = "checkpoint_pages"

PATIENCE_SECONDS = 20
"""How long to wait for what a replica has to get."""


@dataclass(frozen=True)
class Step:
    """A checkpoint as it was stored."""

    config: Any
    values: dict[str, Any]
    writes: list[tuple[str, str, Any]]

    @property
    def checkpoint_id(self) -> str:
        return str(self.config["configurable"]["checkpoint_id"])


def named(thread_id: str, checkpoint_id: str | None = None, namespace: str = "") -> Any:
    """The config of a thread or a checkpoint."""
    configurable = {"thread_id": thread_id, "checkpoint_ns": namespace}
    return {"configurable": configurable | ({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}


class Walk:
    """A saver at a place, and the threads it has made there, which are deleted at the end.

    Args:
        place: The place.
        api: "async" or "sync".
        options: Options of the saver.
    """

    def __init__(self, place: Place, api: str, **options: Any) -> None:
        self.place = place
        self.api = api
        self._options = options
        self._stack = AsyncExitStack()
        self._prefix = f"walk-{uuid.uuid4().hex[:8]}"
        self._threads: list[str] = []

    async def __aenter__(self) -> Self:
        self.call = await self.saver(**self._options)
        return self

    async def __aexit__(self, *error: object) -> None:
        for thread_id in self._threads:
            with suppress(Exception):  # whether deletion works is another capability
                await self.call("delete_thread", thread_id)
        await self._stack.aclose()

    async def saver(self, **options: Any) -> Calls:
        """Another saver there, for as long as the walk goes on."""
        return await self._stack.enter_async_context(self.place.saver(self.api, **options))

    async def engine(self) -> Any:
        """An engine of a host's, for as long."""
        return await self._stack.enter_async_context(self.place.engine())

    def thread(self) -> str:
        """The id of a new thread."""
        self._threads.append(f"{self._prefix}-{len(self._threads)}")
        return self._threads[-1]

    async def chat(
        self, thread_id: str, steps: int, *, large: bool = False, runs: Sequence[str] = ("run",), **where: Any
    ) -> list[Step]:
        """Store checkpoints with values inline and beside it, and two pending writes each.

        Args:
            thread_id: The thread.
            steps: How many checkpoints.
            large: Whether the messages are so long that they are cut into pages.
            runs: The runs that the checkpoints belong to, one after the other.
            where: `namespace`; `ids`, of the checkpoints; `call`, of another saver.
        """
        call, ids = where.get("call", self.call), where.get("ids")
        config, stored = named(thread_id, namespace=where.get("namespace", "")), []
        call_id = uuid.uuid4().hex  # no two calls for a thread use the same versions
        for number in range(steps):
            texts = [f"{thread_id} message {each}: " + "lorem ipsum " * 40 for each in range(60 * large + number + 1)]
            values = {"messages": texts, "number": number}
            versions = dict.fromkeys(values, f"{number + 1:032}.{call_id}")
            checkpoint = {**empty_checkpoint(), "channel_values": values, "channel_versions": versions}
            if ids:
                checkpoint["id"] = ids[number]
            about = {"source": "loop", "step": number, "run_id": runs[number % len(runs)]}
            config = await call("put", config, checkpoint, about, versions)
            writes = [("task", "messages", [number]), ("task", "number", number)]
            await call("put_writes", config, [write[1:] for write in writes], "task")
            stored.append(Step(config, values, writes))
        return stored

    async def check(self, *steps: Step, call: Calls | None = None) -> None:
        """Raise AssertionError unless checkpoints are read as they were stored."""
        for step in steps:
            found = await (call or self.call)("get_tuple", step.config)
            assert found is not None, "a checkpoint that was stored is missing"
            assert found.config == step.config
            assert found.checkpoint["channel_values"] == step.values
            assert sorted(found.pending_writes) == step.writes

    async def ids(self, thread_id: str, *, call: Calls | None = None, **options: Any) -> list[str]:
        """The ids of a thread's checkpoints, newest first; by another saver, if that has written them."""
        found = await (call or self.call)("list", {"configurable": {"thread_id": thread_id}}, **options)
        return [each.config["configurable"]["checkpoint_id"] for each in found]

    async def check_gone(self, thread_id: str) -> None:
        """Raise AssertionError if anything of a thread is left."""
        assert await self.call("get_tuple", named(thread_id)) is None
        assert await self.ids(thread_id) == []
        stats = await self.call("get_thread_stats", thread_id)
        assert (stats.bytes, stats.checkpoints) == (0, 0), f"left: {stats.tables}"

    async def eventually(self, found: Callable[[], Awaitable[Any]], wanted: Any) -> None:
        """Raise AssertionError unless a list over all threads, with which a replica lags, is right at last."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (last := await found()) != wanted:
            assert time.monotonic() < deadline, f"{last}, not {wanted}"
            await asyncio.sleep(0.05)


Trial = Callable[[Walk], Awaitable[None]]
"""A try of a capability: raises an error of the library's, or AssertionError where what came is not what is wanted."""


@dataclass(frozen=True)
class Capability:
    """One thing that the library can do, and by which kinds of savers."""

    name: str
    apis: tuple[str, ...]
    trial: Trial


CAPABILITIES: dict[str, Capability] = {}


def capability(name: str, *apis: str) -> Callable[[Trial], None]:
    """Add a function as a capability, of both kinds of savers unless they are named."""

    def add(trial: Trial) -> None:
        CAPABILITIES[name] = Capability(name, apis or ("async", "sync"), trial)

    return add


async def raises(kind: type[Exception], call: Awaitable[Any]) -> None:
    """Raise AssertionError unless a call raises such an error."""
    try:
        await call
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")
