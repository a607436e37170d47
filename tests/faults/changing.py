"""A process whose nodes change their state in place while it is being stored: python -m tests.faults.changing.

It takes the database's URL, which part of the state to store, and how many rounds, and prints how many it has stored.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.base import empty_checkpoint
from pydantic import BaseModel

from checkpoint_store import AsyncPostgresSaver

SIZE = 2000
"""How many objects the cache holds, by which each round takes some milliseconds to encode."""


class Item(BaseModel):
    name: str
    tags: list[str]


class State:
    """State of a node: a cache, a chat, a small dict and a set in its channels, and a dict that metadata refers to."""

    def __init__(self) -> None:
        self.cache = {f"{number}": Item(name="why?", tags=["a"]) for number in range(SIZE)}
        self.nested: dict[int, list[str]] = {}
        self.names: set[int] = set()
        self.chat: list[AnyMessage] = [
            HumanMessage([{"type": "text", "text": "why?"}], id="h"),
            AIMessage("", id="a", tool_calls=[{"name": "find", "args": {"a": {"b": ["c"]}}, "id": "c"}]),
            ToolMessage("x", tool_call_id="c", artifact={"rows": [["y"]]}, id="t"),
        ] * 200
        self.tags: dict[str, list[str]] = {}
        self.ended = False

    def change(self) -> None:
        """Have entries come and go, until it is ended."""
        chance, number = random.Random(0), SIZE
        while not self.ended:
            for _ in range(chance.randrange(1, SIZE // 10)):
                del self.cache[next(iter(self.cache))]
            for message in self.chat[:3]:
                change_message(message, chance.randrange(1, 50))
            for container in (self.nested, self.tags, self.names):
                container.clear()
            while len(self.cache) < SIZE:
                number += 1
                self.cache[f"{number}"] = Item(name=f"why? {number}", tags=["a"])
                self.nested[number % 90] = ["why?"]
                self.tags[f"tag {number % 90}"] = ["why?"]
                self.names.add(number % 90)

    def part(self, name: str) -> tuple[dict[str, Any], Any]:
        """Return channel values and metadata: the cache, which is encoded in a worker thread, or what is small."""
        return {
            "cache": ({"cache": self.cache}, {}),
            "chat": ({"messages": self.chat}, {}),
            "small": ({"nested": self.nested, "names": self.names}, {}),
            "metadata": ({}, {"tags": self.tags}),
        }[name]


def change_message(message: AnyMessage, size: int) -> None:
    """Have what a message holds grow and shrink, on each level, and attributes come and go."""
    for container in (message.additional_kwargs, message.response_metadata):
        container.clear()
        container.update({f"{number}": {"n": [number] * number} for number in range(size)})
    if isinstance(message, AIMessage):
        call = message.tool_calls[0]
        call["args"].clear()
        call["args"].update({f"{number}": [{}] * number for number in range(size)})
        message.tool_calls[1:] = [{**call, "id": f"{number}"} for number in range(size % 5)]
        message.usage_metadata = {"input_tokens": size, "output_tokens": size, "total_tokens": size}
    elif isinstance(message, ToolMessage):
        rows = message.artifact["rows"]
        rows[:] = [["y"] * number for number in range(size)]
    elif isinstance(message.content, list):
        message.content[:] = [{"type": "text", "text": "why?" * number} for number in range(size)]
    message.__dict__["cached"] = size
    del message.__dict__["cached"]


async def store(url: str, part: tuple[dict[str, Any], Any], rounds: int) -> None:
    """Store a part of the state, round by round."""
    values, metadata = part
    config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        for number in range(rounds):
            versions = dict.fromkeys(values, f"{number}")
            checkpoint: Any = {**empty_checkpoint(), "channel_values": values, "channel_versions": versions}
            await saver.aput(config, checkpoint, metadata, versions)


def main(url: str, part: str, rounds: str) -> None:
    state = State()
    sys.setswitchinterval(1e-5)  # threads take turns far more often than they would, so that fewer rounds show it
    changing = threading.Thread(target=state.change)
    changing.start()
    try:
        asyncio.run(store(url, state.part(part), int(rounds)))
    finally:
        state.ended = True
        changing.join()
    sys.stdout.write(f"{rounds}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
