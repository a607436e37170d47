"""The inventory of a thread: its checkpoints and writes, counted, to compare a source and a target."""

from __future__ import annotations

from collections import Counter

from langgraph.checkpoint.base import CheckpointTuple

from checkpoint_store.errors import short_repr

Key = tuple[str, str]
"""Namespace and checkpoint id."""

Inventory = Counter[tuple[str, ...]]
"""The contents of a thread: each namespace and checkpoint id once; with a task, as often as it has writes there."""


def key_of(found: CheckpointTuple) -> Key:
    """Return the namespace and id of a checkpoint."""
    return found.config["configurable"].get("checkpoint_ns") or "", found.checkpoint["id"]


def inventory_of(found: CheckpointTuple) -> Inventory:
    """Return the share of a checkpoint in its thread's inventory."""
    key = key_of(found)
    return Inventory([key, *[(*key, task_id) for task_id, _, _ in found.pending_writes or ()]])


def counts(inventory: Inventory) -> tuple[int, int]:
    """Return the numbers of checkpoints and of writes."""
    checkpoints = sum(len(item) == 2 for item in inventory)
    return checkpoints, inventory.total() - checkpoints


def totals(inventory: Inventory) -> str:
    """Return the numbers of checkpoints and of writes as text."""
    return "{} checkpoints and {} writes".format(*counts(inventory))


def first(inventory: Inventory) -> str:
    """Return the place of the first item as text."""
    namespace, checkpoint_id, *task_id = min(inventory)
    task = f", writes of task {short_repr(task_id[0], 200)}" if task_id else ""
    return f"{place(namespace, checkpoint_id)}{task}"


def place(namespace: str, checkpoint_id: str) -> str:
    """Return the place of a checkpoint in its thread as text."""
    return f"namespace {short_repr(namespace, 200)}, checkpoint {short_repr(checkpoint_id, 200)}"
