"""A service whose database role has what `migrations.grants` gives, and nothing else, does everything but migrate."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, conversion, errors, migrations
from checkpoint_store.schema import VERSION_TABLE, identifier, qualified

LARGE = [f"message {number} " * 20 for number in range(200)]
CONFIG: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


@dataclass(frozen=True)
class Service:
    """A saver on an engine of the runtime role, with a thread that it has stored."""

    engine: AsyncEngine
    schema: str | None

    @property
    def saver(self) -> AsyncPostgresSaver:
        return AsyncPostgresSaver(self.engine, schema=self.schema, share_pages=True)

    async def put(self, saver: AsyncPostgresSaver, value: Any) -> Any:
        versions = {"a": uuid.uuid4().hex}
        checkpoint: Any = {**empty_checkpoint(), "channel_values": {"a": value}, "channel_versions": versions}
        return await saver.aput(CONFIG, checkpoint, {"source": "loop", "run_id": "run"}, versions)

    async def put_all(self) -> None:
        """Store one value after the other, so that pages are added to known ones, and replace a checkpoint."""
        for size in range(150, 200, 10):
            stored = await self.put(self.saver, LARGE[:size])
        again: Any = {**empty_checkpoint(), "id": stored["configurable"]["checkpoint_id"]}
        await self.saver.aput(CONFIG, again, {}, {})

    async def put_writes(self) -> None:
        stored = await self.put(self.saver, 1)
        await self.saver.aput_writes(stored, [("a", LARGE)], "task")
        await self.saver.aput_writes(stored, [("__error__", "replaced")], "task")
        await self.saver.aput_writes(stored, [("__error__", "again")], "task")

    async def put_through_a_pipeline(self) -> None:
        pipe = AsyncPipeline(self.engine)
        saver = AsyncPostgresSaver(self.engine, pipe, schema=self.schema, share_pages=True)
        for value in (1, LARGE, [*LARGE, 1]):
            stored = await self.put(saver, value)
            await saver.aput_writes(stored, [("a", value)], "task")
        await pipe.aclose()

    async def list_all(self) -> None:
        assert [item async for item in self.saver.alist(None, filter={"source": "loop"})]

    async def convert(self) -> None:
        plain = AsyncPostgresSaver(self.engine, schema=self.schema, share_pages=False)
        await self.put(plain, LARGE)
        assert await conversion.share(self.engine, schema=self.schema) > 0
        assert await conversion.inline(self.engine, schema=self.schema) > 0

    async def check_on_a_connection(self) -> None:
        async with self.engine.connect() as conn:
            await conn.run_sync(migrations.check, self.schema)

    async def delete_for_runs(self) -> None:
        assert (await self.saver.adelete_for_runs(["run"])).checkpoints > 0

    async def list_threads(self) -> None:
        assert [found.thread_id async for found in self.saver.alist_threads()]

    async def sweep(self) -> None:
        await self.put_all()
        assert (await self.saver.asweep(keep_last=1)).checkpoints > 0

    async def in_a_transaction(self) -> None:
        async with self.engine.begin() as conn:
            saver = self.saver.bind(conn)
            await saver.setup()
            await self.put(saver, LARGE)
            assert await saver.aget_tuple(CONFIG) is not None


OPERATIONS: dict[str, Callable[[Service], Awaitable[object]]] = {
    "setup": lambda service: service.saver.setup(),
    "check": lambda service: service.saver.acheck(),
    "check_on_a_connection": Service.check_on_a_connection,
    "put": Service.put_all,
    "put_writes": Service.put_writes,
    "pipeline": Service.put_through_a_pipeline,
    "get": lambda service: service.saver.aget_tuple(CONFIG),
    "list": Service.list_all,
    "delta_history": lambda service: service.saver.aget_delta_channel_history(config=CONFIG, channels=["a"]),
    "conversion": Service.convert,
    "copy_thread": lambda service: service.saver.acopy_thread("t", "copy", replace=True),
    "list_threads": Service.list_threads,
    "thread_stats": lambda service: service.saver.aget_thread_stats("t"),
    "prune": lambda service: service.saver.aprune(["t"], keep=1),
    "sweep": Service.sweep,
    "delete_for_runs": Service.delete_for_runs,
    "delete_thread": lambda service: service.saver.adelete_thread("t"),
    "transaction": Service.in_a_transaction,
    # With share_pages left open the saver asks whether the stock saver is here too.
    "share_pages": lambda service: service.put(AsyncPostgresSaver(service.engine, schema=service.schema), LARGE),
}


@asynccontextmanager
async def service_on(url: str, schema: str | None, *grants: str) -> AsyncIterator[tuple[Service, str]]:
    """A service, and its role: one that is no superuser, owns nothing, and got what is granted only."""
    admin = await asyncpg.connect(url)
    role = f"Runtime {uuid.uuid4().hex}"
    await admin.execute(f"CREATE ROLE {identifier(role)}; REVOKE ALL ON SCHEMA public FROM PUBLIC")
    await admin.execute(
        "REVOKE TEMPORARY ON DATABASE " + identifier(await admin.fetchval("SELECT current_database()")) + " FROM PUBLIC"
    )
    for grant in grants:
        await admin.execute(grant.format(identifier(role)))
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url, "server_settings": {"role": role}})
    try:
        yield Service(engine, schema), role
    finally:
        await engine.dispose()
        await admin.execute(f"DROP OWNED BY {identifier(role)}; DROP ROLE {identifier(role)}")
        await admin.close()


@pytest.fixture(params=["public", "The Agents"])
async def service(request: pytest.FixtureRequest, url: str, empty_url: str) -> AsyncIterator[Service]:
    """A service at head, in `public` and in a schema of its own."""
    if request.param != "public":
        url = empty_url
        async with AsyncPostgresSaver.from_conn_string(url, schema=request.param) as deployer:
            await deployer.setup()
    async with service_on(url, request.param) as (service, role):
        admin = await asyncpg.connect(url)
        await admin.execute(migrations.grants(role, request.param))
        await admin.close()
        await service.put(service.saver, LARGE)
        yield service


@pytest.mark.parametrize("service", ["public"], indirect=True)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_the_role_may(service: Service, operation: Callable[[Service], Awaitable[object]]) -> None:
    """Whatever a saver does at run time, these grants are enough for it."""
    await operation(service)


async def test_the_role_may_do_all_of_it_and_no_more(service: Service) -> None:
    """One after the other on the same thread; but to create, alter, empty or drop anything it lacks the right."""
    for operation in OPERATIONS.values():
        await operation(service)

    checkpoints = qualified("checkpoints", service.schema)
    for statement in (
        f"CREATE TABLE {qualified('mine', service.schema)} (id int)",
        f"ALTER TABLE {checkpoints} ADD COLUMN mine int",
        f"TRUNCATE {checkpoints}",
        f"DROP TABLE {checkpoints}",
        f"DELETE FROM {qualified(VERSION_TABLE, service.schema)}",
        "CREATE SCHEMA mine",
    ):
        async with service.engine.connect() as conn:
            with pytest.raises(Exception, match=r"permission denied|must be owner"):
                await conn.exec_driver_sql(statement)


@pytest.mark.parametrize("operation", ["setup", "check", "check_on_a_connection", "get", "put", "delete_thread"])
async def test_a_role_without_grants_is_told_which_it_needs(url: str, operation: str) -> None:
    """The statements in the message are those that `grants` returns: run as they stand, they help."""
    async with service_on(url, "public") as (service, role):
        with pytest.raises(errors.AccessDenied, match="permission denied for schema public") as denied:
            await OPERATIONS[operation](service)
        _, _, statements = str(denied.value).partition("can give the right: ")
        assert statements == migrations.grants(role, "public").replace("\n", " ")
        admin = await asyncpg.connect(url)
        await admin.execute(statements)
        await admin.close()

        await OPERATIONS[operation](service)


async def test_without_a_schema_the_grants_name_none(url: str) -> None:
    """The tables are the search_path's then, and so is the schema that the role has to be let into."""
    grants = migrations.grants("app")

    assert grants.startswith("GRANT SELECT, INSERT, UPDATE, DELETE ON checkpoints, checkpoint_blobs, ")
    assert "USAGE" not in grants
    async with service_on(
        url, None, "GRANT USAGE ON SCHEMA public TO {}", *grants.replace('"app"', "{}").split("\n")
    ) as (
        service,
        _,
    ):
        for operation in ("setup", "put", "get", "delete_thread"):
            await OPERATIONS[operation](service)
