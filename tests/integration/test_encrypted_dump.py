"""What a thief of the database gets: a dump, every column and the server's files, searched for planted secrets."""

from __future__ import annotations

import operator
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Overwrite, Send, interrupt
from psycopg import sql
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver
from checkpoint_store.embedded import EmbeddedPostgres, _program
from checkpoint_store.encryption import KeyRing
from checkpoint_store.serde import pages

W = [f"planted{number:02}secret{number * 7919 % 1000:03}" for number in range(44)]
N = [91_000_000_000_007 + 1_111 * number for number in range(6)]
SECRETS = [*W, *map(str, N)]
THREAD: Any = {"configurable": {"thread_id": "t1"}}


class Card(BaseModel):
    holder: str
    number: int


@dataclass
class Address:
    street: str


class Inner(TypedDict):
    notes: Annotated[list[Any], operator.add]
    pin: int


def extend(items: list[Any], writes: list[Any]) -> list[Any]:
    return [*items, *[item for write in writes for item in write]]


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    name: str
    balance: int
    rate: float
    scan: bytes
    profile: dict[str, Any]
    card: Card
    address: Address
    notes: Annotated[list[Any], operator.add]
    log: Annotated[list[Any], DeltaChannel(extend, list, snapshot_frequency=3)]
    done: Annotated[list[Any], operator.add]


async def run_agent(saver: AsyncPostgresSaver) -> None:
    """A run with all there is: messages, scalars, objects, a subgraph, fan-out, an error, interrupts, long values."""
    attempts: list[int] = []

    def answer(state: State) -> State:
        call: Any = {"name": "look", "args": {"for": W[0]}, "id": "call"}
        return {
            "messages": [
                AIMessage(W[1], id="ai", additional_kwargs={"reasoning": W[2]}, tool_calls=[call]),
                ToolMessage(W[3], tool_call_id="call", artifact={"raw": W[4]}),
            ],
            "name": W[5],
            "balance": N[0],
            "rate": N[1] + 0.5,
            "scan": W[6].encode(),
            "profile": {"likes": [W[7], {"deep": W[8]}], "id": N[2], "long": [f"{W[9]} {n}" for n in range(3000)]},
            "card": Card(holder=W[10], number=N[3]),
            "address": Address(street=W[11]),
            "log": [W[12]],
        }

    def ask(state: State) -> State:
        return {"notes": [interrupt({"question": W[13]})], "log": [W[14]]}

    def fan_out(state: State) -> list[Send]:
        return [Send("work", {"job": W[15]}), Send("work", {"job": W[16]})]

    def work(job: Any) -> State:
        return {"done": [job["job"], W[17]], "log": [W[18]]}

    def fail(state: State) -> State:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError(W[19])
        return {"done": [W[20]]}

    def remember(state: Inner) -> Inner:
        return {"notes": [W[21]], "pin": N[4]}

    def confirm(state: Inner) -> Inner:
        return {"notes": [interrupt(W[22]), W[23]], "pin": N[5]}

    inner = StateGraph(Inner).add_node(remember).add_node(confirm)
    inner.add_edge(START, "remember").add_edge("remember", "confirm")
    outer = StateGraph(State).add_node(answer).add_node(ask).add_node(work).add_node(fail)
    outer.add_node("inner", inner.compile())
    outer.add_edge(START, "answer").add_edge("answer", "ask").add_conditional_edges("ask", fan_out, ["work"])
    outer.add_edge("work", "inner").add_edge("inner", "fail")
    graph = outer.compile(checkpointer=saver)

    await graph.ainvoke({"messages": [("user", W[24])], "profile": {"asked": W[25]}}, THREAD)
    await graph.ainvoke(Command(resume=W[26]), THREAD)
    with pytest.raises(ValueError, match=W[19]):
        await graph.ainvoke(Command(resume=W[27], update={"name": W[28]}), THREAD)
    await graph.ainvoke(None, THREAD)
    await graph.aupdate_state(THREAD, {"name": W[29], "log": Overwrite([W[30]])}, as_node="fail")
    await graph.ainvoke({"messages": [("user", W[31])], "log": [W[32]]}, THREAD, durability="exit")
    for word in W[33:]:
        await graph.aupdate_state(THREAD, {"messages": [("user", word)], "log": [word]}, as_node="fail")
    values = (await graph.aget_state(THREAD)).values
    assert values["messages"][0].content == W[24]
    assert values["log"][-1] == W[-1]


def pg_dump(url: str, *options: str) -> bytes:
    return subprocess.run([_program("pg_dump"), *options, url], check=True, capture_output=True).stdout


def columns(url: str) -> Iterator[bytes]:
    """Every column of every row of every table, as text and as bytes."""
    with psycopg.connect(url) as conn:
        tables = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            for row in conn.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table))):
                yield from (value if isinstance(value, bytes) else str(value).encode() for value in row)


def files(directory: str) -> Iterator[bytes]:
    """Every file of the server's, write-ahead log included."""
    yield from (file.read_bytes() for file in sorted(Path(directory).rglob("*")) if file.is_file())


def found(secret: str, haystack: bytes) -> bool:
    """Whether a secret is there: as it is, in hex as in a dump's bytea, or as msgpack packs a number."""
    forms = [secret.encode(), secret.encode().hex().encode()]
    if secret.isdigit():
        packed = int(secret).to_bytes(8, "big")
        forms += [packed, packed.hex().encode()]
    return any(form in haystack for form in forms)


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "in clear"])
async def test_no_planted_secret_is_found(encrypted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With encryption none of fifty, in dumps, columns, data files and log of the server; without it, all of them."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 64)
    assert len(set(SECRETS)) == 50
    with EmbeddedPostgres(settings={"wal_compression": "off"}) as server:
        engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": server.url})
        async with AsyncPipeline(engine) as pipe:
            serde = EncryptedSerializer(KeyRing.aes(b"key of the thief that he lacks.."))
            saver = AsyncPostgresSaver(
                engine,
                pipe,
                serde if encrypted else None,
                share_pages=True,
                require_encryption=encrypted,
            )
            await saver.setup()
            await run_agent(saver)
        await engine.dispose()
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute("CHECKPOINT")
            (data,) = conn.execute("SHOW data_directory").fetchone() or ()
        places = {
            "dump": pg_dump(server.url),
            "dump of inserts": pg_dump(server.url, "--inserts"),
            "columns": b"\n".join(columns(server.url)),
            "files": b"\n".join(files(data)),
            "log": server.log.encode(),
        }
    hits = {place: [secret for secret in SECRETS if found(secret, content)] for place, content in places.items()}

    if encrypted:
        assert hits == {place: [] for place in places}
    else:
        # In the files some are compressed away.
        assert hits["dump"] == hits["dump of inserts"] == SECRETS
        assert len(hits["columns"]) == 50
        assert len(hits["files"]) > 40
        assert b"checkpoint_pages" in places["dump"]
