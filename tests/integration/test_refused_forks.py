"""`refuse_forks`: a checkpoint is stored only if its parent is the newest, whoever else writes at the same time."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypedDict

import psycopg
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import START, StateGraph
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver
from checkpoint_store.errors import Conflict, WrongTransaction
from checkpoint_store.serde import pages


def named(checkpoint_id: str | None = None, thread_id: str = "t1", namespace: str = "") -> RunnableConfig:
    named = {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}
    return {"configurable": {key: value for key, value in named.items() if value is not None}}


def checkpoint(identity: str, value: Any = None) -> Any:
    """A checkpoint with a value that is stored as a blob under a version of its own."""
    return {
        **empty_checkpoint(),
        "id": identity,
        "channel_values": {"items": [identity] if value is None else value},
        "channel_versions": {"items": identity},
    }


async def put(saver: AsyncPostgresSaver, parent: str | None, identity: str, value: Any = None, **where: str) -> Any:
    new = checkpoint(identity, value)
    return await saver.aput(named(parent, **where), new, {}, new["channel_versions"])


async def stored(saver: AsyncPostgresSaver, **where: str) -> list[tuple[str, str | None]]:
    """Ids and parents of what is there, oldest first."""
    found = [item async for item in saver.alist(named(**where))]
    return [
        (item.checkpoint["id"], item.parent_config and item.parent_config["configurable"]["checkpoint_id"])
        for item in reversed(found)
    ]


@pytest.fixture(params=["plain", "pipeline", "pages", "bound"])
async def careful(
    request: pytest.FixtureRequest, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[AsyncPostgresSaver]:
    """A saver that refuses forks, in each way of storing."""
    if request.param == "pages":
        monkeypatch.setattr(pages, "LARGE_BYTES", 0)
    pipe = AsyncPipeline(engine) if request.param == "pipeline" else False
    saver = AsyncPostgresSaver(engine, pipe, share_pages=request.param == "pages", refuse_forks=True)
    if request.param != "bound":
        yield saver
        return
    async with engine.begin() as conn:
        yield saver.bind(conn)


@pytest.fixture
def sql(url: str) -> Iterator[psycopg.Connection]:
    """A connection of the test's own."""
    with psycopg.connect(url, autocommit=True) as conn:
        yield conn


async def test_a_second_child_is_refused(careful: AsyncPostgresSaver) -> None:
    """The error names both, nothing of the checkpoint was written, and the thread goes on."""
    await put(careful, None, "1")
    await put(careful, "1", "2")
    with pytest.raises(Conflict, match="'t1', namespace '': checkpoint '3' continues '1', but the newest is '2'"):
        await put(careful, "1", "3", ["refused"])

    assert await stored(careful) == [("1", None), ("2", "1")]
    # Under the same version: had the blob been written, it would stay.
    await put(careful, "2", "3")
    found = [(item.checkpoint["id"], item.checkpoint["channel_values"]) async for item in careful.alist(named())]
    assert found == [(identity, {"items": [identity]}) for identity in ("3", "2", "1")]


async def test_a_first_checkpoint_needs_an_empty_namespace(careful: AsyncPostgresSaver) -> None:
    """Of two runs that both begin a thread the second one is told; other namespaces and threads are another matter."""
    await put(careful, None, "1")
    with pytest.raises(Conflict, match="continues None, but the newest is '1'"):
        await put(careful, None, "2")
    await put(careful, None, "2", namespace="sub")
    await put(careful, None, "2", thread_id="t2")

    assert await stored(careful) == [("1", None)]
    assert await stored(careful, namespace="sub") == await stored(careful, thread_id="t2") == [("2", None)]


async def test_a_parent_has_to_be_stored(careful: AsyncPostgresSaver) -> None:
    """A run whose thread was deleted under it does not bring half of it back."""
    await put(careful, None, "1")
    await careful.adelete_thread("t1")
    with pytest.raises(Conflict, match="continues '1', but the newest is None"):
        await put(careful, "1", "2")

    assert await stored(careful) == []


async def test_the_same_put_again_is_no_conflict(careful: AsyncPostgresSaver) -> None:
    """A call that is repeated because its answer was lost has done what it should, whatever came after it."""
    for _ in range(2):
        await put(careful, None, "1")
        await put(careful, "1", "2")
    await put(careful, "2", "3")
    await put(careful, "1", "2")
    with pytest.raises(Conflict, match="checkpoint '2' continues None, but the newest is '3'"):
        await put(careful, None, "2")

    assert await stored(careful) == [("1", None), ("2", "1"), ("3", "2")]


async def test_a_child_that_would_not_be_the_newest_is_refused(careful: AsyncPostgresSaver) -> None:
    """Readers go by ids: where the clocks of two machines differ, a step would be lost in silence."""
    await put(careful, None, "2")
    with pytest.raises(Conflict, match="'1' has an id that does not sort after that of '2', which it continues"):
        await put(careful, "2", "1")

    assert await stored(careful) == [("2", None)]


async def test_other_savers_fork_as_before(engine: AsyncEngine) -> None:
    """The check is each saver's own, and off by default."""
    careful, saver = AsyncPostgresSaver(engine, refuse_forks=True), AsyncPostgresSaver(engine)
    await put(careful, None, "1")
    await put(saver, "1", "2")
    await put(saver, "1", "3")

    assert await stored(saver) == [("1", None), ("2", "1"), ("3", "1")]


async def test_of_many_at_once_one_is_stored(engine: AsyncEngine) -> None:
    """Also where they share a commit: each gets its own answer, and calls for other threads don't notice."""
    pipe = AsyncPipeline(engine)
    careful, plain = AsyncPostgresSaver(engine, pipe, refuse_forks=True), AsyncPostgresSaver(engine, pipe)
    parent = None
    for turn in range(10):
        children = [f"{turn}-{number}" for number in range(12)]
        outcomes = await asyncio.gather(
            *[put(careful, parent, child) for child in children],
            *[put(plain, parent, child, thread_id=child) for child in children],
            return_exceptions=True,
        )
        assert Counter(map(type, outcomes[:12])) == {dict: 1, Conflict: 11}
        assert Counter(map(type, outcomes[12:])) == {dict: 12}
        newest, before = (await stored(careful))[-1]
        assert before == parent
        assert outcomes[children.index(newest)] == named(newest)
        parent = newest

    assert len(await stored(careful)) == 10


async def test_a_chain_that_shares_a_commit_is_no_conflict(engine: AsyncEngine) -> None:
    """Calls for one thread are stored in their order, each seeing the one before."""
    saver = AsyncPostgresSaver(engine, AsyncPipeline(engine), refuse_forks=True)
    chain = [str(number) for number in range(10, 40)]
    await asyncio.gather(*[put(saver, parent, child) for parent, child in zip([None, *chain], chain, strict=False)])

    assert await stored(saver) == list(zip(chain, [None, *chain[:-1]], strict=True))


async def test_a_value_refused_with_its_pages_can_be_stored_again(engine: AsyncEngine) -> None:
    """What is remembered of pages is what was committed: after a conflict they are sent again."""
    savers = [AsyncPostgresSaver(engine, share_pages=True, refuse_forks=True) for _ in range(2)]
    first, other = ([f"{line} of {name} " * 40 for line in range(300)] for name in ("the first", "another"))
    await put(savers[0], None, "1", first)
    await put(savers[0], "1", "2", first)
    with pytest.raises(Conflict):
        await put(savers[1], "1", "3", other)
    await put(savers[1], "2", "3", other)
    found = await savers[0].aget(named("3"))

    assert found is not None
    assert found["channel_values"]["items"] == other


WRITER = """
import sys
from checkpoint_store import PostgresSaver
from checkpoint_store.errors import Conflict
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

url, careful, rounds = sys.argv[1], sys.argv[2] == "careful", int(sys.argv[3])
thread = {"configurable": {"thread_id": "t1", "checkpoint_ns": ""}}
acknowledged, conflicts = [], 0
with PostgresSaver.from_conn_string(url, refuse_forks=careful, pipeline=sys.argv[4] == "pipeline") as saver:
    saver.get_tuple(thread)
    print("ready", flush=True)
    sys.stdin.readline()
    while len(acknowledged) < rounds:
        found = saver.get_tuple(thread)
        new = {**empty_checkpoint(), "id": str(uuid6()), "channel_values": {"items": [1]}}
        new["channel_versions"] = {"items": new["id"]}
        try:
            saver.put(found.config if found else thread, new, {}, new["channel_versions"])
        except Conflict:
            conflicts += 1
        else:
            acknowledged.append(new["id"])
print(" ".join(acknowledged))
print(conflicts)
"""


def write_at_once(url: str, *options: str) -> tuple[list[str], int]:
    """Have two processes write to one thread; returns the ids they believe stored, and how often they were refused."""
    command = [sys.executable, "-c", WRITER, url, *options]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": dict(os.environ)}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as other:
        for process in (one, other):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in (one, other):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=300)[0].splitlines() for process in (one, other)]
    return [identity for output in outputs for identity in output[0].split()], sum(int(output[1]) for output in outputs)


@pytest.mark.parametrize("pipeline", ["plain", "pipeline"])
async def test_two_processes_make_one_chain(url: str, saver: AsyncPostgresSaver, pipeline: str) -> None:
    """Every acknowledged checkpoint is there, and each is the only child of its parent: no fork, told or untold."""
    acknowledged, conflicts = write_at_once(url, "careful", "100", pipeline)
    chain = await stored(saver)

    assert conflicts > 0, "they never met"
    assert [identity for identity, _ in chain] == sorted(acknowledged)
    assert [parent for _, parent in chain] == [None, *[identity for identity, _ in chain[:-1]]]


@pytest.mark.slow
async def test_two_processes_fork_without_it(url: str, saver: AsyncPostgresSaver) -> None:
    """The test above can fail: two that don't look fork the thread in silence."""
    write_at_once(url, "careless", "100", "plain")
    children = Counter(parent for _, parent in await stored(saver))

    assert max(children.values()) > 1


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"])
async def test_a_transaction_that_cannot_tell_is_refused(engine: AsyncEngine, level: Any) -> None:
    """One that sees what there was when it began, or none at all, would let forks through."""
    careful = AsyncPostgresSaver(engine, refuse_forks=True)
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level=level)
        with pytest.raises(WrongTransaction, match=f"refuse_forks can't work .* {level}"):
            await put(careful.bind(conn), None, "1")
        if level != "AUTOCOMMIT":
            await conn.rollback()

    assert await stored(careful) == []


async def test_a_transaction_of_the_callers_waits_for_the_other(engine: AsyncEngine) -> None:
    """What one has not committed yet counts for the other, who waits to see what becomes of it."""
    careful = AsyncPostgresSaver(engine, refuse_forks=True)
    await put(careful, None, "1")
    for ending in ("rollback", "commit"):
        async with engine.connect() as conn:
            await put(careful.bind(conn), "1", "2")
            waiting = asyncio.ensure_future(put(careful, "1", "3" if ending == "commit" else "2"))
            done, _ = await asyncio.wait([waiting], timeout=0.2)
            assert not done
            await getattr(conn, ending)()
        if ending == "rollback":
            await waiting
            await careful.adelete_thread("t1")
            await put(careful, None, "1")
        else:
            with pytest.raises(Conflict, match="the newest is '2'"):
                await waiting

    assert await stored(careful) == [("1", None), ("2", "1")]


def test_a_sync_engine_refuses_forks_too(url: str) -> None:
    """The same check, on the caller's psycopg."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    saver = PostgresSaver(engine, refuse_forks=True)
    for parent, identity in ((None, "1"), ("1", "2")):
        saver.put(named(parent), checkpoint(identity), {}, {"items": identity})
    with pytest.raises(Conflict):
        saver.put(named("1"), checkpoint("3"), {}, {"items": "3"})
    engine.dispose()


class State(TypedDict):
    count: int


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_run_that_was_overtaken_is_told(engine: AsyncEngine, durability: Any) -> None:
    """A worker comes back to a thread that another one has continued: its run ends with the conflict, that's all."""
    saver = AsyncPostgresSaver(engine, refuse_forks=True)
    is_in, may_go = asyncio.Event(), asyncio.Event()

    async def work(state: State) -> State:
        if state["count"] == 10:
            is_in.set()
            await may_go.wait()
        return {"count": state["count"] + 1}

    graph = StateGraph(State).add_node(work).add_edge(START, "work").compile(checkpointer=saver)
    assert await graph.ainvoke({"count": 0}, named(), durability=durability) == {"count": 1}
    overtaken = asyncio.ensure_future(graph.ainvoke({"count": 10}, named(), durability=durability))
    await is_in.wait()
    if durability == "async":  # the step is still being stored, maybe
        while (await graph.aget_state(named())).metadata["step"] != 3:  # type: ignore[index] # noqa: ASYNC110
            await asyncio.sleep(0)
    assert await graph.ainvoke({"count": 20}, named(), durability=durability) == {"count": 21}
    may_go.set()
    with pytest.raises(Conflict, match="thread 't1', namespace ''"):
        await overtaken

    assert (await graph.aget_state(named())).values == {"count": 21}
    assert max(Counter(parent for _, parent in await stored(saver)).values()) == 1
    assert await graph.ainvoke({"count": 30}, named(), durability=durability) == {"count": 31}


async def test_time_travel_is_refused(engine: AsyncEngine) -> None:
    """It forks on purpose: a graph that does so is compiled on a saver without the check."""
    saver = AsyncPostgresSaver(engine, refuse_forks=True)
    builder = StateGraph(State).add_node("work", lambda state: {"count": state["count"] + 1}).add_edge(START, "work")
    graph = builder.compile(checkpointer=saver)
    await graph.ainvoke({"count": 0}, named())
    old = [item async for item in graph.aget_state_history(named())][-1]
    with pytest.raises(Conflict):
        await graph.aupdate_state(old.config, {"count": 5}, as_node="work")
    await graph.aupdate_state(named(), {"count": 5}, as_node="work")

    free = builder.compile(checkpointer=AsyncPostgresSaver(engine))
    await free.aupdate_state(old.config, {"count": 7}, as_node="work")
