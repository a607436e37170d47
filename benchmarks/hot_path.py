"""Where a call's time goes: one operation of ours in a loop under cProfile.

    python -m benchmarks.hot_path aput [--calls 2000] [--sort tottime]

cProfile sees the loop's thread alone and makes small functions look dearer than they are: trust the order, not the
microseconds. For a picture without that bias let py-spy watch the same loop with `--bare`.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import statistics
import time

from benchmarks import server
from benchmarks.calls import CALLS, warm
from benchmarks.contenders import STOCK, AsyncContender, Ours, OursOnHostEngine, OursPlain
from benchmarks.proof import prove
from benchmarks.workload import Chat


def main() -> None:
    """Profile one operation of one contender."""
    contenders = {one.name: one for one in (Ours(), OursPlain(), OursOnHostEngine(), *STOCK)}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hot_path", description="Profile one operation.")
    parser.add_argument("operation", choices=CALLS)
    parser.add_argument("--calls", type=int, default=2_000)
    parser.add_argument("--contender", choices=contenders, default="ours")
    parser.add_argument("--sort", default="tottime", help="a key of pstats: tottime, cumtime, ncalls")
    parser.add_argument("--bare", action="store_true", help="no cProfile: for py-spy, or for the plain median")
    options = parser.parse_args()
    with server.running() as running:
        asyncio.run(_profile(contenders[options.contender], running.create_database("hot_path"), options))


async def _profile(contender: AsyncContender, url: str, options: argparse.Namespace) -> None:
    call = CALLS[options.operation]
    chat = Chat("hot")
    async with contender.open(url) as saver:
        await prove(saver)
        await warm(saver, chat)
        for step in chat.steps(20):
            await call(saver, chat, step)
        steps, times, profile = chat.steps(options.calls), [], cProfile.Profile()
        cpu = time.process_time()
        if not options.bare:
            profile.enable()
        for step in steps:
            started = time.perf_counter()
            await call(saver, chat, step)
            times.append(time.perf_counter() - started)
        profile.disable()
        cpu = time.process_time() - cpu
    wall_us, cpu_us = statistics.median(times) * 1e6, cpu / len(steps) * 1e6
    print(f"{options.operation}, {options.contender}: {wall_us:.0f} us median, {cpu_us:.0f} us of this process's CPU")
    if not options.bare:
        pstats.Stats(profile).sort_stats(options.sort).print_stats(45)


if __name__ == "__main__":
    main()
