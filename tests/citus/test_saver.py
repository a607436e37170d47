"""A saver on distributed tables."""

from __future__ import annotations

import psycopg
from langgraph.checkpoint.base import empty_checkpoint

from checkpoint_store import AsyncPostgresSaver
from tests.citus.cluster import TABLES


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
