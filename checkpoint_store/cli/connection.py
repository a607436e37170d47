"""What a command does -> an engine to do it on, and what has become of it when it was interrupted."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, TypeVar

import typer
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store.cli import output
from checkpoint_store.database.backend import Backend
from checkpoint_store.database.factory import engine_backend
from checkpoint_store.errors import CheckpointStoreError, InvalidURL, NotSetUp
from checkpoint_store.sql.statements import statements_of
from checkpoint_store.url import engine_arguments, pool_options, pooler_options

T = TypeVar("T")

Url = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="CHECKPOINT_STORE_URL",
        show_default=False,
        metavar="URL",
        help="The database, such as postgresql://user:password@host/app. In the environment nobody else can read it.",
    ),
]
Schema = Annotated[
    str | None,
    typer.Option("--schema", metavar="NAME", show_default=False, help="The PostgreSQL schema of the tables."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]

NOTHING_CHANGED = "nothing was changed"


class Interrupted(Exception):
    """Raised for Ctrl-C; says what has become of the work, and how to go on."""


def connected(
    url: str,
    schema: str | None,
    work: Callable[[Backend], Awaitable[T]],
    advice: str = NOTHING_CHANGED,
    *,
    retry_timeout: float = 0,
) -> T:
    """Do something on a database, and return what comes of it.

    Args:
        url: The database.
        schema: The PostgreSQL schema of the tables.
        work: What to do.
        advice: What to tell whoever presses Ctrl-C meanwhile.
        retry_timeout: For how long, in seconds, something is tried again; who only looks wants to know at once.
    """
    sql = statements_of(schema)
    return on_engine(url, schema, lambda engine: work(engine_backend(engine, sql, None, None, retry_timeout)), advice)


def on_engine(
    url: str, schema: str | None, work: Callable[[AsyncEngine], Awaitable[T]], advice: str = NOTHING_CHANGED
) -> T:
    """Do something with an engine, which is disposed afterwards; as `connected`."""
    if not url:
        raise InvalidURL("no database is named: give --url, or set CHECKPOINT_STORE_URL")
    address, connect_args = engine_arguments(url)
    # Hardly anything here is executed twice; and so it works through a pooler of transactions too.
    connect_args = {**pooler_options()["connect_args"], **connect_args}

    async def whole() -> T:
        engine = create_async_engine(address, **pool_options({"connect_args": connect_args}))
        try:
            with engine_backend(engine, statements_of(None), None, None).provider.told():
                return await work(engine)
        finally:
            await engine.dispose()

    try:
        with upgrade_advised(schema):
            return asyncio.run(whole())
    except KeyboardInterrupt:
        raise Interrupted(advice) from None


@contextmanager
def upgrade_advised(schema: str | None) -> Iterator[None]:
    """Have `NotSetUp` name the command that sets up."""
    try:
        yield
    except NotSetUp as error:
        option = "" if schema is None else f" --schema {shlex.quote(schema)}"
        wrong = str(error).partition(". Run ")[0]
        raise NotSetUp(f"{wrong}. Run `checkpoint-store upgrade{option}`.") from error


def confirm(question: str) -> None:
    """Ask whether to go on, and end if not.

    Raises:
        CheckpointStoreError: If nobody is there to answer.
    """
    try:
        answer = typer.confirm(question, err=True)
    except typer.Abort as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):
            raise Interrupted(NOTHING_CHANGED) from None
        output.note("")  # behind the question
        raise CheckpointStoreError("nobody answered; --yes goes on without asking") from None
    if not answer:
        raise typer.Abort
