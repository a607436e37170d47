"""Round trips to the server of each operation, counted: how many times a call waits for an answer."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable
from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.calls import newest, of_sync
from benchmarks.contenders import (
    STOCK,
    SYNC,
    AnySaver,
    AsyncContender,
    InPlace,
    Ours,
    SyncContender,
    in_place,
)
from benchmarks.proof import prove
from benchmarks.report import Result, Samples, Target
from benchmarks.round_trips import RoundTrips, counting
from benchmarks.workload import Chat

OPENED = "open and setup, at head"

TARGETS = {
    "setup, at head: round trips": Target(at_most=1, of_ours=True),
    "adelete_thread: round trips": Target(at_most=2, of_ours=True),
}


def measure(bench: Bench) -> list[Result]:
    """Round trips per call on a connection in use; and until a new saver is ready, with its first connection."""
    counts: dict[str, Samples] = {}
    contenders: list[AsyncContender | SyncContender] = [Ours(), *STOCK, *SYNC]
    for contender in contenders:
        with ExitStack() as stack:
            url = bench.database(stack, f"round trips {contender.name}")
            through, total = stack.enter_context(counting(url))
            if sync := isinstance(contender, SyncContender):
                counted = _sync(contender, through, total)
            else:
                counted = asyncio.run(_async(contender, through, total))
        for name, count in counted.items():
            samples = counts.setdefault(f"{of_sync(name) if sync else name}: round trips", {})
            samples[contender] = [[count]]
    return [
        Result(
            measure=name,
            unit="",
            samples=samples,
            targets={"ours": TARGETS[name]} if name in TARGETS else {},
        )
        for name, samples in counts.items()
    ]


async def _async(contender: AsyncContender, url: str, total: RoundTrips) -> dict[str, float]:
    async with contender.open(url) as saver:
        await prove(saver)
    before = total.count
    async with contender.open(url) as saver:
        return {OPENED: total.count - before, **await _operations(saver, total)}


def _sync(contender: SyncContender, url: str, total: RoundTrips) -> dict[str, float]:
    with contender.open(url) as saver:
        in_place(prove(InPlace(saver)))
    before = total.count
    with contender.open(url) as saver:
        return {OPENED: total.count - before, **in_place(_operations(InPlace(saver), total))}


async def _operations(saver: AnySaver, total: RoundTrips, *, threads: int = 6, steps: int = 5) -> dict[str, float]:
    """The median of each operation: the first calls have prepared what is prepared once on a connection."""
    counts: dict[str, list[int]] = {}

    async def count(name: str, call: Awaitable[object]) -> None:
        before = total.count
        await call
        counts.setdefault(name, []).append(total.count - before)

    for chat in [Chat(f"counted-{number}") for number in range(threads)]:
        for step in chat.steps(steps):
            await count("setup, at head", saver.setup())  # type: ignore[union-attr]
            await count("aput", saver.aput(*step.put))
            await count("aput_writes", saver.aput_writes(*step.put_writes))
            await count("aget_tuple", saver.aget_tuple(chat.config))
        await count(f"alist, {steps} checkpoints", newest(saver, chat, steps))
        await count("adelete_thread", saver.adelete_thread(chat.thread_id))
    return {name: statistics.median(figures) for name, figures in counts.items()}
