"""A process of its own that puts and puts, and prints by how many MB its resident set grew.

python -m benchmarks.resident URL PUTS BEFORE PER_THREAD
"""

from __future__ import annotations

import asyncio
import gc
import sys

import psutil  # type: ignore[import-untyped]

from benchmarks.contenders import Ours
from benchmarks.workload import Chat


async def grown(url: str, puts: int, before: int, per_thread: int) -> float:
    """MB between the put `before` and the last; a new thread begins every `per_thread` puts, each with 20 messages."""
    first = 0
    async with Ours().open(url) as saver:
        for number in range(puts):
            if number == before:
                first = _resident()
            if number % per_thread == 0:
                chat = Chat(f"thread-{number}")
            (step,) = chat.steps(1)
            await saver.aput(*step.put)
        return (_resident() - first) / 1e6


def _resident() -> int:
    gc.collect()
    resident: int = psutil.Process().memory_info().rss
    return resident


if __name__ == "__main__":
    print(asyncio.run(grown(sys.argv[1], *map(int, sys.argv[2:5]))))
