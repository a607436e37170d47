"""The machine's speed, for comparing runs on different ones: Python's, a round trip's and a commit's."""

from __future__ import annotations

import asyncio
import statistics
import time

import asyncpg
import psycopg


def speed(url: str) -> dict[str, float]:
    """Measure a fixed loop of Python, `SELECT 1` by bare asyncpg, and the smallest durable commit: medians."""
    return {"loop_ms": loop_ms(), "select_us": asyncio.run(select_us(url)), "commit_ms": commit_ms(url)}


def loop_ms(times: int = 20) -> float:
    """A loop of 300,000 steps."""
    samples = []
    for _ in range(times):
        started, total = time.perf_counter(), 0
        for number in range(300_000):
            total += number & 7
        samples.append(time.perf_counter() - started)
    return statistics.median(samples) * 1e3


async def select_us(url: str, times: int = 500) -> float:
    """The least that a call to the server takes."""
    driver, samples = await asyncpg.connect(url), []
    for _ in range(times):
        started = time.perf_counter()
        await driver.fetchval("SELECT 1")
        samples.append(time.perf_counter() - started)
    await driver.close()
    return statistics.median(samples) * 1e6


def commit_ms(url: str, times: int = 200) -> float:
    """The least that a write takes that is to be durable."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=0) as conn:
        conn.execute("CREATE TABLE commits (at float8)")
        samples = []
        for _ in range(times):
            started = time.perf_counter()
            conn.execute("INSERT INTO commits VALUES (%s)", (started,))
            samples.append(time.perf_counter() - started)
        conn.execute("DROP TABLE commits")
    return statistics.median(samples) * 1e3
