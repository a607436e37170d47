"""Whatever options a caller sets: they work, or are refused before the database is asked; keys and schemas too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from hypothesis import strategies as st
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from sqlalchemy import Engine, MetaData, create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver, encryption, partitioning
from checkpoint_store.encryption import KeyRing
from checkpoint_store.errors import NotSetUp
from checkpoint_store.schema import Tables
from checkpoint_store.url import pooler_options
from tests.fuzz.archive import Archive, fill
from tests.fuzz.odd import Liar, mostly, outcome, some, storable

none = st.none()
flags = mostly(st.booleans())
schemas = mostly(none, storable | some)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """A host's sync engine, fit for a pooler too."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), **pooler_options("psycopg"))
    yield engine
    engine.dispose()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs when a case wants it to."""
    with closing(asyncio.new_event_loop()) as loop:
        yield loop
        loop.run_until_complete(loop.shutdown_default_executor())


def serde_of(name: str) -> Any:
    return {"none": None, "plain": JsonPlusSerializer(), "encrypted": EncryptedSerializer(KeyRing.aes(bytes(16)))}[name]


def test_any_option_of_a_saver(engine: Engine, fuzz: Any) -> None:
    """A saver that can be made with them stores and reads; unless it is to work in a schema that has no tables."""
    seconds = st.sampled_from([0, 0.5, 10, 10**300, 10**400]) | st.floats() | st.integers()
    engines = st.just(engine)

    @fuzz(
        *(mostly(engines), mostly(none), mostly(st.sampled_from(["none", "plain", "encrypted"]).map(serde_of))),
        st.fixed_dictionaries(
            {},
            optional={
                "schema": schemas,
                "share_pages": none | flags,
                "refuse_forks": flags,
                "require_encryption": flags,
                "retry_timeout": mostly(seconds),
                "pooler": mostly(none | st.just("transaction")),
                "read_engine": mostly(none | engines),
            },
        ),
    )
    def _(conn: Any, pipe: Any, serde: Any, options: dict[str, Any]) -> str:
        names = "conn", "pipe", "serde", *options
        ending, saver = outcome(lambda: PostgresSaver(conn, pipe, serde, **options), *names)
        if saver is None:
            return ending
        config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        checkpoint: Any = {**empty_checkpoint(), "channel_values": {"a": [1]}, "channel_versions": {"a": "1"}}
        if isinstance(saver.serde, Liar):
            assert outcome(lambda: saver.put(config, checkpoint, {}, {"a": "1"}))[0] == "refused"
            return ending
        try:
            stored = saver.put(config, checkpoint, {}, {"a": "1"})
            assert saver.get(stored)["channel_values"] == {"a": [1]}  # type: ignore[index]
            saver.delete_thread("t")
        except NotSetUp:
            assert options.get("schema") is not None
        saver.close()
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def test_any_option_of_an_async_saver(fuzz: Any) -> None:
    """The same, and a pipeline; as far as the database is not asked."""
    engine = create_async_engine("postgresql+asyncpg://")
    other = create_async_engine("postgresql+asyncpg://")
    engines = st.just(engine)
    pipes = st.sampled_from([engine, engine, other]).map(AsyncPipeline)

    @fuzz(
        *(mostly(engines), mostly(none | pipes)),
        st.fixed_dictionaries({}, optional={"schema": schemas, "share_pages": flags, "read_engine": mostly(engines)}),
        mostly(st.integers(-2, 9)),
    )
    def _(conn: Any, pipe: Any, options: dict[str, Any], flushes: Any) -> str:
        ending, _ = outcome(lambda: AsyncPostgresSaver(conn, pipe, **options), "conn", "pipe", *options)
        outcome(lambda: AsyncPipeline(conn, flushes=flushes), "engine", "flushes")
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def test_any_key(fuzz: Any) -> None:
    """A ring of what are ciphers, or of what are keys, opens what it has closed."""
    keys = st.sampled_from([16, 24, 32]).map(bytes) | st.binary(max_size=33)

    @fuzz(mostly(st.lists(keys, max_size=3), st.lists(keys | some, max_size=3)), st.lists(some, max_size=3))
    def _(keys: Any, ciphers: Any) -> str:
        ending, ring = outcome(lambda: KeyRing.aes(*keys), "key")
        if ring is not None:
            assert ring.decrypt(*ring.encrypt(b"a value")) == b"a value"
        outcome(lambda: KeyRing(*ciphers), "cipher")
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def test_any_reencryption(engine: Engine, loop: asyncio.AbstractEventLoop, sql: psycopg.Connection, fuzz: Any) -> None:
    """All is encrypted anew, or nothing is touched."""
    fill(PostgresSaver(engine))
    archive = Archive(sql)
    rings = st.sampled_from([bytes(16), b"\1" * 32]).map(lambda key: EncryptedSerializer(KeyRing.aes(key)))
    serdes = mostly(rings, some.map(EncryptedSerializer) | some)
    engines = st.just(engine)
    numbers = st.sampled_from([1, 2, 50, 2**31, 2**63, 10**4001])

    @fuzz(
        *(mostly(engines), mostly(none, serdes), serdes),
        st.fixed_dictionaries(
            {}, optional={"schema": schemas, "batch_size": mostly(numbers), "on_progress": mostly(none)}
        ),
    )
    def _(conn: Any, old: Any, new: Any, options: dict[str, Any]) -> str:
        names = "engine", "old", "new", "cipher", "does not exist", *options
        ending, report = outcome(
            lambda: loop.run_until_complete(encryption.reencrypt(conn, old, new, **options)), *names
        )
        if report is None:
            assert not archive.changed()
        elif report.unreadable == 0:
            left = loop.run_until_complete(encryption.count_unencrypted(engine))
            assert left == (0, 0, 0)
        archive.restore()
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def test_any_schema(sql: psycopg.Connection, fuzz: Any) -> None:
    """A name is quoted, whatever is in it; what can't be one is refused."""

    @fuzz(
        mostly(storable | none),
        mostly(none | st.builds(MetaData)),
        mostly(st.sampled_from([2, 7, 16, 1024]) | st.integers()),
    )
    def _(schema: Any, metadata: Any, partitions: Any) -> str:
        ending, tables = outcome(lambda: Tables(schema, metadata=metadata), "schema", "metadata")
        if tables is not None:
            assert {table.schema for table in tables.all} == {None if schema is None else str.__str__(schema)}
        outcome(lambda: partitioning.sql(schema, partitions=partitions), "schema", "partitions")
        ending, script = outcome(lambda: partitioning.statements(schema, partitions=partitions), "schema", "partitions")
        if script is not None and schema is not None:
            with pytest.raises((psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedTable)), sql.transaction():
                sql.execute(";".join(script[:2]))
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def test_any_partitions(engine: Engine, sql: psycopg.Connection, fuzz: Any) -> None:
    """The tables are divided, with all that is in them, or left alone."""
    fill(PostgresSaver(engine))
    archive = Archive(sql)
    numbers = st.sampled_from([2, 3, 2, 3, 2**31])

    with engine.connect() as connection:
        conns = st.just(connection)

        @fuzz(
            *(mostly(conns), schemas, mostly(numbers)),
            *(mostly(none | st.floats(0) | st.just(10**400)), mostly(none)),
        )
        def _(conn: Any, schema: Any, partitions: Any, timeout: Any, pause: Any) -> str:
            given = {"partitions": partitions, "timeout": timeout, "pause": pause}
            options = {name: value for name, value in given.items() if value is not None}
            with connection.begin():
                ending, _ = outcome(
                    lambda: partitioning.partition(conn, schema, **options),
                    *("conn", "schema", "does not exist", *options),
                )
                count = "SELECT count(*) FROM pg_class WHERE relkind = 'p'"
                assert connection.exec_driver_sql(count).scalar() == (4 if ending == "done" else 0)
                connection.rollback()
            assert not archive.changed()
            return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3
