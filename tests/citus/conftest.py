"""Tables that Citus has distributed, on the cluster whose coordinator CHECKPOINT_STORE_TEST_CITUS names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from tests.citus.cluster import TABLES, database, distribute, migrate

CITUS = "CHECKPOINT_STORE_TEST_CITUS"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of this folder where there is no cluster."""
    if CITUS not in os.environ:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(f"{CITUS} names no coordinator"))


@pytest.fixture(scope="session")
def cluster_url() -> str:
    """A database of the coordinator, whose nodes are those of the cluster."""
    return os.environ[CITUS]


@pytest.fixture
def make_citus_database(cluster_url: str) -> Iterator[Callable[[], str]]:
    """Makes a fresh database without tables on all nodes at every call, which takes about a second."""
    with ExitStack() as made:
        yield lambda: made.enter_context(database(cluster_url))


@pytest.fixture
def empty_citus_url(make_citus_database: Callable[[], str]) -> str:
    """A fresh database without tables."""
    return make_citus_database()


@pytest.fixture(scope="session")
def distributed_url(cluster_url: str) -> Iterator[str]:
    """A database at head with distributed tables, which all tests of a process share: see `citus_url`."""
    with database(cluster_url) as url:
        migrate(url)
        distribute(url)
        yield url


@pytest.fixture
def citus_url(distributed_url: str) -> str:
    """A database at head with distributed tables, and without rows. A test that changes tables makes one of its own."""
    with psycopg.connect(distributed_url, autocommit=True) as conn:
        conn.execute(f"TRUNCATE {', '.join(TABLES)}")
    return distributed_url


@pytest.fixture
def url(citus_url: str) -> str:
    """The database of the fixtures `engine`, `saver` and `sync_saver` is distributed here."""
    return citus_url


@pytest.fixture
def own_citus_url(empty_citus_url: str) -> str:
    """A fresh database at head with distributed tables, for a test that changes tables or nodes."""
    migrate(empty_citus_url)
    distribute(empty_citus_url)
    return empty_citus_url
