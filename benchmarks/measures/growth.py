"""A thread that grows: what LangGraph takes for a turn of a long chat, and what the server then has on its disk."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any
from uuid import UUID

import psycopg
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph

from benchmarks.bench import Bench, rotations, undisturbed
from benchmarks.contenders import AsyncContender, InMemory, Ours, Saver, StockConnection, StockPool
from benchmarks.proof import MismatchError, prove
from benchmarks.report import Result, Samples, Series, Target

THREAD = "growing"
MEASURED_AT = 400
"""The turn that the figures are of; a quick run takes its last."""

AROUND = 20
"""So many turns before it, itself included, make its median."""

TO_THE_END = ("ours", "stock connection")
"""Who goes on after it. The others have shown what they take; LangGraph's own would fill the memory."""

SIZES_EVERY = 20
"""Every so many turns the sizes are asked for, between turns."""

OURS = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_pages", "checkpoint_threads")


@dataclass(frozen=True)
class Disk:
    """How much a database stores: values as the saver sent them, and all its tables with indexes and TOAST, in MB."""

    values: float
    everything: float


class Growing:
    """One contender's chat: a LangGraph agent whose model answers from a script."""

    def __init__(self, contender: AsyncContender, saver: Saver, url: str) -> None:
        self.contender = contender
        self.saver = saver
        self.url = url
        self.times: list[float] = []
        self.sizes: list[tuple[float, float]] = []
        self._answer: BaseMessage | None = None
        graph = StateGraph(MessagesState).add_node("agent", self._agent).add_edge(START, "agent")
        self._graph: Any = graph.compile(checkpointer=saver)
        self._config: RunnableConfig = {"configurable": {"thread_id": THREAD}}

    async def turn(self, question: BaseMessage, answer: BaseMessage) -> None:
        """One turn of the chat, timed."""
        self._answer = answer
        started = time.perf_counter()
        await self._graph.ainvoke({"messages": [question]}, self._config)
        self.times.append((time.perf_counter() - started) * 1e3)

    async def check(self, said: Sequence[BaseMessage]) -> None:
        """Raise `MismatchError` unless the thread has these messages."""
        state = await self._graph.aget_state(self._config)
        if state.values["messages"] != said:
            msg = f"{self.contender.name}: the chat is not what was said"
            raise MismatchError(msg)

    async def _agent(self, state: MessagesState) -> dict[str, Any]:  # noqa: ARG002 - the script says what comes next
        return {"messages": [self._answer]}


def measure(bench: Bench) -> list[Result | Series]:
    """Time per turn and bytes stored, at one turn and as they grow."""
    return asyncio.run(_measure(bench))


async def _measure(bench: Bench) -> list[Result | Series]:
    turns = bench.pick(quick=50, full=600)
    at = min(MEASURED_AT, turns)
    contenders = [Ours(), StockConnection(), StockPool(), InMemory()]
    disks: dict[AsyncContender, Disk] = {}
    script, said = _script(), list[BaseMessage]()
    async with AsyncExitStack() as stack:
        chats = [await _open(bench, stack, contender) for contender in contenders]
        for number, order in enumerate(rotations(chats, turns), start=1):
            question, answer = next(script)
            said += question, answer
            with undisturbed():
                for chat in order:
                    if number <= at or chat.contender.name in TO_THE_END:
                        await chat.turn(question, answer)
            if number == at:
                for chat in chats:
                    await chat.check(said)
                    if chat.contender.role != "reference":
                        disks[chat.contender] = _disk(chat.url, settled=True)
            if number % SIZES_EVERY == 0:
                for chat in chats:
                    if len(chat.times) == number:
                        chat.sizes.append((number, _held(chat)))
        for chat in chats:
            if len(chat.times) == turns:
                await chat.check(said)
    times: Samples = {chat.contender: [[ms] for ms in chat.times[max(0, at - AROUND) : at]] for chat in chats}
    values: Samples = {contender: [[disk.values]] for contender, disk in disks.items()}
    everything: Samples = {contender: [[disk.everything]] for contender, disk in disks.items()}
    counts = not bench.quick
    return [
        Result(
            measure=f"turn {at} of a chat",
            unit="ms",
            samples=times,
            targets={"ours": Target(at_most=0.40)} if counts else {},
            reference_targets={"ours": Target(at_most=0.90)} if counts else {},
        ),
        Result(
            measure=f"chat of {at} turns: blobs and pages",
            unit="MB",
            samples=values,
            targets={"ours": Target(at_most=1 / 50)} if counts else {},
        ),
        Result(
            measure=f"chat of {at} turns: everything on disk",
            unit="MB",
            samples=everything,
            targets={"ours": Target(at_most=1 / 22)} if counts else {},
        ),
        Series(
            name="growth: time",
            x="turns",
            unit="ms per turn",
            points={chat.contender: list(enumerate(chat.times, start=1)) for chat in chats},
        ),
        Series(name="growth: size", x="turns", unit="MB", points={chat.contender: chat.sizes for chat in chats}),
    ]


async def _open(bench: Bench, stack: AsyncExitStack, contender: AsyncContender) -> Growing:
    url = bench.database(stack, f"growth {contender.name}")
    saver = await stack.enter_async_context(contender.open(url))
    # LangGraph's own holds only what LangGraph gives it: not channels that the first checkpoint calls old.
    if contender.role != "reference":
        await prove(saver)
        await saver.adelete_thread("proof")
    return Growing(contender, saver, url)


def _script() -> Iterator[tuple[BaseMessage, BaseMessage]]:
    """Questions of 30 words and answers of 120, without end."""
    # Running text, because how well it compresses decides what the stock saver's disk holds: PostgreSQL makes 2.4 bytes
    # of this documentation into one, and 3.6 of a chat whose words are drawn from a short list.
    words, chance = itertools.cycle(" ".join(topics.values()).split()), random.Random(THREAD)

    def text(count: int) -> str:
        return " ".join(itertools.islice(words, count))

    def name() -> str:
        return str(UUID(int=chance.getrandbits(128), version=4))

    while True:
        metadata = {"model_name": "scripted", "finish_reason": "stop"}
        usage = {"input_tokens": 900, "output_tokens": 160, "total_tokens": 1_060}
        answer = AIMessage(text(120), id=name(), response_metadata=metadata, usage_metadata=usage)
        yield HumanMessage(text(30), id=name()), answer


def _held(chat: Growing) -> float:
    """What a chat takes just now, in MB: on disk, or in the memory of the process."""
    if chat.contender.role == "reference":
        saver: Any = chat.saver
        return sum(len(blob) for _, blob in saver.blobs.values()) / 1e6
    return _disk(chat.url).everything


def _disk(url: str, *, settled: bool = False) -> Disk:
    """Ask the server; `settled` has it tidy up before."""
    with psycopg.connect(url, autocommit=True) as conn:
        tables = [table for table in OURS if _cell(conn, f"SELECT to_regclass('{table}') IS NOT NULL")]
        if settled:
            conn.execute("VACUUM (ANALYZE)")
            conn.execute("CHECKPOINT")
        columns = {"checkpoint_blobs": "blob", "checkpoint_pages": "page"}
        values = sum(
            _cell(conn, f"SELECT coalesce(sum(octet_length({column})), 0)::float8 FROM {table}")
            for table, column in columns.items()
            if settled and table in tables
        )
        everything = sum(_cell(conn, f"SELECT pg_total_relation_size('{table}')::float8") for table in tables)
    return Disk(values / 1e6, everything / 1e6)


def _cell(conn: psycopg.Connection[Any], query: str) -> Any:
    row = conn.execute(query).fetchone()
    assert row
    return row[0]
