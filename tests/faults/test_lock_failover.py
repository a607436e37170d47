"""A thread's lock is the primary's: a standby gives none, which its promotion would turn into a second one."""

from __future__ import annotations

import asyncio

import pytest

from checkpoint_store import AsyncPostgresSaver
from checkpoint_store.errors import Unavailable
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
