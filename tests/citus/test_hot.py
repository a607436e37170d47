"""What is stored by a run, refused forks, conversion to pages and back, and re-encryption: as on a single server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.serde.encoder import Encoder, ValuedChannels
from checkpoint_store.sql.distributed_write import MOST_PAGES, MOST_ROWS
from checkpoint_store.storage import write
from checkpoint_store.storage.write_batch import ASK_BYTES, Put
from tests.citus.test_plans import on_tables, plan_of
from tests.integration.test_encryption import (
    make,
    sql,
    test_a_database_in_clear_is_encrypted,
    test_a_key_is_replaced,
    test_it_comes_after_conversion_and_in_any_schema,
    test_it_goes_on_where_it_was_interrupted,
    test_what_no_key_opens_is_left_and_counted,
)
from tests.integration.test_refused_forks import (
    careful,
    test_a_chain_that_shares_a_commit_is_no_conflict,
    test_a_child_that_would_not_be_the_newest_is_refused,
    test_a_first_checkpoint_needs_an_empty_namespace,
    test_a_parent_has_to_be_stored,
    test_a_second_child_is_refused,
    test_a_sync_engine_refuses_forks_too,
    test_a_transaction_of_the_callers_waits_for_the_other,
    test_of_many_at_once_one_is_stored,
    test_the_same_put_again_is_no_conflict,
)
from tests.integration.test_shared_pages import (
    conn,
    test_a_cold_process_asks_what_is_there,
    test_a_database_is_converted_both_ways,
    test_a_missing_page_is_told,
    test_a_stale_memory_is_not_trusted,
    test_a_turn_costs_what_the_turn_adds,
    test_encrypted_values_stay_whole,
    test_every_value_of_a_thread_stays_readable,
    test_no_read_fails_while_one_process_writes_and_another_deletes,
    test_threads_share_nothing,
    test_values_deleted_while_they_are_converted_leave_no_pages,
    test_what_a_caller_rolls_back_is_not_remembered,
    test_what_was_stored_from_here_is_read_without_fetching_its_pages,
)

__all__ = [
    "careful",
    "conn",
    "make",
    "sql",
    "test_a_chain_that_shares_a_commit_is_no_conflict",
    "test_a_child_that_would_not_be_the_newest_is_refused",
    "test_a_cold_process_asks_what_is_there",
    "test_a_database_in_clear_is_encrypted",
    "test_a_database_is_converted_both_ways",
    "test_a_first_checkpoint_needs_an_empty_namespace",
    "test_a_key_is_replaced",
    "test_a_missing_page_is_told",
    "test_a_parent_has_to_be_stored",
    "test_a_second_child_is_refused",
    "test_a_stale_memory_is_not_trusted",
    "test_a_sync_engine_refuses_forks_too",
    "test_a_transaction_of_the_callers_waits_for_the_other",
    "test_a_turn_costs_what_the_turn_adds",
    "test_encrypted_values_stay_whole",
    "test_every_value_of_a_thread_stays_readable",
    "test_it_comes_after_conversion_and_in_any_schema",
    "test_it_goes_on_where_it_was_interrupted",
    "test_no_read_fails_while_one_process_writes_and_another_deletes",
    "test_of_many_at_once_one_is_stored",
    "test_the_same_put_again_is_no_conflict",
    "test_threads_share_nothing",
    "test_values_deleted_while_they_are_converted_leave_no_pages",
    "test_what_a_caller_rolls_back_is_not_remembered",
    "test_what_no_key_opens_is_left_and_counted",
    "test_what_was_stored_from_here_is_read_without_fetching_its_pages",
]

Config = Any


def config_of(thread_id: str = "t") -> Config:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


def checkpoint_of(number: int, values: dict[str, Any]) -> Any:
    """The arguments of a put, but for the config."""
    versions = {channel: f"{number:032}.{random.random()}" for channel in values}
    checkpoint = {**empty_checkpoint(), "channel_values": values, "channel_versions": versions}
    return checkpoint, {"source": "loop", "step": number}, versions


def lines(count: int, seed: int = 0) -> list[str]:
    """A value of some 200 bytes for each line, most of whose pages are those of shorter ones."""
    return [random.Random(seed + line).randbytes(100).hex() for line in range(count)]


@pytest.fixture
def sync_engine(citus_url: str) -> Iterator[Engine]:
    engine = create_engine(make_url(citus_url).set(drivername="postgresql+psycopg"))
    yield engine
    engine.dispose()


def test_a_large_value_sends_only_the_pages_that_are_missing(sync_engine: Engine, citus_url: str) -> None:
    """Each of the statements is one task, and a process without a cache reads the value."""
    sent: list[tuple[str, Any]] = []

    @event.listens_for(sync_engine, "before_cursor_execute")
    def record(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    saver = PostgresSaver(sync_engine)
    first = saver.put(config_of(), *checkpoint_of(1, {"lines": lines(1000)}))
    sent.clear()
    second = saver.put(first, *checkpoint_of(2, {"lines": lines(1001)}))

    size = sum(len(value) for _, binds in sent for name, value in binds.items() if name.startswith("page_"))
    assert 0 < size < ASK_BYTES
    with psycopg.connect(citus_url, autocommit=True) as other:
        for statement, binds in on_tables(sent):
            plan = "\n".join(plan_of(other, statement, binds))
            assert "Task Count: 1" in plan, plan
            assert "pull to coordinator" not in plan, plan
    with PostgresSaver.from_conn_string(citus_url) as elsewhere:
        assert [elsewhere.get(config)["channel_values"]["lines"] for config in (first, second)] == [  # type: ignore[index]
            lines(1000),
            lines(1001),
        ]


def test_a_connection_in_autocommit_sends_all_pages(sync_engine: Engine, citus_url: str) -> None:
    """No lock would be held from the question to the value that needs the answer."""
    with sync_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        saver = PostgresSaver(conn)
        first = saver.put(config_of(), *checkpoint_of(1, {"lines": lines(1000)}))
        conn.exec_driver_sql("DELETE FROM checkpoint_pages")
        second = saver.put(first, *checkpoint_of(2, {"lines": lines(1001)}))

    with PostgresSaver.from_conn_string(citus_url) as elsewhere:
        assert elsewhere.get(second)["channel_values"]["lines"] == lines(1001)  # type: ignore[index]


@pytest.mark.parametrize("count", [0, 1, MOST_ROWS, MOST_ROWS + 1, 100])
def test_any_number_of_rows_is_stored(sync_engine: Engine, count: int) -> None:
    """There are texts for a few rows; more go by way of the coordinator."""
    saver = PostgresSaver(sync_engine)
    values = {f"channel {number}": [number, "x"] for number in range(count)}
    stored = saver.put(config_of(), *checkpoint_of(1, values))
    saver.put_writes(stored, list(values.items()), "task")

    found = saver.get_tuple(stored)

    assert found is not None
    assert found.checkpoint["channel_values"] == values
    assert [(channel, value) for _, channel, value in found.pending_writes or ()] == list(values.items())


def test_any_number_of_pages_is_stored(sync_engine: Engine, citus_url: str) -> None:
    """A first value with more pages than there are texts for."""
    value = lines(20_000)
    stored = PostgresSaver(sync_engine).put(config_of(), *checkpoint_of(1, {"lines": value}))

    with psycopg.connect(citus_url) as other, PostgresSaver.from_conn_string(citus_url) as elsewhere:
        assert (other.execute("SELECT count(*) FROM checkpoint_pages").fetchone() or [0])[0] > MOST_PAGES
        assert elsewhere.get(stored)["channel_values"]["lines"] == value  # type: ignore[index]


def test_changes_of_several_threads_are_stored_each_by_itself(sync_engine: Engine) -> None:
    """Also if they come at once."""
    saver = PostgresSaver(sync_engine)
    configs = [config_of(f"t{number}") for number in range(5)]
    puts = [
        Put(
            Encoder(saver.serde)
            .encode_checkpoint(config, *checkpoint_of(1, {"lines": lines(9)}), ValuedChannels())
            .binds
        )
        for config in configs
    ]

    assert saver._backend.run_blocking(write.store, saver._backend.page_cache, puts) == {}
    assert [saver.get(config)["channel_values"]["lines"] for config in configs] == [lines(9)] * 5  # type: ignore[index]


async def test_no_two_that_store_large_values_of_one_thread_wait_for_each_other(engine: AsyncEngine) -> None:
    """Each locks the thread once, so none is ended as the victim of a deadlock and made again."""
    saver = AsyncPostgresSaver(engine)
    await saver.aput(config_of(), *checkpoint_of(0, {"lines": lines(800)}))

    await asyncio.gather(
        *[saver.aput(config_of(), *checkpoint_of(number, {"lines": lines(800 + number)})) for number in range(1, 16)]
    )

    assert saver._backend.provider.retries == 0


async def _write(saver: AsyncPostgresSaver, elsewhere: AsyncPostgresSaver, count: int, seed: int) -> None:
    """Append to, trim and replace a large value of one thread, and have each read without a cache."""
    chance, value = random.Random(seed), lines(800)
    for number in range(count):
        value = [*value[chance.randrange(10) :], *lines(chance.randrange(1, 20), chance.randrange(2**32))][-1000:]
        stored = await saver.aput(config_of(), *checkpoint_of(number, {"lines": value}))
        found = await elsewhere.aget(stored)
        assert found is None or found["channel_values"].get("lines", value) == value


async def _remove(saver: AsyncPostgresSaver) -> None:
    """Delete the thread now and then, and all but the newest of its checkpoints again and again."""
    chance = random.Random(0)
    while True:
        if chance.random() < 0.1:
            await saver.adelete_thread("t")
        else:
            await saver.aprune(["t"], strategy="keep_latest")
        await asyncio.sleep(chance.random() * 0.02)


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
async def test_no_page_of_a_large_value_is_removed_while_it_is_stored(
    engine: AsyncEngine, citus_url: str, count: int
) -> None:
    """Whoever stores a value asks which of its pages are there, while others remove what nothing needs."""
    others = [create_async_engine("postgresql+asyncpg://", connect_args={"dsn": citus_url}) for _ in range(2)]
    saver, elsewhere, remover = (AsyncPostgresSaver(each) for each in (engine, *others))
    removing = asyncio.create_task(_remove(remover))
    try:
        await asyncio.gather(*[_write(saver, elsewhere, count, seed) for seed in range(3)])
        assert not removing.done()
    finally:
        removing.cancel()
        for other in others:
            await other.dispose()
