"""The Typer application with all commands."""

from __future__ import annotations

import typer

from checkpoint_store.cli import (
    checkpoints,
    demo,
    encryption,
    history,
    import_from,
    migrations,
    pages,
    retention,
    stats,
    threads,
)

__all__ = ["app"]

app = typer.Typer(
    name="checkpoint-store",
    help="LangGraph checkpoints in PostgreSQL: the schema, what is stored, and getting rid of it.",
    epilog="CHECKPOINT_STORE_URL names the database. Exit codes: 0 done, 1 failed, 2 misused, 3 not at head, "
    "4 server unreachable, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Help texts are plain: brackets are no markup.
    rich_markup_mode=None,
)

# In the order of the help.
for group in (migrations, threads, history, checkpoints, stats, retention, pages, encryption, import_from, demo):
    for command in group.COMMANDS:
        app.command(command.__name__.replace("_", "-"))(command)
