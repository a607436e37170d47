"""Whatever the server refuses, on whatever way: an error of ours, which says what to do and shows no value."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from asyncpg import PostgresError
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Column, Connection, String, create_engine, event, exc, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, declarative_base

from checkpoint_store import (
    AsyncPipeline,
    AsyncPostgresSaver,
    PostgresSaver,
    cli,
    distribution,
    migrations,
    partitioning,
    telemetry,
)
from checkpoint_store.errors import (
    AccessDenied,
    CheckpointStoreError,
    LimitReached,
    MigrationError,
    NotSetUp,
    Refused,
    TransferError,
    Unavailable,
    UnstorableValue,
    WrongTransaction,
)
from checkpoint_store.transfer import acopy_threads

SECRET = "SSN-078-05-1120"
VERSION = "00000000000000000000000000000001.0.5"

Call = Callable[[Any], Awaitable[Any]]
Way = Callable[[str], Any]
"""Makes, on the URL of a database, a context of what makes a call on a saver of a kind."""


def config_of(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


def put(thread_id: str = "t", value: str = SECRET) -> Call:
    """A checkpoint with secrets wherever a user may have some."""
    checkpoint = {
        **empty_checkpoint(),
        "id": "0001",
        "channel_values": {"messages": [value], "name": value},
        "channel_versions": {"messages": VERSION, "name": VERSION},
    }
    versions = {"messages": VERSION, "name": VERSION}
    return lambda saver: saver.aput(config_of(thread_id), checkpoint, {"ssn": value}, versions)


def put_writes(thread_id: str = "t") -> Call:
    """Writes of a task with a secret path."""
    config = {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": "0001"}}
    return lambda saver: saver.aput_writes(config, [("messages", [SECRET])], "task", f"~path {SECRET}")


class Blocking:
    """The sync methods of a saver, called in worker threads."""

    def __init__(self, saver: Any) -> None:
        self._saver = saver

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._saver, name.removeprefix("a"))
        return lambda *args, **options: asyncio.to_thread(method, *args, **options)


@asynccontextmanager
async def on_engine(url: str, *, driver: str = "asyncpg", watched: bool = False, pipeline: bool = False) -> Any:
    engine = create_async_engine(make_url(url).set(drivername=f"postgresql+{driver}"))
    if watched:
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: None)
    pipe = AsyncPipeline(engine) if pipeline else False
    saver = AsyncPostgresSaver(engine, pipe, retry_timeout=0, share_pages=False)
    try:
        yield lambda call: call(saver)
    finally:
        await saver.aclose()
        await engine.dispose()


@asynccontextmanager
async def on_its_own_loop(url: str) -> Any:
    with PostgresSaver.from_conn_string(url, retry_timeout=0) as saver:
        yield lambda call: call(Blocking(saver))


@asynccontextmanager
async def on_sync_engine(url: str) -> Any:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    saver = PostgresSaver(engine, retry_timeout=0)
    try:
        yield lambda call: call(Blocking(saver))
    finally:
        engine.dispose()


@asynccontextmanager
async def on_connection(url: str) -> Any:
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    saver = AsyncPostgresSaver(engine)

    async def within(call: Call) -> Any:
        async with engine.connect() as conn:
            return await call(saver.bind(conn))

    try:
        yield within
    finally:
        await engine.dispose()


@asynccontextmanager
async def on_session(url: str) -> Any:
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    saver = AsyncPostgresSaver(engine)

    async def within(call: Call) -> Any:
        async with AsyncSession(engine) as session:
            return await call(saver.bind(session))

    try:
        yield within
    finally:
        await engine.dispose()


@asynccontextmanager
async def on_sync_session(url: str) -> Any:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    saver = PostgresSaver(engine)

    async def within(call: Call) -> Any:
        with Session(engine) as session:
            return await call(Blocking(saver.bind(session)))

    try:
        yield within
    finally:
        engine.dispose()


WAYS: dict[str, Way] = {
    "engine": on_engine,
    "listener": lambda url: on_engine(url, watched=True),
    "pipeline": lambda url: on_engine(url, pipeline=True),
    "connection": on_connection,
    "session": on_session,
    "loop thread": on_its_own_loop,
    "psycopg": on_sync_engine,
    "async psycopg": lambda url: on_engine(url, driver="psycopg"),
    "psycopg session": on_sync_session,
}
CALLERS = {"connection", "session", "psycopg session"}

every_way = pytest.mark.parametrize("way", WAYS)


def execute(url: str, statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(statements)  # type: ignore[arg-type]


def name_of(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error and all that hangs on it, printed or not."""
    left, seen = [error], set()
    while left:
        one = left.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [each for each in (one.__cause__, one.__context__, getattr(one, "orig", None)) if each is not None]


def check(error: BaseException | None) -> CheckpointStoreError:
    """Check that an error is ours, and that neither it nor what it hangs on has a secret."""
    assert isinstance(error, CheckpointStoreError), "".join(traceback.format_exception(error)) if error else "no error"
    shown = "".join(traceback.format_exception(error))
    for one in chain_of(error):
        shown += f"{one} {one!r} {one.args} {vars(one)} {getattr(one, '__notes__', '')}"
        diagnosis = getattr(one, "diag", None)
        shown += "".join(f"{getattr(diagnosis, name)}" for name in dir(diagnosis) if name.startswith("message"))
    assert SECRET not in shown
    assert "078-05" not in shown
    assert "[SQL:" not in shown
    return error


async def failure(make: Any, call: Call) -> CheckpointStoreError:
    try:
        await make(call)
    except Exception as error:
        return check(error)
    pytest.fail("the call was carried out")


@pytest.fixture(autouse=True)
def records(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What is logged, but for statements, which SQLAlchemy logs where the host wants it; none has a secret."""
    for name in ("checkpoint_store", "sqlalchemy.pool", "asyncio"):
        caplog.set_level(logging.INFO, name)
    yield caplog.messages
    logged = "\n".join(f"{record.getMessage()} {record.exc_text}" for record in caplog.get_records("call"))
    assert SECRET not in logged


@contextmanager
def altered(url: str, server_url: str, setting: str) -> Iterator[None]:
    """Have connections to a database begin with a setting."""
    execute(server_url, f'ALTER DATABASE "{name_of(url)}" {setting}')
    try:
        yield
    finally:
        execute(server_url, f'ALTER DATABASE "{name_of(url)}" RESET ALL')


# --- by what a trigger raises ---

RAISING = """
    CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE EXCEPTION USING
            ERRCODE = NEW.thread_id,
            MESSAGE = 'no ' || NEW.metadata::text,
            DETAIL = 'Failing row contains ' || NEW.metadata::text,
            HINT = 'Not ' || NEW.metadata::text;
    END $$;
    CREATE TRIGGER guard BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION guard();
"""

STATES = [*sorted(type(PostgresError)._message_map), "UR001", "99999"]
"""All that PostgreSQL has, and two that a host has made up."""


@every_way
async def test_every_code_that_a_trigger_raises_is_an_error_of_ours_without_its_words(url: str, way: str) -> None:
    """All SQLSTATEs there are; the message, the detail and the hint are the trigger's, and quote the row."""
    execute(url, RAISING)
    seen: dict[str, CheckpointStoreError] = {}
    async with WAYS[way](url) as make:
        for state in STATES:
            if not state.startswith("00"):  # which is success
                seen[state] = await failure(make, put(state))

    for state, error in seen.items():
        assert state in str(error), str(error)
        assert error.__cause__ is not None
        orig = getattr(error.__cause__, "orig", error.__cause__)
        assert orig.sqlstate == state
    kinds = {state: type(error) for state, error in seen.items()}
    assert kinds["P0001"] is kinds["23514"] is kinds["22012"] is kinds["UR001"] is kinds["42P01"] is Refused
    assert all("guard" in str(error) for error in seen.values() if type(error) is Refused)
    assert kinds["57014"] is kinds["55P03"] is kinds["53400"] is LimitReached
    assert kinds["53100"] is Unavailable
    assert kinds["40001"] is kinds["25006"] is (WrongTransaction if way in CALLERS else Unavailable)


# --- what the server has of its own ---

NUMBER = "CAST(metadata->>'ssn' AS integer)"

RULES: dict[str, tuple[str, type[CheckpointStoreError], str]] = {
    "check": ("ALTER TABLE checkpoints ADD CONSTRAINT own CHECK (NOT metadata ? 'ssn')", Refused, 'constraint "own"'),
    "not null": ("ALTER TABLE checkpoints ADD COLUMN tenant text NOT NULL", Refused, 'column "tenant"'),
    "foreign key": (
        """
        CREATE TABLE users (name text PRIMARY KEY);
        ALTER TABLE checkpoints ADD COLUMN owner text GENERATED ALWAYS AS (metadata->>'ssn') STORED;
        ALTER TABLE checkpoints ADD CONSTRAINT known FOREIGN KEY (owner) REFERENCES users
        """,
        Refused,
        'constraint "known"',
    ),
    "deferred foreign key": (
        """
        CREATE TABLE users (name text PRIMARY KEY);
        ALTER TABLE checkpoints ADD COLUMN owner text GENERATED ALWAYS AS (metadata->>'ssn') STORED;
        ALTER TABLE checkpoints ADD CONSTRAINT known FOREIGN KEY (owner) REFERENCES users DEFERRABLE INITIALLY DEFERRED;
        CREATE FUNCTION at_once() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN SET CONSTRAINTS ALL IMMEDIATE; RETURN NULL; END $$;
        CREATE TRIGGER at_once AFTER INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION at_once()
        """,
        Refused,
        "at_once",
    ),
    "unique": (
        """
        CREATE UNIQUE INDEX one ON checkpoints ((metadata->>'ssn'));
        INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
            VALUES ('other', '1', '{}', '{"ssn": "SSN-078-05-1120"}')
        """,
        Refused,
        'constraint "one"',
    ),
    "cast in a check": (f"ALTER TABLE checkpoints ADD CHECK ({NUMBER} > 0)", UnstorableValue, "22P02"),
    "cast in an index": (f"CREATE INDEX ON checkpoints (({NUMBER}))", UnstorableValue, "22P02"),
    "cast in a trigger": (
        """
        CREATE FUNCTION cast_it() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM CAST(NEW.metadata->>'ssn' AS integer); RETURN NEW; END $$;
        CREATE TRIGGER cast_it BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION cast_it()
        """,
        Refused,
        "cast_it",
    ),
    "text of a statement in a trigger": (
        """
        CREATE FUNCTION asks() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN EXECUTE format('SELECT nothing(%L)', NEW.metadata); RETURN NEW; END $$;
        CREATE TRIGGER asks BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION asks()
        """,
        Refused,
        "asks",
    ),
    "function that is gone": (
        """
        CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM elsewhere.stored(NEW.metadata); RETURN NEW; END $$;
        CREATE TRIGGER broken BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION broken()
        """,
        Refused,
        "broken",
    ),
    "sql function": (
        """
        CREATE FUNCTION number(jsonb) RETURNS integer LANGUAGE sql IMMUTABLE STRICT SET search_path = public AS
            $$ SELECT CAST($1->>'ssn' AS integer) $$;
        ALTER TABLE checkpoints ADD CHECK (number(metadata) > 0)
        """,
        Refused,
        "number",
    ),
    "setting that is missing": (
        """
        ALTER TABLE checkpoints ADD CHECK (current_setting('own.tenant') <> '')
        """,
        Refused,
        "own.tenant",
    ),
    "row of an index": (
        "CREATE INDEX ON checkpoints ((metadata->>'large')) WHERE metadata ? 'large'",
        UnstorableValue,
        "54000",
    ),
    "key": ("ALTER TABLE checkpoints DROP CONSTRAINT checkpoints_pkey", CheckpointStoreError, "42P10"),
    "type": (
        "ALTER TABLE checkpoint_blobs ALTER type TYPE integer USING 0",
        CheckpointStoreError,
        "42804",
    ),
    "cancelled": (
        """
        CREATE FUNCTION cancel() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_cancel_backend(pg_backend_pid()), pg_sleep(60); RETURN NEW; END $$;
        CREATE TRIGGER cancel BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION cancel()
        """,
        LimitReached,
        ": by statement_timeout, or by whoever called pg_cancel_backend. Raise the limit for the role, ",
    ),
    "ended": (
        """
        CREATE FUNCTION kill() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(60); RETURN NEW; END $$;
        CREATE TRIGGER kill BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION kill()
        """,
        Unavailable,
        "",
    ),
}
"""What a host's tables have beside ours, the class of the error, and what it says."""


@every_way
@pytest.mark.parametrize("rule", RULES)
async def test_what_a_host_has_on_the_tables_is_named_without_the_row(url: str, way: str, rule: str) -> None:
    """The constraint, the column or the function by its name."""
    statements, kind, words = RULES[rule]
    execute(url, statements)
    async with WAYS[way](url) as make:
        call = put()
        if rule == "row of an index":
            large = "".join(f"{number * 7919:x}{SECRET}"[::-1] for number in range(2000))
            call = lambda saver: saver.aput(config_of("t"), empty_checkpoint(), {"large": large}, {})  # noqa: E731
        error = await failure(make, call)

    assert type(error) is kind, error
    assert words in str(error)


SETTINGS: dict[str, tuple[str, type[CheckpointStoreError], str]] = {
    "statement_timeout": ("SET statement_timeout = '200ms'", LimitReached, "statement_timeout"),
    "lock_timeout": ("SET lock_timeout = '200ms'", LimitReached, "lock_timeout"),
    "read only": ("SET default_transaction_read_only = on", Unavailable, "read-only transaction"),
}


@every_way
@pytest.mark.parametrize("setting", SETTINGS)
async def test_a_limit_of_the_databases_is_named(url: str, server_url: str, way: str, setting: str) -> None:
    """With what to do about it; in a transaction of the caller's too."""
    statement, kind, words = SETTINGS[setting]
    with psycopg.connect(url) as other, altered(url, server_url, statement):
        other.execute("LOCK TABLE checkpoints" if setting.endswith("timeout") else "SELECT 1")
        async with WAYS[way](url) as make:
            error = await failure(make, put())

    assert type(error) is (WrongTransaction if way in CALLERS and kind is Unavailable else kind), error
    assert words in str(error)
    if way in CALLERS:
        assert "READ ONLY" in str(error) if kind is Unavailable else "rolled back now" in str(error)


@every_way
async def test_a_character_that_the_encoding_lacks_is_a_value_that_cannot_be_stored(server_url: str, way: str) -> None:
    """In a LATIN1 database; what it has can be stored."""
    name = f"latin_{way.replace(' ', '_')}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        admin.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    url = urlsplit(server_url)._replace(path=f"/{name}").geturl()
    try:
        with PostgresSaver.from_conn_string(url) as saver:
            saver.setup()
        async with WAYS[way](url) as make:
            error = await failure(make, put(value=f"{SECRET} \N{EURO SIGN}"))
            await make(put(value="caf\N{LATIN SMALL LETTER E WITH ACUTE}"))
    finally:
        with psycopg.connect(server_url, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    assert type(error) is UnstorableValue, error
    assert "UTF8" in str(error)


@every_way
async def test_writes_and_their_paths_are_hidden_too(url: str, way: str) -> None:
    """A task's path is the user's as well."""
    execute(url, "ALTER TABLE checkpoint_writes ADD CONSTRAINT own CHECK (task_path = '')")
    async with WAYS[way](url) as make:
        assert 'constraint "own" of table "checkpoint_writes"' in str(await failure(make, put_writes()))


# --- what is not about rows ---


@every_way
async def test_a_cause_is_a_line_or_two(empty_url: str, way: str) -> None:
    """Not hundreds of SQLAlchemy's and the driver's; and nothing else hangs on the error."""
    async with WAYS[way](empty_url) as make:
        error = await failure(make, put())

    assert type(error) is NotSetUp
    assert len("".join(traceback.format_exception(error.__cause__)).splitlines()) <= 3
    assert len("".join(traceback.format_exception(error)).splitlines()) <= 80
    assert error.__context__ is None


@pytest.mark.parametrize("way", [way for way in WAYS if way not in CALLERS])
async def test_a_server_that_is_down_is_said_in_few_lines(unused_tcp_port: int, way: str) -> None:
    """However many tries there were."""
    async with WAYS[way](f"postgresql://me@127.0.0.1:{unused_tcp_port}/app") as make:
        error = await failure(make, put())

    assert type(error) is Unavailable
    assert isinstance(error.__cause__, (OSError, exc.OperationalError))
    assert len("".join(traceback.format_exception(error)).splitlines()) <= 80
    assert len(list(chain_of(error))) <= 3


async def test_a_session_whose_flush_has_failed_is_a_transaction_that_is_over(url: str) -> None:
    """SQLAlchemy quotes the statement that did it, with its parameters; we don't."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    base = declarative_base()

    class Customer(base):  # type: ignore[misc, valid-type]
        __tablename__ = "customers"
        ssn = Column(String, primary_key=True)

    async with engine.begin() as conn:
        await conn.run_sync(base.metadata.create_all)
    async with AsyncSession(engine) as session:
        session.add_all([Customer(ssn=SECRET)])
        await session.commit()
        session.add(Customer(ssn=SECRET))
        with pytest.raises(exc.IntegrityError):
            await session.flush()
        error = await failure(lambda call: call(AsyncPostgresSaver(engine).bind(session)), put())
    await engine.dispose()

    assert type(error) is WrongTransaction
    assert "previous exception during flush" in str(error)


async def test_an_error_goes_into_no_span(url: str) -> None:
    """Neither as an event nor as a status."""
    execute(url, RAISING)
    exporter, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    saver = AsyncPostgresSaver(engine)
    telemetry.instrument(saver, tracer_provider=tracers)
    await failure(lambda call: call(saver), put("23514"))
    await engine.dispose()

    spans = exporter.get_finished_spans()
    assert spans
    assert all(SECRET not in span.to_json() for span in spans)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_host_that_waits_for_itself_is_told_so(url: str, driver: str) -> None:
    """All connections are held by requests, each of which calls the saver: with the way out, which works."""
    engine = create_async_engine(
        make_url(url).set(drivername=f"postgresql+{driver}"), pool_size=2, max_overflow=0, pool_timeout=0.2
    )
    saver = AsyncPostgresSaver(engine)

    async def ask(session: AsyncSession, *, bound: bool) -> Any:
        return await put(f"t{id(session)}")(saver.bind(session) if bound else saver)

    # As a dependency of two requests at once, open until both have been answered.
    async with AsyncSession(engine) as one, AsyncSession(engine) as another:
        for session in (one, another):
            await session.execute(text("SELECT 1"))
        outcomes = await asyncio.gather(*[ask(one, bound=False), ask(another, bound=False)], return_exceptions=True)
        assert {type(check(outcome)) for outcome in outcomes} == {Unavailable}
        assert all("All 2 connections of the pool are held by the application" in str(each) for each in outcomes)
        assert all("saver.bind(session)" in str(each) for each in outcomes)
        await asyncio.gather(ask(one, bound=True), ask(another, bound=True))
    await engine.dispose()


@pytest.mark.parametrize("sync", [False, True])
async def test_a_host_that_waits_for_itself_with_a_lock_is_told_so(url: str, sync: bool) -> None:
    """Long before the pool gives up; both ways out work."""
    name = make_url(url).set(drivername="postgresql+psycopg")
    if sync:
        blocking = create_engine(name, pool_size=1, max_overflow=0)
        plain = PostgresSaver(blocking)
        with Session(blocking) as session:
            session.execute(text("SELECT 1"))
            with pytest.raises(Unavailable) as caught:
                await asyncio.to_thread(plain.thread_lock("t", timeout=0).__enter__)
            with plain.bind(session).thread_lock("t", timeout=0):
                pass
        with plain.thread_lock("t", timeout=5), Session(blocking) as session:
            session.execute(text("SELECT 1"))
        blocking.dispose()
    else:
        engine = create_async_engine(name, pool_size=1, max_overflow=0)
        saver = AsyncPostgresSaver(engine)
        async with AsyncSession(engine) as waiting:
            await waiting.execute(text("SELECT 1"))
            with pytest.raises(Unavailable) as caught:
                await saver.thread_lock("t", timeout=0).__aenter__()
            async with saver.bind(waiting).thread_lock("t", timeout=0):
                pass
        async with saver.thread_lock("t", timeout=5), AsyncSession(engine) as waiting:
            await waiting.execute(text("SELECT 1"))
        await engine.dispose()

    assert "The only connection of the pool is held by the application itself" in str(caught.value)
    assert "Take the lock before the session is opened, or on saver.bind(session)." in str(caught.value)


async def test_a_pool_that_is_busy_with_calls_of_ours_is_no_deadlock(url: str) -> None:
    """Then the advice would be wrong."""
    engine = create_async_engine(
        make_url(url).set(drivername="postgresql+asyncpg"), pool_size=1, max_overflow=0, pool_timeout=0.2
    )
    saver = AsyncPostgresSaver(engine)
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE checkpoints")
        calls = [asyncio.ensure_future(put(f"t{number}")(saver)) for number in range(2)]
        (refused,), (slow,) = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        other.rollback()
    await slow
    await engine.dispose()

    error = check(refused.exception())
    assert "no connection became free in time" in str(error)
    assert "application" not in str(error)


async def test_a_copy_that_a_rule_refuses_is_not_one_of_a_thread_that_exists(url: str) -> None:
    """Only a row of ours that is there already says so."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    saver = AsyncPostgresSaver(engine)
    await put()(saver)
    execute(url, "CREATE UNIQUE INDEX one ON checkpoints ((metadata->>'ssn'))")
    error = await failure(lambda call: call(saver), lambda saver: saver.acopy_thread("t", "another"))
    await engine.dispose()

    assert type(error) is Refused
    assert 'constraint "one"' in str(error)


async def test_a_transfer_names_the_thread_and_shows_none_of_it(url: str, make_database: Callable[[], str]) -> None:
    """Of what the target refuses."""
    source = InMemorySaver()
    await put()(source)
    target = make_database()
    async with AsyncPostgresSaver.from_conn_string(target) as saver:
        await saver.setup()
        execute(target, "ALTER TABLE checkpoints ADD CONSTRAINT own CHECK (NOT metadata ? 'ssn')")
        error = await failure(lambda call: call(saver), lambda saver: acopy_threads(source, saver))

    assert type(error) is TransferError
    assert "thread 't'" in str(error)
    assert 'constraint "own"' in str(error)


def test_the_command_line_shows_no_row(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the one line that it prints."""
    with PostgresSaver.from_conn_string(url) as saver:
        asyncio.run(put()(Blocking(saver)))
    execute(url, "CREATE UNIQUE INDEX one ON checkpoints ((metadata->>'ssn'))")
    assert cli.main(["copy", "t", "another", "--url", url]) == cli.FAILED
    printed = capsys.readouterr()

    assert 'constraint "one"' in printed.err
    assert SECRET not in printed.err + printed.out


REFUSED_LOGINS: dict[str, tuple[str, str, type[CheckpointStoreError]]] = {
    "no such database": ("postgres", "nowhere", Unavailable),
    "no such role": ("nobody_at_all", "", Unavailable),
    "no connection left": ("crowded", "", Unavailable),
    "no right to connect": ("stranger", "", CheckpointStoreError),
}


@pytest.mark.parametrize("way", [way for way in WAYS if way not in CALLERS])
@pytest.mark.parametrize("reason", REFUSED_LOGINS)
async def test_a_login_that_is_refused_is_an_error_of_ours(url: str, way: str, reason: str) -> None:
    """Before any statement."""
    user, database, kind = REFUSED_LOGINS[reason]
    unique = f"{user}_{name_of(url)[-12:]}"
    made = user in ("crowded", "stranger")
    if made:
        execute(url, f"CREATE ROLE {unique} LOGIN CONNECTION LIMIT {0 if user == 'crowded' else -1}")
        execute(url, f"REVOKE CONNECT ON DATABASE {name_of(url)} FROM PUBLIC")
    if user == "crowded":
        execute(url, f"GRANT CONNECT ON DATABASE {name_of(url)} TO {unique}")
    path = database or name_of(url)
    try:
        async with WAYS[way](f"postgresql://{unique if made else user}@/{path}?{urlsplit(url).query}") as make:
            error = await failure(make, put())
    finally:
        if made:
            execute(url, f"DROP OWNED BY {unique}; DROP ROLE {unique}")

    assert isinstance(error, kind)


def wait_for_the_end(url: str, pid: int) -> None:
    with psycopg.connect(url, autocommit=True) as other:
        while other.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone() is not None:
            time.sleep(0.01)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_transaction_that_the_server_has_ended_is_an_error_of_ours(url: str, driver: str) -> None:
    """It was idle for too long, which drivers notice at the next call; asyncpg does not keep the reason."""
    engine = create_async_engine(make_url(url).set(drivername=f"postgresql+{driver}"))
    async with engine.connect() as conn:
        pid = await conn.scalar(text("SELECT pg_backend_pid()"))
        await conn.execute(text("SET LOCAL idle_in_transaction_session_timeout = '50ms'"))
        await asyncio.to_thread(wait_for_the_end, url, pid)
        error = await failure(lambda call: call(AsyncPostgresSaver(engine).bind(conn)), put())
    await engine.dispose()

    assert type(error) is (LimitReached if driver == "psycopg" else Unavailable)


async def test_an_aborted_transaction_is_named(url: str) -> None:
    """By the calls after the one that has aborted it."""
    execute(url, RAISING)
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    async with engine.connect() as conn:
        saver = AsyncPostgresSaver(engine).bind(conn)
        assert type(await failure(lambda call: call(saver), put("P0001"))) is Refused
        error = await failure(lambda call: call(saver), put("other"))
    await engine.dispose()

    assert type(error) is WrongTransaction
    assert "aborted by an error before this call" in str(error)


async def test_where_the_role_is_not_known_the_grant_says_so(url: str) -> None:
    """In a transaction that the error has ended; on an engine the server is asked, and the GRANT has its name."""
    role = f"service_{name_of(url)[-12:]}"
    execute(url, f"CREATE ROLE {role} LOGIN")
    engine = create_async_engine(
        make_url(url).set(drivername="postgresql+asyncpg"), connect_args={"server_settings": {"role": role}}
    )
    saver = AsyncPostgresSaver(engine)
    try:
        on_an_engine = await failure(lambda call: call(saver), put())
        async with engine.connect() as conn:
            bound = await failure(lambda call: call(saver.bind(conn)), put())
    finally:
        await engine.dispose()
        execute(url, f"DROP ROLE {role}")

    assert type(on_an_engine) is type(bound) is AccessDenied
    assert f'TO "{role}"' in str(on_an_engine)
    assert 'where "app" stands for the one that lacks it' in str(bound)


@pytest.mark.parametrize("way", ["engine", "pipeline", "psycopg", "async psycopg"])
@pytest.mark.parametrize("state", ["40001", "57P01"])
async def test_what_was_tried_again_in_vain_shows_nothing_either(url: str, way: str, state: str) -> None:
    """The last error of several, and what is logged of the first."""
    execute(url, RAISING)
    async with WAYS[way](url) as make:
        error = await failure(lambda call: make(lambda saver: call(patient(saver))), put(state))

    assert type(error) is Unavailable
    assert "Tried again for 0.3 s" in str(error)
    assert len("".join(traceback.format_exception(error.__cause__)).splitlines()) <= 3


def patient(saver: Any) -> Any:
    within = saver._saver if isinstance(saver, Blocking) else saver
    within._backend.provider._retries.seconds = 0.3
    return saver


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_transaction_that_has_lost_its_connection_is_told_to_begin_anew(url: str, driver: str) -> None:
    """Not to look whether the server runs, and nothing of the driver's inner life; on the same session it works."""
    engine = create_async_engine(make_url(url).set(drivername=f"postgresql+{driver}"))
    async with AsyncSession(engine) as session:
        saver = AsyncPostgresSaver(engine).bind(session)
        await put("before")(saver)
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        execute(url, f"SELECT pg_terminate_backend({pid})")
        await asyncio.to_thread(wait_for_the_end, url, pid)
        error = check(await failure(lambda call: call(saver), put()))
        await session.rollback()
        again = AsyncPostgresSaver(engine).bind(session)
        await put()(again)
        assert [found.config["configurable"]["thread_id"] async for found in again.alist(None)] == ["t"]
    await engine.dispose()

    assert type(error) is Unavailable
    assert "the connection of the transaction was lost, and with it everything done in it. Roll it back" in str(error)
    assert "Check that the server" not in str(error)
    assert "PreparedStatement" not in str(error)


MIGRATING: dict[str, Callable[[Connection], object]] = {
    "current": migrations.current,
    "check": migrations.check,
    "upgrade": migrations.upgrade,
    "downgrade": migrations.downgrade,
    "partition": partitioning.partition,
    "distribute": distribution.distribute,
}


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("name", MIGRATING)
async def test_who_migrates_on_a_connection_has_errors_of_ours(url: str, driver: str, name: str) -> None:
    """In a transaction that is aborted, and on a connection that the server has ended."""
    engine = create_async_engine(make_url(url).set(drivername=f"postgresql+{driver}"))
    async with engine.connect() as conn:
        with pytest.raises(exc.DBAPIError):
            await conn.execute(text("SELECT 1 / 0"))
        aborted = await failure(lambda call: call(conn), lambda conn: conn.run_sync(MIGRATING[name]))
        await conn.rollback()
        pid = await conn.scalar(text("SELECT pg_backend_pid()"))
        await conn.rollback()
        execute(url, f"SELECT pg_terminate_backend({pid})")
        await asyncio.to_thread(wait_for_the_end, url, pid)
        ended = await failure(lambda call: call(conn), lambda conn: conn.run_sync(MIGRATING[name]))
    await engine.dispose()

    assert type(aborted) is MigrationError
    assert type(ended) is Unavailable
