"""`PostgresSaver` on a sync engine: the same, in the calling thread, for applications that have no event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver, conversion
from checkpoint_store.errors import (
    AccessDenied,
    InvalidOption,
    MigrationError,
    NotSetUp,
    Unavailable,
    UnusableConnection,
)

THREAD: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


def engine_on(url: str, **options: Any) -> Engine:
    return create_engine(make_url(url).set(drivername="postgresql+psycopg"), **options)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = engine_on(url)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


def put(saver: PostgresSaver, thread: Any = THREAD, **values: Any) -> Any:
    new = dict.fromkeys(values, uuid.uuid4().hex)
    checkpoint: Any = {**empty_checkpoint(), "channel_values": values, "channel_versions": new}
    return saver.put(thread, checkpoint, {}, new)


def test_there_is_neither_a_loop_nor_a_thread(engine: Engine) -> None:
    """Every call runs where it is made: what it needs of the thread's context is there."""
    threads, executing = threading.enumerate(), set()
    event.listen(engine, "before_cursor_execute", lambda *_: executing.add(threading.current_thread()))
    saver = PostgresSaver(engine)
    saver.setup()
    stored = put(saver, a=[1])
    saver.put_writes(stored, [("a", 2)], "task")
    assert saver.get_tuple(THREAD).pending_writes == [("task", "a", 2)]  # type: ignore[union-attr]
    assert len(list(saver.list(None))) == 1
    saver.delete_thread("t")
    saver.close()

    assert threading.enumerate() == threads
    assert executing == {threading.current_thread()}


async def test_it_may_be_called_where_a_loop_runs(engine: Engine) -> None:
    """As in a notebook: the call holds the loop up, but waits for nothing on it. Its async methods don't hold it up."""
    saver = PostgresSaver(engine)
    put(saver, a=[1])
    other = asyncio.create_task(asyncio.sleep(0))
    assert await saver.aget(THREAD) == saver.get(THREAD)
    assert other.done()


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_arrays_of_any_length_are_prepared_once(engine: Engine, count: int) -> None:
    """Psycopg prepares a statement that comes back; what an empty array is one of, only its cast tells."""
    saver = PostgresSaver(engine, share_pages=True)
    values: dict[str, Any] = {f"channel {number}": [b"\x00\xff'\\", None, 'ü,{}"'] for number in range(count)}
    for _ in range(12):
        stored = put(saver, **values, text="x")
        saver.put_writes(stored, list(values.items()), "task")
        put(saver, **values, large=["y" * 1000] * 50)
    with engine.connect() as conn:
        prepared = conn.scalar(text("SELECT count(*) FROM pg_prepared_statements"))
    assert prepared in range(1, 6)
    found = saver.get_tuple(stored)
    assert found is not None
    assert found.checkpoint["channel_values"] == {**values, "text": "x"}
    assert len(found.pending_writes or ()) == count


@pytest.mark.parametrize(
    "connect_args",
    [{"prepare_threshold": None}, {"prepare_threshold": 0}, {"cursor_factory": psycopg.ClientCursor}],
    ids=["never prepared", "always prepared", "client-side cursors"],
)
def test_a_host_may_choose_how_psycopg_executes(url: str, connect_args: dict[str, Any]) -> None:
    """Such as for PgBouncer."""
    engine = engine_on(url, connect_args=connect_args)
    saver = PostgresSaver(engine)
    for _ in range(3):
        stored = put(saver, a=[b"\x00\xff"], large=["y" * 1000] * 50)
        saver.put_writes(stored, [("a", b"\x00\xff%s%%")], "task")
    found = saver.get_tuple(stored)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": [b"\x00\xff"], "large": ["y" * 1000] * 50}
    assert found.pending_writes == [("task", "a", b"\x00\xff%s%%")]
    engine.dispose()


def test_threads_set_up_an_empty_database_at_once(empty_url: str) -> None:
    """One migrates, the others wait and find it done; each schema for itself."""
    engine = engine_on(empty_url, pool_size=12)

    def setup(number: int) -> None:
        saver = PostgresSaver(engine, schema=f"tenant {number % 2}")
        saver.setup()
        put(saver, {"configurable": {"thread_id": f"{number}", "checkpoint_ns": ""}}, a=[number])

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(setup, range(12)))
    for number in range(2):
        assert len(list(PostgresSaver(engine, schema=f"tenant {number}").list(None))) == 6
    engine.dispose()


async def test_a_database_is_converted_from_a_sync_engine_too(engine: Engine) -> None:
    """Both ways, in worker threads."""
    saver = PostgresSaver(engine, share_pages=False)
    for number in range(5):
        put(saver, large=[f"{number}", *["y" * 1000] * 50])

    assert await conversion.share(engine) == 5
    assert await conversion.inline(engine) == 5
    assert len(list(saver.list(None))) == 5


# --- errors ---


def test_missing_tables_and_rights_are_told_in_our_words(empty_url: str) -> None:
    """Also where the server speaks through psycopg: its states are the same."""
    role = f"app_{uuid.uuid4().hex}"
    engine = engine_on(empty_url)
    saver = PostgresSaver(engine)
    with pytest.raises(NotSetUp, match=r'relation "checkpoints" does not exist. Run `setup\(\)`'):
        saver.get(THREAD)
    with psycopg.connect(empty_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role}; REVOKE CREATE ON SCHEMA public FROM public")
    poor = PostgresSaver(engine_on(empty_url, connect_args={"options": f"-c role={role}"}))
    with pytest.raises(MigrationError, match=r"permission denied.*alembic upgrade head"):
        poor.setup()
    saver.setup()
    with pytest.raises(AccessDenied, match=r"permission denied for table checkpoints. .*GRANT SELECT"):
        poor.get(THREAD)
    engine.dispose()
    poor._backend.provider.engine.dispose()
    with psycopg.connect(empty_url, autocommit=True) as admin:
        admin.execute(f"DROP ROLE {role}")


def test_a_server_that_is_not_there_is_unavailable(unused_tcp_port: int) -> None:
    """The message names it, without user and password."""
    engine = create_engine(f"postgresql+psycopg://user:secret@127.0.0.1:{unused_tcp_port}/app")
    with pytest.raises(Unavailable, match=f"127.0.0.1:{unused_tcp_port}/app: .*refused") as caught:
        PostgresSaver(engine).get(THREAD)
    assert "secret" not in str(caught.value)
    with pytest.raises(Unavailable):
        PostgresSaver(engine).setup()


@pytest.mark.parametrize("watched", [False, True], ids=["quiet", "watched"])
def test_a_connection_that_was_lost_in_the_pool_is_replaced_before_it_is_used(url: str, watched: bool) -> None:
    """So that no call fails for it, also where nothing is tried again."""
    engine = engine_on(url, pool_size=1, max_overflow=0)
    if watched:
        event.listen(engine, "before_cursor_execute", lambda *_: None)
    saver = PostgresSaver(engine, retry_timeout=0)
    put(saver, a=[1])
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid != pg_backend_pid()"
        )
    put(saver, a=[1])
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


def test_an_exhausted_pool_is_unavailable(url: str) -> None:
    """After the pool's own deadline."""
    engine = engine_on(url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    with engine.connect(), pytest.raises(Unavailable, match="no connection became free in time"):
        PostgresSaver(engine).get(THREAD)
    engine.dispose()


@pytest.mark.parametrize("watched", [False, True], ids=["quiet", "watched"])
def test_what_a_deadlock_has_undone_is_done_again(engine: Engine, watched: bool) -> None:
    """The server chooses whose work it undoes; on an engine all of ours can be done again."""
    if watched:
        event.listen(engine, "before_cursor_execute", lambda *_: None)
    with engine.begin() as conn:
        conn.exec_driver_sql(
            """
            CREATE SEQUENCE attempts;
            CREATE FUNCTION deadlock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('attempts') < 3 THEN
                    RAISE EXCEPTION USING MESSAGE = 'deadlock detected', ERRCODE = '40P01';
                END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER deadlock BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION deadlock()
            """
        )
    saver = PostgresSaver(engine)

    put(saver, a=[1])

    assert len(list(saver.list(None))) == 1


# --- what does not go ---


def test_nothing_needs_psycopg_but_its_engines() -> None:
    """It is no dependency: an application on asyncpg goes without."""
    without = "import sys; sys.modules['psycopg'] = None; import checkpoint_store.saver, checkpoint_store.conversion"
    subprocess.run([sys.executable, "-c", without], check=True)


async def test_a_pipeline_needs_an_async_engine(engine: Engine) -> None:
    """Threads wait for their own commit; the messages say so."""
    async_engine = create_async_engine(engine.url)
    with pytest.raises(InvalidOption, match=r"can't be used with a sync engine.*Leave it out, or pass an AsyncEngine"):
        PostgresSaver(engine, AsyncPipeline(async_engine))
    with pytest.raises(UnusableConnection, match="engine must be the savers' AsyncEngine, not Engine"):
        AsyncPipeline(engine)  # type: ignore[arg-type]
    with engine.connect() as conn, pytest.raises(InvalidOption, match="can't be used with a connection"):
        PostgresSaver(conn, AsyncPipeline(async_engine))


async def test_an_async_saver_needs_an_async_engine(engine: Engine) -> None:
    """And says which saver does not."""
    with engine.connect() as conn:
        for sync in (engine, conn):
            with pytest.raises(UnusableConnection, match=r"it must be an AsyncEngine .* Use PostgresSaver"):
                AsyncPostgresSaver(sync)  # type: ignore[arg-type]
    inside = create_async_engine(engine.url).sync_engine
    with pytest.raises(UnusableConnection, match=r"the inside of an async one. Pass the async one itself"):
        PostgresSaver(inside)


def test_other_drivers_are_refused_by_name(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With those that would do."""
    monkeypatch.setattr(engine.dialect, "driver", "psycopg2")
    with pytest.raises(UnusableConnection, match=r"of postgresql\+psycopg2; .* Engine of postgresql\+psycopg"):
        PostgresSaver(engine)
