"""A connection string <-> what SQLAlchemy and asyncpg want of it.

asyncpg reads libpq's URLs itself (`sslmode`, `options`, Unix sockets, several hosts), so the string goes to it as a
DSN; what is left to do here is to name the driver, to take out what asyncpg would mistake for a server setting, and to
keep passwords out of messages.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit
from uuid import uuid4

from sqlalchemy import URL, QueuePool

from checkpoint_store.conninfo.connect import KEEPALIVE, Connector
from checkpoint_store.errors import InvalidOption, InvalidURL, short_repr
from checkpoint_store.serde.arguments import choice

Pooler = Literal["transaction"]
"""What stands between an engine and its server, if anything does: a pooler that pools transactions."""

POOL_SIZE = 8
"""How many connections the pool of an engine of ours keeps; it opens no more."""

log = logging.getLogger(__name__)

_SCHEMES = {"postgresql", "postgres", "postgresql+asyncpg"}

# Parameters of SQLAlchemy's dialect and of asyncpg.connect() that a URL may carry, and their types.
_ARGUMENTS = {
    "prepared_statement_cache_size": int,
    "statement_cache_size": int,
    "command_timeout": float,
    "timeout": float,
    "connect_timeout": float,
}

# libpq parameters without a counterpart in asyncpg, which would send them to the server as settings it doesn't know.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
_IGNORED = {
    "channel_binding",
    "client_encoding",
    "gssencmode",
    "requirepeer",
    "sslcompression",
    "sslsni",
}


def masked(conn_string: object) -> str:
    """Return what of a connection string is fit for a message: of a URL its scheme, host and database."""
    scheme, separator, rest = str(conn_string).partition("://")
    if not separator:
        return "not a URL"
    place = re.split(r"[?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    # What stands where a port should, and is none, is a password whose host was forgotten or that was not encoded.
    text = f"{scheme}://" + re.sub(r":(?!\d{1,5}(?:[/,]|$)).*", ":***", place)
    return text if len(text) <= 200 else f"{text[:200]}..."


def engine_arguments(conn_string: str) -> tuple[URL, dict[str, Any]]:
    """Split a connection string into an SQLAlchemy URL without secrets and the `connect_args` for asyncpg.

    Args:
        conn_string: `postgresql://`, `postgres://` or `postgresql+asyncpg://`, with libpq's parameters if any.

    Returns:
        A URL that names driver, host and database, and `connect_args` whose `dsn` holds the rest.

    Raises:
        InvalidURL: If the string is no URL, or one of another database or driver.
    """
    _check_text(conn_string)
    scheme = conn_string.partition("://")[0]
    if scheme not in _SCHEMES:
        raise InvalidURL(
            f"{masked(conn_string)!r} names the driver {short_repr(scheme)}; use postgresql://, postgres:// or "
            "postgresql+asyncpg:// (the saver brings its own driver, asyncpg)"
        )
    place, _, rest = conn_string.partition("://")[2].partition("/")
    port_text = re.search(r":(\d+)$", place)
    # Behind an @ that is still to come it would be a piece of a password.
    if port_text and "@" not in rest and "," not in place:
        _check_port(conn_string, port_text[1])
    try:
        parts = _split(conn_string)
        login, at, named = parts.netloc.rpartition("@")
        several_hosts = "," in named
        host, port = (None, None) if several_hosts else (parts.hostname, parts.port)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        if "@" in parts.path or parts.fragment or "\x00" in conn_string or "%00" in conn_string:
            raise ValueError
        conn_string.encode()  # which a lone surrogate prevents
    except ValueError:
        raise InvalidURL(
            f"{masked(conn_string)!r} can't be parsed. Percent-encode special characters in user and password: "
            "/ is %2F, # is %23, ? is %3F, @ is %40."
        ) from None
    arguments, kept = _sorted(query, conn_string)
    netloc = parts.netloc
    if several_hosts and "[" in named:
        netloc = login + at
        kept.append(("host", named))  # where asyncpg, which splits the URL too, takes them as well
    dsn = urlunsplit(("postgresql", netloc, parts.path, urlencode(kept), ""))
    url = URL.create("postgresql+asyncpg", host=host, port=port, database=parts.path.removeprefix("/") or None)
    return url, {"dsn": dsn, **arguments}


def _check_text(conn_string: object) -> None:
    """Raise unless it is text that may be a URL.

    Raises:
        InvalidURL: If it isn't.
    """
    if isinstance(conn_string, URL):
        raise InvalidURL(
            "connection string is a URL object of SQLAlchemy's. Pass its text, "
            "url.render_as_string(hide_password=False), or make an engine with it and the saver on that."
        )
    if conn_string is None or (type(conn_string) is str and not conn_string):
        raise InvalidURL(
            f"connection string is {'None' if conn_string is None else 'empty'}; it should look like "
            "postgresql://user:password@host:5432/database. Is the variable set that it comes from?"
        )
    if not isinstance(conn_string, str) or "://" not in conn_string:
        pairs = isinstance(conn_string, str) and re.match(r"\s*\w+\s*=", conn_string)
        raise InvalidURL(
            f"connection string is {'libpq key=value pairs' if pairs else masked(conn_string)}; it should look like "
            "postgresql://user:password@host:5432/database"
            + (", with further parameters as in ?sslmode=require&application_name=app" if pairs else "")
        )


def _sorted(query: list[tuple[str, str]], conn_string: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return a URL's parameters as arguments of the driver's, and those that it reads from the URL itself.

    Raises:
        InvalidURL: If one should be a number and is none.
    """
    arguments: dict[str, Any] = {}
    kept = []
    for name, value in query:
        if name in _ARGUMENTS:
            try:
                number = _ARGUMENTS[name](value)
                if not math.isfinite(number) or number < 0:
                    raise ValueError
            except (ValueError, OverflowError):
                raise InvalidURL(f"{masked(conn_string)!r}: {name} is {short_repr(value)}; it takes a number") from None
            arguments[name.removeprefix("connect_")] = number
        elif name in KEEPALIVE:
            pass  # see `connector`
        elif name in _IGNORED:
            log.warning("connection string: %s has no counterpart in asyncpg and is ignored", name)
        else:
            kept.append(("sslmode" if name == "ssl" else name, value))
    return arguments, kept


def connector(conn_string: str) -> Connector:
    """Return what makes the connections to a connection string that `engine_arguments` takes.

    Args:
        conn_string: The same.

    Returns:
        Something for the `connect_args` as `async_creator_fn`.

    Raises:
        InvalidURL: If a port or a parameter of the sockets is no whole number.
    """
    parts = _split(conn_string)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if named := parts.netloc.rpartition("@")[2]:
        places = [_place(one) for one in named.split(",")]
    else:
        names, ports = query.get("host", "").split(","), query.get("port", "").split(",")
        places = list(zip(names, ports * len(names) if len(ports) == 1 else ports, strict=False))
    hosts = [(host, _number(conn_string, "port", port) if port else None) for host, port in places]
    settings = {name: _number(conn_string, name, query[name]) for name in KEEPALIVE if name in query}
    return Connector(hosts, query.get("target_session_attrs"), settings)


def _split(conn_string: str) -> SplitResult:
    """Split a URL, whatever hosts it has: Python 3.14 takes an IPv6 address behind others for a mistake."""
    scheme, _, rest = conn_string.partition("://")
    netloc = re.split("[/?#]", rest, maxsplit=1)[0]
    if "," not in netloc.rpartition("@")[2]:
        return urlsplit(conn_string)
    return urlsplit(f"{scheme}://{rest.removeprefix(netloc)}")._replace(netloc=netloc)


def _place(text: str) -> tuple[str, str]:
    """Return host and port."""
    host, _, port = text[1:].partition("]") if text.startswith("[") else text.partition(":")
    return unquote(host), port.removeprefix(":")


def _number(conn_string: str, name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise InvalidURL(f"{masked(conn_string)!r}: {name} is {short_repr(text)}; it takes a whole number")
    if name == "port":
        _check_port(conn_string, text)
    return int(text)


def _check_port(conn_string: str, text: str) -> None:
    if len(text) > 5 or not 0 < int(text) < 2**16:
        # Not shown but by `masked`: it may be a password whose host was forgotten.
        raise InvalidURL(f"{masked(conn_string)!r}: the port is out of range; ports are numbers from 1 to 65535")


def pool_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an engine of ours with those of its pool that are left open.

    The pool has no overflow: such connections are closed when they are given back, and opened at the next burst; that
    costs half the rate.

    Args:
        options: Those of the caller.
    """
    if "pool" in options or not issubclass(options.get("poolclass") or QueuePool, QueuePool):
        return dict(options)
    return {"pool_size": POOL_SIZE, "max_overflow": 0, **options}


def pooler_options(driver: str = "asyncpg") -> dict[str, Any]:
    """Return the options of an engine that works through a pooler in transaction mode, such as PgBouncer.

        engine = create_async_engine("postgresql+asyncpg://app@pgbouncer:6432/app", **pooler_options())

    A pooler in that mode may lend another of the server's connections to each transaction, so nothing that belongs to
    one may be counted on in the next: above all no statement that was prepared there.

    Args:
        driver: `asyncpg` or `psycopg`.

    Returns:
        Keyword arguments for SQLAlchemy's `create_async_engine`, or with psycopg also for `create_engine`.

    Raises:
        InvalidOption: If it is another driver.
    """
    if choice(driver, "driver", ("asyncpg", "psycopg")) == "psycopg":
        return {"connect_args": {"prepare_threshold": None}}
    return {
        "connect_args": {
            # asyncpg's own cache. Without it asyncpg sends the text along each time it executes it.
            "statement_cache_size": 0,
            # SQLAlchemy's, and the names it gives to what it prepares: another client's must not be met by chance.
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": _unique_name,
        }
    }


def check_pooler(pooler: object) -> None:
    """Raise unless this is a kind of pooler that we know, or None.

    Raises:
        InvalidOption: If it isn't.
    """
    if pooler is not None and not (type(pooler) is str and pooler == "transaction"):
        raise InvalidOption(
            f"pooler is {short_repr(pooler)}; it is 'transaction' for a pooler in transaction mode. One in session "
            "mode is no different from the server itself: leave it out."
        )


def _unique_name() -> str:
    return f"__checkpoint_store_{uuid4().hex}__"
