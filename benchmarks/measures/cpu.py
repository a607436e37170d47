"""CPU time per call of one caller: that of this process, and that of the server's processes behind its connections."""

from __future__ import annotations

import time
from collections.abc import Mapping

from benchmarks.bench import Bench, in_turns, undisturbed
from benchmarks.calls import CALLS, of_sync, warm
from benchmarks.contenders import STOCK, AnySaver, Contender, Ours
from benchmarks.report import Result, Samples
from benchmarks.workload import Chat

Figures = dict[str, list[float]]
"""Microseconds, by the name of the measure."""


def measure(bench: Bench) -> list[Result]:
    """Microseconds per call, async and sync."""
    rounds, calls = bench.pick(quick=2, full=4), bench.pick(quick=20, full=50)

    async def work(measure: str, savers: Mapping[Contender, AnySaver]) -> dict[Contender, list[Figures]]:
        async def turn(contender: Contender, number: int) -> Figures:
            database = f"{measure} {contender.name}"
            return await _turn(bench, database, savers[contender], Chat(f"cpu-{number}"), calls)

        return await in_turns(savers, rounds, turn)

    results = []
    for kind, turns in bench.both_kinds("cpu", (Ours(), *STOCK), work).items():
        for name in next(iter(turns.values()))[0]:
            samples: Samples = {contender: [figures[name] for figures in rounds] for contender, rounds in turns.items()}
            results.append(Result(measure=of_sync(name) if "sync" in kind else name, unit="us", samples=samples))
    return results


async def _turn(bench: Bench, database: str, saver: AnySaver, chat: Chat, calls: int) -> Figures:
    """Each call so many times in a row, so that what a server does after its answer counts as well."""
    figures: Figures = {}
    with undisturbed():
        await warm(saver, chat)
        steps = chat.steps(calls)
        for name, call in CALLS.items():
            server, here = bench.server.cpu_seconds(database), time.process_time()
            for step in steps:
                await call(saver, chat, step)
            here = time.process_time() - here
            server = bench.server.cpu_seconds(database) - server
            figures[f"{name}: CPU of the client"] = [here / calls * 1e6]
            figures[f"{name}: CPU of the server"] = [server / calls * 1e6]
    return figures
