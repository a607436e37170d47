"""A state of 10 MB: 5,000 messages of 2,000 characters, of which every step replaces the one in the middle."""

from __future__ import annotations

import asyncio
import time

from langchain_core.messages import BaseMessage

from benchmarks.bench import Bench, rotations, undisturbed
from benchmarks.contenders import Ours, Saver, StockConnection, StockPool
from benchmarks.proof import MismatchError
from benchmarks.report import Result, Samples, Target
from benchmarks.workload import Chat, Step

# Not the stock saver's pipeline mode: it stores 1 MB, but with 10 MB its aput() does not come back.
CONTENDERS = (Ours(), StockConnection(), StockPool())


class Edited(Chat):
    """A thread with a message in the middle that keeps changing."""

    def _following(self, message: BaseMessage) -> list[BaseMessage]:
        middle = len(self._messages) // 2
        return [*self._messages[:middle], message, *self._messages[middle + 1 :]]


def measure(bench: Bench) -> list[Result]:
    """Time `aput` of the whole state."""
    return asyncio.run(_measure(bench))


async def _measure(bench: Bench) -> list[Result]:
    rounds = bench.pick(quick=2, full=8)
    chat = Edited("large", window=5_000, length=2_000)
    # The first ones bring each saver its state; they don't count.
    steps = chat.steps(rounds + 1)
    async with bench.savers("large state", CONTENDERS) as savers:
        times: Samples = {contender: [] for contender in savers}
        for number, turns in enumerate(rotations(list(savers), len(steps))):
            for contender in turns:
                ms = await _put(savers[contender], steps[number])
                if number:
                    times[contender].append([ms])
        for contender, saver in savers.items():
            found = await saver.aget_tuple(chat.config)
            if found is None or found.checkpoint != steps[-1].checkpoint:
                msg = f"{contender.name}: the large state is not what was stored"
                raise MismatchError(msg)
    targets = {"ours": Target(at_most=0.5)}
    return [Result(measure="aput, one message of 10 MB changed", unit="ms", samples=times, targets=targets)]


async def _put(saver: Saver, step: Step) -> float:
    with undisturbed():
        started = time.perf_counter()
        await saver.aput(*step.put)
        return (time.perf_counter() - started) * 1e3
