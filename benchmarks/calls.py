"""The calls that are measured one by one, on a saver of either kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from benchmarks.contenders import AnySaver
from benchmarks.workload import Chat, Step

LISTED = 5


async def newest(saver: AnySaver, chat: Chat, count: int = LISTED) -> None:
    """List the newest checkpoints of a chat."""
    found = [one async for one in saver.alist(chat.config, limit=count)]
    assert len(found) == count, found


CALLS: dict[str, Callable[[AnySaver, Chat, Step], Awaitable[object]]] = {
    "aput": lambda saver, _, step: saver.aput(*step.put),
    "aput_writes": lambda saver, _, step: saver.aput_writes(*step.put_writes),
    "aget_tuple": lambda saver, chat, _: saver.aget_tuple(chat.config),
    "alist": lambda saver, chat, _: newest(saver, chat),
}


async def warm(saver: AnySaver, chat: Chat) -> None:
    """Make every call a few times."""
    for step in chat.steps(LISTED):
        await CALLS["aput"](saver, chat, step)
        await CALLS["aput_writes"](saver, chat, step)
    for call in CALLS.values():
        await call(saver, chat, step)


def of_sync(name: str) -> str:
    """The name of a measure of the async methods, for the sync ones."""
    return f"sync {name.removeprefix('a')}"
