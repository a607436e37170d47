"""What a call does about a failure that passes: again, until a deadline, and nobody else has to wait for it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import NullPool, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from tenacity import wait_none

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver
from checkpoint_store.database import retry
from checkpoint_store.errors import Closed, InvalidOption, ThreadExists, Unavailable, WrongTransaction
from tests.faults.bed import PATIENCE_SECONDS, Network

CONFIG: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
NOWHERE = "postgresql://app:secret@127.0.0.1:1/app"
TERMINATE = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)
SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

# A row of the thread "unlucky" is in conflict with others for ever.
UNLUCKY = """
    CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN RAISE EXCEPTION 'conflict about a secret' USING ERRCODE = '40001'; END$$;
    CREATE TRIGGER conflict BEFORE INSERT ON checkpoints
        FOR EACH ROW WHEN (NEW.thread_id = 'unlucky') EXECUTE FUNCTION conflict();
"""


def execute(url: str, statement: str) -> Any:
    """Execute a statement in a session of its own; returns its first value."""
    with psycopg.connect(url, autocommit=True) as conn:
        cursor = conn.execute(statement.encode())
        return cursor.fetchall()[0][0] if cursor.description else None


async def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition, for a minute at most."""
    for _ in range(PATIENCE_SECONDS * 100):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it has not come to pass")


def checkpoint_of(checkpoint_id: str, **values: Any) -> dict[str, Any]:
    versions = dict.fromkeys(values, "1")
    return {**empty_checkpoint(), "id": checkpoint_id, "channel_values": values, "channel_versions": versions}


async def put(saver: AsyncPostgresSaver, checkpoint_id: str = "1", thread_id: str = "t", **values: Any) -> Any:
    checkpoint: Any = checkpoint_of(checkpoint_id, **values)
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    return await saver.aput(config, checkpoint, {}, checkpoint["channel_versions"])


@contextmanager
def locked(url: str, table: str = "checkpoints") -> Iterator[psycopg.Connection[Any]]:
    """A table that everybody has to wait for."""
    with psycopg.connect(url) as locking:
        locking.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield locking
        locking.rollback()


def others_of(locking: psycopg.Connection[Any]) -> str:
    return f"{TERMINATE} AND pid <> {locking.info.backend_pid}"


@asynccontextmanager
async def saver_on(url: str, **options: Any) -> AsyncIterator[AsyncPostgresSaver]:
    """A saver on an engine of its own."""
    async with AsyncPostgresSaver.from_conn_string(url, **options) as saver:
        yield saver
        provider: Any = saver._backend.provider
        assert provider.engine.pool.checkedout() == provider.queue.kept


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waits between the tries."""
    monkeypatch.setattr(retry, "_jittered", wait_none())


# --- what is survived ---


async def test_no_call_fails_for_connections_that_were_lost_in_the_pool(url: str) -> None:
    """Ten connections of the pool are gone: each is replaced when it is asked for."""
    async with saver_on(url, pool_size=10, max_overflow=0, pipeline=False) as saver:
        provider: Any = saver._backend.provider
        await asyncio.gather(*[put(saver, str(n)) for n in range(10)])
        assert provider.queue.kept + provider.engine.pool.checkedin() == 10
        execute(url, TERMINATE.replace("(pid)", "(pid, 10000)"))  # which waits until they have ended
        # The loop stood still meanwhile, so that asyncpg does not know it of any.
        for number in range(20):
            await put(saver, f"again {number}")

    assert saver.retries == 0


async def test_connections_that_are_known_to_be_closed_are_not_even_tried(url: str) -> None:
    """With no second try either: closed while nobody used them, they are replaced when they are asked for."""
    opened: list[Any] = []
    async with saver_on(url, pool_size=10, max_overflow=0, retry_timeout=0, pipeline=False) as saver:
        listener = lambda connection, _: opened.append(connection.driver_connection)  # noqa: E731
        event.listen(saver._backend.provider.engine, "connect", listener)
        await asyncio.gather(*[put(saver, str(n)) for n in range(10)])
        await asyncio.to_thread(execute, url, TERMINATE)
        await until(lambda: len(opened) == 10 and all(connection.is_closed() for connection in opened))

        for number in range(20):
            await put(saver, f"again {number}")


@pytest.mark.parametrize("watched", [False, True], ids=["driver", "SQLAlchemy"])
async def test_every_operation_survives_the_end_of_its_session(url: str, watched: bool) -> None:
    """Ended in the middle of the statement, which waits for a lock; on both ways that statements take."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    saver = AsyncPostgresSaver(engine)
    if watched:
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: None)
    stored = await put(saver, a=[1])
    history = saver.aget_delta_channel_history
    operations: list[tuple[str, Callable[[], Any]]] = [
        ("checkpoints", lambda: put(saver, "2", a=[2])),
        ("checkpoint_writes", lambda: saver.aput_writes(stored, [("a", 1)], "task")),
        ("checkpoint_writes", lambda: saver.aput_writes(stored, [("__error__", 1)], "task")),
        ("checkpoints", lambda: saver.aget_tuple(stored)),
        ("checkpoints", lambda: _listed(saver)),
        ("checkpoints", lambda: history(config=stored, channels=["a"])),
        ("checkpoint_store_version", saver.setup),
        ("checkpoint_writes", lambda: saver.adelete_thread("t")),
    ]
    for table, operation in operations:
        before = saver.retries
        with locked(url, table) as locking:
            call = asyncio.create_task(operation())
            await until(lambda: execute(url, WAITING) == 1)
            await asyncio.to_thread(execute, url, others_of(locking))
            await until(lambda: saver.retries > before)  # noqa: B023 - awaited here
        await call

    assert await saver.aget_tuple(CONFIG) is None, "the last one was the thread's deletion"
    await engine.dispose()


async def _listed(saver: AsyncPostgresSaver) -> list[Any]:
    return [found async for found in saver.alist(CONFIG)]


def test_a_sync_engine_has_the_same(url: str) -> None:
    """In the calling thread, on psycopg."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    saver = PostgresSaver(engine)
    saver.put(CONFIG, checkpoint_of("1"), {}, {})  # type: ignore[arg-type]
    with locked(url) as locking:
        call = threading.Thread(target=saver.put, args=(CONFIG, checkpoint_of("2"), {}, {}))
        call.start()
        asyncio.run(until(lambda: execute(url, WAITING) == 1))
        execute(url, others_of(locking))
        asyncio.run(until(lambda: saver.retries > 0))
    call.join()

    assert [found.checkpoint["id"] for found in saver.list(CONFIG)] == ["2", "1"]
    engine.dispose()
    with pytest.raises(Unavailable, match=r"Tried again for 0\.2 s") as caught:
        PostgresSaver(create_engine(NOWHERE.replace(":", "+psycopg:", 1)), retry_timeout=0.2).get(CONFIG)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "watched asyncpg"])
@pytest.mark.shortcut
async def test_a_table_that_is_altered_between_two_calls_goes_unnoticed(url: str, driver: str) -> None:
    """The plans that sessions have kept for the statement are of no more use to anyone."""
    engine = create_async_engine(
        make_url(url).set(drivername=f"postgresql+{driver.rsplit(maxsplit=1)[-1]}"), pool_size=1
    )
    saver = AsyncPostgresSaver(engine)
    if "watched" in driver:
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: None)
    stored = await put(saver)
    for kind in ("varchar", "text"):
        for _ in range(10):
            assert await saver.aget_tuple(stored) is not None
        await asyncio.to_thread(execute, url, f"ALTER TABLE checkpoints ALTER thread_id TYPE {kind}")

    assert await saver.aget_tuple(stored) is not None
    # asyncpg prepares statements again by itself, and we do for psycopg, unless SQLAlchemy executes them.
    assert (saver.retries > 0) == ("watched" in driver)
    await engine.dispose()


async def test_a_change_that_came_second_is_made_again_where_transactions_are_strict(url: str) -> None:
    """In a database that is SERIALIZABLE by default the server refuses a put that another one has overtaken."""
    name = execute(url, "SELECT current_database()")
    await asyncio.to_thread(execute, url, f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    async with saver_on(url) as saver:
        stored = await put(saver, a="before")
        with psycopg.connect(url) as host:
            host.execute("UPDATE checkpoints SET metadata = '{}'")
            call = asyncio.create_task(put(saver, a="after"))
            await until(lambda: execute(url, WAITING) == 1)
            host.commit()
            await call

        assert saver.retries > 0
        assert (await saver.aget_tuple(stored)).checkpoint["channel_values"] == {"a": "after"}


async def test_a_deadlock_with_the_host_is_not_noticed(url: str) -> None:
    """A host locks a task's writes in another order than we; the server undoes our statement, and it comes again."""
    async with saver_on(url) as saver:
        stored = await put(saver)
        writes = [("__error__", 1), ("__interrupt__", 1)]
        await saver.aput_writes(stored, writes, "task")
        lock = "SELECT 1 FROM checkpoint_writes WHERE idx = {} FOR UPDATE"
        with psycopg.connect(url) as host:
            # So that it is our side that finds out.
            host.execute("SET deadlock_timeout = '10min'")
            host.execute(lock.format("(SELECT max(idx) FROM checkpoint_writes)").encode())
            call = asyncio.create_task(saver.aput_writes(stored, [("__error__", 2), ("__interrupt__", 2)], "task"))
            await until(lambda: execute(url, WAITING) == 1)
            # This one waits for the row that ours has locked, and gets it when the deadlock is dissolved.
            await asyncio.to_thread(host.execute, lock.format("(SELECT min(idx) FROM checkpoint_writes)").encode())
            host.rollback()
        await call

        assert saver.retries > 0
        found = await saver.aget_tuple(stored)
        assert [write[2] for write in found.pending_writes] == [2, 2]


# --- what is not ---


@pytest.mark.parametrize("bound", [False, True], ids=["connection", "bind"])
async def test_in_a_callers_transaction_nothing_is_tried_again(engine: AsyncEngine, url: str, bound: bool) -> None:
    """Its other statements are lost too, so that only the caller can begin anew."""
    await asyncio.to_thread(execute, url, UNLUCKY)
    on_engine = AsyncPostgresSaver(engine)
    async with engine.connect() as conn:
        saver = on_engine.bind(conn) if bound else AsyncPostgresSaver(conn)
        with pytest.raises(WrongTransaction, match="40001") as caught:
            await put(saver, thread_id="unlucky")
        assert isinstance(caught.value.__cause__, DBAPIError)
        assert caught.value.__cause__.orig.sqlstate == "40001"  # type: ignore[union-attr]
        assert saver.retries == on_engine.retries == 0
        await conn.rollback()

        saver = on_engine.bind(conn) if bound else AsyncPostgresSaver(conn)
        assert await saver.aget_tuple(CONFIG) is None
        await asyncio.to_thread(execute, url, TERMINATE)
        with pytest.raises(Unavailable):
            await saver.aget_tuple(CONFIG)
    assert saver.retries == 0


async def test_without_a_second_try_the_first_error_is_told_at_once(url: str) -> None:
    """`retry_timeout=0`."""
    await asyncio.to_thread(execute, url, UNLUCKY)
    async with saver_on(url, retry_timeout=0) as saver:
        with pytest.raises(Unavailable, match="another transaction came first") as caught:
            await put(saver, thread_id="unlucky")
        assert caught.value.__cause__.orig.sqlstate == "40001"
        with locked(url) as locking:
            call = asyncio.create_task(saver.aget_tuple(CONFIG))
            await until(lambda: execute(url, WAITING) == 1)
            await asyncio.to_thread(execute, url, others_of(locking))
            with pytest.raises(Unavailable):
                await call

    assert saver.retries == 0


async def test_the_wait_for_a_connection_is_not_begun_anew(url: str) -> None:
    """Who has waited as long as the pool allows would only make the queue longer."""
    async with saver_on(url, pool_size=1, max_overflow=0, pool_timeout=0.2) as saver:
        with locked(url):
            hanging = asyncio.create_task(saver.aget_tuple(CONFIG))
            await until(lambda: execute(url, WAITING) == 1)
            with pytest.raises(Unavailable, match="no connection became free"):
                await saver.aget_tuple(CONFIG)
        await hanging

    assert saver.retries == 0


@pytest.mark.parametrize("watched", [False, True], ids=["driver", "SQLAlchemy"])
async def test_a_statement_that_took_too_long_is_not_tried_again(url: str, watched: bool) -> None:
    """`command_timeout` is the caller's word; the connection is not used any more, and the next call gets another."""
    async with saver_on(f"{url}&command_timeout=0.3", pool_size=1, max_overflow=0) as saver:
        engine = saver._backend.provider.engine
        if watched:
            event.listen(engine, "before_cursor_execute", lambda *_: None)
        assert await saver.aget_tuple(CONFIG) is None
        with locked(url), pytest.raises(Unavailable, match=r"command_timeout allows\. Raise it, in the engine"):
            await saver.aget_tuple(CONFIG)

        assert await saver.aget_tuple(CONFIG) is None
    assert saver.retries == 0


async def test_a_network_that_swallows_everything_costs_each_connection_one_call(url: str) -> None:
    """With a limit for statements: connections on which nobody answers leave the pool, and others take their place."""
    with Network.before(url) as network:
        far = f"{network.through(url)}&command_timeout=1"
        async with saver_on(far, pool_size=3, max_overflow=0, pipeline=False) as saver:
            await asyncio.gather(*[put(saver, str(n)) for n in range(3)])
            await asyncio.to_thread(network.black_hole)
            calls = await asyncio.gather(*[saver.aget_tuple(CONFIG) for _ in range(3)], return_exceptions=True)
            assert [type(outcome) for outcome in calls] == [Unavailable] * 3
            network._is_black_hole = False  # for new connections; what was swallowed stays so

            for _ in range(6):
                assert await saver.aget_tuple(CONFIG) is not None


# --- the deadline ---


async def test_after_the_deadline_the_drivers_error_is_the_cause(caplog: pytest.LogCaptureFixture) -> None:
    """The message says how long it was tried, and neither it nor the log has the password."""
    async with AsyncPostgresSaver.from_conn_string(NOWHERE, retry_timeout=0.3) as saver:
        with caplog.at_level(logging.INFO, "checkpoint_store"), pytest.raises(Unavailable) as caught:
            await saver.aget_tuple(CONFIG)

    assert "Tried again for 0.3 s (retry_timeout)" in str(caught.value)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert saver.retries > 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "127.0.0.1:1" in caplog.text
    assert "secret" not in caplog.text + str(caught.value)


async def test_setup_waits_for_the_server_too() -> None:
    """A service that starts before its database."""
    async with AsyncPostgresSaver.from_conn_string(NOWHERE, retry_timeout=0.1) as saver:
        with pytest.raises(Unavailable, match="Tried again"):
            await saver.setup()


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "10", None])
def test_a_deadline_is_a_number_of_seconds(engine_of_nobody: AsyncEngine, seconds: Any) -> None:
    """Anything else is refused by name."""
    with pytest.raises(InvalidOption, match="retry_timeout must be a time in seconds"):
        AsyncPostgresSaver(engine_of_nobody, retry_timeout=seconds)


@pytest.fixture
def engine_of_nobody() -> AsyncEngine:
    return create_async_engine("postgresql+asyncpg://nowhere/app")


@pytest.mark.parametrize("pipeline", [False, True])
async def test_a_server_that_does_not_answer_when_it_is_connected_to_is_tried_again(url: str, pipeline: bool) -> None:
    """Its silence is not taken for a statement that took too long."""
    tries: list[int] = []

    async def connect(*_: Any, **__: Any) -> Any:
        tries.append(len(tries))
        if len(tries) in (1, 2, 5):
            raise TimeoutError
        return await asyncpg.connect(dsn)

    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    async with AsyncPipeline(engine) as pipe:
        saver = AsyncPostgresSaver(engine, pipe if pipeline else None)
        await saver.aput(CONFIG, checkpoint_of("1"), {}, {})  # type: ignore[arg-type]
        assert (len(tries), saver.retries) == (3, 2)

        at_once = AsyncPostgresSaver(engine, retry_timeout=0)
        assert await at_once.aget_tuple(CONFIG) is not None
        with pytest.raises(Unavailable) as failed:
            await at_once.aget_tuple(CONFIG)
        assert "command_timeout" not in str(failed.value)
    await engine.dispose()


# --- meanwhile ---


async def test_a_call_that_waits_for_its_next_try_holds_nothing(url: str) -> None:
    """With one connection in the pool others go on; cancelled, it ends at once."""
    await asyncio.to_thread(execute, url, UNLUCKY)
    async with saver_on(url, pool_size=1, max_overflow=0, retry_timeout=1_000) as saver:
        unlucky = asyncio.create_task(put(saver, thread_id="unlucky"))
        await until(lambda: saver.retries > 3)
        for number in range(20):
            await put(saver, str(number))
        assert not unlucky.done()

        unlucky.cancel()
        await asyncio.wait([unlucky])
        assert unlucky.cancelled()


def test_a_sync_caller_that_waits_for_its_next_try_can_be_interrupted(url: str) -> None:
    """Closing the saver ends the wait, whatever thread it is in; no connection is opened after that."""
    execute(url, UNLUCKY)
    outcomes: list[BaseException] = []

    def call(saver: PostgresSaver) -> None:
        config: Any = {"configurable": {"thread_id": "unlucky", "checkpoint_ns": ""}}
        try:
            saver.put(config, checkpoint_of("1"), {}, {})  # type: ignore[arg-type]
        except BaseException as error:
            outcomes.append(error)

    sync_engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    for saver in (
        PostgresSaver(
            create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}), False, retry_timeout=1_000
        ),
        PostgresSaver(sync_engine, retry_timeout=1_000),
    ):
        thread = threading.Thread(target=call, args=(saver,))
        thread.start()
        asyncio.run(until(lambda: saver.retries > 2))  # noqa: B023 - run here
        saver.close()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
        sync_engine.dispose()
        asyncio.run(until(lambda: execute(url, SESSIONS) == 0))
    assert [type(error) for error in outcomes] == [Closed, Closed]


@pytest.mark.usefixtures("at_once")
async def test_a_closed_saver_tries_nothing_any_more(url: str) -> None:
    """It would open connections after its engine was disposed of; the one that is in use then is closed too."""
    await asyncio.to_thread(execute, url, UNLUCKY)
    with ExitStack() as locks:
        async with AsyncPostgresSaver.from_conn_string(url, retry_timeout=1_000, pipeline=False) as saver:
            unlucky = asyncio.create_task(put(saver, thread_id="unlucky"))
            await until(lambda: saver.retries > 2)
            locks.enter_context(locked(url))
            await until(lambda: execute(url, WAITING) == 1)

    with pytest.raises(Closed, match="closed while a call was retried"):
        await unlucky
    await until(lambda: execute(url, SESSIONS) == 0)


async def test_an_incident_is_logged_once(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Twenty calls fail at the same time, on two savers: one warning that it began, one line that it has passed."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}, pool_size=20)
    savers = [AsyncPostgresSaver(engine), AsyncPostgresSaver(engine)]
    with caplog.at_level(logging.INFO, "checkpoint_store"):
        with locked(url) as locking:
            calls = [asyncio.create_task(savers[n % 2].aget_tuple(CONFIG)) for n in range(20)]
            await until(lambda: execute(url, WAITING) == 20)
            await asyncio.to_thread(execute, url, others_of(locking))
            await until(lambda: sum(saver.retries for saver in savers) >= 20)
        await asyncio.gather(*calls)

    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"], caplog.text
    assert all(record.name == "checkpoint_store" for record in caplog.records)
    assert "57P01" in caplog.messages[0]
    assert "it has passed" in caplog.messages[1]
    await engine.dispose()


async def test_what_the_server_says_of_a_row_does_not_reach_the_log(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its messages may have values in them."""
    await asyncio.to_thread(execute, url, UNLUCKY)
    async with saver_on(url, retry_timeout=0.1) as saver:
        with caplog.at_level(logging.DEBUG, "checkpoint_store"), pytest.raises(Unavailable):
            await put(saver, thread_id="unlucky")

    assert "40001" in caplog.text
    assert "secret" not in caplog.text


# --- the pipeline ---


@pytest.mark.usefixtures("at_once")
async def test_a_batch_that_is_stored_again_keeps_its_order(url: str) -> None:
    """Its calls to one thread leave what the last one stored, and none is lost."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    pipe = AsyncPipeline(engine, flushes=1)
    saver = AsyncPostgresSaver(engine, pipe)
    with locked(url) as locking:
        first = asyncio.create_task(put(saver, thread_id="first"))
        await until(lambda: execute(url, WAITING) == 1)
        calls = [asyncio.create_task(put(saver, str(n % 5), f"t{n % 3}", n=n)) for n in range(45)]
        for _ in range(2):
            before = saver.retries
            await asyncio.to_thread(execute, url, others_of(locking))
            await until(lambda: saver.retries > before)  # noqa: B023 - awaited here
            await until(lambda: execute(url, WAITING) == 1)
    await asyncio.gather(first, *calls)

    for thread in range(3):
        config: Any = {"configurable": {"thread_id": f"t{thread}", "checkpoint_ns": ""}}
        stored = {int(found.checkpoint["id"]): found async for found in saver.alist(config)}
        last = {number: max(n for n in range(45) if n % 3 == thread and n % 5 == number) for number in stored}
        assert {number: found.checkpoint["channel_values"]["n"] for number, found in stored.items()} == last
        assert len(stored) == 5
    await pipe.aclose()
    await engine.dispose()


async def test_calls_that_have_waited_for_a_lost_server_fail_with_the_commit_before_them() -> None:
    """They don't wait for the deadline once more: that is over for them too."""
    engine = create_async_engine(make_url(NOWHERE).set(drivername="postgresql+asyncpg"))
    pipe = AsyncPipeline(engine, flushes=1)
    saver = AsyncPostgresSaver(engine, pipe, retry_timeout=1.5)
    calls = [asyncio.create_task(put(saver, str(n), f"t{n}")) for n in range(1_000)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    assert all(isinstance(outcome.__cause__, ConnectionRefusedError) for outcome in outcomes)
    # One commit's tries, not those of the four that a thousand calls need.
    assert saver.retries < 20
    await pipe.aclose()
    await engine.dispose()


# --- commits whose outcome nobody has heard ---


@asynccontextmanager
async def unheard(network: Network, saver: AsyncPostgresSaver, done: Callable[[], Any]) -> AsyncIterator[None]:
    """What is called meanwhile is committed, but the answer is lost; then it is tried again."""
    before = saver.retries
    network.deafen()
    yield
    await until(done)
    await until(lambda: network.swallowed > 0)
    network.mend()
    await until(lambda: saver.retries > before)


@pytest.fixture
def network(url: str) -> Iterator[Network]:
    with Network.before(url) as network:
        yield network


@pytest.mark.parametrize("pipeline", [False, True], ids=["plain", "pipeline-pages"])
@pytest.mark.shortcut
async def test_a_put_that_was_stored_unheard_is_stored_once(url: str, network: Network, pipeline: bool) -> None:
    """Stored again, it changes nothing: not its parent, not its blobs, not its pages, whoever else has stored."""
    async with saver_on(network.through(url), pipeline=pipeline, share_pages=pipeline) as saver, saver_on(url) as other:
        texts = ["x" * 900 + str(n) for n in range(50)]
        first = await put(saver, "1", texts=texts)
        checkpoint: Any = checkpoint_of("2", texts=[*texts, "more"], n=1)
        versions = {"texts": "2", "n": "2"}
        checkpoint["channel_versions"] = versions

        stored = lambda: execute(url, "SELECT count(*) FROM checkpoints") == 2  # noqa: E731
        async with unheard(network, saver, stored):
            call = asyncio.create_task(saver.aput(first, checkpoint, {"step": 1}, versions))
        await call
        await put(other, "3")

        found = await other.aget_tuple({"configurable": {**CONFIG["configurable"], "checkpoint_id": "2"}})
        assert found.checkpoint["channel_values"] == checkpoint["channel_values"]
        assert found.parent_config["configurable"]["checkpoint_id"] == "1"
        assert execute(url, "SELECT count(*) FROM checkpoints") == 3
        assert execute(url, "SELECT count(*) FROM checkpoint_blobs WHERE channel = 'texts'") == 2
        if pipeline:
            assert execute(url, "SELECT bool_and(type = 'pages') FROM checkpoint_blobs WHERE channel = 'texts'")


@pytest.mark.shortcut
async def test_a_put_that_another_one_has_come_between_is_the_last(url: str, network: Network) -> None:
    """Two callers replace one checkpoint at the same time: one of them is last, as if there had been no failure."""
    async with saver_on(network.through(url)) as saver, saver_on(url) as other:
        await put(saver, "1", a="before")
        locking = psycopg.connect(url)
        network.deafen()
        call = asyncio.create_task(put(saver, "1", a="ours"))
        ours = "SELECT checkpoint #>> '{channel_values,a}' = 'ours' FROM checkpoints"
        await until(lambda: execute(url, ours))
        await put(other, "1", a="theirs")
        network.mend()
        await call
        locking.close()

        found = await other.aget_tuple(CONFIG)
        assert found.checkpoint["channel_values"] == {"a": "ours"}


@pytest.mark.parametrize("channel", ["a", "__error__"], ids=["first stays", "last counts"])
async def test_writes_that_were_stored_unheard_are_stored_once(url: str, network: Network, channel: str) -> None:
    """Of writes that don't replace, what another caller has stored first stays, and so does ours."""
    async with saver_on(network.through(url)) as saver, saver_on(url) as other:
        stored = await put(saver)
        # What a session has prepared before is executed without a word from the server.
        await saver.aput_writes(stored, [(channel, "before")], "another task")
        there = lambda: execute(url, "SELECT count(*) FROM checkpoint_writes") == 2  # noqa: E731
        async with unheard(network, saver, there):
            call = asyncio.create_task(saver.aput_writes(stored, [(channel, "ours")], "task"))
        await call
        await other.aput_writes(stored, [("a", "theirs")], "task")

        found = await other.aget_tuple(stored)
        assert ("task", channel, "ours") in found.pending_writes
        assert len(found.pending_writes) == (2 if channel == "a" else 3)


async def test_a_deletion_that_was_done_unheard_is_done_once_more(url: str, network: Network) -> None:
    """The thread is gone, and what was begun in it after the deletion was acknowledged stays."""
    async with saver_on(network.through(url)) as saver, saver_on(url) as other:
        await put(saver, a=[1])
        gone = lambda: execute(url, "SELECT count(*) FROM checkpoints") == 0  # noqa: E731
        network.deafen()
        call = asyncio.create_task(saver.adelete_thread("t"))
        # Of its statements only the first one reaches the server, since the client waits for each answer.
        await until(lambda: network.swallowed > 0)
        network.mend()
        await call
        assert saver.retries > 0
        assert gone()
        await put(other, "2")

        assert await saver.aget_tuple(CONFIG) is not None


async def test_a_deletion_whose_commit_was_not_heard_of_is_done_once_more(url: str, network: Network) -> None:
    """The answer to COMMIT is what is lost."""
    async with saver_on(network.through(url)) as saver:
        await put(saver, a=[1])
        engine = saver._backend.provider.engine

        @event.listens_for(engine, "commit")
        def deafen(_: object) -> None:
            if not saver.retries:
                network.deafen()

        call = asyncio.create_task(saver.adelete_thread("t"))
        await until(lambda: execute(url, "SELECT count(*) FROM checkpoints") == 0)
        await until(lambda: network.swallowed > 0)
        network.mend()
        await call

        assert saver.retries > 0
        assert await saver.aget_tuple(CONFIG) is None


async def test_a_copy_whose_commit_was_not_heard_of_is_found_instead_of_refused(url: str, network: Network) -> None:
    """The second try finds the target taken, by the first one; somebody else's is refused as ever."""
    async with saver_on(network.through(url)) as saver:
        await put(saver, a=[1])
        engine = saver._backend.provider.engine

        @event.listens_for(engine, "commit")
        def deafen(_: object) -> None:
            if not saver.retries:
                network.deafen()

        call = asyncio.create_task(saver.acopy_thread("t", "copy"))
        await until(lambda: execute(url, "SELECT count(*) FROM checkpoints") == 2)
        await until(lambda: network.swallowed > 0)
        network.mend()
        await call

        assert saver.retries > 0
        copied = await saver.aget({"configurable": {"thread_id": "copy"}})
        assert copied["channel_values"] == {"a": [1]}
        with pytest.raises(ThreadExists):
            await saver.acopy_thread("t", "copy")


# --- several hosts ---


async def test_of_several_hosts_the_one_that_takes_writes_is_waited_for(url: str) -> None:
    """The first host is not there, and for a while the second one only reads: as in a failover."""
    info = conninfo_to_dict(url)
    hosts = f"host=/nowhere,{info.get('host') or 'localhost'}&port={info.get('port', 5432)},{info.get('port', 5432)}"
    several = f"postgresql://{info['user']}@/{info['dbname']}?{hosts}&target_session_attrs=read-write"
    await asyncio.to_thread(execute, url, f"ALTER DATABASE {info['dbname']} SET default_transaction_read_only = on")
    async with saver_on(several, retry_timeout=60) as saver:
        call = asyncio.create_task(put(saver))
        await until(lambda: saver.retries > 1)
        writing = f"{url}&options=-cdefault_transaction_read_only%3Doff"
        await asyncio.to_thread(
            execute, writing, f"ALTER DATABASE {info['dbname']} RESET default_transaction_read_only"
        )
        await call

        assert await saver.aget_tuple(CONFIG) is not None
