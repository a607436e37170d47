"""Removal: a long thread pruned, a database swept."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from itertools import pairwise

import psycopg

from benchmarks.bench import Bench, rotations, undisturbed
from benchmarks.contenders import AsyncContender, Ours, Saver, StockConnection, StockPool
from benchmarks.filling import copy, keep
from benchmarks.proof import MismatchError
from benchmarks.report import Result, Samples, Target
from benchmarks.workload import Chat, Step


def measure(bench: Bench) -> list[Result]:
    """How long removals take, and how long they keep others waiting."""
    return asyncio.run(_measure(bench))


async def _measure(bench: Bench) -> list[Result]:
    return [*await _prune(bench), *await _sweep(bench)]


async def _prune(bench: Bench) -> list[Result]:
    size, rounds = bench.pick(quick=1_000, full=10_000), bench.pick(quick=2, full=3)
    contenders: list[AsyncContender] = [Ours(), StockConnection(), StockPool()]
    times: Samples = {contender: [] for contender in contenders}
    async with AsyncExitStack() as stack:
        source = await _stored(bench, stack, "prune source", size)
        savers, urls = {}, {}
        for contender in contenders:
            urls[contender] = bench.database(stack, f"prune {contender.name}")
            savers[contender] = await stack.enter_async_context(contender.open(urls[contender]))
            keep(urls[contender], source)
        for number, order in enumerate(rotations(contenders, rounds + 1)):
            for contender in order:
                copy(urls[contender], ["long"])
                with undisturbed():
                    started = time.perf_counter()
                    await savers[contender].aprune(["long"])
                    ms = (time.perf_counter() - started) * 1e3
                _check(urls[contender], checkpoints=1)
                if number:
                    times[contender].append([ms])
    target = {} if bench.quick else {"ours": Target(at_most=0.7)}
    return [Result(measure=f"prune, a thread of {size:,} checkpoints", unit="ms", samples=times, targets=target)]


async def _sweep(bench: Bench) -> list[Result]:
    size, rounds = bench.pick(quick=10_000, full=30_000), bench.pick(quick=1, full=2)
    ours = Ours()
    results = []
    for length, which in ((100, f"{size // 100:,} threads of 100 checkpoints"), (size, f"a thread of {size:,}")):
        rates, longest = [], []
        async with AsyncExitStack() as stack:
            url = await _stored(bench, stack, f"sweep {length}", length)
            saver = await stack.enter_async_context(ours.open(url))
            threads = [f"thread {number}" for number in range(size // length)]
            for _ in range(rounds):
                copy(url, threads)
                ends: list[float] = []
                with undisturbed():
                    started = time.perf_counter()
                    report = await saver.asweep(  # type: ignore[attr-defined]
                        keep_last=1, on_progress=lambda _, to=ends: to.append(time.perf_counter())
                    )
                    seconds = time.perf_counter() - started
                _check(url, checkpoints=len(threads))
                rates.append([report.checkpoints / seconds])
                longest.append([max(end - start for start, end in pairwise([started, *ends])) * 1e3])
        counts = not bench.quick
        fast = Target(at_least=20_000, of_ours=True)
        results += [
            Result(
                measure=f"sweep, {which}",
                unit="checkpoints/s",
                samples={ours: rates},
                higher_is_better=True,
                # A single one costs more: what is left of it has to be looked at again and again.
                targets={"ours": fast} if counts and length < size else {},
            ),
            Result(
                measure=f"sweep, {which}: longest batch",
                unit="ms",
                samples={ours: longest},
                targets={"ours": Target(at_most=200, of_ours=True)} if counts else {},
            ),
        ]
    return results


async def _stored(bench: Bench, stack: AsyncExitStack, name: str, size: int) -> str:
    """The URL of a database that has put a thread aside, stored as LangGraph would have it stored."""
    url = bench.database(stack, name)
    async with Ours().open(url) as saver:
        steps = Chat("chat", window=20).steps(size)
        for first in range(0, size, 100):
            await asyncio.gather(*[_store(saver, step) for step in steps[first : first + 100]])
    keep(url)
    return url


async def _store(saver: Saver, step: Step) -> None:
    await saver.aput(*step.put)
    await saver.aput_writes(*step.put_writes)


def _check(url: str, *, checkpoints: int) -> None:
    """Raise `MismatchError` unless so many checkpoints are left, each with its writes and all its blobs."""
    query = "SELECT (SELECT count(*) FROM {}), (SELECT count(*) FROM {}), (SELECT count(*) FROM {})"
    with psycopg.connect(url) as conn:
        found = conn.execute(query.format("checkpoints", "checkpoint_writes", "checkpoint_blobs")).fetchone()
    # The channel of the messages has a blob; what is a number or a short text is within the checkpoint.
    if found != (checkpoints, 3 * checkpoints, checkpoints):
        msg = f"of {checkpoints} checkpoints are left, with their writes and blobs: {found}"
        raise MismatchError(msg)
