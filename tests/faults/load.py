"""Calls from many tasks at once, which note what was acknowledged to them, and look for it in the end."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

from langgraph.checkpoint.base import empty_checkpoint

from checkpoint_store import AsyncPostgresSaver
from tests.faults.bed import PATIENCE_SECONDS

TASKS = 8
"""How many tasks call at once: more than there are connections."""


def checkpoint_of(number: int, text: str) -> dict[str, Any]:
    """A checkpoint with one value in the row, and one beside it."""
    version = f"{number:08}"
    return {
        **empty_checkpoint(),
        "id": f"{number:08}",
        "channel_values": {"number": number, "texts": [text] * 20},
        "channel_versions": {"number": version, "texts": version},
    }


class Load(ABC):
    """One kind of call.

    Args:
        saver: The saver under test.
        name: What no other load on the database is called.
    """

    tasks = TASKS

    def __init__(self, saver: AsyncPostgresSaver, name: str) -> None:
        self.saver = saver
        self.name = name
        self.tried = self.acknowledged = 0
        self.errors: Counter[str] = Counter()
        self.slowest = 0.0
        self._open = asyncio.Event()
        self._open.set()
        self._under_way = 0
        self._running: list[asyncio.Task[None]] = []

    def config(self, task: int, checkpoint_id: str | None = None) -> Any:
        """A config for the thread of one of the tasks."""
        named = {} if checkpoint_id is None else {"checkpoint_id": checkpoint_id}
        return {"configurable": {"thread_id": f"{self.name}-{task}", "checkpoint_ns": "", **named}}

    async def prepare(self) -> None:  # noqa: B027 - most need nothing
        """Store what the calls need, in quiet times."""

    @abstractmethod
    async def call(self, task: int, number: int) -> None:
        """Make a call, and note what it has acknowledged."""

    @abstractmethod
    async def lost(self, reader: AsyncPostgresSaver) -> int:
        """How much of what was acknowledged another saver does not find as it was."""

    async def __aenter__(self) -> Load:
        self._running = [asyncio.create_task(self._call_on(task)) for task in range(self.tasks)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open.clear()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def pause(self) -> None:
        """Let the calls come to an end, and make no others."""
        self._open.clear()
        await self._until(lambda: self._under_way == 0)

    def resume(self) -> None:
        """Make calls again."""
        self._open.set()

    async def progress(self, calls: int) -> None:
        """Wait until so many more calls than now have been acknowledged."""
        wanted = self.acknowledged + calls
        await self._until(lambda: self.acknowledged >= wanted)

    async def _until(self, condition: Any) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: the service does not resume; {dict(self.errors)}")
            await asyncio.sleep(0.005)

    async def _call_on(self, task: int) -> None:
        number = 0
        while True:
            await self._open.wait()
            number += 1
            self.tried += 1
            self._under_way += 1
            begun = time.monotonic()
            try:
                await self.call(task, number)
                self.acknowledged += 1
            except Exception as error:
                self.errors[f"{type(error).__name__}: {error}"[:200]] += 1
                await asyncio.sleep(0.01)
            finally:
                self._under_way -= 1
                self.slowest = max(self.slowest, time.monotonic() - begun)


class Puts(Load):
    """Checkpoints, each with a blob."""

    def __init__(self, saver: AsyncPostgresSaver, name: str) -> None:
        super().__init__(saver, name)
        self._stored: set[tuple[int, int]] = set()

    async def call(self, task: int, number: int) -> None:
        checkpoint: Any = checkpoint_of(number, f"{task}: {number}")
        await self.saver.aput(self.config(task), checkpoint, {"n": number}, checkpoint["channel_versions"])  # type: ignore[typeddict-item]
        self._stored.add((task, number))

    async def lost(self, reader: AsyncPostgresSaver) -> int:
        missing = set(self._stored)
        for task in range(self.tasks):
            async for found in reader.alist(self.config(task)):
                number = int(found.checkpoint["id"])
                if found.checkpoint["channel_values"] == {"number": number, "texts": [f"{task}: {number}"] * 20}:
                    missing.discard((task, number))
        return len(missing)


class Writes(Load):
    """Pending writes: every third one of those that replace what is there."""

    def __init__(self, saver: AsyncPostgresSaver, name: str) -> None:
        super().__init__(saver, name)
        self._stored: dict[tuple[int, int], list[tuple[str, Any]]] = {}

    async def prepare(self) -> None:
        checkpoint: Any = checkpoint_of(0, "")
        for task in range(self.tasks):
            await self.saver.aput(self.config(task), checkpoint, {}, checkpoint["channel_versions"])

    async def call(self, task: int, number: int) -> None:
        replacing = number % 3 == 0
        channels = ("__error__", "__interrupt__") if replacing else ("texts", "number")
        # Two after each other replace the same ones.
        key = (task, number // 6 * 2 + 1 if replacing else number * 2)
        self._stored.pop(key, None)
        writes = [(channel, [f"{task}: {number}"] * 5) for channel in channels]
        await self.saver.aput_writes(self.config(task, "00000000"), writes, f"{key[1]:08}")
        self._stored[key] = writes

    async def lost(self, reader: AsyncPostgresSaver) -> int:
        found: dict[tuple[int, int], list[tuple[str, Any]]] = {}
        for task in range(self.tasks):
            stored = await reader.aget_tuple(self.config(task, "00000000"))
            assert stored is not None
            for task_id, channel, value in stored.pending_writes or ():
                found.setdefault((task, int(task_id)), []).append((channel, value))
        return sum(sorted(found.get(key, [])) != sorted(writes) for key, writes in self._stored.items())


class Gets(Load):
    """Reads of the newest checkpoint, and of a named one; what they bring is compared."""

    stored = 12

    def __init__(self, saver: AsyncPostgresSaver, name: str) -> None:
        super().__init__(saver, name)
        self._wrong = 0

    async def prepare(self) -> None:
        for task in range(self.tasks):
            for number in range(self.stored):
                checkpoint: Any = checkpoint_of(number, f"{task}")
                await self.saver.aput(self.config(task), checkpoint, {"n": number}, checkpoint["channel_versions"])  # type: ignore[typeddict-item]

    async def call(self, task: int, number: int) -> None:
        wanted = number % self.stored
        named = self.config(task, f"{wanted:08}") if number % 2 else self.config(task)
        found = await self.saver.aget_tuple(named)
        self._check(task, wanted if number % 2 else self.stored - 1, found)

    async def lost(self, reader: AsyncPostgresSaver) -> int:  # noqa: ARG002
        return self._wrong

    def _check(self, task: int, number: int, found: Any) -> None:
        values = {"number": number, "texts": [f"{task}"] * 20}
        self._wrong += found is None or found.checkpoint["channel_values"] != values


class Lists(Gets):
    """Reads of a whole thread."""

    async def call(self, task: int, number: int) -> None:  # noqa: ARG002
        found = [item async for item in self.saver.alist(self.config(task))]
        self._wrong += len(found) != self.stored
        for index, item in enumerate(found):
            self._check(task, self.stored - 1 - index, item)


class Pipelined(Load):
    """Puts and writes of many tasks that share commits, and values that share pages."""

    tasks = 24

    def __init__(self, saver: AsyncPostgresSaver, name: str) -> None:
        super().__init__(saver, name)
        self._puts: dict[tuple[int, int], list[str]] = {}
        self._writes: dict[tuple[int, int], list[str]] = {}
        self._texts: dict[int, list[str]] = {}

    async def call(self, task: int, number: int) -> None:
        # A list that grows: what it has in common with the one before is not sent again.
        texts = self._texts.setdefault(task, [])
        if len(texts) > 64:
            texts.clear()
        texts.append(f"{task}: {number} " + "x" * 500)
        checkpoint: Any = checkpoint_of(number, "")
        checkpoint["channel_values"]["texts"] = list(texts)
        await self.saver.aput(self.config(task), checkpoint, {}, checkpoint["channel_versions"])
        self._puts[task, number] = list(texts)
        await self.saver.aput_writes(self.config(task, f"{number:08}"), [("texts", texts[-1])], "task")
        self._writes[task, number] = [texts[-1]]

    async def lost(self, reader: AsyncPostgresSaver) -> int:
        puts, writes = {}, {}
        for task in range(self.tasks):
            async for found in reader.alist(self.config(task)):
                number = int(found.checkpoint["id"])
                puts[task, number] = found.checkpoint["channel_values"]["texts"]
                writes[task, number] = [value for _, _, value in found.pending_writes or ()]
        return sum(puts.get(key) != value for key, value in self._puts.items()) + sum(
            writes.get(key) != value for key, value in self._writes.items()
        )


LOADS: dict[str, type[Load]] = {
    "put": Puts,
    "put_writes": Writes,
    "get": Gets,
    "list": Lists,
    "pipeline": Pipelined,
}
