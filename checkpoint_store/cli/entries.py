"""The entries of a history: checkpoints without their values, with the nodes that ran and those that come next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from checkpoint_store.cli import values
from checkpoint_store.cli.safe_decode import safe_decode
from checkpoint_store.cli.tasks import Versions, triggers_of
from checkpoint_store.errors import ThreadNotFound
from checkpoint_store.storage.checkpoint_time import time_of

if TYPE_CHECKING:
    from checkpoint_store.database.backend import Backend
    from checkpoint_store.storage.read import History

INTERRUPT, ERROR = "__interrupt__", "__error__"  # as in sql/history.py
Key = tuple[str, str]
"""Namespace and checkpoint id."""


@dataclass(frozen=True)
class Entry:
    """A checkpoint in a history."""

    namespace: str
    checkpoint_id: str
    parent_id: str | None
    metadata: dict[str, Any]
    added: int
    """The bytes that came with it."""
    tasks: int
    """The number of tasks with pending writes."""
    marks: Sequence[str]
    """LangGraph's channels for interrupts and errors among those writes."""
    ran: Sequence[str] = ()
    """The nodes that ran in the step that made it, each as often as it ran."""
    next: Sequence[str] = ()
    """The nodes that come next; of the last one of a branch those that have not finished."""

    @property
    def key(self) -> Key:
        """Its namespace and id."""
        return self.namespace, self.checkpoint_id

    @property
    def parent(self) -> Key | None:
        """The namespace and id of its parent, if it has one."""
        return (self.namespace, self.parent_id) if self.parent_id else None

    @property
    def host(self) -> Key | None:
        """Of a subgraph's checkpoint, the key of the one with the step that ran the subgraph."""
        parents = self.metadata.get("parents")
        if not self.namespace or not isinstance(parents, dict):
            return None
        outer = self.namespace.rpartition("|")[0]
        return outer, str(parents.get(outer))

    @property
    def time(self) -> datetime | None:
        """The time in its id, if there is one."""
        return time_of(self.checkpoint_id)

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "checkpoint_ns": self.namespace,
            "checkpoint_id": self.checkpoint_id,
            "parent_checkpoint_id": self.parent_id,
            "time": self.time,
            "metadata": values.as_json(self.metadata),
            "ran": self.ran,
            "next": self.next,
            "bytes_added": self.added,
            "tasks": self.tasks,
            "interrupted": INTERRUPT in self.marks,
            "failed": ERROR in self.marks,
        }


async def read_history(backend: Backend, thread: str, limit: int, before: str | None) -> History:
    """Return the newest checkpoints of a thread, at least one, or raise `ThreadNotFound`."""
    from checkpoint_store.storage.read import history
    from checkpoint_store.storage.refusals import not_found
    from checkpoint_store.storage.thread_rows import count_rows

    found = await backend.run(history, thread, limit, before)
    if found.rows:
        return found
    if not any((await backend.run(count_rows, thread)).values()):
        raise not_found(thread)
    raise ThreadNotFound(f"the thread {thread!r} has no checkpoint" + (f" before {before!r}" if before else ""))


def entries_of(found: History) -> list[Entry]:
    """Return the entries of the checkpoints that were found, in their order."""
    versions = {(row.checkpoint_ns, row.checkpoint_id): Versions.of(row) for row in [*found.rows, *found.parents]}
    by_graph: dict[str, list[Versions]] = defaultdict(list)
    for (namespace, _), one in versions.items():
        by_graph[_graph(namespace)].append(one)
    triggers = {graph: triggers_of(of_graph) for graph, of_graph in by_graph.items()}
    parents = {(row.checkpoint_ns, row.parent_checkpoint_id) for row in found.rows} | found.continued
    entries = []
    for row in found.rows:
        key = row.checkpoint_ns, row.checkpoint_id
        decoded = safe_decode("json", row.metadata.encode())
        metadata = decoded if isinstance(decoded, dict) else {}
        finished = () if key in parents else row.finished or ()
        ran: Sequence[str] = ()
        if metadata.get("source") == "loop":
            before = versions.get((row.checkpoint_ns, row.parent_checkpoint_id or ""))
            ran = versions[key].ran_since(before)
        following = versions[key].due(triggers[_graph(row.checkpoint_ns)], finished)
        own = (*key, row.parent_checkpoint_id, metadata, row.added, row.tasks, sorted(row.marks or ()))
        entries.append(Entry(*own, ran, following))
    return entries


def _graph(namespace: str) -> str:
    """Return a namespace without the ids of tasks: the same for each call of a subgraph."""
    return "|".join(part.partition(":")[0] for part in namespace.split("|"))
