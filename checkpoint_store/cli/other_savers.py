"""Other savers' databases, opened to be read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from checkpoint_store.errors import InvalidURL, NotInstalled, Unavailable
from checkpoint_store.url import masked


@contextmanager
def other_saver(source: str, serde: Any) -> Iterator[Any]:
    """Open the saver of a database that belongs to another one.

    Args:
        source: A file of SQLite's, or a URL of PostgreSQL's.
        serde: The serializer to read with.

    Raises:
        NotInstalled: If that saver's package is missing.
        InvalidURL: If it is neither.
        Unavailable: If it can't be opened.
    """
    if source.startswith(("postgresql://", "postgres://")):
        with _postgres(source, serde) as saver:
            yield saver
    elif "://" in source:
        raise InvalidURL("the source is neither a file nor a URL that begins with postgresql://")
    else:
        with _sqlite(source, serde) as saver:
            yield saver


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
            # Read only: a name that was mistyped must not become an empty database.
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
        # What it says may have the whole URL in it.
        raise InvalidURL(f"{masked(url)!r} can't be used as a URL") from None
    with closing(conn):
        yield PostgresSaver(conn, serde=serde)


def _missing(package: str) -> NotInstalled:
    return NotInstalled(f"to read that database, its saver is needed: pip install {package}")
