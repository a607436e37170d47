"""What the contenders store: the calls LangGraph makes for a small chat agent, built before any clock starts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.base.id import uuid6

# Stored text is compressed by PostgreSQL, so it has to be about as compressible as prose.
PROSE = (
    "the order was shipped on Monday and should arrive within three working days unless customs holds it back. "
    "Could you please send us your invoice number together with a photograph of the label? We have to find out what "
    "happened; our colleagues in Rotterdam have been told about this and will call you before noon; is that fine?"
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One superstep: a checkpoint to put, and the pending writes of the task that starts from it."""

    config: RunnableConfig
    checkpoint: Checkpoint
    metadata: CheckpointMetadata
    new_versions: ChannelVersions
    writes: Sequence[tuple[str, Any]]
    task_id: str
    task_path: str

    @property
    def put(self) -> tuple[RunnableConfig, Checkpoint, CheckpointMetadata, ChannelVersions]:
        """The arguments of `aput`."""
        return self.config, self.checkpoint, self.metadata, self.new_versions

    @property
    def put_writes(self) -> tuple[RunnableConfig, Sequence[tuple[str, Any]], str, str]:
        """The arguments of `aput_writes`."""
        return self.stored, self.writes, self.task_id, self.task_path

    @property
    def stored(self) -> RunnableConfig:
        """The config that names this step's checkpoint once it is put."""
        return {"configurable": {**self.config["configurable"], "checkpoint_id": self.checkpoint["id"]}}


class Chat:
    """A thread of an agent that keeps its last `window` messages of `length` characters each."""

    def __init__(self, thread_id: str, *, window: int = 20, length: int = 200) -> None:
        self.thread_id = thread_id
        self.length = length
        self._words = PROSE.split()
        self._random = random.Random(thread_id)
        self._messages = [self._message(turn) for turn in range(window)]
        self._turn = window
        self._parent: str | None = None
        self._versions: ChannelVersions = dict.fromkeys(("__start__", "topic", "approved"), self._version(1))
        self._versions |= dict.fromkeys(("messages", "attempts", "branch:to:agent"), self._version(2))

    @property
    def config(self) -> RunnableConfig:
        """The config that asks for the newest checkpoint."""
        return {"configurable": {"thread_id": self.thread_id, "checkpoint_ns": ""}}

    def steps(self, count: int) -> list[Step]:
        """The next `count` supersteps; every one of them has a new message in it."""
        return [self._step() for _ in range(count)]

    def _step(self) -> Step:
        number, before = self._turn, self._versions
        message = self._message(number)
        self._turn += 1
        self._messages = self._following(message)
        changed = ("messages", "attempts", "branch:to:agent")
        new_versions: ChannelVersions = dict.fromkeys(changed, self._version(number))
        self._versions = {**before, **new_versions}
        checkpoint = Checkpoint(
            v=4,
            id=str(uuid6(clock_seq=number)),
            ts=datetime.now(UTC).isoformat(),
            channel_values={
                "messages": self._messages,
                "topic": "where is my order?",
                "attempts": number,
                "approved": False,
                "branch:to:agent": None,
            },
            channel_versions=self._versions,
            versions_seen={
                "__input__": {},
                "__start__": {"__start__": before["__start__"]},
                "agent": {"branch:to:agent": before["branch:to:agent"]},
            },
            updated_channels=sorted(changed),
        )
        configurable = self.config["configurable"]
        if self._parent:
            configurable["checkpoint_id"] = self._parent
        self._parent = checkpoint["id"]
        return Step(
            config={"configurable": configurable, "metadata": {"thread_id": self.thread_id, "tenant": "north"}},
            checkpoint=checkpoint,
            metadata={"source": "loop", "step": number, "parents": {}},
            new_versions=new_versions,
            writes=[("messages", [self._message(number + 1)]), ("attempts", number + 1), ("branch:to:agent", None)],
            task_id=self._uuid(),
            task_path="~__pregel_pull, agent",
        )

    def _following(self, message: BaseMessage) -> list[BaseMessage]:
        """The messages of the next checkpoint."""
        return [*self._messages[1:], message]

    def _message(self, turn: int) -> BaseMessage:
        text = " ".join(self._random.choices(self._words, k=self.length))[: self.length]
        if turn % 2 == 0:
            return HumanMessage(text, id=self._uuid())
        return AIMessage(
            text,
            id=self._uuid(),
            response_metadata={"model_name": "scripted", "finish_reason": "stop"},
            usage_metadata={"input_tokens": 900, "output_tokens": 50, "total_tokens": 950},
        )

    def _version(self, number: int) -> str:
        # The format that both savers' `get_next_version` gives.
        return f"{number:032}.{self._random.random():016}"

    def _uuid(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))
