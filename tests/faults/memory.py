"""A process that stores large values, and prints how much memory it has grown by and how much longer a put takes.

python -m tests.faults.memory URL KIND SCALE
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPostgresSaver, schema

Call = tuple["str | None", str, str, Any]
"""Schema, thread, namespace and value."""


def calls(kind: str, scale: float) -> Iterator[Call]:
    """What is stored, one after the other."""
    if kind == "repetitive threads":
        for number in range(int(1_000 * scale)):
            yield None, f"{number}", "", [f"thread {number} "] * 60_000
    elif kind == "random threads":
        for number in range(int(1_000 * scale)):
            yield None, f"{number}", "", random.Random(number).randbytes(1_000_000)
    elif kind == "zeros":
        for number in range(int(40 * scale)):
            yield None, f"{number}", "", bytes(10_000_000)
    elif kind == "schemas":
        for number in range(int(100 * scale)):
            yield f"schema {number}", "t", "", random.Random(number).randbytes(1_000_000)
    elif kind == "namespaces":
        for number in range(int(10_000 * scale)):
            yield None, "t", f"node:{number}", random.Random(number).randbytes(40_000)


def resident() -> int:
    """Bytes of memory this process occupies."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def main(url: str, kind: str, scale: float) -> None:
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    if kind == "schemas":
        async with engine.begin() as conn:
            for number in range(int(100 * scale)):
                await conn.execute(text(f'CREATE SCHEMA "schema {number}"'))
                for table in schema.tables.all:
                    like = f'CREATE TABLE "schema {number}".{table.name} (LIKE public.{table.name} INCLUDING ALL)'
                    await conn.execute(text(like))

    async def put(name: str | None, thread_id: str, namespace: str, value: Any) -> None:
        saver = AsyncPostgresSaver(engine, schema=name, share_pages=True)
        config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": namespace}}
        checkpoint: Any = {
            **empty_checkpoint(),
            "id": str(uuid6()),
            "channel_values": {"messages": value},
            "channel_versions": {"messages": "1"},
        }
        await saver.aput(config, checkpoint, {}, {"messages": "1"})
        await saver.aclose()

    for number in range(3):
        await put(None, f"first {number}", "", random.Random(-number).randbytes(1_000_000))
    before, times = resident(), []
    for call in calls(kind, scale):
        begun = time.process_time()
        await put(*call)
        times.append(time.process_time() - begun)
    gc.collect()
    tenth = max(1, len(times) // 10)
    slower = sum(times[-tenth:]) / sum(times[tenth : 2 * tenth] or times[:tenth])
    sys.stdout.write(f"{resident() - before} {slower}\n")
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
