"""Any sequence of calls leaves our saver with what LangGraph's in-memory saver holds after the same calls.

Where the two differ on purpose, the model is asked in the stock saver's terms: lists are by id, newest first, whatever
the namespace; a `before` names a checkpoint; filters compare members that are there.
"""

from __future__ import annotations

import uuid
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME, _DeltaSnapshot

from checkpoint_store import PostgresSaver

Config = dict[str, Any]

THREADS = ["one", "two"]
NAMESPACES = ["", "sub:1"]
CHANNELS = ["messages", "count", "files"]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | texts
    | st.lists(texts | st.integers(0, 9), max_size=3)
    | st.dictionaries(texts, st.sets(st.integers(0, 9), max_size=2), max_size=2)
    | st.lists(texts, max_size=2).map(_DeltaSnapshot)
)
changes = st.dictionaries(st.sampled_from(CHANNELS), values, max_size=3)
metadata = st.fixed_dictionaries(
    {"source": st.sampled_from(["input", "loop"]), "step": st.integers(-1, 2)}, optional={"tag": texts}
)
# A task keeps its place in the graph: its path goes with its id.
tasks = st.sampled_from([("task-1", "~__pregel_pull, b"), ("task-2", "~__pregel_pull, a"), ("task-3", "")])
ordinary_writes = st.lists(st.tuples(st.sampled_from(CHANNELS), values), max_size=3)
special_writes = st.lists(st.tuples(st.sampled_from([ERROR, INTERRUPT, RESUME]), values), min_size=1, max_size=2)
# In any order: a command brings an answer and an update.
mixed_writes = st.tuples(ordinary_writes, special_writes).flatmap(lambda parts: st.permutations([*parts[0], *parts[1]]))


class Store(RuleBasedStateMachine):
    """Both savers side by side: every rule calls both, every reading is compared."""

    saver: PostgresSaver
    checkpoints = Bundle("checkpoints")

    def __init__(self) -> None:
        super().__init__()
        self.model = InMemorySaver()
        self.run = uuid.uuid4().hex
        self.numbers = count(1)
        self.parents: dict[str, str | None] = {}

    def teardown(self) -> None:
        for thread in THREADS:
            self.saver.delete_thread(self.thread_id(thread))
        assert list(self.saver.list(None)) == []

    # --- what is stored ---

    @rule(
        target=checkpoints,
        thread=st.sampled_from(THREADS),
        namespace=st.sampled_from(NAMESPACES),
        order=st.integers(0, 9),
        changes=changes,
        metadata=metadata,
    )
    def begin(self, thread: str, namespace: str, order: int, changes: dict[str, Any], metadata: Any) -> Config:
        """A checkpoint without a parent."""
        return self.store(self.config(self.thread_id(thread), namespace), order, changes, metadata)

    @rule(
        target=checkpoints,
        parent=checkpoints,
        order=st.integers(0, 9),
        changes=changes,
        dropped=st.sampled_from([*CHANNELS, None]),
        unknown=st.sets(st.sampled_from(CHANNELS)),
        metadata=metadata,
        early_writes=ordinary_writes,
    )
    def go_on(
        self,
        *,
        parent: Config,
        order: int,
        changes: dict[str, Any],
        dropped: str | None,
        unknown: set[str],
        metadata: Any,
        early_writes: list[tuple[str, Any]],
    ) -> Config:
        """A child: the parent's channels with some changed and one dropped; its writes may come before itself.

        Its graph may not know some channels: then it leaves out their values, and leaves their versions as they are.
        """
        changes = {channel: value for channel, value in changes.items() if channel not in unknown}
        dropped = None if dropped in unknown else dropped
        return self.store(parent, order, changes, metadata, dropped=dropped, unknown=unknown, early_writes=early_writes)

    @rule(stored=checkpoints, changes=changes, metadata=metadata)
    def put_again(self, stored: Config, changes: dict[str, Any], metadata: Any) -> None:
        """The same checkpoint once more, with other values and metadata: it is replaced, its writes stay."""
        identity = stored["configurable"]["checkpoint_id"]
        configurable = {**stored["configurable"], "checkpoint_id": self.parents[identity]}
        parent = {"configurable": {key: value for key, value in configurable.items() if value is not None}}
        self.store(parent, None, changes, metadata, identity=identity)

    @rule(stored=checkpoints, task=tasks, writes=ordinary_writes | special_writes | mixed_writes)
    def write(self, stored: Config, task: tuple[str, str], writes: list[tuple[str, Any]]) -> None:
        """A task's pending writes; a task that has written before repeats itself, or adds to it."""
        for saver in (self.saver, self.model):
            saver.put_writes(stored, writes, *task)

    @rule(thread=st.sampled_from(THREADS))
    def delete(self, thread: str) -> None:
        for saver in (self.saver, self.model):
            saver.delete_thread(self.thread_id(thread))

    # --- what is read ---

    @invariant()
    def everything_is_the_same(self) -> None:
        """All checkpoints whole, newest first, and the newest one of each thread and namespace."""
        assert list(self.saver.list(None)) == self.newest_first(None)
        for thread in THREADS:
            for namespace in NAMESPACES:
                config = self.config(self.thread_id(thread), namespace)
                assert self.saver.get_tuple(config) == self.model.get_tuple(config)

    @rule(stored=checkpoints)
    def get(self, stored: Config) -> None:
        assert self.saver.get_tuple(stored) == self.model.get_tuple(stored)

    @rule(
        thread=st.sampled_from([*THREADS, None]),
        namespace=st.sampled_from([*NAMESPACES, None]),
        named=st.none() | checkpoints,
        before=st.none() | checkpoints,
        limit=st.none() | st.integers(0, 5),
        filter=st.none() | metadata | metadata.map(lambda whole: {"source": whole["source"]}),
    )
    def find(
        self,
        *,
        thread: str | None,
        namespace: str | None,
        named: Config | None,
        before: Config | None,
        limit: Any,
        filter: Any,
    ) -> None:
        """A list with any of the criteria, alone and together."""
        config = thread and self.config(self.thread_id(thread), namespace)
        if config and named:
            config["configurable"]["checkpoint_id"] = named["configurable"]["checkpoint_id"]

        found = list(self.saver.list(config, before=before, limit=limit, filter=filter))

        assert found == self.newest_first(config, before=before, filter=filter)[:limit]

    @rule(stored=checkpoints, channels=st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=3, unique=True))
    def follow_the_ancestors(self, stored: Config, channels: list[str]) -> None:
        """What delta channels are rebuilt from."""
        history = self.saver.get_delta_channel_history(config=stored, channels=channels)

        assert history == self.model.get_delta_channel_history(config=stored, channels=channels)

    # --- how ---

    def thread_id(self, thread: str) -> str:
        return f"{thread} of {self.run}"

    @staticmethod
    def config(thread_id: str, namespace: str | None) -> Config:
        named = {"thread_id": thread_id, "checkpoint_ns": namespace}
        return {"configurable": {key: value for key, value in named.items() if value is not None}}

    def store(
        self,
        parent: Config,
        order: int | None,
        changes: dict[str, Any],
        metadata: dict[str, Any],
        *,
        identity: str | None = None,
        dropped: str | None = None,
        unknown: set[str] | None = None,
        early_writes: list[tuple[str, Any]] | None = None,
    ) -> Config:
        number = next(self.numbers)
        # Ids in any order: those of children need not be greater than their parents'.
        identity = identity or f"{order}-{number:04}"
        self.parents[identity] = parent["configurable"].get("checkpoint_id")
        known = self.model.get_tuple(parent) if self.parents[identity] else None
        checkpoint = empty_checkpoint() | {"v": 4, "id": identity}
        checkpoint["channel_values"] = dict(known.checkpoint["channel_values"]) if known else {}
        checkpoint["channel_versions"] = dict(known.checkpoint["channel_versions"]) if known else {}
        checkpoint["channel_values"].update(changes)
        for channel in {dropped, *(unknown or ())}:
            checkpoint["channel_values"].pop(channel, None)
        new_versions = dict.fromkeys([*changes, *([dropped] if dropped else [])], f"{number:032}.0")
        checkpoint["channel_versions"].update(new_versions)
        stored = {"configurable": {**parent["configurable"], "checkpoint_id": identity}}
        for saver in (self.saver, self.model):
            if early_writes:
                saver.put_writes(stored, early_writes, "early-task", "")
            assert saver.put(parent, checkpoint, metadata, new_versions) == stored
        return stored

    def newest_first(self, config: Config | None, **criteria: Any) -> list[CheckpointTuple]:
        found = list(self.model.list(config, **criteria))
        note(f"the model has {len(found)} checkpoints")
        return sorted(found, key=lambda each: each.checkpoint["id"], reverse=True)


def test_the_saver_holds_what_the_model_holds(sync_saver: PostgresSaver) -> None:
    """Puts, puts again, writes, writes again, forks, deletions and every reading, in any order."""
    run_on(sync_saver, 40)


@pytest.mark.parametrize("examples", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_it_holds_that_on_a_sync_engine_too(sync_psycopg_saver: PostgresSaver, examples: int) -> None:
    """Another driver has its own ways with arrays, bytes and NULLs."""
    run_on(sync_psycopg_saver, examples)


def run_on(sync_saver: PostgresSaver, examples: int) -> None:
    class OnPostgres(Store):
        saver = sync_saver

    run_state_machine_as_test(
        OnPostgres,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
