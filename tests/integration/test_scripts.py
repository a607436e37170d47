"""Calls of one round trip: `delete_thread` and `setup` at head, on engines that nothing watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.errors import NotSetUp, Refused
from checkpoint_store.schema import Tables
from checkpoint_store.sql.script import script_of
from checkpoint_store.sql.statements import Statements, statements_of

NAMES = ["t", "a'b", 'a"b', "$1", "\\x41\\", "-- x", "; DROP TABLE checkpoints", "é😀", "%s %% :x", "E'\\''", "t\nt"]


@dataclass
class Wire:
    """A way to the server that counts round trips: the client's messages that follow an answer."""

    url: str
    trips: int = 0
    is_answered: bool = True

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_client: bool) -> None:
        while chunk := await reader.read(65_536):
            self.trips += is_client and self.is_answered
            self.is_answered = not is_client
            writer.write(chunk)
        writer.close()

    async def count(self, call: Callable[[], Awaitable[object]]) -> int:
        """The round trips of a call."""
        before, self.is_answered = self.trips, True
        await call()
        return self.trips - before


@pytest.fixture
async def wire(url: str) -> AsyncIterator[Wire]:
    """The way to a fresh database at head."""
    async with wire_to(url) as wire:
        yield wire


@asynccontextmanager
async def wire_to(url: str) -> AsyncIterator[Wire]:
    parts = conninfo_to_dict(url)
    host, port = str(parts.get("host") or "localhost"), parts.get("port") or 5432
    with TemporaryDirectory(prefix="wire-", dir="/tmp") as home:
        database, user = parts.get("dbname"), parts.get("user") or "postgres"
        wire = Wire(f"postgresql://{user}@/{database}?host={home}&port=5432")

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            to_server = (
                await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
                if host.startswith("/")
                else await asyncio.open_connection(host, int(port))
            )
            await asyncio.gather(
                wire.carry(reader, to_server[1], is_client=True), wire.carry(to_server[0], writer, is_client=False)
            )

        async with await asyncio.start_unix_server(relay, Path(home) / ".s.PGSQL.5432"):
            yield wire


async def put(saver: AsyncPostgresSaver, thread_id: str) -> Any:
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    checkpoint: Any = {**empty_checkpoint(), "channel_values": {"a": [1]}, "channel_versions": {"a": "1"}}
    stored = await saver.aput(config, checkpoint, {}, {"a": "1"})
    await saver.aput_writes(stored, [("a", 1)], "task")
    return stored


async def test_a_thread_is_deleted_in_one_round_trip(wire: Wire) -> None:
    """The first time on a connection as well; no statement is prepared for it."""
    async with AsyncPostgresSaver.from_conn_string(wire.url, pool_size=1) as saver:
        for number in range(3):
            stored = await put(saver, f"t{number}")
            assert await wire.count(lambda number=number: saver.adelete_thread(f"t{number}")) == 1
            assert await saver.aget_tuple(stored) is None


async def test_so_it_is_from_sync_code_on_psycopg(wire: Wire) -> None:
    """Both calls, in the calling thread."""

    def use() -> PostgresSaver:
        saver = context.__enter__()
        saver.setup()
        saver.put({"configurable": {"thread_id": "t", "checkpoint_ns": ""}}, empty_checkpoint(), {}, {})
        return saver

    context = PostgresSaver.from_conn_string(wire.url.replace("postgresql:", "postgresql+psycopg:"))
    saver = await asyncio.to_thread(use)
    assert await wire.count(lambda: asyncio.to_thread(saver.setup)) == 1
    assert await wire.count(lambda: asyncio.to_thread(saver.delete_thread, "t")) == 1
    assert await asyncio.to_thread(lambda: list(saver.list(None))) == []
    await asyncio.to_thread(context.__exit__, None, None, None)


async def test_setup_at_head_takes_one_round_trip_on_a_new_connection(wire: Wire) -> None:
    """Not counting those that connect."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": wire.url}, pool_size=2)
    saver = AsyncPostgresSaver(engine)
    async with engine.connect():
        async with engine.connect():
            pass  # a second one, which nothing has been executed on
        assert await wire.count(saver.setup) == 1
    await engine.dispose()


async def test_setup_on_an_older_database_migrates(wire: Wire, url: str) -> None:
    """One round trip shows only that there is nothing to do."""
    admin = await asyncpg.connect(url)
    await admin.execute("DROP TABLE checkpoint_store_version")
    await admin.close()

    async with AsyncPostgresSaver.from_conn_string(wire.url) as saver:
        await saver.setup()
        assert await wire.count(saver.setup) == 1


@pytest.mark.parametrize("thread_id", NAMES)
async def test_only_the_named_thread_is_deleted(url: str, thread_id: str) -> None:
    """Whatever its id looks like in SQL."""
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        kept = [await put(saver, name) for name in NAMES if name != thread_id]
        gone = await put(saver, thread_id)

        await saver.adelete_thread(thread_id)

        assert await saver.aget_tuple(gone) is None
        assert None not in [await saver.aget_tuple(stored) for stored in kept]


async def test_an_id_is_read_the_same_under_any_setting(engine: AsyncEngine, url: str) -> None:
    """`standard_conforming_strings` off makes a backslash in a literal an escape."""
    odd = create_async_engine(
        "postgresql+asyncpg://",
        connect_args={"dsn": url, "server_settings": {"standard_conforming_strings": "off"}},
    )
    for thread_id in NAMES:
        stored = await put(AsyncPostgresSaver(engine), thread_id)
        await AsyncPostgresSaver(odd).adelete_thread(thread_id)
        assert await AsyncPostgresSaver(engine).aget_tuple(stored) is None
    await odd.dispose()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_a_level_that_is_the_default_does_not_apply(url: str, level: str) -> None:
    """At another one the second DELETE would not see what a concurrent put has stored."""
    settings = {"default_transaction_isolation": level}
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url, "server_settings": settings})
    saver = AsyncPostgresSaver(engine)
    admin = await asyncpg.connect(url)
    await admin.execute(
        "CREATE TABLE levels (level text);"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO levels VALUES (current_setting('transaction_isolation')); RETURN OLD; END $$;"
        "CREATE TRIGGER note BEFORE DELETE ON checkpoints FOR EACH ROW EXECUTE FUNCTION note()"
    )
    await put(saver, "t")

    await saver.adelete_thread("t")

    assert [row[0] for row in await admin.fetch("SELECT * FROM levels")] == ["read committed"]
    await admin.close()
    await engine.dispose()


async def test_an_error_half_way_undoes_all_and_leaves_the_connection_usable(url: str, engine: AsyncEngine) -> None:
    """The connection goes back to the pool in no transaction, and serves the next call."""
    admin = await asyncpg.connect(url)
    await admin.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON checkpoint_blobs FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    saver = AsyncPostgresSaver(engine)
    stored = await put(saver, "t")

    with pytest.raises(Refused, match=r"function refuse\b") as caught:
        await saver.adelete_thread("t")

    assert "convert_from" not in f"{caught.value!r} {caught.value.__cause__!r}"
    found = await saver.aget_tuple(stored)
    assert found is not None
    assert found.pending_writes
    assert await admin.fetchval("SELECT count(*) FROM checkpoint_threads") == 0
    assert await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'") == 0
    await admin.execute("DROP TRIGGER refuse ON checkpoint_blobs")
    await saver.adelete_thread("t")
    assert await saver.aget_tuple(stored) is None
    await admin.close()


async def test_without_tables_it_says_so(empty_url: str) -> None:
    """As every call does."""
    async with AsyncPostgresSaver.from_conn_string(empty_url) as saver:
        with pytest.raises(NotSetUp, match="setup"):
            await saver.adelete_thread("t")


async def test_a_watched_engine_sees_each_statement(engine: AsyncEngine) -> None:
    """Listeners get the same statements as ever, within BEGIN and COMMIT."""
    saver = AsyncPostgresSaver(engine)
    await saver.adelete_thread("t")  # the first call asks whether there is Citus
    seen: list[str] = []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
    event.listen(engine.sync_engine, "commit", lambda _: seen.append("COMMIT"))
    await saver.adelete_thread("t")

    assert [text.split()[0] for text in seen] == ["SELECT", "INSERT", "SELECT", "WITH", "WITH", "COMMIT"]


def test_a_parameter_is_not_sought_in_names() -> None:
    """A schema's name may have a dollar sign, quotes and all."""
    sql = Statements(Tables("a$1\"$2'"))
    script = script_of([(sql.lock_threads, {"thread_ids": ["t'", "1f0-a"]})])

    assert script.count("ARRAY[convert_from(decode('7427', 'hex'), 'UTF8'), '1f0-a']") == 1
    assert script.count('"a$1""$2\'"') == 4
    assert "$1" not in script.replace('"a$1""$2\'"', "")
    text = script_of([(statements_of(None).lock_threads, {"thread_ids": ["t"]})])
    assert text.startswith("SET LOCAL transaction_isolation = 'read committed';\n")
