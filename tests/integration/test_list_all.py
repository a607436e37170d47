"""Lists of the checkpoints of all threads: root graphs and subgraphs merged, filters of many and of few."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from checkpoint_store import AsyncPostgresSaver

FILL = """
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)
SELECT 'thread-' || i % 7, CASE WHEN i % 3 = 0 THEN 'node:' || i % 5 ELSE '' END, to_char(i / 4, 'FM000000'),
       jsonb_build_object('v', 4, 'id', to_char(i / 4, 'FM000000'), 'channel_versions', '{}'::jsonb),
       jsonb_build_object('step', i, 'source',
                          CASE WHEN i % 2 = 0 THEN 'loop' ELSE 'input' END, 'run_id', 'run-' || i / 50)
FROM generate_series(1, 6000) i
"""
"""Four checkpoints, of several threads and namespaces, have the same id."""


@pytest.fixture
async def rows(url: str) -> list[tuple[str, str, str, int]]:
    """The keys and steps of 6,000 checkpoints, in the order of a list."""
    conn = await asyncpg.connect(url)
    await conn.execute(FILL)
    found = await conn.fetch("SELECT checkpoint_id, thread_id, checkpoint_ns, metadata->'step' FROM checkpoints")
    await conn.close()
    return sorted(((*row[:3], int(row[3])) for row in found), reverse=True)


def key_of(found: Any) -> tuple[str, str, str]:
    names = found.config["configurable"]
    return names["checkpoint_id"], names["thread_id"], names["checkpoint_ns"]


async def listed(saver: AsyncPostgresSaver, **options: Any) -> list[tuple[str, str, str]]:
    return [key_of(found) async for found in saver.alist(None, **options)]


@pytest.mark.parametrize("limit", [1, 10, 100, 700, None])
async def test_they_come_newest_first(saver: AsyncPostgresSaver, rows: Any, limit: int | None) -> None:
    """Each once, over any number of batches; ties go by thread and namespace."""
    assert await listed(saver, limit=limit) == [row[:3] for row in rows[:limit]]


async def test_only_those_before_one(saver: AsyncPostgresSaver, rows: Any) -> None:
    """By the id alone, as in a list of one thread."""
    before: Any = {"configurable": {"checkpoint_id": "000700"}}
    expected = [row[:3] for row in rows if row[0] < "000700"]
    assert await listed(saver, before=before) == expected
    assert await listed(saver, before=before, limit=5) == expected[:5]


@pytest.mark.parametrize(
    ("metadata", "steps"),
    [
        ({"source": "loop"}, range(0, 6001, 2)),
        ({"step": 5999}, [5999]),
        ({"step": 7}, [7]),  # not among the newest
        ({"run_id": "run-3"}, range(150, 200)),
        ({"run_id": "run-3", "source": "input"}, range(151, 200, 2)),
        ({"run_id": 3}, []),
        ({"source": "nothing"}, []),
    ],
)
@pytest.mark.parametrize("limit", [1, 10, None])
async def test_those_that_match_a_filter(
    saver: AsyncPostgresSaver, rows: Any, metadata: dict[str, Any], steps: Any, limit: int | None
) -> None:
    """Whether they are many, few, old, or of one run."""
    expected = [row[:3] for row in rows if row[3] in steps][:limit]
    assert await listed(saver, filter=metadata, limit=limit) == expected
