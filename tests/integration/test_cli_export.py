"""A thread as a file: exported as it is stored, without its values, and imported again."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from langchain_core.messages import HumanMessage
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store import PostgresSaver
from checkpoint_store.database.factory import engine_backend
from checkpoint_store.serde.records import StoredCheckpoint, StoredPage, StoredValue, StoredWrite
from checkpoint_store.sql.thread_rows import TABLES
from checkpoint_store.storage import thread_rows
from checkpoint_store.tools.thread_rows import one_moment, rows_of


def fill(url: str, thread_id: str = "t", steps: int = 30) -> None:
    """Store a chat that is long enough for pages, with inline values, a subgraph and pending writes."""
    with PostgresSaver.from_conn_string(url) as saver:
        config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        messages, version = [], None
        for step in range(steps):
            messages.append(HumanMessage(f"{step}: " + chr(97 + step % 26) * 1000, id=str(step)))
            version = saver.get_next_version(version, None)
            versions: Any = {"messages": version, "budget": version}
            checkpoint: Any = {
                "v": 4,
                "id": f"1f000000-0000-6000-8000-{step:012}",
                "ts": "2026-01-01T00:00:00+00:00",
                "channel_values": {"messages": list(messages), "budget": 0.1 * step},
                "channel_versions": versions,
                "versions_seen": {"node": {"messages": version}},
            }
            metadata: Any = {"step": step, "source": "loop", "parents": {}, "user": "ada"}
            config = saver.put(config, checkpoint, metadata, versions)
            saver.put_writes(config, [("messages", messages[-1]), ("budget", step)], f"task-{step}", "~path")
        saver.put({"configurable": {"thread_id": thread_id, "checkpoint_ns": "node:1"}}, checkpoint, metadata, versions)


def stored(url: str, thread_id: str = "t") -> dict[str, list[Any]]:
    """Return all rows of a thread, by table, without its id."""
    with psycopg.connect(url) as conn:
        rows = {}
        for kind, (name, keys) in TABLES.items():
            columns, order = ", ".join(kind._fields), ", ".join(kind._fields[:keys])
            statement = f"SELECT {columns} FROM {name} WHERE thread_id = %s ORDER BY {order}"
            rows[name] = conn.execute(statement, [thread_id]).fetchall()
        return rows


async def test_all_rows_of_a_thread_are_read_once_as_of_one_moment(
    engine: AsyncEngine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of few bytes, while another process deletes some."""
    fill(url)
    expected = {name: len(rows) for name, rows in stored(url).items()}
    assert all(expected.values())
    monkeypatch.setattr(thread_rows, "BATCH_BYTES", 10_000)
    backend = engine_backend(engine, {})
    async with one_moment(backend) as then:
        counts = await then.run(thread_rows.count_rows, "t")
        with psycopg.connect(url, autocommit=True) as other:
            for name in expected:
                other.execute(f"DELETE FROM {name}")
        for kind in (StoredPage, StoredValue, StoredCheckpoint, StoredWrite):
            name, keys = TABLES[kind]
            batches = [batch async for batch in rows_of(then, "t", kind)]
            rows = [row for batch in batches for row in batch]
            assert len({row[:keys] for row in rows}) == len(rows) == counts[kind] == expected[name]
            assert name in ("checkpoint_blobs", "checkpoints") or len(batches) > 2
    assert not [batch async for batch in rows_of(backend, "t", StoredCheckpoint)]
