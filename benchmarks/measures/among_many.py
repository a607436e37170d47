"""A database of a million checkpoints against one of 1,000: whether a call takes longer for those of other threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from benchmarks.bench import Bench, in_turns, undisturbed
from benchmarks.calls import newest
from benchmarks.contenders import Contender, Ours
from benchmarks.filling import add_numbered
from benchmarks.proof import MismatchError
from benchmarks.report import Result, Samples, Target
from benchmarks.workload import Chat

FEW = 1_000
RUN = 10
"""How many checkpoints a thread has, all of one run."""
PAGE = 20

FLAT = Target(at_most=1.2)
NOT_GROWING = Target(at_most=5)

IN_A_ROW = 8

Call = Callable[[Any, int], Awaitable[object]]
"""A call of a saver, with a number that no other has."""


class AmongFew(Contender):
    """Our saver again, where there are few."""

    name = f"ours, among {FEW:,}"
    role = "reference"


def measure(bench: Bench) -> list[Result]:
    """Milliseconds per call among many, and among few."""
    return asyncio.run(_measure(bench, bench.pick(quick=100_000, full=1_000_000)))


async def _measure(bench: Bench, many: int) -> list[Result]:
    rounds = bench.pick(quick=3, full=10)
    samples: dict[str, Samples] = {}
    async with AsyncExitStack() as stack:
        few, in_a_row, at_once = [
            await _filled(bench, stack, thread, number)
            for thread, number in (("i / 10", FEW), ("i / 10", many), (f"i % {many // RUN}", many))
        ]
        for name, (call, _) in CALLS.items():
            savers: Mapping[Contender, Any] = {Ours(): at_once if "at once" in name else in_a_row, AmongFew(): few}
            samples[name] = await _compared(savers, call, rounds)
    return [
        Result(measure=f"{name}, among {many:,}", unit="ms", samples=samples[name], reference_targets={"ours": target})
        for name, (_, target) in CALLS.items()
    ]


async def _filled(bench: Bench, stack: AsyncExitStack, thread: str, number: int) -> Any:
    """A saver on a database of so many checkpoints, in threads that an expression of their number names."""
    url = bench.database(stack, f"among many {thread} {number}")
    saver = await stack.enter_async_context(Ours().open(url))
    add_numbered(url, f"'t-' || {thread}", 0, number - 1)
    return saver


async def _compared(savers: Mapping[Contender, Any], call: Call, rounds: int) -> Samples:
    async def turn(contender: Contender, number: int) -> list[float]:
        times = []
        with undisturbed():
            for place in range(IN_A_ROW):
                made = call(savers[contender], number * IN_A_ROW + place)
                started = time.perf_counter()
                await made
                times.append((time.perf_counter() - started) * 1e3)
        return times[2:]

    return await in_turns(savers, rounds, turn)


def _put(saver: Any, number: int) -> Any:
    (step,) = Chat(f"new-{number}").steps(1)
    return saver.aput(*step.put)


async def _newest(listing: AsyncIterator[Any], limit: int) -> None:
    found = [one async for one in listing]
    assert len(found) == limit, found


async def _delete_run(saver: Any, number: int) -> None:
    report = await saver.adelete_for_runs([f"run-{number}"])
    if (report.threads, report.checkpoints) != (1, RUN):
        raise MismatchError(f"delete_for_runs has deleted {report}")


CALLS: dict[str, tuple[Call, Target]] = {
    "aput": (_put, FLAT),
    "aget_tuple": (lambda saver, number: saver.aget_tuple(Chat(f"t-{number % 50}").config), FLAT),
    "alist, 5 checkpoints": (lambda saver, number: newest(saver, Chat(f"t-{number % 50}")), FLAT),
    "alist of all threads, limit=10": (lambda saver, _: _newest(saver.alist(None, limit=10), 10), FLAT),
    "list_threads, first page": (lambda saver, _: _newest(saver.alist_threads(limit=PAGE), PAGE), NOT_GROWING),
    "list_threads, first page, threads at once": (
        lambda saver, _: _newest(saver.alist_threads(limit=PAGE), PAGE),
        NOT_GROWING,
    ),
    f"delete_for_runs, a run of {RUN} checkpoints": (_delete_run, NOT_GROWING),
}
"""Deletion last, since it takes what the others read."""
