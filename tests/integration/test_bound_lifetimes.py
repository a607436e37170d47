"""A bound saver and its block: what a run that was left still does is done before the end, or refused after it."""

from __future__ import annotations

import asyncio
import gc
import operator
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import START, StateGraph
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.errors import WrongTransaction

THREAD: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
PATIENCE_SECONDS = 60


class Chat(TypedDict):
    said: Annotated[list[str], operator.add]


def talk(state: Chat) -> Chat:
    return {"said": [f"{len(state['said'])} so far"]}


def talking(saver: Any, node: Any = talk) -> Any:
    graph = StateGraph(Chat).add_sequence([(f"step {number}", node) for number in range(3)])
    return graph.add_edge(START, "step 0").compile(checkpointer=saver)


class Gate:
    """Keeps checkpoints from being stored: whoever does has to wait in the server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._conn = psycopg.connect(url, autocommit=True)
        self._conn.execute("""
            CREATE FUNCTION pass_gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                PERFORM pg_advisory_lock_shared(7), pg_advisory_unlock_shared(7);
                RETURN NEW;
            END $$""")
        self._conn.execute("CREATE TRIGGER gate BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION pass_gate()")

    def close(self) -> None:
        self._conn.execute("SELECT pg_advisory_lock(7)")

    def open(self) -> None:
        self._conn.execute("SELECT pg_advisory_unlock(7)")

    def is_waited_at(self) -> bool:
        waiting = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 7"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        with psycopg.connect(self._url, autocommit=True) as conn:
            return conn.execute(waiting).fetchone() == (1,)

    def end(self) -> None:
        self._conn.close()


@pytest.fixture
def gate(url: str) -> Iterator[Gate]:
    gate = Gate(url)
    yield gate
    gate.end()


@pytest.fixture(params=["asyncpg", "psycopg"])
async def host(request: pytest.FixtureRequest, url: str) -> AsyncIterator[AsyncEngine]:
    """A host's engine with one connection: whatever is left on it, the next to have it meets."""
    options: Any = {"connect_args": {"dsn": url}} if request.param == "asyncpg" else {}
    place = "postgresql+asyncpg://" if options else make_url(url).set(drivername="postgresql+psycopg")
    engine = create_async_engine(place, pool_size=1, max_overflow=0, **options)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


@pytest.fixture
def sync_host(url: str) -> Iterator[Engine]:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), pool_size=1, max_overflow=0)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


async def is_true(condition: Callable[[], bool]) -> None:
    for _ in range(PATIENCE_SECONDS * 100):
        if await asyncio.to_thread(condition):
            return
        await asyncio.sleep(0.01)
    pytest.fail("it has not come to pass")


async def is_usable(engine: AsyncEngine) -> None:
    """Whether the pool's connection is as good as new."""
    for _ in range(3):
        async with engine.begin() as conn:
            assert await conn.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE pid = pg_backend_pid()")) == 1
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT state FROM pg_stat_activity WHERE pid = pg_backend_pid()")) == "active"


def stored(url: str) -> int:
    with psycopg.connect(url) as conn:
        return conn.execute("SELECT count(*) FROM checkpoints").fetchone()[0]  # type: ignore[index]


async def put(saver: Any) -> Any:
    return await saver.aput(THREAD, empty_checkpoint(), {}, {})


Ends = Callable[[Any], Awaitable[None]]


async def commit(handle: Any) -> None:
    await handle.commit()


async def roll_back(handle: Any) -> None:
    await handle.rollback()


async def close(handle: Any) -> None:
    await handle.close()


ENDS = [commit, roll_back, close]


@asynccontextmanager
async def a_session(engine: AsyncEngine) -> AsyncIterator[Any]:
    async with AsyncSession(engine) as session:
        yield session


@asynccontextmanager
async def a_scoped_session(engine: AsyncEngine) -> AsyncIterator[Any]:
    scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: "one request")
    yield scoped
    await scoped.remove()


@asynccontextmanager
async def a_connection(engine: AsyncEngine) -> AsyncIterator[Any]:
    async with engine.connect() as conn:
        yield conn


HANDLES = [a_session, a_scoped_session, a_connection]


# --- a statement under way ---


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("handle", HANDLES)
async def test_the_end_of_a_transaction_waits_for_a_call_under_way(
    host: AsyncEngine, url: str, gate: Gate, handle: Any, end: Ends
) -> None:
    """Otherwise the connection goes back to the pool with a statement running, in a transaction nobody ends."""
    async with handle(host) as mine:
        saver = AsyncPostgresSaver(host).bind(mine)
        await saver.aget_tuple(THREAD)
        gate.close()
        call = asyncio.create_task(put(saver))
        queued = asyncio.create_task(saver.aget_tuple(THREAD))
        await is_true(gate.is_waited_at)
        ending = asyncio.create_task(end(mine))
        await asyncio.sleep(0)
        late = asyncio.create_task(put(saver))
        gate.open()
        await asyncio.wait([ending, call, queued, late])
        await ending
        await call
        for one in (queued, late):  # before the end, or refused
            assert isinstance(one.exception(), (WrongTransaction, type(None)))
        with pytest.raises(WrongTransaction):
            await put(saver)

    assert host.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert stored(url) == (0 if end is not commit else 1 if late.exception() else 2)
    await is_usable(host)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("handle", [a_session, a_connection])
async def test_a_stream_that_was_left_ends_with_the_transaction(
    host: AsyncEngine, url: str, gate: Gate, handle: Any, end: Ends
) -> None:
    """What it has under way is done before the end; what it does later is refused, and begins no transaction."""
    async with handle(host) as mine:
        saver = AsyncPostgresSaver(host).bind(mine)
        stream = talking(saver).astream({"said": ["hello"]}, THREAD, durability="async")
        async for _ in stream:
            break
        gate.close()
        left = asyncio.create_task(anext(stream))  # some more of it, and its checkpoints are stored in the background
        await is_true(gate.is_waited_at)
        ending = asyncio.create_task(end(mine))
        await asyncio.sleep(0)
        gate.open()
        await ending
        await asyncio.wait([left])
        kept = stored(url)
        assert (kept > 0) == (end is commit)
        with pytest.raises(WrongTransaction):
            await drain(stream)
        assert not mine.in_transaction()

    assert stored(url) == kept
    await is_usable(host)


async def drain(stream: Any) -> None:
    async for _ in stream:
        pass


class Noting(AsyncPostgresSaver):
    """Notes what comes of storing a checkpoint: LangGraph keeps it to itself when a stream is closed."""

    outcomes: asyncio.Queue[Any]

    async def aput(self, *args: Any) -> Any:
        try:
            await super().aput(*args)
        except Exception as error:
            self.outcomes.put_nowait(error)
            raise


async def test_a_stream_left_to_the_collector_stores_nothing_after_the_end(host: AsyncEngine, url: str) -> None:
    """With durability="exit" it stores when it is closed, and asyncio closes it some time after it is forgotten."""
    async with AsyncSession(host) as session:
        saver = Noting(host).bind(session)
        saver.outcomes = asyncio.Queue()
        stream = talking(saver).astream({"said": ["hello"]}, THREAD, durability="exit")
        async for _ in stream:
            break
        await session.commit()
        del stream
        gc.collect()
        assert isinstance(await saver.outcomes.get(), WrongTransaction)
        assert not session.in_transaction()

    assert stored(url) == 0
    await is_usable(host)


@pytest.mark.parametrize("durability", ["async", "sync", "exit"])
async def test_a_run_that_fails_or_is_cancelled_leaves_a_connection_that_works(
    host: AsyncEngine, url: str, durability: Any
) -> None:
    """A node that raises while another one works and the step before is being stored; or a client that hangs up."""
    begun = asyncio.Event()

    async def wait(state: Chat) -> Chat:
        begun.set()
        await asyncio.Event().wait()
        return {"said": []}

    async def fail(state: Chat) -> Chat:
        await begun.wait()
        raise RuntimeError("out of bread")

    graph = StateGraph(Chat).add_node(talk).add_node(wait).add_node(fail).add_edge(START, "talk")
    compiled: Any = graph.add_edge("talk", "wait").add_edge("talk", "fail").compile()
    saver = AsyncPostgresSaver(host)
    for ends in (commit, roll_back):
        begun.clear()
        async with AsyncSession(host) as session:
            bound = compiled.copy({"checkpointer": saver.bind(session)})
            with pytest.raises(RuntimeError, match="out of bread"):
                await bound.ainvoke({"said": ["hello"]}, THREAD, durability=durability)
            await ends(session)
        await is_usable(host)

    patient: Any = talking(None, wait)
    for turns in range(0, 40, 4):
        async with AsyncSession(host) as session:
            await session.connection()
            bound = patient.copy({"checkpointer": saver.bind(session)})
            run = asyncio.create_task(bound.ainvoke({"said": ["hello"]}, THREAD, durability=durability))
            for _ in range(turns):
                await asyncio.sleep(0)
            run.cancel()
            await asyncio.wait([run])
            await session.rollback()
        await is_usable(host)


# --- calls that come late ---


@pytest.mark.parametrize("handle", HANDLES)
async def test_a_saver_bound_in_a_transaction_is_over_with_it(host: AsyncEngine, url: str, handle: Any) -> None:
    """Also where the caller is in the next one by then, and busy with the connection."""
    async with handle(host) as mine:
        await mine.execute(text("SELECT 1"))
        saver = AsyncPostgresSaver(host).bind(mine)
        await put(saver)
        await mine.commit()
        for _ in range(2):
            with pytest.raises(WrongTransaction, match=r"bind a saver again: saver.bind\(session\)"):
                await put(saver)
            await mine.execute(text("SELECT 1"))
        await put(AsyncPostgresSaver(host).bind(mine))
        await mine.commit()
    with pytest.raises(WrongTransaction):
        await put(saver)

    assert stored(url) == 2
    await is_usable(host)


@pytest.mark.parametrize("handle", HANDLES)
async def test_a_saver_bound_before_any_begins_the_first_and_no_other(host: AsyncEngine, url: str, handle: Any) -> None:
    """It goes on in those that the caller begins: nobody would end one that a late call has begun."""
    async with handle(host) as mine:
        saver = AsyncPostgresSaver(host).bind(mine)
        await put(saver)
        await mine.commit()
        with pytest.raises(WrongTransaction):
            await put(saver)
        await mine.execute(text("SELECT 1"))
        await put(saver)
        await mine.rollback()
        with pytest.raises(WrongTransaction):
            await saver.setup()
        await mine.execute(text("SELECT 1"))
        await put(saver)
        await mine.commit()

    assert stored(url) == 2
    await is_usable(host)


async def test_a_savepoint_that_ends_is_not_the_transactions_end(host: AsyncEngine, url: str, gate: Gate) -> None:
    """A call under way is before its end; the saver is good for the rest of the transaction."""
    async with AsyncSession(host) as session, session.begin():
        savepoint = await session.begin_nested()
        saver = AsyncPostgresSaver(host).bind(session)
        await saver.aget_tuple(THREAD)
        gate.close()
        call = asyncio.create_task(put(saver))
        await is_true(gate.is_waited_at)
        ending = asyncio.create_task(savepoint.rollback())
        await asyncio.sleep(0)
        gate.open()
        await asyncio.gather(ending, call)
        assert await saver.aget_tuple(THREAD) is None
        await put(saver)

    assert stored(url) == 1
    await is_usable(host)


# --- without a loop ---


@pytest.mark.parametrize("method", ["commit", "rollback", "close"])
@pytest.mark.parametrize("kind", ["session", "connection"])
def test_threads_of_a_stream_that_was_left_end_with_the_transaction(
    sync_host: Engine, url: str, gate: Gate, kind: str, method: str
) -> None:
    """LangGraph's sync API stores in threads, which go on after the caller has left."""
    with sync_host.connect() if kind == "connection" else Session(sync_host) as mine:
        saver = PostgresSaver(sync_host).bind(mine)
        stream = talking(saver).stream({"said": ["hello"]}, THREAD, durability="async")
        for _ in stream:
            break
        gate.close()
        left = threading.Thread(target=next, args=(stream, None))
        left.start()
        asyncio.run(is_true(gate.is_waited_at))
        opening = threading.Thread(target=gate.open)
        opening.start()
        getattr(mine, method)()
        opening.join()
        left.join(PATIENCE_SECONDS)
        kept = stored(url)
        assert (kept > 0) == (method == "commit")
        with pytest.raises(WrongTransaction):
            list(stream)
        with pytest.raises(WrongTransaction):
            saver.put(THREAD, empty_checkpoint(), {}, {})
        assert not mine.in_transaction()

    assert stored(url) == kept
    with sync_host.begin() as conn:
        assert conn.scalar(text("SELECT 1")) == 1


async def test_a_sync_saver_on_a_session_of_the_loops_is_refused_too(host: AsyncEngine, url: str) -> None:
    """Its calls come from other threads, and cross to the loop."""
    async with AsyncSession(host) as session:
        saver = PostgresSaver(host).bind(session)
        await asyncio.to_thread(saver.put, THREAD, empty_checkpoint(), {}, {})
        await session.commit()
        with pytest.raises(WrongTransaction):
            await asyncio.to_thread(saver.put, THREAD, empty_checkpoint(), {}, {})
        assert not session.in_transaction()

    assert stored(url) == 1
    await is_usable(host)
