"""A process that is killed in the middle of a run: every step acknowledged to it is there, and another one goes on."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store import AsyncPostgresSaver
from tests.faults.victim import KINDS, ROUNDS, digest_of, expected, graph_on

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="nothing can be killed here")

WORDS = 1 + ROUNDS * (3 + 5)
"""About how much a run has to say: a checkpoint for the input and for each step, and each task's writes."""


class Zygote:
    """Runs graphs in processes of their own, and kills them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, order: list[str], words: int, seconds: float) -> list[list[Any]]:
        """Run a graph, and kill it so many seconds after it has said so many words. Returns all it said."""
        self._tell(order)
        pid, said = 0, []
        # Its own words and those of the process it was forked from come in any order.
        while not pid or len(said) < words:
            word = self._hear()
            if word[0] == "pid":
                pid = word[1]
            else:
                said.append(word)
            if word[0] == "end":
                break
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        # The dead say nothing more; their last words come before the echo.
        self._tell([])
        while (word := self._hear())[0] != "echo":
            said.append(word)
        return [word for word in said if word[0] != "pid"]

    def _tell(self, order: list[str]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _hear(self) -> list[Any]:
        assert self._process.stdout is not None
        word: list[Any] = json.loads(self._process.stdout.readline())
        return word


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    command = [sys.executable, "-m", "tests.faults.victim"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        zygote = Zygote(process)
        assert zygote._hear() == ["ready"]
        try:
            yield zygote
        finally:
            process.kill()


@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.slow)])
async def test_what_was_acknowledged_to_the_dead_is_there_and_their_runs_end_well(
    engine: AsyncEngine, url: str, zygote: Zygote, kills: int, record_property: Callable[[str, object], None]
) -> None:
    """Killed at any point of a run with `durability="sync"`: savers of both kinds, with and without a pipeline."""
    chance, counts = random.Random(kills), Counter[str]()
    saver = AsyncPostgresSaver(engine)
    for number in range(kills):
        thread_id, kind = f"run {number}", KINDS[number % len(KINDS)]
        config: Any = {"configurable": {"thread_id": thread_id}, "recursion_limit": 100}
        order = [url, thread_id, kind]
        said = await asyncio.to_thread(zygote.run, order, chance.randrange(WORDS), chance.random() * 0.01)

        for what, checkpoint_id, *rest in [word for word in said if word[0] != "end"]:
            found = await saver.aget_tuple({"configurable": {"thread_id": thread_id, "checkpoint_id": checkpoint_id}})
            assert found is not None, (what, checkpoint_id)
            if what == "put":
                assert digest_of(found.checkpoint["channel_values"]) == rest[0]
            else:
                task_id, many = rest
                assert sum(write[0] == task_id for write in found.pending_writes or ()) == many
            counts[what] += 1
        async for found in saver.alist(config):
            # What was not acknowledged is there as a whole or not at all.
            values, versions = found.checkpoint["channel_values"], found.checkpoint["channel_versions"]
            assert ("done" in values) == ("done" in versions)
            assert values.get("done", []) == expected()[: len(values.get("done", []))]

        begun = await saver.aget_tuple(config) is not None
        counts["had ended" if ["end"] in said else "to be resumed" if begun else "had not begun"] += 1
        ended = await graph_on(saver).ainvoke(None if begun else {"done": []}, config, durability="sync")
        assert ended["done"] == expected()

    record_property("counts", dict(counts))
    assert counts["put"] >= kills
    assert counts["to be resumed"] >= kills / 2, counts
