"""A process that goes on storing growing lists in several ways at once, and notes in a file what it was told is stored.

python -m tests.faults.writing URL FILE KIND..
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver

COMMON = "common"
"""A thread that all write to; each has one of its own too."""

_LEAST, _MOST, _STEP = 150, 600, 3


def value(thread_id: str, count: int) -> list[str]:
    """A list of so many messages."""
    return [f"{thread_id} {number}: " + f"{number * 7919 % 1_000_003:06}" * 30 for number in range(count)]


def config_of(thread_id: str, checkpoint_id: str | None = None) -> Any:
    return {
        "configurable": {"thread_id": thread_id, "checkpoint_ns": ""}
        | ({} if checkpoint_id is None else {"checkpoint_id": checkpoint_id})
    }


class Writer:
    """One way of storing."""

    def __init__(self, url: str, kind: str) -> None:
        driver = "asyncpg" if kind in ("plain", "pipeline", "bound") else "psycopg"
        made = make_url(url).set(drivername=f"postgresql+{driver}")
        self.kind = kind
        if kind == "sync":
            self.sync = PostgresSaver(create_engine(made), share_pages=True, retry_timeout=2)
            return
        self.engine = create_async_engine(made)
        pipe = AsyncPipeline(self.engine) if "pipeline" in kind else False
        self.saver = AsyncPostgresSaver(self.engine, pipe, share_pages=True, retry_timeout=2)

    async def put(self, thread_id: str, count: int) -> str:
        checkpoint: Any = {
            **empty_checkpoint(),
            "id": str(uuid6()),
            "channel_values": {"messages": value(thread_id, count)},
            "channel_versions": {"messages": f"1.{uuid4()}"},
        }
        call = config_of(thread_id), checkpoint, {}, checkpoint["channel_versions"]
        if self.kind == "sync":
            await asyncio.to_thread(self.sync.put, *call)
        elif self.kind == "bound":
            async with self.engine.begin() as conn:
                await self.saver.bind(conn).aput(*call)
        else:
            await self.saver.aput(*call)
        return str(checkpoint["id"])


async def main(url: str, file: Path, kinds: list[str]) -> None:
    with file.open("w", buffering=1) as notes:

        async def write(kind: str) -> None:
            writer, own, count = Writer(url, kind), str(uuid4()), _LEAST
            while True:
                for thread_id in (own, COMMON):
                    begun = time.monotonic()
                    try:
                        stored = await writer.put(thread_id, count)
                    except Exception as error:  # what is being restored may be missing, or its server's sessions ended
                        notes.write(json.dumps({"kind": kind, "error": f"{type(error).__name__}: {error}"}) + "\n")
                        await asyncio.sleep(0.02)
                    else:
                        told = {"kind": kind, "begun": begun, "thread": thread_id, "id": stored, "count": count}
                        notes.write(json.dumps(told) + "\n")
                count = count + _STEP if count < _MOST else _LEAST

        await asyncio.gather(*map(write, kinds))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
