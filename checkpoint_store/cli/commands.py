"""The Typer application, and its commands with the module of each, which is imported when the command is called."""

from __future__ import annotations

import keyword
from functools import partial
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from checkpoint_store import __version__

__all__ = ["COMMANDS", "app", "function_of"]

# In the order of the help, each summary as in the docstring.
COMMANDS = {
    "migrations": {
        "upgrade": "Upgrade the tables to this version's revision.",
        "downgrade": 'Undo revisions; "base" drops the tables.',
        "check": "Check whether the database is at head.",
        "sql": "Print the SQL that an upgrade would run.",
        "distribute": "Distribute the tables over the nodes of a Citus cluster.",
    },
    "doctor": {"doctor": "Check everything that savers need, and say the way out."},
    "threads": {
        "threads": "List threads, the last used first.",
        "copy": "Copy a thread under another id.",
        "delete": "Delete threads, with everything stored for them.",
    },
    "history": {"history": "Draw a thread's checkpoints as a tree."},
    "checkpoints": {
        "show": "Show a checkpoint's values, as plain data.",
        "diff": "Show what differs between two checkpoints.",
    },
    "stats": {"stats": "Show the sizes of tables, threads and channels."},
    "retention": {
        "prune": "Delete older checkpoints of threads.",
        "sweep": "Delete old checkpoints of all threads, or threads that have expired.",
    },
    "pages": {"pages": "Turn large values into shared pages, or back."},
    "encryption": {"reencrypt": "Encrypt everything that is stored with the newest key."},
    "import_from": {"import-from": "Copy threads of another saver's database."},
    "export_to": {
        "export": "Write a thread to a file, as it is stored.",
        "import": "Store a thread from a file of `export`.",
    },
    "demo": {"demo": "Kill an agent in a step; another goes on."},
}
"""The commands of each module of this folder, with their summaries."""

_MODULES = {name: module for module, summaries in COMMANDS.items() for name in summaries}

_OPTIONS: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    # Help texts are plain: brackets are no markup.
    "rich_markup_mode": None,
}


def function_of(name: str) -> Any:
    """Return the function of a command, from its module."""
    attribute = name.replace("-", "_")
    module = import_module(f"checkpoint_store.cli.{_MODULES[name]}")
    return getattr(module, f"{attribute}_" if keyword.iskeyword(attribute) else attribute)


class _OnDemand(TyperCommand):
    """A command whose name and summary are known, and whose module is imported for all else."""

    def make_context(self, info_name: str | None, args: list[str], *others: Any, **extra: Any) -> Any:
        """Return the context of the command itself."""
        from checkpoint_store.cli.output import hinting

        alone = typer.Typer(add_completion=False, **_OPTIONS)
        alone.command(self.name)(hinting()(function_of(str(self.name))))
        command: Any = typer.main.get_command(alone)
        for param in command.params:
            # Typer would print a range as "x>=0"; and of an argument its type, and braces where it is required.
            param._get_number_range_help_str = lambda: None
            if param.param_type_name == "argument":
                param.metavar = param.metavar or param.name.upper()
                param.display_type_rich = lambda ctx: None  # noqa: ARG005
                param.get_usage_pieces = partial(_usage, param)
        return command.make_context(info_name, args, *others, **extra)


def _usage(argument: Any, _: object) -> list[str]:
    """Return an argument as the line of usage has it."""
    name = argument.metavar if argument.required else f"[{argument.metavar}]"
    return [name if argument.nargs == 1 else f"{name}..."]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"checkpoint-store {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="checkpoint-store",
    help="LangGraph checkpoints in PostgreSQL: the schema, what is stored, and getting rid of it.",
    epilog="CHECKPOINT_STORE_URL names the database. Exit codes: 0 done, 1 failed, 2 misused, 3 not at head, "
    "4 server unreachable, 130 interrupted.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    **_OPTIONS,
)


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


for summaries in COMMANDS.values():
    for name, summary in summaries.items():
        app.command(name, cls=_OnDemand, help=summary, short_help=summary)(lambda: None)
