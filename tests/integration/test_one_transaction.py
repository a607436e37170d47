"""A LangGraph user's way: the agent's run and the application's rows are one transaction, or none of it happened."""

from __future__ import annotations

import asyncio
import operator
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from itertools import takewhile
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langgraph.func import entrypoint
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt
from sqlalchemy import Engine, create_engine, event, func, make_url, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from checkpoint_store import AsyncPostgresSaver, PostgresSaver

THREAD: Any = {"configurable": {"thread_id": "table 7"}}


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    dish: Mapped[str]


class Chat(TypedDict):
    said: Annotated[list[str], operator.add]


current: ContextVar[Any] = ContextVar("current")
"""The request's session, as web frameworks keep it."""


@pytest.fixture
def orders(url: str) -> Iterator[psycopg.Connection[Any]]:
    """The application's table, and a connection that sees what is committed."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE TABLE orders (id serial PRIMARY KEY, dish text)")
        yield conn


@pytest.fixture
def sync_engine(url: str) -> Iterator[Engine]:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


def committed(conn: psycopg.Connection[Any]) -> tuple[int, int]:
    """How many orders and how many checkpoints everybody can see."""
    return conn.execute("SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM checkpoints)").fetchone()  # type: ignore[return-value]


async def cook(state: Chat) -> Chat:
    """Uses the request's session as any code of the application's would: adds, flushes, queries."""
    session: AsyncSession = current.get()
    for dish in ("soup", "bread"):
        session.add(Order(dish=dish))
        await session.flush()
    return {"said": [f"order {await session.scalar(select(func.count()).select_from(Order))}"]}


def cook_blocking(state: Chat) -> Chat:
    session: Session = current.get()
    for dish in ("soup", "bread"):
        session.add(Order(dish=dish))
        session.flush()
    return {"said": [f"order {session.scalar(select(func.count()).select_from(Order))}"]}


def talk(state: Chat) -> Chat:
    return {"said": [f"{len(state['said'])} so far"]}


def kitchen(saver: Any, *nodes: Any) -> Any:
    graph = StateGraph(Chat).add_sequence([(f"step {number}", node) for number, node in enumerate(nodes)])
    return graph.add_edge(START, "step 0").compile(checkpointer=saver)


# --- the way ---


@pytest.mark.parametrize("commits", [True, False])
async def test_a_run_is_part_of_the_requests_transaction(
    engine: AsyncEngine, orders: psycopg.Connection[Any], commits: bool
) -> None:
    """The graph is compiled once; each request runs a copy with the saver bound to its session."""
    saver = AsyncPostgresSaver(engine)
    graph = kitchen(saver, talk, cook, talk, cook)
    async with AsyncSession(engine) as session:
        current.set(session)
        session.add(Order(dish="by the request itself"))
        bound = graph.copy({"checkpointer": saver.bind(session)})
        state = await bound.ainvoke({"said": ["hello"]}, THREAD, durability="exit")
        assert state["said"] == ["hello", "1 so far", "order 3", "3 so far", "order 5"]
        assert (await bound.aget_state(THREAD)).values == state
        assert committed(orders) == (0, 0)
        await (session.commit if commits else session.rollback)()

    assert committed(orders) == ((5, 1) if commits else (0, 0))
    assert (await graph.aget_state(THREAD)).values == (state if commits else {})


@pytest.mark.parametrize("commits", [True, False])
def test_a_sync_run_is_part_of_the_requests_transaction(
    sync_engine: Engine, orders: psycopg.Connection[Any], commits: bool
) -> None:
    """The same without an event loop."""
    saver = PostgresSaver(sync_engine)
    graph = kitchen(saver, talk, cook_blocking, talk, cook_blocking)
    with Session(sync_engine) as session:
        current.set(session)
        session.add(Order(dish="by the request itself"))
        bound = graph.copy({"checkpointer": saver.bind(session)})
        state = bound.invoke({"said": ["hello"]}, THREAD, durability="exit")
        assert state["said"] == ["hello", "1 so far", "order 3", "3 so far", "order 5"]
        assert bound.get_state(THREAD).values == state
        assert committed(orders) == (0, 0)
        (session.commit if commits else session.rollback)()

    assert committed(orders) == ((5, 1) if commits else (0, 0))
    assert graph.get_state(THREAD).values == (state if commits else {})


async def test_requests_that_share_a_graph_do_not_meet(engine: AsyncEngine, orders: psycopg.Connection[Any]) -> None:
    """Thirty at once, each with its own session, thread and end."""
    saver = AsyncPostgresSaver(engine)
    graph = kitchen(saver, cook, talk)

    async def request(number: int) -> None:
        async with AsyncSession(engine) as session:
            current.set(session)
            thread: Any = {"configurable": {"thread_id": f"table {number}"}}
            bound = graph.copy({"checkpointer": saver.bind(session)})
            await bound.ainvoke({"said": [f"hello from {number}"]}, thread, durability="exit")
            await (session.commit if number % 2 else session.rollback)()

    await asyncio.gather(*map(request, range(30)))

    assert committed(orders) == (30, 15)
    for number in range(30):
        state = await graph.aget_state({"configurable": {"thread_id": f"table {number}"}})
        assert state.values.get("said", [""])[0] == (f"hello from {number}" if number % 2 else "")


async def test_a_run_that_fails_leaves_the_decision_to_the_request(
    engine: AsyncEngine, orders: psycopg.Connection[Any]
) -> None:
    """Rolled back, it has not happened; committed, the thread shows where it failed and goes on from there."""
    failing = True

    def fail_once(state: Chat) -> Chat:
        if failing:
            raise RuntimeError("out of bread")
        return {"said": ["done"]}

    saver = AsyncPostgresSaver(engine)
    graph = kitchen(saver, cook, fail_once)
    for commits in (False, True):
        async with AsyncSession(engine) as session:
            current.set(session)
            bound = graph.copy({"checkpointer": saver.bind(session)})
            with pytest.raises(RuntimeError, match="out of bread"):
                await bound.ainvoke({"said": ["hello"]}, THREAD, durability="exit")
            await (session.commit if commits else session.rollback)()
        assert committed(orders) == ((2, 1) if commits else (0, 0))

    failing = False
    state = await graph.ainvoke(None, THREAD)
    assert state["said"] == ["hello", "order 2", "done"]


async def test_an_interrupt_is_answered_in_another_transaction(
    engine: AsyncEngine, orders: psycopg.Connection[Any]
) -> None:
    """An answer that is rolled back was not given: the question is still open."""

    def ask(state: Chat) -> Chat:
        return {"said": [interrupt("with salt?")]}

    saver = AsyncPostgresSaver(engine)
    graph = kitchen(saver, cook, ask, cook)
    steps: list[tuple[Any, bool, int]] = [
        ({"said": ["hello"]}, True, 2),
        (Command(resume="no"), False, 2),
        (Command(resume="yes"), True, 4),
    ]
    for given, commits, expected in steps:
        async with AsyncSession(engine) as session:
            current.set(session)
            bound = graph.copy({"checkpointer": saver.bind(session)})
            await bound.ainvoke(given, THREAD, durability="exit")
            await (session.commit if commits else session.rollback)()
        assert committed(orders)[0] == expected
        waiting = (await graph.aget_state(THREAD)).tasks
        assert bool(waiting) == (expected == 2)

    assert (await graph.aget_state(THREAD)).values["said"] == ["hello", "order 2", "yes", "order 4"]


async def test_subgraphs_store_in_the_same_transaction(engine: AsyncEngine, orders: psycopg.Connection[Any]) -> None:
    """They get the bound saver from the graph that runs them."""

    def ask(state: Chat) -> Chat:
        return {"said": [interrupt("with salt?")]}

    saver = AsyncPostgresSaver(engine)
    graph = kitchen(saver, talk, kitchen(None, cook, ask), talk)
    async with AsyncSession(engine) as session:
        current.set(session)
        bound = graph.copy({"checkpointer": saver.bind(session)})
        await bound.ainvoke({"said": ["hello"]}, THREAD, durability="exit")
        namespaces = {
            found.config["configurable"]["checkpoint_ns"] async for found in saver.bind(session).alist(THREAD)
        }
        assert len(namespaces) == 2
        assert committed(orders) == (0, 0)
        await session.rollback()
    assert committed(orders) == (0, 0)


async def test_the_functional_api_takes_a_bound_saver_too(engine: AsyncEngine, orders: psycopg.Connection[Any]) -> None:
    """An entrypoint is a graph like others."""
    saver = AsyncPostgresSaver(engine)

    @entrypoint(checkpointer=saver)
    async def serve(dish: str, *, previous: Any = None) -> int:
        current.get().add(Order(dish=dish))
        return (previous or 0) + 1

    for commits, expected in ((False, 1), (True, 1), (True, 2)):
        async with AsyncSession(engine) as session:
            current.set(session)
            bound = serve.copy({"checkpointer": saver.bind(session)})
            assert await bound.ainvoke("soup", THREAD, durability="exit") == expected
            await (session.commit if commits else session.rollback)()

    assert committed(orders) == (2, 2)


async def test_only_the_step_that_acts_need_be_in_the_transaction(
    engine: AsyncEngine, orders: psycopg.Connection[Any]
) -> None:
    """The steps before it are stored as they are done, holding no connection; what they said survives a rollback."""
    saver = AsyncPostgresSaver(engine)
    graph = StateGraph(Chat).add_sequence([("think", talk), ("act", cook)]).add_edge(START, "think")
    compiled = graph.compile(checkpointer=saver, interrupt_before=["act"])
    await compiled.ainvoke({"said": ["hello"]}, THREAD)
    stored = committed(orders)[1]

    for commits in (False, True):
        async with AsyncSession(engine) as session:
            current.set(session)
            bound = compiled.copy({"checkpointer": saver.bind(session)})
            assert (await bound.ainvoke(None, THREAD, durability="exit"))["said"] == ["hello", "1 so far", "order 2"]
            await (session.commit if commits else session.rollback)()
        assert committed(orders) == ((2, stored + 1) if commits else (0, stored))


async def test_an_outcome_is_noted_with_the_rows(engine: AsyncEngine, orders: psycopg.Connection[Any]) -> None:
    """`update_state` on a bound copy is one checkpoint in the caller's transaction."""
    saver = AsyncPostgresSaver(engine)
    graph = kitchen(saver, talk)
    await graph.ainvoke({"said": ["hello"]}, THREAD)
    stored = committed(orders)[1]
    for commits in (False, True):
        async with AsyncSession(engine) as session:
            session.add(Order(dish="soup"))
            bound = graph.copy({"checkpointer": saver.bind(session)})
            await bound.aupdate_state(THREAD, {"said": ["ordered"]})
            await (session.commit if commits else session.rollback)()
        assert committed(orders) == ((1, stored + 1) if commits else (0, stored))


# --- when the saver is called ---


@pytest.mark.parametrize(("durability", "checkpoints"), [("exit", 1), ("sync", 4), ("async", 4)])
async def test_nodes_that_leave_the_session_alone_run_in_any_durability(
    engine: AsyncEngine, orders: psycopg.Connection[Any], durability: Any, checkpoints: int
) -> None:
    """Each stores its checkpoints, and none before the request's commit."""
    saver = AsyncPostgresSaver(engine)
    graph = kitchen(saver, talk, talk)
    async with AsyncSession(engine) as session:
        session.add(Order(dish="soup"))
        bound = graph.copy({"checkpointer": saver.bind(session)})
        await bound.ainvoke({"said": ["hello"]}, THREAD, durability=durability)
        assert committed(orders) == (0, 0)
        await session.commit()

    assert committed(orders) == (1, checkpoints)


async def overlaps(engine: AsyncEngine, durability: Any, *, patience: int) -> bool:
    """Whether a statement of the saver's is executed while a node is at work, which waits for that for a while."""
    at_work = overlapping = False

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def before(*args: Any) -> None:
        nonlocal overlapping
        overlapping = overlapping or at_work

    async def node(state: Chat) -> Chat:
        nonlocal at_work
        at_work = True
        for _ in range(patience):
            if overlapping:
                break
            await asyncio.sleep(0)
        at_work = False
        return {"said": ["done"]}

    saver = AsyncPostgresSaver(engine)
    async with AsyncSession(engine) as session:
        bound = kitchen(saver, node, node).copy({"checkpointer": saver.bind(session)})
        await bound.ainvoke({"said": ["hello"]}, THREAD, durability=durability)
    return overlapping


async def test_with_durability_exit_no_node_meets_the_saver(engine: AsyncEngine) -> None:
    """It reads before the first node and stores after the last: so nodes may use the session that it is bound to."""
    assert not await overlaps(engine, "exit", patience=2_000)


async def test_with_durability_async_a_node_does_meet_the_saver(engine: AsyncEngine) -> None:
    """LangGraph's default stores while the next node runs; a session can't serve both."""
    assert await overlaps(engine, "async", patience=1_000_000)


# --- SIGKILL ---

KITCHEN = """
    import asyncio
    import operator
    import os
    import sys
    from typing import Annotated, TypedDict

    from langgraph.graph import START, StateGraph
    from sqlalchemy import create_engine, insert, make_url, table, column
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
    from sqlalchemy.orm import Session

    from checkpoint_store import AsyncPostgresSaver, PostgresSaver

    URL = make_url(sys.argv[1])
    orders = table("orders", column("dish"))

    class Chat(TypedDict):
        said: Annotated[list[str], operator.add]

    def node(state):
        return {"said": ["x" * 30_000]}

    graph = StateGraph(Chat).add_sequence([("one", node), ("two", node), ("three", node)]).add_edge(START, "one")

    def say(*words):
        print(*words, flush=True)

    async def serve(run):
        engine = create_async_engine(
            URL.set(drivername="postgresql+asyncpg"), connect_args={"server_settings": {"application_name": "kitchen"}}
        )
        saver = AsyncPostgresSaver(engine)
        compiled = graph.compile(checkpointer=saver)
        for number in range(1000):
            name = f"{run}-{number}"
            durability = ("exit", "sync", "async")[number % 3]
            async with engine.connect() as conn, conn.begin():
                await conn.execute(insert(orders).values(dish=name))
                say("inserted", name)
                bound = compiled.copy({"checkpointer": saver.bind(conn)})
                await bound.ainvoke({"said": []}, {"configurable": {"thread_id": name}}, durability=durability)
                say("committing", name)
            say("committed", name)

    def serve_blocking(run):
        engine = create_engine(
            URL.set(drivername="postgresql+psycopg"), connect_args={"application_name": "kitchen"}
        )
        saver = PostgresSaver(engine)
        compiled = graph.compile(checkpointer=saver)
        for number in range(1000):
            name = f"{run}-{number}"
            durability = ("exit", "sync", "async")[number % 3]
            with Session(engine) as session, session.begin():
                session.execute(insert(orders).values(dish=name))
                say("inserted", name)
                bound = compiled.copy({"checkpointer": saver.bind(session)})
                bound.invoke({"said": []}, {"configurable": {"thread_id": name}}, durability=durability)
                say("committing", name)
            say("committed", name)

    # A process of its own for each run, without importing everything again.
    for line in sys.stdin:
        kind, run = line.split()
        if (child := os.fork()) == 0:
            asyncio.run(serve(run)) if kind == "async" else serve_blocking(run)
        say("started", child)
        _, status = os.waitpid(child, 0)
        say("killed by", os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize(
    ("kind", "moments"), [("async", 20), ("sync", 5), pytest.param("sync", 20, marks=pytest.mark.slow)]
)
def test_a_killed_process_leaves_both_or_neither(
    url: str, orders: psycopg.Connection[Any], kind: str, moments: int
) -> None:
    """SIGKILL at random moments between the INSERT of an order and the COMMIT, and after it."""
    chance = random.Random()
    last_words: Counter[str] = Counter()
    command = [sys.executable, "-c", textwrap.dedent(KITCHEN), url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as kitchen:
        assert kitchen.stdin is not None
        assert kitchen.stdout is not None
        for run in range(moments):
            kitchen.stdin.write(f"{kind} {run}\n")
            kitchen.stdin.flush()
            lines = iter(kitchen.stdout.readline, "")
            child = next(int(line.split()[1]) for line in lines if line.startswith("started"))
            # The first transaction has warmed it up; this or a later one is hit.
            moment = chance.choice(["inserted", "inserted", "inserted", "committing"])
            next(line for line in lines if line.startswith(moment) and not line.endswith("-0\n"))
            # There is nothing to wait for: any moment will do.
            time.sleep(chance.uniform(0, 0.05 if moment == "inserted" else 0.005))
            os.kill(child, signal.SIGKILL)
            words = list(takewhile(lambda line: not line.startswith("killed by"), lines))
            last_words[words[-1].split()[0] if words else "inserted"] += 1
            kitchens = "application_name = 'kitchen' AND datname = current_database()"
            wait_until(orders, f"SELECT count(*) FROM pg_stat_activity WHERE {kitchens}", 0)
            ordered = {name for (name,) in orders.execute("SELECT dish FROM orders")}
            remembered = {name for (name,) in orders.execute("SELECT DISTINCT thread_id FROM checkpoints")}
            assert ordered == remembered
            for table in ("blobs", "writes", "pages", "threads"):
                threads = orders.execute(f"SELECT DISTINCT thread_id FROM checkpoint_{table}")  # type: ignore[arg-type]
                assert {name for (name,) in threads} <= ordered
        kitchen.stdin.close()

    assert sum(last_words.values()) == moments
    assert last_words["inserted"] + last_words["committing"] > 0, "none was hit in a transaction: that proves nothing"


def wait_until(conn: psycopg.Connection[Any], query: Any, expected: int) -> None:
    """Ask the server again and again, for half a minute at most."""
    for _ in range(3_000):
        if conn.execute(query).fetchone() == (expected,):
            return
        conn.execute("SELECT pg_sleep(0.01)")
    pytest.fail(f"{query} did not come to {expected}")
