"""The functions of Python, of C and of SQLAlchemy that a put and a get enter: the same number on every machine."""

from __future__ import annotations

import asyncio
import statistics
from functools import partial

from benchmarks.bench import Bench
from benchmarks.calls import CALLS, warm
from benchmarks.contenders import STOCK, Ours
from benchmarks.counter import Counter
from benchmarks.report import Result, Samples, Target
from benchmarks.workload import Chat

KINDS = {"python": "functions of Python", "c": "functions of C", "sqlalchemy": "functions of SQLAlchemy"}
CALLED = ("aput", "aget_tuple")


def measure(bench: Bench) -> list[Result]:
    """Medians of a call that is not the first."""
    return asyncio.run(_measure(bench))


async def _measure(bench: Bench) -> list[Result]:
    counter = Counter()
    await counter.check()
    counts: dict[str, Samples] = {}
    async with bench.savers("functions", (Ours(), *STOCK)) as savers:
        for contender, saver in savers.items():
            chat = Chat("counted")
            await warm(saver, chat)
            for name in CALLED:
                found = [await counter.count(partial(CALLS[name], saver, chat, step)) for step in chat.steps(9)]
                for kind, words in KINDS.items():
                    median = statistics.median_low([getattr(one, kind) for one in found])
                    # The stock saver has no SQLAlchemy.
                    if contender.role == "ours" or kind != "sqlalchemy":
                        counts.setdefault(f"{name}: {words}", {})[contender] = [[median]]
    return [
        Result(
            measure=name,
            unit="",
            samples=samples,
            targets={"ours": Target(at_most=10, of_ours=True)} if "SQLAlchemy" in name else {},
        )
        for name, samples in counts.items()
    ]
