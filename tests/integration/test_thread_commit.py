"""Threads that share commits on a sync engine: on the real server, with what that refuses."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import Engine, create_engine, event

from checkpoint_store import PostgresSaver
from checkpoint_store.errors import Refused
from checkpoint_store.storage.write_batch import Change

THREADS = 16


def config(number: int) -> Any:
    return {"configurable": {"thread_id": f"t{number}", "checkpoint_ns": ""}}


@contextmanager
def locked(url: str) -> Iterator[psycopg.Connection[Any]]:
    """The tables, locked; a call to `rollback()` lets all go on."""
    with psycopg.connect(url) as conn:
        conn.execute("LOCK TABLE checkpoints IN ACCESS EXCLUSIVE MODE")
        yield conn


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:", 1), pool_size=THREADS)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


@contextmanager
def sizes(saver: PostgresSaver) -> Iterator[list[int]]:
    """The number of calls in each commit."""
    backend: Any = saver._backend
    commit, found = backend._commit, []

    def counted(changes: Sequence[Change]) -> None:
        commit(changes)
        found.append(len(changes))

    backend._commit = counted
    yield found
    backend._commit = commit


def put_at_once(url: str, saver: PostgresSaver) -> list[Future[Any]]:
    """Put a checkpoint in each of many threads, when all of them have begun to."""
    began = threading.Barrier(THREADS + 1)

    def put(number: int) -> Any:
        began.wait(30)
        return saver.put(config(number), empty_checkpoint(), {}, {})

    with ThreadPoolExecutor(THREADS) as threads, locked(url) as lock:
        calls = [threads.submit(put, number) for number in range(THREADS)]
        began.wait(30)
        wait(calls, timeout=0.5)
        lock.rollback()
        wait(calls, timeout=30)
    return calls


def test_threads_share_commits_by_default(url: str, engine: Engine) -> None:
    """On an engine of the saver's, and on the host's."""
    few = create_engine(engine.url, pool_size=2)
    with PostgresSaver.from_conn_string(url, pool_size=2) as own:
        for saver in (own, PostgresSaver(few)):
            with sizes(saver) as found:
                calls = put_at_once(url, saver)
            assert [call.exception() for call in calls] == [None] * THREADS
            assert sum(found) == THREADS
            assert len(found) <= THREADS // 2
            assert {one.config["configurable"]["thread_id"] for one in saver.list(None)} == {
                f"t{number}" for number in range(THREADS)
            }
    few.dispose()


def test_commits_are_not_shared_where_that_is_switched_off(url: str, engine: Engine) -> None:
    """Nor on an engine whose listeners set something for one caller, such as the tenant that policies look at."""
    heard = create_engine(engine.url)
    event.listen(heard, "checkout", lambda *_: None)
    with PostgresSaver.from_conn_string(url, pipeline=False) as own:
        for saver in (own, PostgresSaver(engine, pipe=False), PostgresSaver(heard)):
            with sizes(saver) as found:
                calls = put_at_once(url, saver)
            assert [call.exception() for call in calls] == [None] * THREADS
            assert found == [1] * THREADS
    heard.dispose()


def test_a_call_that_the_server_refuses_fails_alone(url: str, engine: Engine) -> None:
    """Fifteen others are stored."""
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(
            """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                RAISE EXCEPTION 'not this one';
            END $$;
            CREATE TRIGGER refuse BEFORE INSERT ON checkpoints FOR EACH ROW WHEN (NEW.thread_id = 't7')
            EXECUTE FUNCTION refuse()
            """
        )
    saver = PostgresSaver(engine)
    calls = put_at_once(url, saver)
    assert isinstance(calls.pop(7).exception(), Refused)
    assert [call.exception() for call in calls] == [None] * (THREADS - 1)
    assert len(list(saver.list(None))) == THREADS - 1


def test_savers_of_two_schemas_share_an_engine_but_no_commit(engine: Engine) -> None:
    """Each stores to its own tables."""
    savers = [PostgresSaver(engine), PostgresSaver(engine, schema=f"s{uuid.uuid4().hex}")]
    savers[1].setup()

    def put(number: int) -> None:
        for _ in range(5):
            stored = savers[number % 2].put(config(number), empty_checkpoint(), {"number": number}, {})
            savers[number % 2].put_writes(stored, [("a", number)], "task")

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(put, range(THREADS)))
    for parity, saver in enumerate(savers):
        found = list(saver.list(None))
        assert len(found) == 5 * THREADS // 2
        assert {one.metadata["number"] % 2 for one in found} == {parity}  # type: ignore[typeddict-item]
        assert all(one.pending_writes == [("task", "a", one.metadata["number"])] for one in found)  # type: ignore[typeddict-item]


def test_closing_waits_for_changes_that_wait(url: str) -> None:
    """Those that came before it are stored."""
    began = threading.Barrier(THREADS + 1)
    with PostgresSaver.from_conn_string(url) as saver, ThreadPoolExecutor(THREADS) as threads, locked(url) as lock:

        def put(number: int) -> Any:
            began.wait(30)
            return saver.put(config(number), empty_checkpoint(), {}, {})

        calls = [threads.submit(put, number) for number in range(THREADS)]
        began.wait(30)
        wait(calls, timeout=0.5)
        threading.Timer(0.3, lock.rollback).start()
        saver.close()
        assert [call.exception(30) for call in calls] == [None] * THREADS


async def test_async_calls_on_a_sync_engine_share_commits_too(engine: Engine) -> None:
    """They come from worker threads."""
    saver = PostgresSaver(engine)
    await asyncio.gather(*(saver.aput(config(number), empty_checkpoint(), {}, {}) for number in range(40)))
    assert len([one async for one in saver.alist(None)]) == 40
