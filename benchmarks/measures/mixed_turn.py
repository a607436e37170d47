"""Turns of 64 agents at once, near and far: a get, five supersteps of two tasks, a get, and a list of five."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import uvloop

from benchmarks.bench import Bench, in_turns, undisturbed
from benchmarks.calls import newest
from benchmarks.contenders import (
    STOCK,
    AsyncContender,
    Contender,
    Ours,
    OursOnHostEngine,
    OursPlain,
    Saver,
)
from benchmarks.proof import MismatchError
from benchmarks.proxy import proxied
from benchmarks.report import Result, Samples, Target
from benchmarks.workload import Chat, Step

RUNS = 64
STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where the server is, which event loop runs, who takes part in how many rounds."""

    name: str
    contenders: Sequence[AsyncContender]
    target: float
    rounds: int
    one_way: float = 0.0
    loop: Callable[[], asyncio.AbstractEventLoop] | None = None


BOTH = (Ours(), *STOCK)


def measure(bench: Bench) -> list[Result]:
    """Turns per second."""
    settings = (
        Setting(
            name="loopback",
            contenders=(*BOTH, OursPlain(), OursOnHostEngine()),
            target=6.0,
            rounds=bench.pick(quick=1, full=5),
        ),
        Setting(name="2 ms away", contenders=BOTH, target=16, rounds=bench.pick(quick=1, full=2), one_way=0.001),
        Setting(
            name="uvloop", contenders=BOTH, target=4.5, rounds=bench.pick(quick=1, full=4), loop=uvloop.new_event_loop
        ),
    )
    results = []
    for setting in settings:
        with asyncio.Runner(loop_factory=setting.loop) as runner:
            rates = runner.run(_rates(bench, setting))
        results.append(
            Result(
                measure=f"mixed turn of {RUNS} runs, {setting.name}",
                unit="turns/s",
                samples=rates,
                higher_is_better=True,
                targets={"ours": Target(at_least=setting.target)},
            )
        )
    return results


async def _rates(bench: Bench, setting: Setting) -> Samples:
    with ExitStack() as proxies:

        def via(url: str) -> str:
            return proxies.enter_context(proxied(url, one_way=setting.one_way)) if setting.one_way else url

        async with bench.savers(f"mixed {setting.name}", setting.contenders, via=via) as savers:
            turn = partial(_turns, savers)
            return await in_turns(savers, setting.rounds, turn, uncounted=not bench.quick)


async def _turns(savers: Mapping[Contender, Saver], contender: Contender, number: int) -> list[float]:
    saver = savers[contender]
    chats = [Chat(f"round-{number}-run-{run}") for run in range(RUNS)]
    planned = [chat.steps(STEPS) for chat in chats]
    with undisturbed():
        started = time.perf_counter()
        await asyncio.gather(*(_turn(saver, chat, steps) for chat, steps in zip(chats, planned, strict=True)))
        seconds = time.perf_counter() - started
    for chat, steps in zip(chats, planned, strict=True):
        found = await saver.aget_tuple(chat.config)
        if not found or found.checkpoint != steps[-1].checkpoint or len(found.pending_writes or ()) != 6:
            raise MismatchError(f"{chat.thread_id} is not what its last step has stored")
    return [RUNS / seconds]


async def _turn(saver: Saver, chat: Chat, steps: Sequence[Step]) -> None:
    await saver.aget_tuple(chat.config)
    for step in steps:
        await saver.aput(*step.put)
        await saver.aput_writes(*step.put_writes)
        # Another task of the same step, whose id has to be a UUID too.
        await saver.aput_writes(step.stored, step.writes, step.checkpoint["id"], step.task_path)
    await saver.aget_tuple(chat.config)
    await newest(saver, chat)
