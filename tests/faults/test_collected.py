"""Everything that stores, converts, copies and removes at once, with a restore in the middle: no value is ever torn."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, conversion
from checkpoint_store.errors import CheckpointStoreError, Refused, UnreadableValue
from tests.faults.test_restored import clean, program
from tests.faults.writing import config_of, value

THREADS = ["a", "b", "c"]


def engine_on(url: str) -> AsyncEngine:
    return create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))


def write(url: str, seconds: float, seed: int) -> list[str]:
    """Append to, trim and revert the values of threads, and have another engine read them. Returns what was wrong."""

    async def writing() -> list[str]:
        engine, other, chance = engine_on(url), engine_on(url), random.Random(seed)
        pipe = AsyncPipeline(engine) if seed % 2 else False
        saver, reader = AsyncPostgresSaver(engine, pipe, share_pages=True), AsyncPostgresSaver(other)
        values, wrong, until = {name: value(name, 150) for name in THREADS}, [], time.monotonic() + seconds
        count = 0
        while time.monotonic() < until:
            name = chance.choice(THREADS)
            old = values[name]
            fresh = [f"{seed} {count} {number} " * 10 for number in range(chance.randrange(1, 12))]
            new = chance.choice([[*old, *fresh], old[chance.randrange(20) :] or old, value(name, 150)])[-400:]
            versions = {"messages": f"1.{uuid4()}"}
            checkpoint: Any = {
                **empty_checkpoint(),
                "id": str(uuid6()),
                "channel_values": {"messages": new},
                "channel_versions": versions,
            }
            try:
                stored = await saver.aput(config_of(name), checkpoint, {"run_id": f"{seed}"}, versions)
                values[name] = new
                # Removed since, perhaps, the thread or this of it; but never a part of the value.
                found = await reader.aget(stored)
                if found is not None and found["channel_values"].get("messages") != new:
                    wrong.append(f"{name}: another value")
                count += 1
            except (UnreadableValue, Refused) as error:
                wrong.append(f"{type(error).__name__}: {error}")
            except CheckpointStoreError:
                pass  # a deadlock with what locks whole tables, a table that is being restored
        await engine.dispose()
        await other.dispose()
        return wrong if count > 5 else [*wrong, f"only {count} puts"]

    return asyncio.run(writing())


def tidy(url: str, seconds: float) -> Counter[str]:
    """Convert, prune, sweep, copy, delete and rewrite tables, in any order. Returns what was done how often."""

    async def tidying() -> Counter[str]:
        engine, chance, done = engine_on(url), random.Random(0), Counter[str]()
        saver, until = AsyncPostgresSaver(engine, share_pages=True), time.monotonic() + seconds

        async def by_hand() -> None:
            async with engine.begin() as conn:
                await conn.exec_driver_sql(f"DELETE FROM checkpoints WHERE thread_id = '{chance.choice(THREADS)}'")

        async def rewrite() -> None:
            async with engine.connect() as conn:
                raw = await conn.execution_options(isolation_level="AUTOCOMMIT")
                await raw.exec_driver_sql("VACUUM FULL checkpoint_pages, checkpoint_threads, checkpoint_blobs")

        works = {
            "share": lambda: conversion.share(engine),
            "inline": lambda: conversion.inline(engine),
            "prune": lambda: saver.aprune(THREADS, keep=2),
            "sweep": lambda: saver.asweep(keep_last=3),
            "copy": lambda: saver.acopy_thread(*chance.sample([*THREADS, "copy"], 2), replace=True),
            "delete": lambda: saver.adelete_thread(chance.choice(THREADS)),
            "run": lambda: saver.adelete_for_runs([f"{chance.randrange(4)}"]),
            "by hand": by_hand,
            "rewrite": rewrite,
        }
        while time.monotonic() < until:
            name = chance.choice(list(works))
            try:
                await works[name]()
                done[name] += 1
            except UnreadableValue:
                raise
            except Exception:  # noqa: S110 - nothing to copy, a deadlock with what locks whole tables
                pass
            await asyncio.sleep(chance.random() * 0.05)
        await engine.dispose()
        return done

    return asyncio.run(tidying())


async def unreadable(url: str) -> list[str]:
    """Every value that is stored and can't be read by a process that remembers nothing."""
    engine, wrong, before = engine_on(url), [], None
    saver = AsyncPostgresSaver(engine)
    for name in [*THREADS, "copy"]:
        before = None
        while True:
            try:
                async for _ in saver.alist(config_of(name), before=before):
                    pass
                break
            except UnreadableValue as error:
                wrong.append(str(error))
                before = error.config
    await engine.dispose()
    return wrong


@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_no_value_is_torn_whatever_goes_on_beside_it(url: str, tmp_path: Path, seconds: float) -> None:
    """Four processes append, trim and revert; others convert, prune, sweep, copy, delete, VACUUM FULL and restore."""
    with multiprocessing.get_context("spawn").Pool(5) as processes:
        writers = [processes.apply_async(write, (url, seconds, seed)) for seed in range(4)]
        tidier = processes.apply_async(tidy, (url, seconds))
        dump = tmp_path / "dump"
        time.sleep(seconds / 3)
        program("pg_dump", "--format=custom", f"--file={dump}", url)
        time.sleep(seconds / 6)
        for _ in range(20):
            try:
                clean(url, dump)
                break
            except RuntimeError as error:  # as an operator would: once more
                if "deadlock detected" not in str(error):
                    raise
        wrong = [one for writer in writers for one in writer.get(seconds + 120)]
        done = tidier.get(120)

    assert wrong == []
    assert sum(done.values()) > 3, done
    assert asyncio.run(unreadable(url)) == []
