"""Calls that are cancelled at any moment, by the thousand; and whether anything of them stays behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from langgraph.checkpoint.base import empty_checkpoint

from checkpoint_store import AsyncPostgresSaver

TASKS = 30
"""How many tasks make and cancel calls at once: several for each connection."""


@dataclass
class Storm:
    """What was called, cancelled and acknowledged."""

    saver: AsyncPostgresSaver
    cancellations: int
    """How many calls are to be cancelled before they return."""
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    acknowledged: set[tuple[int, int]] = field(default_factory=set)
    """Task and number of the checkpoints."""

    async def blow(self) -> None:
        """Make calls until enough of them were cancelled."""
        await asyncio.gather(*[self._work(task, random.Random(self.seed * TASKS + task)) for task in range(TASKS)])

    async def _work(self, task: int, chance: random.Random) -> None:
        number = 0
        while self.counts["cancelled"] < self.cancellations:
            number += 1
            call = asyncio.ensure_future(self._call(task, number, chance))
            await _wait(call, chance)
            call.cancel()
            if chance.random() < 0.3:
                # Once more, while it puts things in order.
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                call.cancel()
            await asyncio.wait([call])
            if call.cancelled():
                self.counts["cancelled"] += 1
            else:
                call.result()
                self.counts["returned"] += 1

    async def _call(self, task: int, number: int, chance: random.Random) -> None:
        config = config_of(task)
        draw = chance.random()
        if draw < 0.4:
            checkpoint: Any = checkpoint_of(task, number)
            await self.saver.aput(config, checkpoint, {"n": number}, checkpoint["channel_versions"])  # type: ignore[typeddict-item]
            self.acknowledged.add((task, number))
        elif draw < 0.6:
            writes = [(channel, value) for channel, value in values_of(task, number).items()]
            await self.saver.aput_writes(config_of(task, number), writes, f"{number}")
        elif draw < 0.8:
            found = await self.saver.aget_tuple(config)
            assert found is None or is_whole(found, task)
        elif draw < 0.9:
            async for item in self.saver.alist(config, limit=5):
                assert is_whole(item, task)
        else:
            await self.saver.adelete_thread(f"deleted-{task}")


async def _wait(call: asyncio.Future[None], chance: random.Random) -> None:
    """Wait for some turns of the loop, or some time, or as long as it takes."""
    draw = chance.random()
    if draw < 0.5:
        for _ in range(chance.randrange(30)):
            await asyncio.sleep(0)
    else:
        await asyncio.wait([call], timeout=None if draw > 0.9 else chance.random() ** 3 * 0.2)


def config_of(task: int, number: int | None = None) -> Any:
    """A config for the thread of a task."""
    named = {} if number is None else {"checkpoint_id": f"{number:08}"}
    return {"configurable": {"thread_id": f"storm-{task}", "checkpoint_ns": "", **named}}


def values_of(task: int, number: int) -> dict[str, Any]:
    """What a checkpoint consists of: a value in its row, a small blob, and one large enough for pages."""
    return {
        "number": number,
        "small": [task, number],
        "large": [f"{task} {number} {n} " + "x" * 700 for n in range(30)],
    }


def checkpoint_of(task: int, number: int) -> dict[str, Any]:
    """A checkpoint that is whole."""
    values = values_of(task, number)
    versions = dict.fromkeys(values, f"{number:08}")
    return {**empty_checkpoint(), "id": f"{number:08}", "channel_values": values, "channel_versions": versions}


def is_whole(found: Any, task: int) -> bool:
    """Whether a checkpoint has everything that was put with it, and its tasks' writes all they wrote."""
    number = int(found.checkpoint["id"])
    written = dict.fromkeys(task_id for task_id, _, _ in found.pending_writes or ())
    expected = [(task_id, *pair) for task_id in written for pair in values_of(task, number).items()]
    return bool(
        found.checkpoint["channel_values"] == values_of(task, number)
        and sorted(found.pending_writes or (), key=str) == sorted(expected, key=str)
    )
