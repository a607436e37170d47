"""The plans that Citus makes for the calls of a run: each statement is one task, on the one shard of its thread."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import Engine, create_engine, event, make_url

from checkpoint_store import PostgresSaver
from checkpoint_store.database.backend import Backend
from checkpoint_store.serde import pages
from checkpoint_store.storage import read

Sent = list[tuple[str, Any]]
THREAD: Any = {"configurable": {"thread_id": "one", "checkpoint_ns": ""}}


class Tape:
    """A saver whose statements are recorded."""

    def __init__(self, saver: PostgresSaver, sent: Sent) -> None:
        self.saver, self.sent = saver, sent

    @property
    def backend(self) -> Backend:
        return self.saver._backend

    def put(self, number: int, values: dict[str, Any], *, parent: int | None = None, unknown: Any = None) -> None:
        """Store a checkpoint that does not know some channels: it leaves out their values, but not their versions."""
        versions = dict.fromkeys(values, f"{number:08}")
        checkpoint: Any = {**empty_checkpoint(), "id": f"{number:08}", "channel_values": values}
        checkpoint["channel_versions"] = {**versions, **(unknown or {})}
        self.saver.put(of(parent), checkpoint, {"source": "loop", "step": number}, versions)  # type: ignore[arg-type]


def of(number: int | None) -> Any:
    """A config that names a checkpoint of the thread, or none."""
    named = {} if number is None else {"checkpoint_id": f"{number:08}"}
    return {"configurable": {**THREAD["configurable"], **named}}


def large(number: int) -> list[str]:
    """A value that is cut into pages, most of which it shares with the others."""
    return [f"{line} " + "x" * 200 for line in range(200)] + [f"number {number}"]


@pytest.fixture
def psycopg_engine(citus_url: str) -> Iterator[Engine]:
    """An engine on the database."""
    engine = create_engine(make_url(citus_url).set(drivername="postgresql+psycopg"))
    yield engine
    engine.dispose()


@pytest.fixture(params=[False, True], ids=["plain", "pages"])
def tape(psycopg_engine: Engine, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Tape:
    """A saver that stores pages or not, with two checkpoints of the thread and writes to the second."""
    if request.param:
        monkeypatch.setattr(pages, "LARGE_BYTES", 0)
    sent: Sent = []

    @event.listens_for(psycopg_engine, "before_cursor_execute")
    def record(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    tape = Tape(PostgresSaver(psycopg_engine, share_pages=request.param), sent)
    tape.put(1, {"messages": large(1), "inline": 1})
    tape.put(2, {"messages": large(2)}, parent=1, unknown={"inline": "00000001"})
    tape.saver.put_writes(of(2), [("messages", large(2)), ("inline", 2)], "task")
    sent.clear()
    return tape


def write(tape: Tape, count: int) -> None:
    tape.saver.put_writes(of(2), [("messages", large(each)) for each in range(count)], f"task of {count}")


CALLS: dict[str, Callable[[Tape], object]] = {
    "put": lambda tape: tape.put(3, {"inline": 3}, parent=2),
    "put of a value": lambda tape: tape.put(3, {"messages": large(3), "inline": 3}, parent=2),
    "put of many values": lambda tape: tape.put(3, {f"channel {each}": large(each) for each in range(20)}, parent=2),
    "put of more values": lambda tape: tape.put(3, {f"channel {each}": large(each) for each in range(50)}, parent=2),
    "put that keeps values": lambda tape: tape.put(
        3, {"messages": large(3)}, parent=2, unknown={"inline": "00000001", "unknown": "00000001"}
    ),
    "put_writes of 1": lambda tape: write(tape, 1),
    "put_writes of 3": lambda tape: write(tape, 3),
    "put_writes of 20": lambda tape: write(tape, 20),
    "put_writes of 40": lambda tape: write(tape, 40),
    "put_writes of an error": lambda tape: tape.saver.put_writes(of(2), [("__error__", "E")], "task"),
    "get_tuple of the newest": lambda tape: tape.saver.get_tuple(THREAD),
    "get_tuple by id": lambda tape: tape.saver.get_tuple(of(1)),
    "list of a namespace": lambda tape: list(tape.saver.list(THREAD)),
    "list of a thread": lambda tape: list(tape.saver.list({"configurable": {"thread_id": "one"}})),
    "list by everything": lambda tape: list(tape.saver.list(THREAD, filter={"step": 1}, before=of(2), limit=1)),
    "delta history": lambda tape: tape.saver.get_delta_channel_history(config=of(2), channels=["messages"]),
    "history": lambda tape: tape.backend.run_blocking(read.history, "one", 10),
}


def on_tables(sent: Sent) -> Sent:
    """Those statements that name a table of ours."""
    return [(statement, binds) for statement, binds in sent if re.search(r"\bcheckpoint(s|_\w+)\b", statement)]


def plan_of(conn: psycopg.Connection[Any], statement: str, binds: Any) -> list[str]:
    """The lines of a statement's plan, for the values that it was sent with."""
    return [line for (line,) in conn.execute(f"EXPLAIN (COSTS OFF) {statement}", binds)]


@pytest.mark.parametrize("name", CALLS)
def test_a_call_of_a_run_is_one_task(tape: Tape, citus_url: str, name: str) -> None:
    """Each part of each statement goes to one shard, and no rows are pulled to the coordinator."""
    CALLS[name](tape)

    sent = on_tables(tape.sent)
    assert sent
    with psycopg.connect(citus_url, autocommit=True) as conn:
        for statement, binds in sent:
            plan = plan_of(conn, statement, binds)
            tasks = [line.strip() for line in plan if "Task Count" in line]
            assert tasks, plan
            assert {*tasks} == {"Task Count: 1"}, "\n".join(plan)
            assert "pull to coordinator" not in "\n".join(plan), "\n".join(plan)
