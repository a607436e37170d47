"""The options and the database connection of a command, its questions, and its end by Ctrl-C."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from checkpoint_store.cli import Interrupted, output
from checkpoint_store.errors import (
    SET_UP,
    AccessDenied,
    CheckpointStoreError,
    InvalidURL,
    NotSetUp,
    ThreadNotFound,
    Unavailable,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from checkpoint_store.database.backend import Backend
    from checkpoint_store.options import SaverOptions
    from checkpoint_store.storage.catalog import Catalog

T = TypeVar("T")

Url = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="CHECKPOINT_STORE_URL",
        show_default=False,
        metavar="URL",
        help="The database, such as postgresql://user:password@host/app. The environment hides it from other users.",
    ),
]
Thread = Annotated[str, typer.Argument(help="The thread's id.", show_default=False)]
Schema = Annotated[
    str | None,
    typer.Option("--schema", metavar="NAME", show_default=False, help="The PostgreSQL schema of the tables."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]

NOTHING_CHANGED = "nothing was changed"


def on_backend(
    url: str,
    schema: str | None,
    work: Callable[[Backend], Awaitable[T]],
    advice: str = NOTHING_CHANGED,
    *,
    retry_timeout: float = 0,
    connect_timeout: float | None = None,
) -> T:
    """Run an async function on a backend, and return its result; Ctrl-C raises `Interrupted` with the advice.

    A transient error is retried for `retry_timeout` seconds: a command that only reads fails at once. A server that
    does not answer is given up after `connect_timeout` seconds, unless the URL has that parameter.
    """
    from checkpoint_store.database.factory import engine_backend
    from checkpoint_store.storage.refusals import with_similar

    options: SaverOptions[AsyncEngine] = {"schema": schema, "retry_timeout": retry_timeout}

    async def run(engine: AsyncEngine) -> T:
        backend = engine_backend(engine, options)
        try:
            return await work(backend)
        except ThreadNotFound as error:
            raise await backend.run(with_similar, error) from None

    return on_engine(url, schema, run, advice, connect_timeout=connect_timeout)


def looking(
    url: str, schema: str | None, work: Callable[[Backend], Awaitable[T]], *, connect_timeout: float | None = None
) -> T:
    """Run an async function that only reads; as `on_backend`, but the tables may be older, or the stock saver's.

    Statements then read a table that is missing as one without rows, and a column that is missing as its default. One
    line on standard error says what an upgrade would add.
    """
    from checkpoint_store.storage.catalog import catalog
    from checkpoint_store.storage.probes import are_distributed

    async def look(backend: Backend) -> tuple[T, Catalog]:
        found = await backend.run(catalog)
        found.check()
        if found.missing:
            backend.provider.use(found.statements(distributed=await backend.run(are_distributed)))
        try:
            result = await work(backend)
        except AccessDenied as error:
            raise (found.access_denied() if found.unreadable else error) from error
        return result, found

    result, found = on_backend(url, schema, look, connect_timeout=connect_timeout)
    if found.additions:
        output.hint(f"the tables {found.state}: `{_upgrade(schema)}` adds {found.additions}")
    return result


def on_engine(
    url: str,
    schema: str | None,
    work: Callable[[AsyncEngine], Awaitable[T]],
    advice: str = NOTHING_CHANGED,
    *,
    connect_timeout: float | None = None,
) -> T:
    """Run an async function on an engine, which is disposed of afterwards; as `on_backend`."""
    from sqlalchemy.ext.asyncio import create_async_engine

    from checkpoint_store.database.factory import engine_backend
    from checkpoint_store.url import connector, engine_arguments, pool_options, pooler_options

    if not url:
        raise InvalidURL("no database is named: give --url, or set CHECKPOINT_STORE_URL")
    address, connect_args = engine_arguments(url)
    # Few statements are executed twice here; without a cache it works through a transaction pooler too.
    limit = {} if connect_timeout is None else {"timeout": connect_timeout}
    connect_args = {**pooler_options()["connect_args"], **limit, **connect_args, "async_creator_fn": connector(url)}

    async def run() -> T:
        engine = create_async_engine(address, **pool_options({"connect_args": connect_args}))
        backend = engine_backend(engine, {"schema": schema})
        try:
            with backend.provider.translate_errors():
                return await work(engine)
        except NotSetUp as error:
            raise await _told(backend, schema, error) from None
        except Unavailable as error:
            raise _unreachable(error, url, backend.provider.where) from error
        finally:
            await engine.dispose()

    try:
        with advise_upgrade(schema):
            return asyncio.run(run())
    except KeyboardInterrupt:
        raise Interrupted(advice) from None


def _unreachable(error: Unavailable, url: str, where: str) -> Unavailable:
    """Return an error of connecting with the URL as it was given, password hidden, and the command that examines it."""
    from checkpoint_store.cli.findings.examination import shown_url
    from checkpoint_store.conninfo.url import parse
    from checkpoint_store.database.error_translation import CHECK_SERVER

    said = str(error)
    if not said.endswith(CHECK_SERVER):
        return error
    user = parse(url)[0].username
    shown = shown_url(url).replace("://", f"://{user}@" if user else "://", 1)
    return Unavailable(f"{shown}{said.removeprefix(where)} `checkpoint-store doctor` says which step failed.")


async def _told(backend: Backend, schema: str | None, error: NotSetUp) -> NotSetUp:
    """Return an error with what the tables are, not which of them was missing, and the schemas that have some."""
    from checkpoint_store.storage.catalog import catalog
    from checkpoint_store.storage.diagnosis import elsewhere

    found = await backend.run(catalog)
    if found.additions:
        error = found.not_set_up()
    wrong, advice, _ = str(error).partition(SET_UP)
    others = await backend.run(elsewhere) if found.is_empty and advice else None
    if not others or not others.total:
        return error
    there = f"There are tables in {others.places}: add --schema {shlex.quote(others.schemas[0])}"
    return NotSetUp(f"{wrong}{there}. To set up new ones here, run `{_upgrade(schema)}`.")


def on_connection(url: str, schema: str | None, work: Callable[[Connection], T], advice: str = NOTHING_CHANGED) -> T:
    """Run a function in sync style on a connection; as `on_backend`."""

    async def run(engine: AsyncEngine) -> T:
        async with engine.connect() as conn:
            return await conn.run_sync(work)

    return on_engine(url, schema, run, advice)


@contextmanager
def advise_upgrade(schema: str | None) -> Iterator[None]:
    """Name the command that sets up in the message of `NotSetUp`, where it names other ways."""
    try:
        yield
    except NotSetUp as error:
        wrong, advice, _ = str(error).partition(SET_UP)
        if not advice:
            raise
        raise NotSetUp(f"{wrong}Run `{_upgrade(schema)}`.") from error


def _upgrade(schema: str | None) -> str:
    return "checkpoint-store upgrade" + ("" if schema is None else f" --schema {shlex.quote(schema)}")


def confirm(question: str) -> None:
    """Ask a question, and end the command unless the answer is yes."""
    try:
        answer = typer.confirm(question, err=True)
    except typer.Abort as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):
            raise Interrupted(NOTHING_CHANGED) from None
        output.note("")  # ends the question's line
        raise CheckpointStoreError("there was no answer; --yes goes on without asking") from None
    if not answer:
        raise typer.Abort
