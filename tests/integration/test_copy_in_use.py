"""Copies of a thread that a run is storing to: each is the thread as it was at one moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from checkpoint_store import PostgresSaver
from checkpoint_store.serde import pages

COPIES = 100
CHANNELS = [f"channel {each}" for each in range(5)]
WRITES = 4


def of(thread_id: str, number: int | None = None) -> Any:
    """A config that names a checkpoint of a thread, or none."""
    named = {} if number is None else {"checkpoint_id": f"{number:08}"}
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", **named}}


def values_of(number: int) -> dict[str, Any]:
    """The values of a checkpoint: one inline, and several beside it, which have most in common with the last."""
    lists = {channel: [f"{line} " + "x" * 300 for line in range(number % 20)] for channel in CHANNELS}
    return {"number": number, **lists}


class Run:
    """A run that stores checkpoints to a thread, each with the writes of a task, until it is to stop."""

    def __init__(self, saver: PostgresSaver) -> None:
        self.saver = saver
        self.stored = 0
        self.error: BaseException | None = None
        self._is_to_stop = threading.Event()
        self._has_begun = threading.Event()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        thread = threading.Thread(target=self._store)
        thread.start()
        try:
            assert self._has_begun.wait(60)
            yield
        finally:
            self._is_to_stop.set()
            thread.join()
        assert self.error is None, self.error

    def _store(self) -> None:
        try:
            while not self._is_to_stop.is_set():
                self.store_next()
                self._has_begun.set()
                if self.stored % 30 == 0:
                    # So that the thread does not become too long to be copied so often.
                    self.saver.prune(["source"], strategy="keep_latest", keep=3)
        except BaseException as error:
            self.error = error

    def store_next(self) -> None:
        number = self.stored + 1
        values = values_of(number)
        checkpoint: Any = {**empty_checkpoint(), "id": f"{number:08}", "channel_values": values}
        checkpoint["channel_versions"] = dict.fromkeys(values, f"{number:08}")
        parent = of("source", self.stored or None)
        self.saver.put(parent, checkpoint, {"source": "loop", "step": number}, checkpoint["channel_versions"])
        writes = [(channel, [number, channel] * 50) for channel in CHANNELS[:WRITES]]
        self.saver.put_writes(of("source", number), writes, "task")
        self.stored = number


def torn(saver: PostgresSaver, thread_id: str) -> list[str]:
    """What a copy lacks of the thread as it was at any moment."""
    found = list(saver.list(of(thread_id)))
    numbers = [int(each.checkpoint["id"]) for each in found]
    faults = [] if numbers == [*range(numbers[0], numbers[-1] - 1, -1)] else [f"not one after the other: {numbers}"]
    for number, each in zip(numbers, found, strict=True):
        if each.checkpoint["channel_values"] != values_of(number):
            faults.append(f"values of {number}")
        # The newest may be stored before its writes.
        wanted = {WRITES} if number != numbers[0] else {0, WRITES}
        if len(each.pending_writes or ()) not in wanted:
            faults.append(f"writes of {number}: {len(each.pending_writes or ())}")
    return faults


@pytest.mark.parametrize("shares", [False, True], ids=["plain", "pages"])
def test_a_copy_of_a_thread_in_use_is_whole(url: str, monkeypatch: pytest.MonkeyPatch, shares: bool) -> None:
    """None of a hundred lacks a value, a write or a checkpoint of the moment it is of."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 0)
    with (
        PostgresSaver.from_conn_string(url, share_pages=shares) as writer,
        PostgresSaver.from_conn_string(url) as copier,
    ):
        run = Run(writer)
        seen = set()
        with run.under_way():
            for number in range(COPIES):
                copier.copy_thread("source", f"copy {number}")
                seen.add(run.stored)

        faults = {number: found for number in range(COPIES) if (found := torn(copier, f"copy {number}"))}
        assert faults == {}
        assert len(seen) > COPIES / 4, "the thread was in use all the while"
