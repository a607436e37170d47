"""A saver on distributed tables."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from tests.citus.cluster import TABLES
from tests.integration.test_scripts import NAMES


def test_all_tables_are_distributed_together(citus_url: str) -> None:
    """The shards of a thread, one of each table, are on one node and move together."""
    query = "SELECT count(*), count(DISTINCT colocation_id) FROM citus_tables WHERE citus_table_type = 'distributed'"
    with psycopg.connect(citus_url) as conn:
        assert conn.execute(query).fetchone() == (len(TABLES), 1)


async def test_what_is_put_is_read(saver: AsyncPostgresSaver) -> None:
    """A checkpoint, and the writes of a task."""
    checkpoint = empty_checkpoint()
    config = {"configurable": {"thread_id": "one", "checkpoint_ns": ""}}
    stored = await saver.aput(config, checkpoint, {"source": "loop", "step": 1}, {})
    await saver.aput_writes(stored, [("messages", "hello")], "task")
    found = await saver.aget_tuple(config)
    assert found is not None
    assert found.checkpoint["id"] == checkpoint["id"]
    assert found.pending_writes == [("task", "messages", "hello")]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_thread_is_deleted_whatever_its_id(citus_url: str, driver: str) -> None:
    """Also where its statements are sent as one script, in which the id has to be a constant."""
    with PostgresSaver.from_conn_string(citus_url.replace(":", f"+{driver}:", 1)) as saver:
        for name in NAMES:
            config: Any = {"configurable": {"thread_id": name, "checkpoint_ns": ""}}
            saver.put(config, empty_checkpoint(), {}, {})
        for name in NAMES:
            saver.delete_thread(name)
            assert saver.get_tuple({"configurable": {"thread_id": name}}) is None
        assert list(saver.list(None)) == []
