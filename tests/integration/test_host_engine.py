"""A host's engine is borrowed: whatever it is, it serves, sees our statements as its own, and stays as it was."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from psycopg import sql
from sqlalchemy import Connection, Engine, NullPool, QueuePool, StaticPool, create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.errors import InvalidConfig, NotSetUp, Refused, Unavailable

T = TypeVar("T")
DRIVERS = ["asyncpg", "async psycopg", "psycopg"]
MOST_DRIVERS = ["asyncpg", pytest.param("async psycopg", marks=pytest.mark.slow), "psycopg"]


class Host:
    """An application with an engine, and a saver on it whose async methods are called."""

    def __init__(self, url: str, driver: str, settings: dict[str, str] | None = None, **options: Any) -> None:
        target = make_url(url).set(drivername=f"postgresql+{driver.removeprefix('async ')}")
        if driver == "asyncpg":
            options["connect_args"] = {"server_settings": settings or {}}
        else:
            options["connect_args"] = {
                "options": " ".join(f"-c {key}={value}" for key, value in (settings or {}).items())
            }
        self.is_async = driver != "psycopg"
        self.engine: Any = (create_async_engine if self.is_async else create_engine)(target, **options)
        self.sync_engine: Engine = self.engine.sync_engine if self.is_async else self.engine
        self.saver = self.another_saver()

    def another_saver(self) -> Any:
        return (AsyncPostgresSaver if self.is_async else PostgresSaver)(self.engine)

    async def setup(self) -> None:
        await self.saver.setup() if self.is_async else self.saver.setup()

    async def work(self, function: Callable[[Connection], T]) -> T:
        """Do something of the host's own on a connection of the pool."""
        if self.is_async:
            async with self.engine.connect() as conn:
                return await conn.run_sync(function)
        with self.engine.connect() as conn:
            return function(conn)

    async def dispose(self) -> None:
        if self.is_async:
            await self.engine.dispose()
        else:
            self.engine.dispose()


@pytest.fixture
async def host_of(url: str) -> AsyncIterator[Callable[..., Host]]:
    """Makes a host's engine with options of its own; what was borrowed from it must have been given back."""
    hosts: list[Host] = []

    def make(driver: str, settings: dict[str, str] | None = None, **options: Any) -> Host:
        hosts.append(Host(url, driver, settings, **options))
        return hosts[-1]

    yield make
    for host in hosts:
        if isinstance(host.engine.pool, QueuePool):
            assert host.engine.pool.checkedout() == 0
        await host.dispose()


def thread(name: str = "t") -> Any:
    return {"configurable": {"thread_id": name, "checkpoint_ns": ""}}


async def put(saver: Any, name: str = "t", **values: Any) -> Any:
    new = dict.fromkeys(values, uuid.uuid4().hex)
    checkpoint: Any = {**empty_checkpoint(), "channel_values": values, "channel_versions": new}
    return await saver.aput(thread(name), checkpoint, {"by": name}, new)


async def use_everything(saver: Any, name: str = "t") -> None:
    """Call every method once; each does what it should."""
    stored = await put(saver, name, a=[1], b="x", large=["y" * 1000] * 100)
    await saver.aput_writes(stored, [("a", 1), ("b", None)], "task")
    found = await saver.aget_tuple(thread(name))
    assert found.checkpoint["channel_values"] == {"a": [1], "b": "x", "large": ["y" * 1000] * 100}
    assert found.pending_writes == [("task", "a", 1), ("task", "b", None)]
    assert [each.config async for each in saver.alist(thread(name), filter={"by": name})] == [stored]
    assert await saver.aget_delta_channel_history(config=stored, channels=["a"]) == {"a": {"writes": []}}
    await saver.adelete_thread(name)
    assert await saver.aget_tuple(thread(name)) is None


def state_of(conn: Connection) -> list[Any]:
    """What might rub off on a connection of the pool: on the driver's side, and on the server's."""
    pooled: Any = conn.connection
    driver = pooled.driver_connection
    ours = driver if conn.dialect.driver == "psycopg" else pooled.dbapi_connection
    names = (
        "autocommit",
        "isolation_level",
        "_isolation_setting",
        "readonly",
        "read_only",
        "deferrable",
        "row_factory",
    )
    seen: list[Any] = [getattr(ours, name, None) for name in names]
    seen += [conn.get_isolation_level(), conn.get_execution_options(), conn.engine.get_execution_options()]
    # asyncpg itself turns JIT off and on again, to read types.
    settings = text("SELECT name, setting FROM pg_settings WHERE source = 'session' AND name != 'jit'")
    seen += map(tuple, conn.execute(settings))
    return seen


# --- what engines are made of ---

OPTIONS: dict[str, dict[str, Any]] = {
    "no pool": {"poolclass": NullPool},
    "one connection for all": {"poolclass": StaticPool},
    "a pool of one": {"pool_size": 1, "max_overflow": 0, "pool_use_lifo": True},
    "a pool without limit": {"pool_size": 0, "pool_pre_ping": True, "pool_recycle": 0},
    "no reset": {"pool_reset_on_return": None, "query_cache_size": 0},
    "SERIALIZABLE": {"isolation_level": "SERIALIZABLE"},
    "AUTOCOMMIT": {"isolation_level": "AUTOCOMMIT"},
    "REPEATABLE READ": {"execution_options": {"isolation_level": "REPEATABLE READ"}},
    "a translate map": {"execution_options": {"schema_translate_map": {None: "elsewhere", "public": "elsewhere"}}},
    "JSON": {"json_serializer": lambda _: "null", "json_deserializer": lambda _: "changed"},
    "echo": {"echo": True, "echo_pool": "debug"},
}


@pytest.mark.parametrize("driver", MOST_DRIVERS)
@pytest.mark.parametrize("options", OPTIONS)
async def test_an_engine_of_any_options_serves_and_stays_as_it_was(
    host_of: Callable[..., Host], driver: str, options: str
) -> None:
    """Pool class, isolation level, translate map, JSON functions: the host's own business, before and after."""
    host = host_of(driver, **OPTIONS[options])
    pool, before = host.engine.pool, await host.work(state_of)

    await host.setup()
    await use_everything(host.saver)
    await asyncio.gather(*[use_everything(host.saver, f"t{number}") for number in range(3)])

    assert await host.work(state_of) == before
    assert host.engine.pool is pool


@pytest.mark.parametrize("driver", DRIVERS)
async def test_what_a_host_sets_on_the_drivers_connection_stays_set(host_of: Callable[..., Host], driver: str) -> None:
    """SQLAlchemy resets the isolation level to the engine's; ours is put back to what a listener had set."""
    host = host_of(driver, pool_size=1, max_overflow=0)

    @event.listens_for(host.sync_engine, "connect")
    def connect(adapter: Any, _: Any) -> None:
        if driver == "asyncpg":
            adapter.set_isolation_level("serializable")
        else:
            host.sync_engine.dialect.set_isolation_level(adapter, "SERIALIZABLE")

    before = await host.work(state_of)
    assert "SERIALIZABLE" in before
    await use_everything(host.saver)
    assert await host.work(state_of) == before
    event.listen(host.sync_engine, "before_cursor_execute", lambda *_: None)  # the other way to the driver
    await use_everything(host.saver)
    assert await host.work(state_of) == before
    with pytest.raises(InvalidConfig):
        await host.saver.aget_tuple({"configurable": {}})
    assert await host.work(state_of) == before


# --- who watches ---


@pytest.mark.parametrize("driver", DRIVERS)
async def test_what_instruments_an_engine_sees_our_statements(host_of: Callable[..., Host], driver: str) -> None:
    """As OpenTelemetry's instrumentation does: a span begins before each statement, and ends after it or fails."""
    host = host_of(driver)
    begun: list[str] = []
    ended: list[str] = []
    failed: list[str] = []
    await host.saver.aget_tuple(thread())  # the first call asks the database whether it has Citus

    @event.listens_for(host.sync_engine, "before_cursor_execute", retval=True)
    def before(conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> Any:
        begun.append(statement)
        return f"{statement} /* traceparent='00-1-2-03' */", parameters

    @event.listens_for(host.sync_engine, "after_cursor_execute")
    def after(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        ended.append(statement)

    @event.listens_for(host.sync_engine, "handle_error")
    def failing(context: Any) -> None:
        failed.append(context.statement)

    stored = await put(host.saver, a=[1])
    await host.saver.aput_writes(stored, [("a", 1)], "task")
    await host.saver.aget_tuple(thread())
    assert [statement.split()[0] for statement in begun] == ["WITH", "INSERT", "SELECT"]
    assert [statement.endswith("/* traceparent='00-1-2-03' */") for statement in ended] == [True] * 3

    await host.work(lambda conn: (conn.execute(text("DROP TABLE checkpoint_writes")), conn.commit()))
    with pytest.raises(NotSetUp):
        await host.saver.aget_tuple(thread())
    assert len(failed) == 1


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_listener_on_all_engines_sees_them_too(
    host_of: Callable[..., Host], driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`event.listen(Engine, ...)`, before or after the saver was made."""
    monkeypatch.setattr(Engine, "_has_events", False)  # and taken back: SQLAlchemy leaves it set for good
    host = host_of(driver)
    seen: list[str] = []

    def before(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    await put(host.saver, a=[1])
    event.listen(Engine, "before_cursor_execute", before)
    try:
        await put(host.saver, a=[1])
        await host.saver.adelete_thread("t")
    finally:
        event.remove(Engine, "before_cursor_execute", before)

    assert "INSERT INTO checkpoints" in seen[0]
    assert any("DELETE FROM checkpoints" in statement for statement in seen[1:])


@pytest.mark.parametrize("driver", DRIVERS)
async def test_echo_logs_our_statements(
    host_of: Callable[..., Host], driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With SQLAlchemy's own words about who commits."""
    host = host_of(driver, echo=True)
    await put(host.saver, a=[1])
    caplog.clear()  # the first call asks the database whether it has Citus

    await put(host.saver, a=[1])

    logged = [record.getMessage() for record in caplog.records if record.name.startswith("sqlalchemy.engine")]
    begin = next(at for at, message in enumerate(logged) if "due to autocommit mode" in message)
    assert "INSERT INTO checkpoints" in logged[begin + 1]


REFUSES_AT_COMMIT = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql "
    "AS $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '23514'; END $$",
    "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON checkpoints DEFERRABLE INITIALLY DEFERRED "
    "FOR EACH ROW WHEN (new.thread_id LIKE 't%') EXECUTE FUNCTION refuse()",
)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("watched", [False, True], ids=["quiet", "watched"])
async def test_what_the_server_refuses_at_commit_is_not_acknowledged(
    host_of: Callable[..., Host], driver: str, watched: bool
) -> None:
    """The statement has succeeded, and its result comes before the error; prepared or not, alone or with others."""
    host = host_of(driver)
    await host.work(lambda conn: ([conn.execute(text(each)) for each in REFUSES_AT_COMMIT], conn.commit()))
    if watched:
        event.listen(host.sync_engine, "before_cursor_execute", lambda *_: None)

    for value in ([1], [2], ["x" * 100] * 1000, [3], [4]):
        with pytest.raises(Refused):
            await put(host.saver, a=value)
    outcomes = await asyncio.gather(
        *[put(host.saver, f"t{number}", a=[1]) for number in range(20)], return_exceptions=True
    )

    assert all(isinstance(outcome, Refused) for outcome in outcomes)
    assert await host.saver.aget_tuple(thread()) is None


# --- row-level security ---

tenant: ContextVar[str] = ContextVar("tenant")

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_pages", "checkpoint_threads")


@pytest.fixture
def tenants_role(url: str) -> Iterator[str]:
    """A role that sees of every table only threads of the tenant that `app.tenant` names."""
    role = f"app_{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(role)))
        for table in TABLES:
            admin.execute(
                sql.SQL(
                    """
                    GRANT SELECT, INSERT, UPDATE, DELETE ON {0} TO {1};
                    ALTER TABLE {0} ENABLE ROW LEVEL SECURITY;
                    CREATE POLICY tenants ON {0} USING (thread_id LIKE current_setting('app.tenant') || ':%%')
                    """.replace("%%", "%")
                ).format(sql.Identifier(table), sql.Identifier(role))
            )
    yield role
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def set_tenant(local: str) -> str:
    return f"SELECT set_config('app.tenant', '{tenant.get()}', {local})"


def in_begin(engine: Engine) -> None:
    event.listen(engine, "begin", lambda conn: conn.exec_driver_sql(set_tenant("true")))


def in_engine_connect(engine: Engine) -> None:
    event.listen(engine, "engine_connect", lambda conn: conn.exec_driver_sql(set_tenant("true")))


def in_checkout(engine: Engine) -> None:
    event.listen(engine, "checkout", lambda adapter, *_: adapter.cursor().execute(set_tenant("true")))


def in_checkout_for_the_session(engine: Engine) -> None:
    event.listen(engine, "checkout", lambda adapter, *_: adapter.cursor().execute(set_tenant("false")))


def in_checkout_and_committed(engine: Engine) -> None:
    @event.listens_for(engine, "checkout")
    def checkout(adapter: Any, *_: Any) -> None:
        adapter.cursor().execute(set_tenant("false"))
        adapter.commit()


def before_each_statement(engine: Engine) -> None:
    @event.listens_for(engine, "before_cursor_execute")
    def before(conn: Any, cursor: Any, *_: Any) -> None:
        conn.connection.dbapi_connection.cursor().execute(set_tenant("false"))


@pytest.mark.parametrize("driver", MOST_DRIVERS)
@pytest.mark.parametrize(
    "listen",
    [
        in_begin,
        in_engine_connect,
        in_checkout,
        in_checkout_for_the_session,
        in_checkout_and_committed,
        before_each_statement,
    ],
)
async def test_a_listener_that_sets_what_policies_look_at_is_honoured(
    host_of: Callable[..., Host], tenants_role: str, driver: str, listen: Callable[[Engine], None]
) -> None:
    """Two tenants use one saver at once: each stores, reads and deletes its own threads, and sees no other."""
    host = host_of(driver, settings={"role": tenants_role}, pool_size=3, max_overflow=0)
    listen(host.sync_engine)

    async def use(name: str) -> None:
        tenant.set(name)
        for number in range(3):
            await use_everything(host.saver, f"{name}:{number}")
            await put(host.saver, f"{name}:{number}", a=[number])
        found = [each.metadata["by"] async for each in host.saver.alist(None)]
        assert sorted(found) == [f"{name}:{number}" for number in range(3)]
        with pytest.raises(Refused, match="policies have to let the row pass"):
            await put(host.saver, "another:1", a=[1])

    await asyncio.gather(use("one"), use("two"))


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_listener_sees_the_context_of_the_thread_that_calls(url: str, driver: str) -> None:
    """Also where the call crosses over to a loop: a tenant's thread is not taken for another's."""
    host = Host(url, driver)
    saver = PostgresSaver(host.engine)
    saver.get(thread())  # the first call asks the database whether it has Citus
    seen: set[tuple[str, str]] = set()
    caller: ContextVar[str] = ContextVar("caller")

    @event.listens_for(host.sync_engine, "before_cursor_execute")
    def before(conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        thread_id = parameters["thread_id"] if isinstance(parameters, dict) else parameters[0]
        seen.add((caller.get(), thread_id))

    def call(name: str) -> None:
        caller.set(name)
        for _ in range(5):
            saver.get(thread(name))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, [f"t{number}" for number in range(8)]))
    saver.close()
    if not host.is_async:
        host.engine.dispose()

    assert seen == {(f"t{number}", f"t{number}") for number in range(8)}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("watched", [False, True], ids=["quiet", "watched"])
async def test_a_connection_lost_in_the_pool_is_replaced(
    host_of: Callable[..., Host], url: str, driver: str, watched: bool
) -> None:
    """Whether or not the driver has noticed; by the second call at the latest, and the error says what it was."""
    host = host_of(driver, pool_size=1, max_overflow=0)
    lost = asyncio.Event()
    if driver == "asyncpg":

        @event.listens_for(host.sync_engine, "connect")
        def connect(adapter: Any, _: Any) -> None:
            adapter.driver_connection.add_termination_listener(lambda _: lost.set())

    if watched:
        event.listen(host.sync_engine, "before_cursor_execute", lambda *_: None)
    for notices in (False, True):
        await put(host.saver, a=[1])
        lost.clear()
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid != pg_backend_pid()"
            )
        if driver == "asyncpg" and notices:
            await asyncio.wait_for(lost.wait(), 30)
        with suppress(Unavailable):
            await put(host.saver, a=[1])
        await put(host.saver, a=[1])


# --- many calls, many savers, many tasks ---


async def states_of_all(host: Host, count: int) -> list[Any]:
    """The state of every connection of the pool, all of them taken at once."""
    if host.is_async:
        async with AsyncExitStack() as taken:
            conns = [await taken.enter_async_context(host.engine.connect()) for _ in range(count)]
            return [await conn.run_sync(state_of) for conn in conns]

    def take_all() -> list[Any]:
        with ExitStack() as taken:
            return [state_of(conn) for conn in [taken.enter_context(host.engine.connect()) for _ in range(count)]]

    return await asyncio.to_thread(take_all)


async def call(saver: Any, number: int) -> None:
    """Make one of the saver's calls, or one that the saver or the server refuses."""
    name = f"t{number % 7}"
    stored = await put(saver, name, a=[number])
    match number % 10:
        case 0:
            await saver.adelete_thread(name)
        case 1:
            await saver.aput_writes(stored, [("a", number)], "task")
        case 2:
            await put(saver, name, large=["y" * 1000 + str(number)] * 100)
        case 3:
            [found async for found in saver.alist(thread(name), limit=3)]
        case 4:
            await put(saver, "refused", a=[1])
        case 5:
            await put(saver, name, a=object())
        case 6:
            await saver.aget_tuple({"configurable": {}})
        case 7:
            await saver.aget_delta_channel_history(config=stored, channels=["a"])
        case _:
            await saver.aget_tuple(thread(name))


@pytest.mark.parametrize(
    ("driver", "watched"),
    [
        ("asyncpg", False),
        ("asyncpg", True),
        ("psycopg", False),
        pytest.param("psycopg", True, marks=pytest.mark.slow),
        pytest.param("async psycopg", False, marks=pytest.mark.slow),
        pytest.param("async psycopg", True, marks=pytest.mark.slow),
    ],
)
async def test_after_a_thousand_calls_the_engine_is_what_it_was(
    host_of: Callable[..., Host], driver: str, watched: bool
) -> None:
    """Errors and cancellations among them, beside transactions of the host's, half of which it rolls back."""
    host = host_of(driver, pool_size=4, max_overflow=0, pool_timeout=120, execution_options={"logging_token": "host"})
    if watched:
        event.listen(host.sync_engine, "before_cursor_execute", lambda *_: None)
    await host.work(prepare_for_orders)
    pool, options, before = host.engine.pool, host.engine.get_execution_options(), await states_of_all(host, 4)
    chance = random.Random(driver)

    def order(conn: Connection, number: int) -> None:
        conn.execute(text("INSERT INTO orders VALUES (:number)"), {"number": number})
        assert conn.scalar(text("SELECT count(*) FROM orders WHERE number = :number"), {"number": number}) == 1
        if number % 2:
            conn.commit()
        else:
            conn.rollback()

    async def run(number: int) -> str:
        if number % 5 == 0:
            await host.work(partial(order, number=number))
        task = asyncio.ensure_future(call(host.saver, number))
        if chance.random() < 0.3:
            for _ in range(chance.randrange(40)):
                await asyncio.sleep(0)
            task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        return type(outcome).__name__

    outcomes: Counter[str] = Counter()
    for first in range(0, 1000, 50):
        outcomes.update(await asyncio.gather(*[run(number) for number in range(first, first + 50)]))

    assert outcomes.keys() == {"NoneType", "CancelledError", "Refused", "UnstorableValue", "InvalidConfig"}
    assert await states_of_all(host, 4) == before
    assert host.engine.pool is pool
    assert pool.checkedout() == 0
    assert host.engine.get_execution_options() == options
    orders = await host.work(lambda conn: conn.scalars(text("SELECT number FROM orders ORDER BY number")).all())
    assert orders == [number for number in range(1000) if number % 5 == 0 and number % 2]
    await use_everything(host.saver)


def prepare_for_orders(conn: Connection) -> None:
    conn.execute(text("CREATE TABLE orders (number int PRIMARY KEY)"))
    # A refusal that only the server knows of.
    conn.exec_driver_sql(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION USING MESSAGE = 'refused', ERRCODE = 'XX000';
        END $$
        """
    )
    conn.exec_driver_sql(
        "CREATE TRIGGER refuse BEFORE INSERT ON checkpoints FOR EACH ROW WHEN (NEW.thread_id = 'refused') "
        "EXECUTE FUNCTION refuse()"
    )
    conn.commit()


@pytest.mark.parametrize("driver", DRIVERS)
async def test_savers_and_tasks_share_a_small_pool(host_of: Callable[..., Host], driver: str) -> None:
    """A hundred tasks on two savers and two connections, beside the host: no lock, and nobody starves."""
    host = host_of(driver, pool_size=2, max_overflow=0, pool_timeout=120)
    savers = [host.saver, host.another_saver()]

    async def run(number: int) -> list[int]:
        for step in range(3):
            await put(savers[number % 2], f"t{number}", at=[number, step])
            if number % 10 == 0:
                await host.work(lambda conn: conn.scalar(text("SELECT 1")))
        found = await savers[1 - number % 2].aget_tuple(thread(f"t{number}"))
        return found.checkpoint["channel_values"]["at"]

    assert await asyncio.gather(*map(run, range(100))) == [[number, 2] for number in range(100)]


def test_a_hundred_threads_share_a_small_pool(url: str) -> None:
    """On a sync engine each call waits in its own thread; the pool's deadline is met by all."""
    target = make_url(url).set(drivername="postgresql+psycopg")
    engine = create_engine(target, pool_size=2, max_overflow=0, pool_timeout=120)
    savers = [PostgresSaver(engine), PostgresSaver(engine)]

    def run(number: int) -> list[int]:
        for step in range(3):
            checkpoint: Any = {
                **empty_checkpoint(),
                "channel_values": {"at": [number, step]},
                "channel_versions": {"at": str(step)},
            }
            savers[number % 2].put(thread(f"t{number}"), checkpoint, {}, {"at": str(step)})
        return savers[1 - number % 2].get(thread(f"t{number}"))["channel_values"]["at"]  # type: ignore[index]

    with ThreadPoolExecutor(100) as threads:
        assert list(threads.map(run, range(100))) == [[number, 2] for number in range(100)]
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()
