"""Statements on psycopg's connection: prepared again where they have to be, and read as no host can change."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import PostgresSaver
from checkpoint_store.database import psycopg_executor

THREAD: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


@pytest.fixture
def make_engine(url: str) -> Iterator[Callable[..., Engine]]:
    """Makes engines with one connection each, which prepare a statement when it comes for the second time."""
    engines = []

    def make(**connect_args: Any) -> Engine:
        place = make_url(url).set(drivername="postgresql+psycopg")
        arguments = {"prepare_threshold": 1, **connect_args}
        engines.append(create_engine(place, pool_size=1, max_overflow=0, connect_args=arguments))
        return engines[-1]

    yield make
    for engine in engines:
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        engine.dispose()


def store(saver: PostgresSaver, times: int = 1, **values: Any) -> Any:
    for _ in range(times):
        new = dict.fromkeys(values, uuid.uuid4().hex)
        checkpoint: Any = {**empty_checkpoint(), "channel_values": values, "channel_versions": new}
        stored = saver.put(THREAD, checkpoint, {}, new)
        saver.put_writes(stored, [*values.items()], "task")
        found = saver.get_tuple(stored)
        assert found is not None
        assert found.checkpoint["channel_values"] == values
        assert found.pending_writes == [("task", *value) for value in values.items()]
    return stored


def prepared(engine: Engine) -> int:
    with engine.connect() as conn:
        return conn.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar_one()


VALUES: dict[str, Any] = {"text": "ü\\{}\"'", "bytes": [b"\x00\xff"], "none": None, "nested": {"a": [1, 2.5]}}


def test_statements_are_prepared_at_their_second_execution(make_engine: Callable[..., Engine]) -> None:
    """Not at the first: many come once on a connection."""
    engine = make_engine()
    saver = PostgresSaver(engine)
    store(saver, **VALUES)
    assert prepared(engine) == 0
    store(saver, 5, **VALUES)
    assert prepared(engine) == 3


def test_without_prepared_statements_there_are_none(make_engine: Callable[..., Engine]) -> None:
    """As behind a pooler."""
    engine = make_engine(prepare_threshold=None)
    store(PostgresSaver(engine, pooler="transaction"), 5, **VALUES)
    assert prepared(engine) == 0


def test_a_table_altered_by_another_session_costs_nothing(url: str, make_engine: Callable[..., Engine]) -> None:
    """The statement is prepared anew, on the same connection and without a retry."""
    engine = make_engine()
    saver = PostgresSaver(engine)
    store(saver, 3, **VALUES)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("ALTER TABLE checkpoints ALTER checkpoint_id TYPE varchar")
        other.execute("ALTER TABLE checkpoint_blobs ALTER channel TYPE varchar")
    store(saver, 3, **VALUES)
    assert saver._backend.provider.retries == 0
    assert prepared(engine) == 3


@pytest.mark.parametrize("statement", ["DEALLOCATE ALL", "DISCARD ALL"])
def test_statements_may_be_deallocated_at_each_return(make_engine: Callable[..., Engine], statement: str) -> None:
    """By a listener of the host's pool."""
    engine = make_engine()

    @event.listens_for(engine, "reset")
    def _(conn: Any, *_: Any) -> None:
        conn.rollback()
        conn.autocommit = True
        conn.execute(statement)
        conn.autocommit = False

    saver = PostgresSaver(engine)
    store(saver, 5, **VALUES)
    assert saver._backend.provider.retries == 0


def test_a_connection_keeps_so_many_and_no_more(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Savers of many schemas share it; those used longest ago are given up."""
    monkeypatch.setattr(psycopg_executor, "_MAX_PREPARED", 4)
    engine = make_engine()
    savers = [PostgresSaver(engine, schema=f"tenant {number}") for number in range(3)]
    for saver in savers:
        saver.setup()
    for _ in range(3):
        for saver in savers:
            store(saver, 2, **VALUES)
    assert prepared(engine) <= 4


class Shouting(TextLoader):
    """A host's own way to read text."""

    def load(self, data: Any) -> Any:
        """Return the text in capitals."""
        return bytes(data).decode().upper()


def test_what_a_host_registers_changes_nothing_that_is_read(make_engine: Callable[..., Engine]) -> None:
    """Its loaders and row factories are for its own queries."""
    engine = make_engine()

    @event.listens_for(engine, "connect")
    def _(conn: Any, _: Any) -> None:
        conn.adapters.register_loader("text", Shouting)
        conn.row_factory = dict_row

    store(PostgresSaver(engine), 5, **VALUES)


def test_a_connection_in_another_encoding_works_too(make_engine: Callable[..., Engine]) -> None:
    """In SQLAlchemy's own way."""
    store(PostgresSaver(make_engine(client_encoding="latin1")), 5, **VALUES)


def test_an_async_engine_of_psycopg_executes_in_the_same_way(url: str) -> None:
    """Prepared, and prepared anew."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+psycopg"), pool_size=1, max_overflow=0)
    saver = PostgresSaver(engine)
    store(saver, 7, **VALUES)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("ALTER TABLE checkpoints ALTER checkpoint_id TYPE varchar")
    store(saver, 7, **VALUES)
    assert saver._backend.provider.retries == 0
    saver.close()


def test_a_session_killed_while_its_call_waits_is_replaced(url: str, make_engine: Callable[..., Engine]) -> None:
    """The call is made again on another connection."""
    saver = PostgresSaver(make_engine())
    store(saver, 3, **VALUES)
    waiting = "datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(url) as locking, psycopg.connect(url, autocommit=True) as watching:
        locking.execute("LOCK TABLE checkpoints IN ACCESS EXCLUSIVE MODE")
        call = threading.Thread(target=store, args=(saver,), kwargs=VALUES)
        call.start()
        while watching.execute(f"SELECT FROM pg_stat_activity WHERE {waiting}").rowcount == 0:
            watching.execute("SELECT pg_sleep(0.01)")
        watching.execute(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {waiting}")
        locking.rollback()
        call.join(timeout=30)
    assert not call.is_alive()
    assert saver._backend.provider.retries == 1
    store(saver, **VALUES)


def test_options_of_a_service_file_hold(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not replaced by those that we would ask for."""
    (tmp_path / "services").write_text("[app]\noptions=-c search_path=theirs\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGSERVICE", "app")
    with PostgresSaver.from_conn_string(url) as saver:
        engine: Any = saver._backend.provider.engine
        with engine.connect() as conn:
            assert conn.exec_driver_sql("SHOW search_path").scalar() == "theirs"
