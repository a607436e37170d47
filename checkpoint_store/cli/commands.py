"""The commands, all of them."""

from __future__ import annotations

import typer

from checkpoint_store.cli import changing, deploying, encrypting, reading, starting

__all__ = ["app"]

app = typer.Typer(
    name="checkpoint-store",
    help="LangGraph checkpoints in PostgreSQL: the schema, what is stored, and getting rid of it.",
    epilog="CHECKPOINT_STORE_URL names the database. Exit codes: 0 done, 1 failed, 2 misused, 3 not at head, "
    "4 server unreachable, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Help texts are plain: what is in brackets is no markup.
    rich_markup_mode=None,
)

for command in (*deploying.COMMANDS, *reading.COMMANDS, *changing.COMMANDS, *encrypting.COMMANDS, *starting.COMMANDS):
    app.command(command.__name__.replace("_", "-").strip("-"))(command)
