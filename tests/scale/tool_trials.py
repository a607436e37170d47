"""Trials of what works on a whole database: conversions, transfer, the command line, migrations, partitions."""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import psycopg
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from psycopg.rows import dict_row

from checkpoint_store import cli, conversion, migrations, partitioning
from checkpoint_store.encryption import KeyRing, Unencrypted, count_unencrypted, reencrypt
from checkpoint_store.schema import HEAD
from checkpoint_store.transfer import acopy_threads, copy_threads
from tests.scale.walk import PAGES, Walk, capability, named


@capability("reencrypt", "async")
async def _(at: Walk) -> None:
    ring = EncryptedSerializer(KeyRing.aes(b"k" * 32))
    steps = await at.chat(at.thread(), 3) + await at.chat(at.thread(), 2, large=True)
    engine = await at.engine()
    report = await reencrypt(engine, None, ring)
    assert (report.blobs, report.writes, report.unreadable, report.busy) == (5, 10, 0, 0)
    assert await count_unencrypted(engine) == Unencrypted(0, 0, 0)
    await at.check(*steps, call=await at.saver(serde=ring, require_encryption=True))


@capability("conversion to pages and back", "async")
async def _(at: Walk) -> None:
    plain = await at.saver(share_pages=False)
    steps = await at.chat(thread := at.thread(), 4, large=True, call=plain)
    engine = await at.engine()
    for convert in (conversion.share, conversion.inline):
        assert await convert(engine) == 4
        tables = (await at.call("get_thread_stats", thread)).tables
        assert (tables[PAGES].rows > 0) == (convert is conversion.share)
        await at.check(*steps)


@capability("transfer from the stock saver")
async def _(at: Walk) -> None:
    threads = [at.thread(), at.thread()]
    with stock_saver(at.place.direct or at.place.url) as stock:
        for thread in threads:
            await asyncio.to_thread(_store_by_stock, stock, thread)
        if at.api == "sync":
            report = await asyncio.to_thread(copy_threads, stock, at.call.target, threads)
        else:
            report = await acopy_threads(stock, at.call.target, threads)
        assert (report.threads, report.checkpoints, report.writes) == (2, 6, 6)
        for thread in threads:
            assert await at.call("list", named(thread)) == await asyncio.to_thread(list, stock.list(named(thread)))


def _store_by_stock(stock: StockSaver, thread: str) -> None:
    config = named(thread)
    for number in range(3):
        checkpoint: Any = {
            **empty_checkpoint(),
            "channel_values": {"a": [number]},
            "channel_versions": {"a": f"{number}"},
        }
        config = stock.put(config, checkpoint, {"step": number}, {"a": f"{number}"})
        stock.put_writes(config, [("a", number)], "task")


@contextmanager
def stock_saver(url: str) -> Iterator[StockSaver]:
    """A stock saver on tables of its own, in a schema beside ours."""
    name = f"stock_{uuid.uuid4().hex[:8]}"
    with psycopg.Connection[Any].connect(url, autocommit=True, prepare_threshold=0, row_factory=dict_row) as conn:
        conn.execute(f"CREATE SCHEMA {name}")
        conn.execute(f"SET search_path = {name}")
        saver = StockSaver(conn)
        saver.setup()
        yield saver
        conn.execute(f"DROP SCHEMA {name} CASCADE")


@capability("command line", "sync")
async def _(at: Walk) -> None:
    await at.chat(thread := at.thread(), 3)

    def run(*arguments: str) -> Any:
        with redirect_stdout(io.StringIO()) as printed:
            assert cli.main([*arguments, "--json", "--url", at.place.url]) == 0
        return json.loads(printed.getvalue())

    checked = await asyncio.to_thread(run, "check")
    assert (checked["revision"], checked["ready"]) == (HEAD, True)
    largest = (await asyncio.to_thread(run, "stats", "--limit", "0"))["largest_threads"]
    assert [each["checkpoints"] for each in largest if each["thread_id"] == thread] == [3]
    assert (await asyncio.to_thread(run, "stats", thread))["tables"]["checkpoints"]["rows"] == 3


@capability("downgrade, upgrade", "async")
async def _(at: Walk) -> None:
    steps = await at.chat(at.thread(), 3, large=True)
    engine = await at.engine()
    async with engine.connect() as conn:
        await conn.run_sync(migrations.downgrade, revision="cs02_pages")
        await conn.run_sync(migrations.upgrade)
        await conn.run_sync(migrations.check)
        assert await conn.run_sync(migrations.current) == HEAD
    await at.check(*steps, *await at.chat(at.thread(), 3, large=True))


@capability("partition", "async")
async def _(at: Walk) -> None:
    steps = await at.chat(at.thread(), 3, large=True)
    engine = await at.engine()
    async with engine.begin() as conn:
        await conn.run_sync(partitioning.partition, partitions=4)
    await at.check(*steps, *await at.chat(at.thread(), 3, large=True))
