"""Proof that a contender stores what it is given: nobody is timed before they passed."""

from __future__ import annotations

from langgraph.checkpoint.base import CheckpointTuple

from benchmarks.contenders import AnySaver
from benchmarks.workload import Chat, Step


class MismatchError(AssertionError):
    """A contender did not give back what was stored; its figures would mean nothing."""


async def prove(saver: AnySaver) -> None:
    """Store a few steps and compare every way of reading them."""
    chat = Chat("proof")
    steps = chat.steps(5)
    for step in steps:
        await saver.aput(*step.put)
        await saver.aput_writes(*step.put_writes)
    compare(steps[-1], await saver.aget_tuple(chat.config))
    for step in steps:
        compare(step, await saver.aget_tuple(step.stored))
    compare_all(steps, [found async for found in saver.alist(chat.config)])


def compare_all(steps: list[Step], found: list[CheckpointTuple]) -> None:
    """Raise `MismatchError` unless `found` are these steps, newest first."""
    if len(found) != len(steps):
        msg = f"{len(steps)} checkpoints stored, {len(found)} listed"
        raise MismatchError(msg)
    for step, one in zip(reversed(steps), found, strict=True):
        compare(step, one)


def compare(step: Step, found: CheckpointTuple | None) -> None:
    """Raise `MismatchError` unless `found` is what `step` stored."""
    if found is None:
        msg = f"checkpoint {step.checkpoint['id']} is not there"
        raise MismatchError(msg)
    parent = step.config["configurable"].get("checkpoint_id")
    pairs = {
        "config": (step.stored, found.config),
        "checkpoint": (step.checkpoint, found.checkpoint),
        "metadata": ({**step.metadata, "tenant": "north"}, found.metadata),
        "parent": (parent, found.parent_config and found.parent_config["configurable"]["checkpoint_id"]),
        "writes": ([(step.task_id, *write) for write in step.writes], found.pending_writes),
    }
    for what, (stored, read) in pairs.items():
        if stored != read:
            msg = f"{what} of {step.checkpoint['id']}: stored {stored!r}, read {read!r}"
            raise MismatchError(msg)
