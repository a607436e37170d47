"""`saver.bind()`: what is stored belongs to a transaction of the caller's, who alone begins and ends it."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from sqlalchemy import Engine, create_engine, event, exc, func, make_url, select, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver
from checkpoint_store.errors import Closed, InvalidOption, NotSetUp, UnusableConnection, WrongTransaction

CONFIG: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    dish: Mapped[str]


async def put(saver: Any, **values: Any) -> Any:
    new = dict.fromkeys(values, uuid.uuid4().hex)
    checkpoint: Any = {**empty_checkpoint(), "channel_values": values, "channel_versions": new}
    return await saver.aput(CONFIG, checkpoint, {}, new)


class Counted:
    """What everybody else sees: how many orders and how many checkpoints are committed."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn

    def __call__(self) -> tuple[int, int]:
        query = "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM checkpoints)"
        return self._conn.execute(query).fetchone()  # type: ignore[return-value]


@pytest.fixture
def committed(url: str) -> Iterator[Counted]:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE TABLE orders (id serial PRIMARY KEY, dish text UNIQUE)")
        yield Counted(conn)


@pytest.fixture
def sync_engine(url: str) -> Iterator[Engine]:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


@pytest.fixture
async def async_psycopg(url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(make_url(url).set(drivername="postgresql+psycopg"))
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


class Work:
    """A caller's transaction: its saver, and what the caller does in it, whether it waits or awaits."""

    def __init__(self, saver: Any, handle: Any) -> None:
        self.saver = saver
        self.handle = handle

    async def do(self, method: str, *args: Any) -> Any:
        outcome = getattr(self.handle, method)(*args)
        return await outcome if asyncio.iscoroutine(outcome) else outcome

    async def order(self, dish: str) -> None:
        """Insert an order; in a session it is pending until somebody flushes."""
        if isinstance(self.handle, (AsyncSession, Session)):
            self.handle.add(Order(dish=dish))
        else:
            await self.do("execute", text("INSERT INTO orders (dish) VALUES (:dish)"), {"dish": dish})

    async def commit(self) -> None:
        await self.do("commit")

    async def begin(self) -> None:
        """Begin the next transaction: a saver that was bound before the first begins no other."""
        await self.do("execute", text("SELECT 1"))

    async def rollback(self) -> None:
        await self.do("rollback")


@asynccontextmanager
async def on_a_connection(engines: Any) -> AsyncIterator[Work]:
    async with engines.asyncpg.connect() as conn:
        yield Work(AsyncPostgresSaver(engines.asyncpg).bind(conn), conn)


@asynccontextmanager
async def on_a_session(engines: Any) -> AsyncIterator[Work]:
    async with AsyncSession(engines.asyncpg) as session:
        yield Work(AsyncPostgresSaver(engines.asyncpg).bind(session), session)


@asynccontextmanager
async def on_a_psycopg_session(engines: Any) -> AsyncIterator[Work]:
    async with AsyncSession(engines.async_psycopg) as session:
        yield Work(AsyncPostgresSaver(engines.async_psycopg).bind(session), session)


@asynccontextmanager
async def on_a_sync_connection(engines: Any) -> AsyncIterator[Work]:
    with engines.psycopg.connect() as conn:
        yield Work(PostgresSaver(engines.psycopg).bind(conn), conn)


@asynccontextmanager
async def on_a_sync_session(engines: Any) -> AsyncIterator[Work]:
    with Session(engines.psycopg) as session:
        yield Work(PostgresSaver(engines.psycopg).bind(session), session)


WAYS = [
    on_a_connection,
    on_a_session,
    pytest.param(on_a_psycopg_session, marks=pytest.mark.slow),
    on_a_sync_connection,
    on_a_sync_session,
]


@pytest.fixture
async def engines(engine: AsyncEngine, async_psycopg: AsyncEngine, sync_engine: Engine) -> Any:
    class Engines:
        asyncpg = engine
        psycopg = sync_engine

    Engines.async_psycopg = async_psycopg  # type: ignore[attr-defined]
    return Engines


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
async def work(request: pytest.FixtureRequest, engines: Any) -> AsyncIterator[Work]:
    """Each way to have a transaction of one's own."""
    async with request.param(engines) as work:
        yield work


async def test_a_commit_makes_both_visible_and_a_rollback_neither(work: Work, committed: Counted) -> None:
    """Nobody sees order or checkpoint before the caller commits; three transactions, one after the other."""
    for number, commits in enumerate([False, True, True]):
        before = committed()
        await work.order(f"soup {number}")
        stored = await put(work.saver, a=[number])
        await work.saver.aput_writes(stored, [("a", 1)], "task")
        assert (await work.saver.aget_tuple(CONFIG)).checkpoint["channel_values"] == {"a": [number]}
        assert len([found async for found in work.saver.alist(CONFIG)]) == before[1] + 1
        assert committed() == before
        if commits:
            await work.commit()
        else:
            await work.rollback()

    assert committed() == (2, 2)


async def test_deleting_is_the_callers_to_commit_too(work: Work, committed: Counted) -> None:
    """As is whatever else takes several statements."""
    await put(work.saver, a=[1])
    await work.commit()

    await work.begin()
    await work.saver.adelete_thread("t")
    assert await work.saver.aget_tuple(CONFIG) is None
    assert committed() == (0, 1)
    await work.rollback()
    await work.begin()
    assert await work.saver.aget_tuple(CONFIG) is not None
    await work.saver.adelete_thread("t")
    await work.commit()

    assert committed() == (0, 0)


async def test_savepoints_are_the_callers(work: Work, committed: Counted) -> None:
    """What was stored in one is gone when it is rolled back; the rest of the transaction is not."""
    await work.order("soup")
    savepoint = work.handle.begin_nested()
    savepoint = await savepoint if isinstance(work.saver, AsyncPostgresSaver) else savepoint
    await put(work.saver, a=[1])
    outcome = savepoint.rollback()
    if isinstance(work.saver, AsyncPostgresSaver):
        await outcome
    assert await work.saver.aget_tuple(CONFIG) is None
    await work.commit()

    assert committed() == (1, 0)


async def test_calls_that_overlap_take_turns(work: Work, committed: Counted) -> None:
    """LangGraph stores the writes of parallel tasks at once; a connection can do one thing at a time."""
    stored = await put(work.saver, a=[1])
    await asyncio.gather(
        *[work.saver.aput_writes(stored, [("a", number)], f"task {number}") for number in range(20)],
        *[work.saver.aget_tuple(stored) for _ in range(5)],
    )
    found = await work.saver.aget_tuple(stored)
    await work.commit()

    assert len(found.pending_writes) == 20


async def test_what_was_rolled_back_is_not_taken_for_stored(work: Work, engines: Any, committed: Counted) -> None:
    """Pages of large values that went with a rollback are sent again by the next call that needs them."""
    texts = [f"message {number} " + "x" * 500 for number in range(200)]
    await put(work.saver, messages=texts)
    await work.rollback()
    elsewhere = AsyncPostgresSaver(engines.asyncpg)
    await put(elsewhere, messages=[*texts, "and more"])
    await work.begin()
    await put(work.saver, messages=[*texts, "and more", "and more"])
    await work.rollback()
    await work.begin()
    await put(work.saver, messages=texts)
    await work.commit()

    assert (await elsewhere.aget(CONFIG))["channel_values"] == {"messages": texts}  # type: ignore[index]


async def test_missing_tables_are_reported_with_what_to_do_about_the_transaction(
    work: Work, committed: Counted
) -> None:
    """The error has ended the caller's transaction, and says so; after a rollback everything works."""
    await work.order("soup")
    await work.do("execute", text("ALTER TABLE checkpoints RENAME TO elsewhere"))
    with pytest.raises(NotSetUp, match=r"can only be rolled back now: do that first.*`setup\(\)`"):
        await put(work.saver, a=[1])
    with pytest.raises(WrongTransaction, match="aborted"):
        await put(work.saver, a=[1])
    await work.rollback()
    await work.begin()
    await put(work.saver, a=[1])
    await work.commit()

    assert committed() == (0, 1)


async def test_a_deadlock_is_not_tried_again(work: Work, committed: Counted) -> None:
    """What was done before in the transaction is gone with it, and only the caller can do that again."""
    await work.do("execute", text("CREATE SEQUENCE attempts"))
    await work.do(
        "execute",
        text(
            """
            CREATE FUNCTION deadlock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                PERFORM nextval('attempts');
                RAISE EXCEPTION USING MESSAGE = 'deadlock detected', ERRCODE = '40P01';
            END $$;
            """
        ),
    )
    await work.do("execute", text("CREATE TRIGGER deadlock BEFORE INSERT ON checkpoints EXECUTE FUNCTION deadlock()"))
    await work.commit()
    with pytest.raises(WrongTransaction, match="40P01 deadlock detected"):
        await put(work.saver, a=[1])
    await work.rollback()

    assert list(await work.do("execute", text("SELECT last_value, is_called FROM attempts"))) == [(1, True)]


async def test_setup_is_the_callers_to_commit_too(work: Work, engines: Any, committed: Counted) -> None:
    """A rollback leaves no schema; migrated and used within one transaction, a commit leaves both."""
    is_async = isinstance(work.saver, AsyncPostgresSaver)
    saver = (
        AsyncPostgresSaver(engines.asyncpg, schema="agents")
        if is_async
        else PostgresSaver(engines.psycopg, schema="agents")
    )
    bound: Any = saver.bind(work.handle)
    for commits in (False, True):
        await work.order("soup")
        outcome = bound.setup()
        if is_async:
            await outcome
        stored = await put(bound, a=[1])
        assert await bound.aget_tuple(stored) is not None
        await (work.commit if commits else work.rollback)()
        there = await work.do("execute", text("SELECT to_regclass('agents.checkpoints') IS NOT NULL"))
        assert there.scalar() == commits
        await work.rollback()

    assert committed() == (1, 0)


async def test_it_keeps_everything_but_the_pipeline(engine: AsyncEngine, committed: Counted) -> None:
    """Class, serializer, schema, whether pages are shared; closing it closes neither the connection nor the others."""

    class Own(AsyncPostgresSaver):
        pass

    serde = JsonPlusSerializer(pickle_fallback=True)
    saver = Own(engine, AsyncPipeline(engine), serde, schema="agents", share_pages=False)
    await saver.setup()
    async with engine.connect() as conn:
        bound = saver.bind(conn)
        again = bound.bind(conn)
        assert type(bound) is type(again) is Own
        assert bound.serde is again.serde is serde
        await put(again, a={1, 2}, large=["x" * 1000] * 100)
        count = select(func.count()).select_from(text("agents.checkpoint_pages"))
        assert await conn.scalar(count) == 0
        await bound.aclose()
        with pytest.raises(Closed):
            await put(bound, a=1)
        await put(again, a=1)
        await conn.rollback()

    assert await saver.aget(CONFIG) is None
    await saver.aclose()
    async with engine.connect() as conn:
        with pytest.raises(Closed):
            saver.bind(conn)
    assert committed() == (0, 0)


async def test_whether_pages_are_shared_is_asked_once_for_all(engine: AsyncEngine, committed: Counted) -> None:
    """A saver that is bound for every request doesn't have each of them ask the database."""
    asked: list[str] = []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    saver = AsyncPostgresSaver(engine)
    for _ in range(3):
        async with engine.begin() as conn:
            await put(saver.bind(conn), messages=["x" * 1000] * 30)

    assert sum("to_regclass" in statement for statement in asked) == 1


# --- sessions ---


async def test_a_session_is_flushed_first(engine: AsyncEngine, committed: Counted) -> None:
    """The caller's pending rows are there for whoever reads them in the same transaction."""
    async with AsyncSession(engine) as session, session.begin():
        session.add(Order(dish="soup"))
        await AsyncPostgresSaver(engine).bind(session).aget_tuple(CONFIG)
        assert not session.new
        conn = await session.connection()
        assert await conn.scalar(text("SELECT count(*) FROM orders")) == 1


async def test_what_the_flush_finds_wrong_is_the_callers_own_error(
    engine: AsyncEngine, sync_engine: Engine, committed: Counted
) -> None:
    """It is raised as SQLAlchemy has it, and nothing of ours is stored; not even where a table is missing."""
    async with AsyncSession(engine) as session:
        saver = AsyncPostgresSaver(engine).bind(session)
        session.add_all([Order(dish="soup"), Order(dish="soup")])
        with pytest.raises(exc.IntegrityError):
            await put(saver, a=[1])
        with pytest.raises(WrongTransaction, match=r"rolled back due to a previous exception during flush[^:]*$"):
            await put(saver, a=[1])
        await session.rollback()
        await session.execute(text("DROP TABLE orders"))
        session.add(Order(dish="soup"))
        with pytest.raises(exc.ProgrammingError, match="orders"):
            await put(saver, a=[1])
    with Session(sync_engine) as session:
        session.add_all([Order(dish="soup"), Order(dish="soup")])
        with pytest.raises(exc.IntegrityError):
            PostgresSaver(sync_engine).bind(session).get(CONFIG)

    assert committed() == (0, 0)


async def test_savers_on_a_session_and_on_its_connection_take_turns(engine: AsyncEngine, committed: Counted) -> None:
    """They share what can do one thing at a time."""
    async with AsyncSession(engine) as session, session.begin():
        saver = AsyncPostgresSaver(engine)
        stored = await put(saver.bind(session), a=[1])
        savers = [saver.bind(session), saver.bind(await session.connection()), saver.bind(session)]

        session.add_all([Order(dish=f"soup {number}") for number in range(30)])
        await asyncio.gather(
            *[savers[number % 3].aput_writes(stored, [("a", number)], f"task {number}") for number in range(30)]
        )
        found = await savers[0].aget_tuple(stored)
    assert found is not None
    assert len(found.pending_writes or ()) == 30
    assert committed() == (30, 1)


async def test_a_session_that_begins_by_hand_is_not_begun(engine: AsyncEngine, committed: Counted) -> None:
    """With `autobegin=False` the first call outside of a transaction is refused, in SQLAlchemy's words."""
    async with AsyncSession(engine, autobegin=False) as session:
        saver = AsyncPostgresSaver(engine).bind(session)
        with pytest.raises(WrongTransaction, match="Autobegin is disabled"):
            await put(saver, a=[1])
        async with session.begin():
            await put(saver, a=[1])

    assert committed() == (0, 1)


async def test_of_several_engines_it_is_the_one_with_the_tables(
    engine: AsyncEngine, make_database: Callable[[], str], committed: Counted
) -> None:
    """Where a session knows engines for its own tables only it is the saver's; others say, or decide as for a write."""
    elsewhere = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": make_database()})
    saver = AsyncPostgresSaver(engine)

    class Routing(Session):
        def get_bind(self, _: Any = None, *, clause: Any = None, **__: Any) -> Any:
            writes = self._flushing or getattr(clause, "is_delete", False)
            return (engine if writes else elsewhere).sync_engine

    sessions: list[tuple[AsyncSession, Any]] = [
        (AsyncSession(binds={Order: engine}), None),
        (AsyncSession(elsewhere, binds={Order: engine}), {"mapper": Order}),
        (AsyncSession(elsewhere), {"bind": engine}),
        (AsyncSession(sync_session_class=Routing), None),
    ]
    for session, arguments in sessions:
        async with session, session.begin():
            await put(saver.bind(session, bind_arguments=arguments), a=[1])
    assert committed() == (0, 4)

    async with AsyncSession(elsewhere) as session:
        with pytest.raises(NotSetUp):
            await put(saver.bind(session), a=[1])
    async with engine.connect() as conn:
        with pytest.raises(InvalidOption, match="one engine's"):
            saver.bind(conn, bind_arguments={"bind": engine})
    await elsewhere.dispose()


async def test_scoped_sessions_stand_for_the_current_one(
    engine: AsyncEngine, sync_engine: Engine, committed: Counted
) -> None:
    """Frameworks hand them out; LangGraph calls from threads and tasks in which they would stand for another one."""
    ours = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
    saver = AsyncPostgresSaver(engine).bind(ours)
    ours.add(Order(dish="soup"))
    await asyncio.create_task(put(saver, a=[1]))
    await ours.commit()
    await ours.remove()
    assert committed() == (1, 1)

    db = scoped_session(sessionmaker(sync_engine))
    sync_saver = PostgresSaver(sync_engine).bind(db)
    db.add(Order(dish="bread"))
    with ThreadPoolExecutor(1) as another:
        another.submit(sync_saver.put, CONFIG, empty_checkpoint(), {}, {}).result()
    db.commit()
    db.remove()
    assert committed() == (2, 2)


# --- threads ---


@pytest.mark.parametrize("kind", ["connection", "session"])
def test_threads_take_turns_on_a_sync_connection(sync_engine: Engine, committed: Counted, kind: str) -> None:
    """LangGraph's sync API stores from threads of its own."""
    together = threading.Barrier(8)
    with sync_engine.connect() as conn, Session(conn) as session:
        saver = PostgresSaver(sync_engine).bind(conn if kind == "connection" else session)
        stored = saver.put(CONFIG, empty_checkpoint(), {}, {})

        def write(number: int) -> None:
            together.wait(timeout=30)
            for step in range(10):
                saver.put_writes(stored, [("a", step)], f"task {number} {step}")
                saver.get_tuple(stored)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(write, range(8)))
        found = saver.get_tuple(stored)
        assert found is not None
        assert len(found.pending_writes or ()) == 80
        conn.rollback()

    assert committed() == (0, 0)


def test_a_listener_of_a_flush_that_calls_the_saver_does_not_wait_for_itself(
    sync_engine: Engine, committed: Counted
) -> None:
    """It runs in the thread whose call flushes; SQLAlchemy refuses what would be a flush within a flush."""
    with Session(sync_engine) as session:
        saver = PostgresSaver(sync_engine).bind(session)
        event.listen(session, "after_flush", lambda *_: saver.put(CONFIG, empty_checkpoint(), {}, {}))
        session.add(Order(dish="soup"))
        with pytest.raises(exc.InvalidRequestError, match="already flushing"):
            saver.get(CONFIG)
        session.rollback()

    assert committed() == (0, 0)


async def test_a_cancelled_call_has_left_a_sync_connection(sync_engine: Engine, committed: Counted) -> None:
    """The caller can go on with it at once: the worker thread has done what it was at."""
    with sync_engine.connect() as conn:
        saver = PostgresSaver(sync_engine).bind(conn)
        for turns in range(10):
            task = asyncio.ensure_future(put(saver, a=[1]))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert not saver._backend.provider._connection.connection.driver_connection.lock.locked()  # type: ignore[attr-defined]
            assert conn.scalar(text("SELECT 1")) == 1
        conn.rollback()

    assert committed() == (0, 0)


async def test_a_cancelled_call_leaves_nothing_behind(engine: AsyncEngine, committed: Counted) -> None:
    """SQLAlchemy gives up a connection that was interrupted, and the transaction with it: both are there, or none."""
    for turns in range(15):
        async with AsyncSession(engine) as session:
            saver = AsyncPostgresSaver(engine).bind(session)
            await session.connection()  # SQLAlchemy 2.0 leaves one behind that is cancelled while it connects
            session.add(Order(dish=f"soup {turns}"))
            task = asyncio.ensure_future(put(saver, a=[turns]))
            for _ in range(turns * 2):
                await asyncio.sleep(0)
            task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(outcome, asyncio.CancelledError):
                await session.rollback()
            else:
                await session.commit()
        orders, checkpoints = committed()
        assert orders == checkpoints


async def test_a_sync_saver_takes_async_ones_from_other_threads(engine: AsyncEngine, committed: Counted) -> None:
    """Code that is sync inside of an async application works in its session, on its loop."""
    async with AsyncSession(engine) as session, session.begin():
        session.add(Order(dish="soup"))
        saver = PostgresSaver(engine).bind(session)
        await asyncio.to_thread(saver.put, CONFIG, empty_checkpoint(), {}, {})
    async with engine.begin() as conn:
        saver = PostgresSaver(engine).bind(conn)
        await asyncio.to_thread(saver.put, CONFIG, empty_checkpoint(), {}, {})

    assert committed() == (1, 2)


# --- what can't be bound ---


async def test_other_things_are_refused_with_what_is_wanted(engine: AsyncEngine, sync_engine: Engine) -> None:
    """The message says what came, what is wanted, and the way out."""
    saver, sync_saver = AsyncPostgresSaver(engine), PostgresSaver(sync_engine)
    wanted = "it must be an AsyncSession or open AsyncConnection"
    for thing in (None, "postgresql://localhost", engine, sync_engine, object()):
        with pytest.raises(UnusableConnection, match=f"conn_or_session is a .*; {wanted} of SQLAlchemy"):
            saver.bind(thing)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=f"conn_or_session is a .*; {wanted}, or a sync Session or open Connection"):
            sync_saver.bind(thing)  # type: ignore[arg-type]
    with sync_engine.connect() as conn, Session(conn) as session:
        for thing in (conn, session):
            with pytest.raises(UnusableConnection, match="Use PostgresSaver"):
                saver.bind(thing)  # type: ignore[arg-type]
    for closed in (engine.connect(), conn):
        with pytest.raises(UnusableConnection, match=r"not open. Use `(async )?with engine.connect"):
            sync_saver.bind(closed)
    async with engine.connect() as opened, AsyncSession(engine) as async_session:
        for inside in (opened.sync_connection, async_session.sync_session):
            with pytest.raises(UnusableConnection, match="the inside of an async one"):
                sync_saver.bind(inside)  # type: ignore[arg-type]
    sqlite = create_engine("sqlite://")
    with Session(sqlite) as session, pytest.raises(UnusableConnection, match=r"sqlite\+pysqlite"):
        sync_saver.bind(session)
    sqlite.dispose()


async def test_a_saver_is_not_made_on_a_session(engine: AsyncEngine, sync_engine: Engine) -> None:
    """The engine is shared, the session's transaction is bound: the message says how."""
    way_out = r"with saver.bind\(session\)"
    async with AsyncSession(engine) as session:
        with pytest.raises(UnusableConnection, match=way_out):
            AsyncPostgresSaver(session)  # type: ignore[arg-type]
    with Session(sync_engine) as sync_session, pytest.raises(UnusableConnection, match=way_out):
        PostgresSaver(sync_session)  # type: ignore[arg-type]
