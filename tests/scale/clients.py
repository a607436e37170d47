"""Many clients at once, each with a saver and an engine of its own, whose every answer is compared with a model's.

`python clients.py URL CLIENTS STEPS SEED [KIND ...]` prints as JSON how many were right and wrong, and the errors. It
is a program of its own because what clients of a pooler must not share is shared within a process: the counter of
asyncpg's statement names.
"""

from __future__ import annotations

import asyncio
import json
import operator
import random
import sys
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from sqlalchemy import event, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPostgresSaver
from checkpoint_store.serde import pages
from checkpoint_store.url import pooler_options

KINDS = ["own engine", "host's engine", "watched engine", "pipeline", "psycopg"]
"""In which ways a saver is made; beside them, "plain engine" is one that nothing is done for."""


async def saver_of(kind: str, url: str, stack: AsyncExitStack) -> AsyncPostgresSaver:
    """Make a saver on one connection of its own, in one of the ways that users have."""
    if kind in ("own engine", "pipeline"):
        making = AsyncPostgresSaver.from_conn_string(
            url, pooler="transaction", pipeline=kind == "pipeline", pool_size=1, max_overflow=0, pool_timeout=120
        )
        return await stack.enter_async_context(making)
    driver = "psycopg" if kind == "psycopg" else "asyncpg"
    options = {} if kind == "plain engine" else pooler_options(driver)
    named = make_url(url).set(drivername=f"postgresql+{driver}")
    engine = create_async_engine(named, pool_size=1, max_overflow=0, pool_timeout=120, **options)
    stack.push_async_callback(engine.dispose)
    if kind == "watched engine":
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: None)
    return AsyncPostgresSaver(engine, pooler="transaction" if kind == "watched engine" else None, share_pages=True)


def plain(found: CheckpointTuple | None) -> Any:
    """A checkpoint as savers agree on it: in which order tasks come only those that sort them alike tell alike."""
    if found is None:
        return None
    return (
        found.config["configurable"],
        found.checkpoint,
        found.parent_config and found.parent_config["configurable"],
        sorted(found.pending_writes or (), key=repr),
    )


async def answers(saver: BaseCheckpointSaver[str], thread: str, steps: int, seed: str) -> list[Any]:
    """What a saver answers to a client that chats, looks back, forks and forgets; for a seed always the same calls."""
    chance, found = random.Random(seed), []
    graph: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
    config, ids = graph, []
    messages: list[str] = []
    for step in range(steps):
        messages = [*messages[-30:], f"{thread} {step} " + "x" * chance.choice((1, 40, 3000))]
        checkpoint: Any = {
            **empty_checkpoint(),
            "id": f"{step:06}",
            "ts": str(step),
            "channel_values": {"messages": messages, "step": step},
            "channel_versions": {"messages": f"{step + 1}", "step": f"{step + 1}"},
        }
        config = await saver.aput(config, checkpoint, {"step": step}, checkpoint["channel_versions"])
        ids.append(checkpoint["id"])
        await saver.aput_writes(config, [("messages", f"{thread} {step}"), ("step", [step])], f"task-{step}")
        found.append(plain(await saver.aget_tuple(graph)))
        earlier: Any = {"configurable": {**graph["configurable"], "checkpoint_id": chance.choice(ids)}}
        found.append(plain(await saver.aget_tuple(earlier)))
        found.append([plain(each) async for each in saver.alist(graph, limit=3)])
        if chance.random() < 0.1:
            await saver.adelete_thread(thread)
            config, ids = graph, []
        elif chance.random() < 0.1:
            config = earlier
    return found


async def client(name: str, url: str, steps: int, kind: str, outcome: Counter[str]) -> None:
    """Be one client, and compare."""
    thread, chance = f"thread-{name}", name
    expected = await answers(InMemorySaver(), thread, steps, chance)
    async with AsyncExitStack() as stack:
        saver = await saver_of(kind, url, stack)
        try:
            answered = await answers(saver, thread, steps, chance)
        except Exception as error:
            outcome[f"{kind}: {type(error).__name__}: {error}"] += 1
            raise
        right = sum(map(operator.eq, answered, expected))
        outcome["right"] += right
        outcome["wrong"] += len(expected) - right


async def main(url: str, clients: int, steps: int, seed: int, kinds: list[str]) -> Counter[str]:
    """Be all clients at once."""
    pages.LARGE_BYTES = 2000  # so that values are cut into pages often
    outcome: Counter[str] = Counter()
    await asyncio.gather(
        *(client(f"{seed}-{number}", url, steps, kinds[number % len(kinds)], outcome) for number in range(clients)),
        return_exceptions=True,
    )
    return outcome


if __name__ == "__main__":
    url, clients, steps, seed, *kinds = sys.argv[1:]
    print(json.dumps(asyncio.run(main(url, int(clients), int(steps), int(seed), kinds or KINDS))))  # noqa: T201
