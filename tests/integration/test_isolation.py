"""Removals in a transaction that does not see what others store meanwhile are refused; all else that is safe works."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from psycopg import sql
from sqlalchemy import Connection, Engine, create_engine, event, func, literal_column, make_url, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver, conversion, encryption
from checkpoint_store.encryption import KeyRing
from checkpoint_store.errors import WrongTransaction
from checkpoint_store.sql.compiled import Statement
from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage.operation import Kind, operation
from tests.integration.histories import unreachable

THREAD: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
VALUE = [f"message {number}" for number in range(2_000)]
STRICT = ["REPEATABLE READ", "SERIALIZABLE"]
DRIVERS = ["asyncpg", "async psycopg", "psycopg"]
WAYS = ["isolation_level", "execution_options", "connection", "database"]


async def put(
    saver: Any, run_id: str = "old", *, version: str = "1", at: Any = THREAD, value: list[str] = VALUE
) -> Any:
    """Store a checkpoint with a value under a version that others may have too."""
    checkpoint: Any = {
        **empty_checkpoint(),
        "id": str(uuid6()),
        "channel_values": {"messages": value},
        "channel_versions": {"messages": version},
    }
    return await saver.aput(at, checkpoint, {"run_id": run_id}, {"messages": version})


async def values_of(saver: Any) -> list[Any]:
    return [one.checkpoint["channel_values"].get("messages") async for one in saver.alist(None)]


REMOVALS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "delete_thread": lambda saver: saver.adelete_thread("t"),
    "delete_for_runs": lambda saver: saver.adelete_for_runs(["old"]),
    "prune": lambda saver: saver.aprune(["t"]),
    "prune, delete": lambda saver: saver.aprune(["t"], strategy="delete"),
    "sweep": lambda saver: saver.asweep(keep_last=1),
    "sweep by age": lambda saver: saver.asweep(older_than=timedelta(0)),
    "copy_thread, replace": lambda saver: saver.acopy_thread("another", "t", replace=True),
}


@pytest.fixture
async def elsewhere(url: str) -> AsyncIterator[AsyncEngine]:
    """Another process's engine."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    yield engine
    await engine.dispose()


class Host:
    """An application whose engine is in another isolation level, by one way or another."""

    def __init__(self, url: str, driver: str, way: str) -> None:
        target = make_url(url).set(drivername=f"postgresql+{driver.removeprefix('async ')}")
        options: dict[str, Any] = {}
        if way == "isolation_level":
            options["isolation_level"] = "REPEATABLE READ"
        elif way == "execution_options":
            options["execution_options"] = {"isolation_level": "REPEATABLE READ"}
        elif way == "mended":
            options["isolation_level"] = "READ COMMITTED"
        elif way == "connection":
            setting = "default_transaction_isolation"
            options["connect_args"] = (
                {"server_settings": {setting: "repeatable read"}}
                if driver == "asyncpg"
                else {"options": f"-c {setting}=repeatable\\ read"}
            )
        if way in ("database", "mended"):
            with psycopg.connect(url, autocommit=True) as admin:
                name = sql.Identifier(admin.info.dbname)
                setting = "ALTER DATABASE {} SET default_transaction_isolation = 'repeatable read'"
                admin.execute(sql.SQL(setting).format(name))
        self.is_async = driver != "psycopg"
        self.engine: Any = (create_async_engine if self.is_async else create_engine)(target, **options)
        self.sync_engine: Engine = self.engine.sync_engine if self.is_async else self.engine
        self.saver: Any = (AsyncPostgresSaver if self.is_async else PostgresSaver)(self.engine, share_pages=True)

    async def level(self) -> str:
        """The isolation level of the transactions that the saver removes in."""
        level: str = await self.saver._backend.run(level_of)
        return level

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """A connection of the pool."""
        if self.is_async:
            async with self.engine.connect() as conn:
                yield conn
        else:
            with self.engine.connect() as conn:
                yield conn

    def begin_on_checkout(self) -> None:
        """Have a listener set something on each connection that is taken, which begins a transaction."""

        @event.listens_for(self.sync_engine, "checkout")
        def begin(adapter: Any, *_: Any) -> None:
            cursor = adapter.cursor()
            cursor.execute("SELECT set_config('app.tenant', 'one', true)")
            cursor.close()

    async def dispose(self) -> None:
        if self.is_async:
            await self.engine.dispose()
        else:
            self.engine.dispose()


@operation(Kind.READ, in_transaction=True)
def level_of(db: Executor, _: Statements) -> str:
    level: str = db.fetch(Statement(select, func.current_setting(literal_column("'transaction_isolation'"))), {})[0][0]
    return level


# --- in a transaction of the caller's ---


@pytest.mark.parametrize("share_pages", [False, True])
@pytest.mark.parametrize("level", STRICT)
@pytest.mark.parametrize("name", REMOVALS)
async def test_a_removal_by_an_old_snapshot_is_refused(
    engine: AsyncEngine, elsewhere: AsyncEngine, name: str, level: Any, share_pages: bool
) -> None:
    """Another process has stored a checkpoint since, whose value only older ones had: nothing of it is destroyed."""
    saver = AsyncPostgresSaver(engine, share_pages=share_pages)
    other = AsyncPostgresSaver(elsewhere, share_pages=share_pages)
    old = await put(saver)
    await put(saver, version="2")
    await put(saver, at={"configurable": {"thread_id": "another", "checkpoint_ns": ""}})
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level=level)
        within = saver.bind(conn)
        assert len(await values_of(within)) == 3  # the snapshot is taken
        acknowledged = await put(other, "new", at=old)
        with pytest.raises(WrongTransaction, match=f"{level}: it does not see .* Use READ COMMITTED"):
            await REMOVALS[name](within)
        assert len(await values_of(within)) == 3  # of the transaction nothing is undone
        await conn.commit()

    found = await other.aget_tuple(acknowledged)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"messages": VALUE}
    assert await values_of(other) == [VALUE] * 4


@pytest.mark.parametrize("share_pages", [False, True])
@pytest.mark.parametrize("name", [*REMOVALS, "copy_thread"])
async def test_a_removal_without_a_transaction_is_refused(
    engine: AsyncEngine, url: str, name: str, share_pages: bool
) -> None:
    """On a connection in AUTOCOMMIT no lock is held from one statement to the next."""
    saver = AsyncPostgresSaver(engine, share_pages=share_pages)
    for version in ("1", "2"):
        await put(saver, version=version)
    await put(saver, at={"configurable": {"thread_id": "another", "checkpoint_ns": ""}})
    call = REMOVALS.get(name, lambda saver: saver.acopy_thread("another", "copy"))
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(WrongTransaction, match=r"AUTOCOMMIT: each statement .* Use a saver on the engine"):
            await call(saver.bind(conn))

    assert await values_of(saver) == [VALUE] * 3
    assert unreachable(url) == {}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("level", ["READ COMMITTED", "READ UNCOMMITTED", *STRICT, None])
async def test_the_level_is_the_one_that_the_server_has(url: str, driver: str, level: str | None) -> None:
    """However it came about; READ UNCOMMITTED is PostgreSQL's READ COMMITTED."""
    host = Host(url, driver, "database")
    expected = nullcontext()
    if level in STRICT or level is None:
        expected = pytest.raises(WrongTransaction, match=level or "AUTOCOMMIT")
    # By hand, on a driver that is in autocommit.
    begin = text(f"BEGIN ISOLATION LEVEL {level}" if level else "SELECT")
    async with host.connect() as conn:
        for call in (partial(conn.execution_options, isolation_level="AUTOCOMMIT"), partial(conn.execute, begin)):
            done = call()
            if host.is_async:
                await done
        with expected:
            await host.saver.bind(conn).adelete_thread("t")
    await host.dispose()


@pytest.mark.parametrize("level", STRICT)
async def test_reading_and_storing_go_on(engine: AsyncEngine, level: Any) -> None:
    """What is safe there stays allowed; so does counting what a sweep would remove."""
    saver = AsyncPostgresSaver(engine, share_pages=True)
    await put(saver)
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level=level)
        within = saver.bind(conn)
        stored = await put(within, version="2")
        await within.aput_writes(stored, [("messages", 1)], "task")
        assert await values_of(within) == [VALUE, VALUE]
        assert [one.thread_id async for one in within.alist_threads()] == ["t"]
        assert (await within.asweep(keep_last=1, dry_run=True)).checkpoints == 1
        await conn.commit()

    found = await saver.aget_tuple(stored)
    assert found is not None
    assert found.pending_writes == [("task", "messages", 1)]


@pytest.mark.parametrize("level", STRICT)
async def test_pages_that_were_collected_meanwhile_are_not_counted_on(
    engine: AsyncEngine, elsewhere: AsyncEngine, url: str, level: Any
) -> None:
    """The thread is there, and has pages; those that the transaction still sees are gone."""
    saver, other = AsyncPostgresSaver(engine, share_pages=True), AsyncPostgresSaver(elsewhere, share_pages=True)
    await put(saver)
    kept = [f"another {number}" for number in range(2_000)]
    await put(saver, "kept", version="2", value=kept)
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level=level)
        assert len(await values_of(saver.bind(conn))) == 2
        assert (await other.adelete_for_runs(["old"])).pages > 0
        with pytest.raises(WrongTransaction, match="could not serialize access"):
            await put(saver.bind(conn), version="3")
        await conn.rollback()
        await put(saver.bind(conn), version="3")
        await conn.commit()

    assert await values_of(other) == [VALUE, kept]
    assert unreachable(url) == {}


@pytest.mark.parametrize("share_pages", [False, True])
@pytest.mark.parametrize("level", STRICT)
async def test_what_is_acknowledged_is_there(
    engine: AsyncEngine, elsewhere: AsyncEngine, url: str, level: Any, share_pages: bool
) -> None:
    """Or it is stored whole, as where no page is shared; who tries again stores it whole, too."""
    saver = AsyncPostgresSaver(engine, share_pages=share_pages)
    other = AsyncPostgresSaver(elsewhere, share_pages=share_pages)
    await put(saver)
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level=level)
        within = saver.bind(conn)
        assert await values_of(within) == [VALUE]
        await other.adelete_thread("t")
        if share_pages:
            with pytest.raises(WrongTransaction, match="could not serialize access"):
                await put(within)
            await conn.rollback()
        await put(saver.bind(conn))
        await conn.commit()

    assert await values_of(other) == [VALUE]
    assert unreachable(url) == {}


@pytest.mark.parametrize("level", STRICT)
async def test_a_copy_is_of_the_moment_that_the_transaction_sees(
    engine: AsyncEngine, elsewhere: AsyncEngine, level: Any
) -> None:
    """What others have stored since is not in it, nor is a part of that."""
    saver, other = AsyncPostgresSaver(engine, share_pages=True), AsyncPostgresSaver(elsewhere, share_pages=True)
    old = await put(saver)
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level=level)
        within = saver.bind(conn)
        assert await values_of(within) == [VALUE]
        await put(other, "new", version="2", at=old)
        await other.aput_writes(old, [("messages", 1)], "task")
        await within.acopy_thread("t", "copy")
        await conn.commit()

    [copied] = [one async for one in saver.alist({"configurable": {"thread_id": "copy"}})]
    assert copied.checkpoint["id"] == old["configurable"]["checkpoint_id"]
    assert (copied.checkpoint["channel_values"], copied.pending_writes) == ({"messages": VALUE}, [])


@pytest.mark.parametrize("share_pages", [False, True])
@pytest.mark.parametrize("level", STRICT)
async def test_a_copy_is_never_mixed_with_another_one_that_it_does_not_see(
    engine: AsyncEngine, elsewhere: AsyncEngine, level: Any, share_pages: bool
) -> None:
    """Another process has copied another thread to the same target since the transaction began."""
    saver = AsyncPostgresSaver(engine, share_pages=share_pages)
    other = AsyncPostgresSaver(elsewhere, share_pages=share_pages)
    for name in ("one", "two"):
        await put(saver, name, version=name, at={"configurable": {"thread_id": name, "checkpoint_ns": ""}})
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level=level)
        within = saver.bind(conn)
        assert len(await values_of(within)) == 2
        await other.acopy_thread("one", "copy")
        with pytest.raises(WrongTransaction, match="could not serialize access"):
            await within.acopy_thread("two", "copy")
        await conn.rollback()

    copied = [one.metadata["run_id"] async for one in saver.alist({"configurable": {"thread_id": "copy"}})]
    assert copied == ["one"]


@pytest.mark.parametrize("level", STRICT)
async def test_a_lock_is_not_had_where_what_its_last_holder_did_is_not_seen(engine: AsyncEngine, level: Any) -> None:
    """The run would go on from an old checkpoint, with the lock in its hand."""
    saver = AsyncPostgresSaver(engine)
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level=level)
        with pytest.raises(WrongTransaction, match=rf"thread_lock\(\) can't work .* {level}"):
            await saver.bind(conn).thread_lock("t", timeout=0).__aenter__()


# --- in a transaction of the saver's own ---


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("way", WAYS)
async def test_a_transaction_of_our_own_is_read_committed(url: str, way: str, driver: str) -> None:
    """Whatever the engine, the connection, the role or the database has by default."""
    host = Host(url, driver, way)

    assert await host.level() == "read committed"
    await put(host.saver)
    await put(host.saver)
    assert (await host.saver.aprune(["t"])).checkpoints == 1
    await host.saver.adelete_thread("t")
    assert await values_of(host.saver) == []
    await host.dispose()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("way", ["isolation_level", "connection", "database"])
async def test_one_that_a_listener_has_begun_otherwise_is_refused(url: str, way: str, driver: str) -> None:
    """A `checkout` listener that sets something begins it, in the engine's level; nothing is removed in that."""
    host = Host(url, driver, way)
    for version in ("1", "2"):
        await put(host.saver, version=version)
    host.begin_on_checkout()

    assert await host.level() == "repeatable read"
    await put(host.saver, version="3")
    names = set(REMOVALS) - {"copy_thread, replace"}
    for name in names:
        with pytest.raises(WrongTransaction, match=r"REPEATABLE READ.* or, where a listener of the engine's begins"):
            await REMOVALS[name](host.saver)
    with pytest.raises(WrongTransaction):
        await conversion.inline(host.engine)
    with pytest.raises(WrongTransaction):
        await host.saver.acopy_thread("t", "t2", replace=True)

    assert await values_of(host.saver) == [VALUE] * 3
    assert unreachable(url) == {}
    await host.dispose()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("way", WAYS)
async def test_a_listener_that_sets_it_as_transactions_begin_stands_in_nobodys_way(
    url: str, way: str, driver: str
) -> None:
    """By then the level is set: `begin` is the event of the connection's that the docs advise."""
    host = Host(url, driver, way)

    @event.listens_for(host.sync_engine, "begin")
    def begin(conn: Connection) -> None:
        conn.execute(text("SELECT set_config('app.tenant', 'one', true)"))

    assert await host.level() == "read committed"
    await put(host.saver)
    await host.saver.adelete_thread("t")
    assert await values_of(host.saver) == []
    await host.dispose()


@pytest.mark.parametrize("driver", DRIVERS)
async def test_an_engine_in_read_committed_mends_it(url: str, driver: str) -> None:
    """As the error says: the same listener, on an engine that has the level."""
    host = Host(url, driver, "mended")
    host.begin_on_checkout()

    assert await host.level() == "read committed"
    await put(host.saver)
    await host.saver.adelete_thread("t")
    assert await values_of(host.saver) == []
    await host.dispose()


async def test_conversions_beside_such_a_listener_destroy_nothing(url: str) -> None:
    """Each rewrites by statements that the server refuses where somebody came first; pages are not collected."""
    host = Host(url, "asyncpg", "isolation_level")
    await put(host.saver)
    host.begin_on_checkout()
    ring = EncryptedSerializer(KeyRing.aes(b"k" * 32))
    with pytest.raises(WrongTransaction):
        await encryption.reencrypt(host.engine, None, ring)
    saver = AsyncPostgresSaver(host.engine, serde=ring)
    assert await values_of(saver) == [VALUE]
    await host.dispose()
