"""A thread's lock is the primary's: a standby gives none, which its promotion would turn into a second one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from checkpoint_store import AsyncPostgresSaver
from checkpoint_store.errors import LockLost, Unavailable
from tests.faults.bed import has_standbys, servers


@pytest.mark.skipif(not has_standbys(), reason="pg_basebackup is missing")
async def test_a_standby_gives_a_lock_once_it_is_promoted() -> None:
    """Beside who has it on the primary there is nobody; and who waits for long enough gets it."""
    with servers(2) as [primary, standby]:
        async with (
            AsyncPostgresSaver.from_conn_string(primary.of()) as saver,
            AsyncPostgresSaver.from_conn_string(standby.of(), retry_timeout=0.5) as hasty,
            AsyncPostgresSaver.from_conn_string(standby.of(), retry_timeout=60) as patient,
        ):
            await saver.setup()
            await asyncio.to_thread(primary.copy_to, standby)
            async with saver.thread_lock("t"):
                with pytest.raises(Unavailable, match=r"read-only|recovery|only reads"):
                    await hasty.thread_lock("t", timeout=5).__aenter__()
                waiting = asyncio.ensure_future(patient.thread_lock("t", timeout=60).__aenter__())
            await asyncio.to_thread(primary.kill)
            await asyncio.to_thread(standby.promote)
            lock = await waiting
            assert not lock.lost
            await lock.__aexit__(None, None, None)


@pytest.mark.skipif(not has_standbys(), reason="pg_basebackup is missing")
async def test_whoever_had_it_on_the_server_that_is_gone_stores_nothing_more() -> None:
    """The standby knows nothing of the lock: it gives it to another, and what the first one stores is refused."""
    config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    with servers(2) as [primary, standby]:
        hosts = ",".join(str(server.socket.parent) for server in (primary, standby))
        url = f"postgresql://postgres@/postgres?host={hosts}&port=5432,5432&target_session_attrs=read-write"
        async with (
            AsyncPostgresSaver.from_conn_string(url, retry_timeout=60) as first,
            AsyncPostgresSaver.from_conn_string(url, retry_timeout=60) as second,
        ):
            await first.setup()
            await asyncio.to_thread(primary.copy_to, standby)

            async def run() -> None:
                async with first.thread_lock("t") as lock:
                    await first.aput(config, {**empty_checkpoint(), "id": "1"}, {}, {})
                    await asyncio.to_thread(primary.kill)
                    await asyncio.to_thread(standby.promote)
                    async with second.thread_lock("t", timeout=60):
                        while not lock.lost:  # noqa: ASYNC110
                            await asyncio.sleep(0.01)
                        with pytest.raises(LockLost):
                            await first.aput(config, {**empty_checkpoint(), "id": "2"}, {}, {})
                        await second.aput(config, {**empty_checkpoint(), "id": "3"}, {}, {})

            with pytest.raises(LockLost):
                await run()
            assert [found.checkpoint["id"] async for found in second.alist(config)] == ["3", "1"]
