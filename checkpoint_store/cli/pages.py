"""The command `pages`: large values as shared pages, or as plain blobs."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from checkpoint_store.cli import output
from checkpoint_store.cli.connection import Schema, Url, on_engine
from checkpoint_store.cli.text import counted

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class Form(StrEnum):
    """The form in which large values are stored."""

    share = "share"
    inline = "inline"


def pages(
    form: Annotated[Form, typer.Argument(help='"share" or "inline".', show_default=False)],
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="How many values to rewrite at a time.")] = 20,
    url: Url = "",
    schema: Schema = None,
) -> None:
    """Turn large values into shared pages, or back.

    "share" makes long threads small. "inline" makes them readable for langgraph-checkpoint-postgres; stop what shares
    pages first. The database may be in use; after an interruption the same command goes on with the rest.

    \b
    Example:
      checkpoint-store pages share
    """
    from checkpoint_store.tools import conversion

    async def work(engine: AsyncEngine) -> int:
        convert = conversion.share if form is Form.share else conversion.inline
        with output.progress("rewriting", "values") as advance:
            return await convert(engine, schema=schema, batch_size=batch_size, on_progress=advance)

    advice = "what was rewritten stays so, and every value is complete; the same command goes on with the rest"
    done = on_engine(url, schema, work, advice)
    output.line(f"{'shared' if form is Form.share else 'inlined'} {counted(done, 'value')}")
