"""A few threads of known ages and runs, and what has become of them."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint

from tests.integration.histories import id_at

NOW = datetime.now(UTC)
AGES = {
    "young": [timedelta(hours=1)],
    "mixed": [timedelta(days=40), timedelta(days=10), timedelta(hours=1)],
    "old": [timedelta(days=60), timedelta(days=40), timedelta(days=10)],
}
THREADS = [*AGES]
RUNS = ["run 0", "run 1", "run 2"]
TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_pages")

Key = tuple[str, str]
"""Thread and checkpoint."""


class Made(NamedTuple):
    """When a checkpoint was made, and in which run."""

    at: datetime
    run_id: str


CHECKPOINTS = {
    (thread_id, id_at(NOW - age, random.Random(f"{thread_id} {age}"))): Made(NOW - age, run_id)
    for thread_id, ages in AGES.items()
    for age, run_id in zip(ages, RUNS, strict=False)
}
"""All of them, those of a thread in the order in which they were made."""


def of_thread(thread_id: str) -> list[Key]:
    """The checkpoints of a thread, oldest first."""
    return [key for key in CHECKPOINTS if key[0] == thread_id]


def fill(saver: BaseCheckpointSaver[Any], prefix: str = "") -> None:
    """Store the threads, each checkpoint with a value inline, a blob, and a pending write."""
    for thread_id in THREADS:
        config: Any = {"configurable": {"thread_id": prefix + thread_id, "checkpoint_ns": ""}}
        for step, key in enumerate(of_thread(thread_id)):
            versions: Any = {"items": str(step), "count": str(step)}
            checkpoint = empty_checkpoint()
            checkpoint["id"] = key[1]
            checkpoint["channel_values"] = {"items": [step] * 9, "count": step}
            checkpoint["channel_versions"] = versions
            config = saver.put(config, checkpoint, {"step": step, "run_id": CHECKPOINTS[key].run_id}, versions)
            saver.put_writes(config, [("items", step)], "task")


class Archive:
    """A database with the threads in it.

    Args:
        sql: A connection.
    """

    def __init__(self, sql: psycopg.Connection) -> None:
        self._sql = sql
        for table in TABLES:
            sql.execute(f"CREATE TEMPORARY TABLE kept_{table} AS TABLE {table}")
        self._whole = self._threads()

    def checkpoints(self) -> set[Key]:
        """The checkpoints that there are."""
        return set(self._sql.execute("SELECT thread_id, checkpoint_id FROM checkpoints").fetchall())  # type: ignore[arg-type]

    def changed(self) -> set[str]:
        """The threads that are not what they were at first; fails if a table has gone."""
        here, there = self._threads(), self._whole
        return {thread_id for thread_id in {*here, *there} if here.get(thread_id) != there.get(thread_id)}

    def restore(self) -> None:
        """Have all as it was at first."""
        if self.changed():
            for table in TABLES:
                self._sql.execute(f"DELETE FROM {table}")
                self._sql.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")

    def _threads(self) -> dict[str, str]:
        rows = " UNION ALL ".join(f"SELECT thread_id, '{table}' || t::text AS row FROM {table} t" for table in TABLES)
        digest = r"md5(string_agg(row, E'\n' ORDER BY row))"
        return dict(self._sql.execute(f"SELECT thread_id, {digest} FROM ({rows}) AS rows GROUP BY 1").fetchall())  # type: ignore[call-overload]
