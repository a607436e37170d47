"""Every step of docs/how-to/switch-from-the-stock-saver.md: onto our saver in place, pod by pod, and back again."""

from __future__ import annotations

import enum
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.shallow import ShallowPostgresSaver
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import PostgresSaver, conversion, errors
from checkpoint_store.transfer import copy_threads

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

# By the name it has in the pods: what they store is read here, too.
specification = importlib.util.spec_from_file_location("waiter", HERE / "waiter.py")
assert specification is not None
waiter = sys.modules["waiter"] = importlib.util.module_from_spec(specification)
assert specification.loader is not None
specification.loader.exec_module(waiter)


class Pod:
    """A process of the service, seen from outside."""

    def __init__(self, kind: str, url: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(REPOSITORY)])}
        command = [sys.executable, "-m", "waiter", kind, url]
        self.kind = kind
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, method: str, *args: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([method, *args]) + "\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def is_ready(self) -> bool:
        return self._line() == "ready\n"

    def stop(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the pod has ended"
        return line


Start = Callable[..., list[Pod]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts pods, all at once, and returns them when they are ready; those that a test has not stopped are killed."""
    with ExitStack() as stack:

        def start(url: str, *kinds: str) -> list[Pod]:
            pods = [Pod(kind, url) for kind in kinds]
            for pod in pods:
                stack.enter_context(pod.process)
                stack.callback(pod.process.kill)
            assert all(pod.is_ready() for pod in pods)
            return pods

        yield start


SCRIPT = [
    ("order", "soup"),
    ("answer", "Dão"),
    ("order", "fish"),
    ("answer", "Colares"),
    ("go back", "sent back"),
    ("order", "pudding"),
    ("answer", "Port"),
]
"""What a guest does in the course of an evening; each line may be another pod's."""


def test_the_whole_rollout_and_the_way_back(empty_url: str, start: Start) -> None:
    """In processes of their own, from the stock saver's first day to the day after the return to it.

    Whoever takes a turn, on whichever saver, tells the guest what LangGraph's in-memory saver tells one who was never
    moved; and both savers read every thread the same.
    """
    model, chance, threads = InMemorySaver(serde=waiter.SERDE), random.Random(7), [f"table {number}" for number in range(3)]
    expected: dict[str, list[str]] = {thread: [] for thread in threads}
    told: dict[str, list[str]] = {thread: [] for thread in threads}

    def evening(pods: list[Pod], first: int, last: int) -> None:
        for what, said in SCRIPT[first:last]:
            for thread in threads:
                pod = chance.choice(pods)
                told[thread].append(pod("turn", thread, what, said))
                expected[thread].append(waiter.turn(model, thread, what, said))
        assert told == expected

    # All pods are old. The last turn leaves questions open.
    old = start(empty_url, "stock", "stock")
    evening(old, 0, 1)

    # New pods start among them; the first one adopts the tables. From turn to turn it is another pod.
    new = start(empty_url, "ours", "ours")
    evening([*old, *new], 1, 6)
    assert old[0]("history", threads[0]) == new[0]("history", threads[0])
    late = start(empty_url, "stock")
    histories = {thread: late[0]("history", thread) for thread in threads}
    assert {thread: new[1]("history", thread) for thread in threads} == histories
    for pod in (*old, *late):
        pod.stop()

    # The old ones are gone.
    evening(new, 6, 7)
    histories = {thread: new[0]("history", thread) for thread in threads}

    # And back: old pods start again among the new ones.
    old = start(empty_url, "stock")
    assert {thread: old[0]("history", thread) for thread in threads} == histories
    for what, said in [("order", "soup again"), ("answer", "Bairrada")]:
        for thread in threads:
            pod = chance.choice([*old, *new])
            assert pod("turn", thread, what, said) == waiter.turn(model, thread, what, said)
    histories = {thread: new[0]("history", thread) for thread in threads}
    for pod in new:
        pod.stop()
    assert {thread: old[0]("history", thread) for thread in threads} == histories
    assert all(len(history) > 50 for history in histories.values())
