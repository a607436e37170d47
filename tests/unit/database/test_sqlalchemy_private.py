"""Private names of SQLAlchemy mean what `sqlalchemy_private` takes them for, on its oldest release and its newest."""

from __future__ import annotations

import ast
import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import (
    Connection,
    Dialect,
    Engine,
    NullPool,
    PoolProxiedConnection,
    QueuePool,
    create_engine,
    event,
    exc,
    make_url,
    text,
)
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import checkpoint_store
from checkpoint_store.database import sqlalchemy_private

PACKAGE = Path(str(checkpoint_store.__file__)).parent
CLASSES = (Connection, Dialect, PoolProxiedConnection, AsyncAdapt_asyncpg_connection)
CHANGED = "SQLAlchemy has changed a private name, or its meaning: see sqlalchemy_private"


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine whose pool holds two idle connections."""
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=2, max_overflow=0, pool_timeout=0)
    for pooled in [engine.raw_connection(), engine.raw_connection()]:
        pooled.close()
    yield engine
    engine.dispose()


def idle(engine: Engine) -> set[object]:
    """The driver's connections that the pool gives out next; an identity that is invalidated is not among them."""
    both = [engine.raw_connection(), engine.raw_connection()]
    connections = {pooled.driver_connection for pooled in both}
    for pooled in both:
        pooled.close()
    return connections


def test_one_file_alone_uses_private_names_of_sqlalchemy(engine: Engine) -> None:
    """Each use of one has its reason and its test."""
    theirs = (*CLASSES, engine, engine.pool, engine.dialect)
    private = {name for each in theirs for name in dir(each) if name.startswith("_") and not name.startswith("__")}
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "alembic").rglob("*.py")]

    used = {
        f"{file.relative_to(PACKAGE.parent)}: {name}"
        for file in files
        if file.name != "sqlalchemy_private.py"
        for node in ast.walk(ast.parse(file.read_text()))
        for name in names_of(node)
        if name in private
    }

    assert not used


def names_of(node: ast.AST) -> list[str]:
    """The attributes that a node of a syntax tree asks another object for, by name or by text."""
    if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
        return [node.attr]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr"):
        return [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return []


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (lambda engine: engine, "before_cursor_execute"),
        (lambda engine: engine, "begin"),
        (lambda engine: engine.dialect, "do_execute"),
        (lambda _: Engine, "before_cursor_execute"),
        (lambda _: Connection, "before_cursor_execute"),
    ],
    ids=["the engine", "its transactions", "its dialect", "all engines", "all connections"],
)
def test_an_engine_with_a_listener_is_watched(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, target: Callable[[Engine], Any], name: str
) -> None:
    """The statements of one without are not seen by anybody."""
    for everywhere in (Engine, Connection):  # SQLAlchemy leaves it set for good
        monkeypatch.setattr(everywhere, "_has_events", False, raising=False)
    assert not sqlalchemy_private.is_watched(engine), CHANGED

    def listener(*_: Any) -> None:
        pass

    event.listen(target(engine), name, listener)
    try:
        assert sqlalchemy_private.is_watched(engine), CHANGED
    finally:
        event.remove(target(engine), name, listener)


def test_an_engine_that_logs_is_watched() -> None:
    """By `echo=True`, as by the level of its logger."""
    assert sqlalchemy_private.is_watched(create_engine("sqlite://", echo=True)), CHANGED


def test_the_overflow_is_how_many_connections_come_on_top(engine: Engine) -> None:
    """The pool refuses the next one; other kinds of pools, which refuse none, have no such number."""
    pool = QueuePool(lambda: sqlite3.connect(":memory:"), pool_size=1, max_overflow=2, timeout=0)
    borrowed = [pool.connect() for _ in range(1 + sqlalchemy_private.max_overflow(pool))]
    with pytest.raises(exc.TimeoutError):
        pool.connect()
    for pooled in borrowed:
        pooled.close()
    pool.dispose()

    assert sqlalchemy_private.max_overflow(engine.pool) == 0, CHANGED
    assert sqlalchemy_private.max_overflow(create_engine("sqlite://", poolclass=NullPool).pool) == 0, CHANGED
    endless = create_engine("sqlite://", poolclass=QueuePool, pool_size=0)
    assert sqlalchemy_private.max_overflow(endless.pool) == -1, CHANGED


def test_an_error_while_connecting_is_raised_as_by_connect(engine: Engine) -> None:
    """Wrapped, and shown to listeners."""
    seen: list[object] = []
    event.listen(engine, "handle_error", lambda context: seen.append(context.original_exception))
    error = sqlite3.OperationalError("nobody is there")

    with pytest.raises(exc.OperationalError) as raised:
        sqlalchemy_private.raise_connect_error(error, engine)

    assert raised.value.orig is error, CHANGED
    assert seen == [error], CHANGED


def fail(conn: Connection, error: BaseException) -> None:
    """Fail as a statement does that was executed on the driver's connection."""
    try:
        raise error
    except BaseException as raised:
        sqlalchemy_private.raise_statement_error(conn, raised, "INSERT", (1,))


def test_an_error_of_a_statement_is_raised_as_by_execute(engine: Engine) -> None:
    """Wrapped, with statement and parameters, and shown to listeners; the connection stays in the pool."""
    seen: list[object] = []
    event.listen(engine, "handle_error", lambda context: seen.append(context.original_exception))
    before, error = idle(engine), sqlite3.IntegrityError("a row is there")

    with Connection(engine) as conn, pytest.raises(exc.IntegrityError) as raised:
        fail(conn, error)

    assert (raised.value.orig, raised.value.statement, raised.value.params) == (error, "INSERT", (1,)), CHANGED
    assert seen == [error], CHANGED
    assert idle(engine) == before, CHANGED


def test_an_interrupted_statement_costs_its_connection(engine: Engine) -> None:
    """The error is raised as it is, and nobody else gets the connection."""
    before = idle(engine)

    with Connection(engine) as conn:
        interrupted = conn.connection.driver_connection
        with pytest.raises(asyncio.CancelledError):
            fail(conn, asyncio.CancelledError())

    assert idle(engine) & before == before - {interrupted}, CHANGED


@pytest.mark.parametrize("kept", [True, False])
def test_a_lost_connection_costs_the_pool_all_others_unless_they_are_kept(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """SQLAlchemy replaces all of them when the error is what tells it of the loss."""
    monkeypatch.setattr(engine.dialect, "is_disconnect", lambda *_: True)
    before = idle(engine)

    with Connection(engine) as conn:
        lost = conn.connection.driver_connection
        if kept:
            conn.invalidate()
            sqlalchemy_private.keep_others(conn)
        with pytest.raises(exc.OperationalError) as raised:
            fail(conn, sqlite3.OperationalError("gone"))

    assert raised.value.connection_invalidated, CHANGED
    assert idle(engine) & before == (before - {lost} if kept else set()), CHANGED


def test_all_connections_of_a_pool_are_replaced(engine: Engine) -> None:
    """Those that lie in the pool too, when they are taken from it."""
    before, pooled = idle(engine), engine.raw_connection()

    sqlalchemy_private.invalidate_all(engine.pool, pooled, None)
    pooled.close()

    assert not idle(engine) & before, CHANGED


async def test_an_error_of_asyncpg_is_the_dbapis(url: str) -> None:
    """With what the driver said as its cause."""
    engine = create_async_engine(as_url(url, "asyncpg"))
    error = asyncpg.UniqueViolationError("a row is there")

    async with engine.connect() as conn:
        pooled = await conn.get_raw_connection()
        translated = sqlalchemy_private.dbapi_error(pooled, error)

    assert isinstance(translated, engine.dialect.loaded_dbapi.IntegrityError), CHANGED
    assert translated.__cause__ is error, CHANGED
    await engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_the_isolation_level_of_a_listener_outlives_ours(url: str, driver: str) -> None:
    """SQLAlchemy's reset sets the engine's, at each return to the pool."""
    engine = create_async_engine(as_url(url, driver), pool_size=1)

    @event.listens_for(engine.sync_engine, "connect")
    def serializable(dbapi_connection: Any, _: object) -> None:
        engine.dialect.set_isolation_level(dbapi_connection, "SERIALIZABLE")

    levels = []
    for _ in range(2):
        async with engine.connect() as conn:
            await conn.run_sync(restore_and_change)
        async with engine.connect() as conn:
            levels.append(await conn.scalar(text("SHOW transaction_isolation")))

    assert levels == ["serializable"] * 2, CHANGED
    await engine.dispose()


def restore_and_change(conn: Connection) -> None:
    sqlalchemy_private.restore_isolation_at_return(conn.dialect, conn.connection)
    conn.execution_options(isolation_level="AUTOCOMMIT")


@pytest.mark.parametrize("size", [0, 100])
async def test_a_cache_of_prepared_statements_is_seen(url: str, size: int) -> None:
    """The adapter's own, whatever asyncpg keeps."""
    engine: AsyncEngine = create_async_engine(
        as_url(url, "asyncpg"), connect_args={"prepared_statement_cache_size": size}
    )
    async with engine.connect() as conn:
        assert sqlalchemy_private.keeps_statements(await conn.get_raw_connection()) == bool(size), CHANGED
    await engine.dispose()


def as_url(url: str, driver: str) -> Any:
    return make_url(url).set(drivername=f"postgresql+{driver}")


@pytest.mark.parametrize(
    "rule", [{"pool_pre_ping": True}, {"pool_recycle": 0}, {"echo_pool": "debug"}], ids=lambda rule: next(iter(rule))
)
def test_rules_of_a_pool(rule: dict[str, Any]) -> None:
    """A ping, an age, a log: each shows, and that there is none."""
    plain = create_engine("sqlite://", poolclass=QueuePool)
    assert not sqlalchemy_private.has_rules(plain.pool), CHANGED
    assert sqlalchemy_private.has_rules(create_engine("sqlite://", poolclass=QueuePool, **rule).pool), CHANGED


@pytest.mark.parametrize("name", ["checkout", "checkin", "reset"])
def test_listeners_of_a_pool(engine: Engine, name: str) -> None:
    """Each of those that see a connection come and go shows."""
    assert not sqlalchemy_private.has_rules(engine.pool), CHANGED
    event.listen(engine, name, lambda *_: None)
    assert sqlalchemy_private.has_rules(engine.pool), CHANGED


def test_another_class_of_pools() -> None:
    """It may do anything."""
    assert sqlalchemy_private.has_rules(create_engine("sqlite://", poolclass=type("Other", (QueuePool,), {})).pool)
