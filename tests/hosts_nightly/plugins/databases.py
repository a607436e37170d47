"""Databases for hosts' tests, each a clone of one at head; CHECKPOINT_STORE_URL names the server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from uuid import uuid4  # by name: LangGraph's tests put another function into the module

import psycopg

from checkpoint_store import PostgresSaver

TEMPLATE = f"nightly_{uuid4().hex}"


class Server(str):
    """The URL of a server, to which fixtures add the name of a database."""

    __slots__ = ()

    def __add__(self, name: str) -> str:
        return urlsplit(self)._replace(path=f"/{name}").geturl()


SERVER = Server(os.environ["CHECKPOINT_STORE_URL"])


def make_template() -> None:
    """Create the database that others are cloned from, and bring it to head."""
    _execute(f"CREATE DATABASE {TEMPLATE}")
    with PostgresSaver.from_conn_string(SERVER + TEMPLATE) as saver:
        saver.setup()


def drop_template() -> None:
    """Drop it."""
    _execute(f"DROP DATABASE IF EXISTS {TEMPLATE}")


@contextmanager
def database() -> Iterator[str]:
    """Clone the template, yield the clone's URL, and drop it, which fails if a saver has left a connection open."""
    name = f"nightly_{uuid4().hex}"
    _execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    try:
        yield SERVER + name
    finally:
        _execute(f"DROP DATABASE {name}")


def _execute(statement: str) -> None:
    with psycopg.connect(SERVER, autocommit=True) as conn:
        conn.execute(statement.encode())
