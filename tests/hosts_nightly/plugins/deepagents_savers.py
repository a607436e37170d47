"""A pytest plugin for Deep Agents' own tests: `PostgresSaver` where they make an `InMemorySaver`.

CHECKPOINT_STORE_NIGHTLY_SAVER is `stock`, which leaves theirs, or `ours`. Each saver has a database of its own, as each
of theirs has a memory of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from databases import database, drop_template, make_template
from langgraph.checkpoint import memory

from checkpoint_store import PostgresSaver

IS_OURS = os.environ["CHECKPOINT_STORE_NIGHTLY_SAVER"] == "ours"

_open = ExitStack()


def saver() -> PostgresSaver:
    """Return a saver on a database of its own, which the test's end closes and drops."""
    return _open.enter_context(PostgresSaver.from_conn_string(_open.enter_context(database())))


@pytest.fixture(autouse=True)
def closed_savers() -> Iterator[None]:
    """Close the savers that a test has made."""
    with _open:
        yield


def pytest_sessionstart() -> None:
    """Put ours in the place of theirs before the tests import it."""
    if IS_OURS:
        memory.InMemorySaver = memory.MemorySaver = saver  # type: ignore[assignment, misc]
        make_template()


def pytest_sessionfinish() -> None:
    """Drop the template."""
    if IS_OURS:
        drop_template()
