"""The command `import-from`: threads of another saver's database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from checkpoint_store.cli import Interrupted, output
from checkpoint_store.cli.connection import Json, Schema, Url, advise_upgrade
from checkpoint_store.cli.text import counted
from checkpoint_store.errors import InvalidURL, NotInstalled, TransferError, Unavailable

if TYPE_CHECKING:
    from checkpoint_store.tools.transfer import TransferReport

Source = Annotated[str, typer.Argument(help="A file of SqliteSaver's, or the URL of a database of PostgresSaver's.")]
Threads = Annotated[
    list[str] | None, typer.Option("--thread", metavar="ID", show_default=False, help="Only this; may be repeated.")
]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", help="Leave out threads that can't be copied, instead of ending.")
]


def import_from(
    source: Source,
    threads: Threads = None,
    keep_going: KeepGoing = False,
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

    serde, failed = PassthroughSerializer(), []

    def leave_out(thread_id: str, error: Exception) -> None:
        failed.append(thread_id)
        output.note(f"left out: {error}")

    try:
        with (
            advise_upgrade(schema),
            _other_saver(source, serde) as old,
            PostgresSaver.from_conn_string(url, pooler="transaction", serde=serde, schema=schema) as new,
            output.progress("copying", "threads") as advance,
        ):
            report = copy_threads(
                *(old, new, threads or None),
                on_progress=lambda report: advance(report.threads + report.skipped_threads),
                on_error=leave_out if keep_going else None,
            )
    except KeyboardInterrupt:
        raise Interrupted("each thread is copied completely or not at all; the same command goes on") from None
    _print(report, as_json)
    if failed:
        raise TransferError(f"{counted(len(failed), 'thread')} could not be copied")


def _print(report: TransferReport, as_json: bool) -> None:
    if as_json:
        output.document(report)
        return
    there = f", {counted(report.skipped_threads, 'thread')} there already" if report.skipped_threads else ""
    copied = f"{counted(report.threads, 'thread')}, {counted(report.checkpoints, 'checkpoint')}"
    output.line(f"copied {copied}, {counted(report.writes, 'write')}{there}")


def _other_saver(source: str, serde: Any) -> AbstractContextManager[Any]:
    """Open another saver's database, an SQLite file or a URL of PostgreSQL, for reading."""
    if source.startswith(("postgresql://", "postgres://")):
        return _postgres(source, serde)
    if "://" in source:
        raise InvalidURL("the source is neither a file nor a URL that begins with postgresql://")
    return _sqlite(source, serde)


@contextmanager
def _sqlite(path: str, serde: Any) -> Iterator[Any]:
    if not Path(path).is_file():
        raise InvalidURL(f"{path!r} can't be opened: there is no such file")
    try:
        from langgraph.checkpoint.sqlite import SqliteSaver
    except ImportError:
        raise _missing("langgraph-checkpoint-sqlite") from None
    with ExitStack() as opened:
        try:
            # Read only: a mistyped name must not become an empty database.
            conn = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
            opened.enter_context(closing(conn))
            conn.execute("PRAGMA schema_version")
        except sqlite3.OperationalError as error:
            raise Unavailable(f"{path!r} can't be opened: {error}") from error
        except sqlite3.Error as error:
            raise InvalidURL(f"{path!r} can't be opened: {error}") from error
        saver = SqliteSaver(conn, serde=serde)
        saver.is_setup = True  # it would create its tables
        yield saver


@contextmanager
def _postgres(url: str, serde: Any) -> Iterator[Any]:
    from checkpoint_store.conninfo.url import masked

    try:
        import psycopg
        from langgraph.checkpoint.postgres import PostgresSaver
        from psycopg.rows import dict_row
    except ImportError:
        raise _missing("langgraph-checkpoint-postgres and psycopg[binary]") from None
    try:
        conn: Any = psycopg.connect(url, autocommit=True, prepare_threshold=None, row_factory=dict_row)
    except psycopg.OperationalError as error:
        raise Unavailable(f"{masked(url)} can't be reached: {str(error).splitlines()[0]}") from None
    except psycopg.Error:
        # Its message may contain the whole URL.
        raise InvalidURL(f"{masked(url)!r} can't be used as a URL") from None
    with closing(conn):
        yield PostgresSaver(conn, serde=serde)


def _missing(package: str) -> NotInstalled:
    return NotInstalled(f"to read that database, its saver is needed: pip install {package}")
