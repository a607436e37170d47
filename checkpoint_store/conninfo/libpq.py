"""Connections of psycopg to a URL: libpq reads its own parameters, and any others are settings of the server.

Where asyncpg's connections have other defaults than libpq's, as `connect` makes them, psycopg's have the same here: for
the time that a host may take to answer, and for sockets that notice when their host is gone.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NoReturn
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import lookup
from psycopg.pq import Conninfo
from sqlalchemy import URL

from checkpoint_store.conninfo.connect import EACH_SECONDS, KEEPALIVE
from checkpoint_store.conninfo.generic_plans import HAS_CITUS, SessionOptions, refuses_options
from checkpoint_store.conninfo.url import argument, connector, masked, parse
from checkpoint_store.errors import InvalidURL

_ONE_SECONDS = 60
"""The default time limit for a single host, as asyncpg has it."""

_LIMITS = ("timeout", "connect_timeout")
"""Asyncpg's name and libpq's for a time limit in seconds."""

_CONNECTS = {"autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory", "conninfo"}
"""Arguments of `psycopg.connect` beside libpq's parameters."""

_REFUSALS = (
    (re.compile("password authentication failed|no password supplied"), "28P01"),
    (re.compile('role ".*" does not exist|not permitted to log in|no pg_hba.conf entry'), "28000"),
    (re.compile('database ".*" does not exist'), "3D000"),
    (re.compile("permission denied for database"), "42501"),
    (re.compile("unrecognized configuration parameter"), "42704"),
    (re.compile("too many (connections|clients)|connection slots are reserved"), "53300"),
    (re.compile("session is (not )?read-only|server is (not )?in hot standby mode"), "25006"),
)
"""Messages of the server and of libpq that a login ends with, and their SQLSTATEs, which libpq keeps to itself."""

_INVALID = re.compile(r"invalid (\w+ value|integer value|connection option|port number)")
"""A message of libpq's about a parameter."""


class PsycopgConnector:
    """Maker of connections to one URL, in the place of `psycopg.connect`.

    Args:
        arguments: The arguments of `psycopg.connect`.
        generic_plans: Whether the connections ask for generic plans, until that is refused.
    """

    def __init__(self, arguments: Mapping[str, Any], *, generic_plans: bool) -> None:
        self._arguments = arguments
        self._session_options = SessionOptions(generic_plans=generic_plans)

    def __call__(self) -> psycopg.Connection[Any]:
        """Connect as `psycopg.connect` does; the errors of a refused login have the SQLSTATE."""
        try:
            return self._connect()
        except psycopg.OperationalError as error:
            _raise_with_state(error)

    def _connect(self) -> psycopg.Connection[Any]:
        # With a service the options are in a file, and none of ours may take their place.
        has_service = bool(self._arguments.get("service") or os.environ.get("PGSERVICE"))
        ours = self._session_options
        if not ours or has_service:
            return psycopg.connect(**self._arguments)
        was_settled = ours.is_settled  # if not, others that connect at the same time do not speak for this one
        options = ours.before(self._arguments.get("options") or os.environ.get("PGOPTIONS"))
        try:
            connection = psycopg.connect(**{**self._arguments, "options": options})
        except psycopg.OperationalError as error:
            if not refuses_options(error):
                raise
        else:
            return connection if was_settled else self._settled(connection)
        connection = psycopg.connect(**self._arguments)
        ours.refuse()  # it was for this that the login was refused
        return connection

    def _settled(self, connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
        """Ask on the first connection whether the server has Citus; return it, or another one with what that needs."""
        try:
            autocommit, connection.autocommit = connection.autocommit, True
            has_citus = connection.execute(HAS_CITUS).rowcount > 0
            connection.autocommit = autocommit
        except BaseException:
            connection.close()
            raise
        if not self._session_options.settle(has_citus=has_citus):
            return connection
        connection.close()
        return self._connect()


def _raise_with_state(error: psycopg.OperationalError) -> NoReturn:
    message = str(error)
    if _INVALID.search(message):
        raise InvalidURL(message.partition("\n")[0]) from None
    state = error.sqlstate or next((state for pattern, state in _REFUSALS if pattern.search(message)), None)
    if state is None:
        raise error
    raise lookup(state)(*error.args, pgconn=error.pgconn) from None


def libpq_arguments(conn_string: str) -> tuple[URL, dict[str, Any]]:
    """Split a connection string into an SQLAlchemy URL without secrets and the arguments of `psycopg.connect`.

    Args:
        conn_string: `postgresql://`, `postgres://` or `postgresql+psycopg://`, with libpq's parameters if any.

    Raises:
        InvalidURL: If the string is not a URL, or one of another database or driver.
    """
    parts, query = parse(conn_string, "psycopg")
    connector(conn_string)  # it validates ports, and parameters of sockets
    parameters = {"sslmode" if name == "ssl" else name: value for name, value in query}
    limits = [argument(conn_string, name, parameters.pop(name)) for name in _LIMITS if name in parameters]
    settings = [(name, parameters.pop(name)) for name in unknown_to_psycopg(parameters)]
    dsn = f"postgresql://{parts.netloc}{parts.path}?{urlencode(parameters, quote_via=quote)}"
    try:
        read = conninfo_to_dict(dsn)
    except psycopg.Error:  # its message quotes the string
        raise InvalidURL(f"{masked(conn_string)!r} can't be parsed by libpq") from None
    if settings:
        escaped = [(name, re.sub(r"([\\ ])", r"\\\1", value)) for name, value in settings]
        read["options"] = " ".join([str(read.get("options", "")), *(f"-c {name}={value}" for name, value in escaped)])
    hosts = str(read.get("host", ""))
    default = EACH_SECONDS if "," in hosts else _ONE_SECONDS
    place = (None, None) if "," in hosts else (parts.hostname, parts.port)
    url = URL.create("postgresql+psycopg", None, None, *place, parts.path.removeprefix("/") or None)
    # As with asyncpg. Without it psycopg returns bytes for text where the database is SQL_ASCII.
    defaults = {**KEEPALIVE, "client_encoding": "UTF8", "connect_timeout": math.ceil([default, *limits][-1])}
    return url, {**defaults, **read}


def unknown_to_psycopg(names: Iterable[str]) -> list[str]:
    """Return those names that are neither libpq's parameters nor arguments of `psycopg.connect`."""
    return [name for name in names if name not in _names() | _CONNECTS]


@cache
def _names() -> frozenset[str]:
    return frozenset(option.keyword.decode() for option in Conninfo.get_defaults())
