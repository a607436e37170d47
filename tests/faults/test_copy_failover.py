"""A copy whose COMMIT was not heard of, while another server takes over: whether it is there is read from its rows."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import event

from checkpoint_store import AsyncPostgresSaver
from tests.faults.bed import Network, has_standbys, servers

pytestmark = pytest.mark.skipif(not has_standbys(), reason="pg_basebackup is missing")

WORDS = [f"message {number} " + "of many words " * 20 for number in range(300)]
COPIED = "SELECT count(*) FROM checkpoints WHERE thread_id = 'copy'"


def thread(name: str) -> Any:
    return {"configurable": {"thread_id": name, "checkpoint_ns": ""}}


async def put(saver: AsyncPostgresSaver, value: Any) -> None:
    checkpoint: Any = {**empty_checkpoint(), "channel_values": {"a": value}, "channel_versions": {"a": "1"}}
    await saver.aput(thread("t"), checkpoint, {}, {"a": "1"})


@pytest.mark.parametrize(
    ("had", "value", "replace"),
    [
        pytest.param("with it", "small", False, id="with it"),
        pytest.param("without it, but further on", WORDS, False, id="without it, but further on"),
        pytest.param("without it", "small", False, id="without it", marks=pytest.mark.slow),
        pytest.param("with it", WORDS, True, id="with it, replaced", marks=pytest.mark.slow),
        pytest.param("without it", WORDS, True, id="without it, replaced", marks=pytest.mark.slow),
    ],
)
async def test_a_copy_is_there_whichever_server_takes_over(had: str, value: Any, replace: bool) -> None:
    """A transaction's id says nothing on another server: it may be one to come there, or somebody else's."""
    with servers(2) as [primary, standby], Network(primary.socket) as network:
        url = network.through(primary.of())
        async with AsyncPostgresSaver.from_conn_string(url, retry_timeout=60) as saver:
            await saver.setup()
            await put(saver, value)
            if replace:
                await saver.acopy_thread("t", "copy")
            await asyncio.to_thread(primary.copy_to, standby)
            if had != "with it":
                primary.execute("ALTER SYSTEM RESET synchronous_standby_names")
                primary.execute("SELECT pg_reload_conf()")
                primary.reaches("SELECT current_setting('synchronous_standby_names') = ''")
                standby.stop()
            before = primary.execute("SELECT txid_current()")[0][0]

            @event.listens_for(saver._backend.provider.engine, "commit")
            def deafen(_: object) -> None:
                if not saver.retries:
                    network.deafen()

            call = asyncio.create_task(saver.acopy_thread("t", "copy", replace=replace))
            # From here on its answers are lost, that to COMMIT among them.
            while not network.swallowed:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            committed = f"SELECT txid_status({before} + 1) = 'committed'"
            await asyncio.to_thread(primary.reaches, committed)
            if had == "with it":
                query = f"SELECT '{primary.execute('SELECT pg_current_wal_lsn()')[0][0]}' <= pg_last_wal_replay_lsn()"
                await asyncio.to_thread(standby.reaches, query)
            primary.kill()
            network.lead_to(standby.socket)
            if had != "with it":
                standby.start()
                if not replace:
                    assert standby.execute(COPIED) == [(0,)]
            await asyncio.to_thread(standby.promote)
            with psycopg.connect(standby.of(), autocommit=True) as busy:
                while had.endswith("further on") and busy.execute("SELECT txid_current()").fetchone() <= (before + 50,):
                    pass
            network.mend()
            await call

            assert saver.retries > 0
            assert standby.execute(COPIED) == [(1,)]
            found = await saver.aget_tuple(thread("copy"))
            assert found is not None
            assert found.checkpoint["channel_values"] == {"a": value}
