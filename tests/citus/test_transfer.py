"""Threads are copied to distributed tables and back by LangGraph's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.storage.read import take_inventory
from checkpoint_store.transfer import TransferReport, acopy_threads, copy_threads
from tests.citus.cluster import migrate
from tests.citus.test_lists import store_threads


@pytest.fixture
def single_url(make_citus_database: Callable[[], str]) -> str:
    """A database at head that nobody has distributed."""
    url = make_citus_database()
    migrate(url)
    return url


def contents(saver: PostgresSaver) -> list[Any]:
    """All threads with their checkpoints, as lists have them, and the order of their tasks."""
    names = [summary.thread_id for summary in saver.list_threads(order="thread_id")]
    inventories = [saver._backend.run_blocking(take_inventory, name) for name in names]
    return [names, list(saver.list(None)), [sorted(map(str, map(tuple, rows))) for rows in inventories]]


WHOLE = TransferReport(threads=6, checkpoints=54, writes=162)
AGAIN = TransferReport(skipped_threads=6, skipped_checkpoints=54, skipped_writes=162)


@pytest.mark.parametrize("share_pages", [True, False])
def test_threads_come_and_go(single_url: str, citus_url: str, own_citus_url: str, share_pages: bool) -> None:
    """From a single server to distributed tables, to others, and back: nothing is lost, and nothing copied twice."""
    savers = [PostgresSaver.from_conn_string(url, share_pages=share_pages) for url in (single_url, citus_url)]
    with savers[0] as single, savers[1] as here, PostgresSaver.from_conn_string(own_citus_url) as there:
        store_threads(single)
        expected = contents(single)
        for source, target in ((single, here), (here, there)):
            assert copy_threads(source, target) == WHOLE
            assert contents(target) == expected
            assert copy_threads(source, target) == AGAIN
        assert copy_threads(there, single) == AGAIN


async def test_async_code_copies_them(single_url: str, citus_url: str) -> None:
    """In both directions."""
    with PostgresSaver.from_conn_string(citus_url) as saver:
        store_threads(saver)
        expected = contents(saver)
    async with (
        AsyncPostgresSaver.from_conn_string(citus_url) as here,
        AsyncPostgresSaver.from_conn_string(single_url) as single,
    ):
        assert await acopy_threads(here, single) == WHOLE
        assert await acopy_threads(single, here) == AGAIN
    with PostgresSaver.from_conn_string(single_url) as saver:
        assert contents(saver) == expected


def test_a_thread_that_has_gone_on_is_copied_anew(single_url: str, citus_url: str) -> None:
    """It is deleted from the distributed tables and stored again, in one transaction."""
    with PostgresSaver.from_conn_string(single_url) as single, PostgresSaver.from_conn_string(citus_url) as here:
        store_threads(single)
        assert copy_threads(single, here) == WHOLE
        config: Any = {"configurable": {"thread_id": "run/1", "checkpoint_ns": "", "checkpoint_id": "0005-1"}}
        single.put_writes(config, [("inline", 7)], "another task")
        assert copy_threads(single, here, ["run/1"]).writes == 1
        assert contents(here) == contents(single)
