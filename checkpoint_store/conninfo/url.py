"""Connection strings: their translation for SQLAlchemy and asyncpg, and the part of them that messages may show.

asyncpg reads libpq's URLs itself (`sslmode`, `options`, Unix sockets, several hosts), so it gets the string as a DSN.
The translation names the driver, takes out parameters that asyncpg would mistake for settings of the server, and keeps
passwords out of messages.
"""

from __future__ import annotations

import logging
import math
import re
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from sqlalchemy import URL

from checkpoint_store.conninfo.connect import KEEPALIVE, Connector
from checkpoint_store.errors import InvalidURL, short_repr

log = logging.getLogger(__name__)

_SCHEMES = {"postgresql", "postgres"}

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
_IGNORED = {"channel_binding", "client_encoding", "gssencmode", "requirepeer", "sslcompression", "sslsni"}


def masked(conn_string: object) -> str:
    """Return the part of a connection string that is fit for a message: of a URL its scheme, host and database."""
    scheme, separator, rest = str(conn_string).partition("://")
    if not separator:
        return "not a URL"
    place = re.split(r"[?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    # Text other than a number in the place of a port is a password, not encoded or without a host.
    text = f"{scheme}://" + re.sub(r":(?!\d{1,5}(?:[/,]|$)).*", ":***", place)
    return text if len(text) <= 200 else f"{text[:200]}..."


def engine_arguments(conn_string: str) -> tuple[URL, dict[str, Any]]:
    """Split a connection string into an SQLAlchemy URL without secrets and the `connect_args` for asyncpg.

    Args:
        conn_string: `postgresql://`, `postgres://` or `postgresql+asyncpg://`, with libpq's parameters if any.

    Returns:
        A URL that names driver, host and database, and `connect_args` with the rest as `dsn`.

    Raises:
        InvalidURL: If the string is not a URL, or one of another database or driver.
    """
    parts, query = parse(conn_string)
    arguments, kept = _sort(query, conn_string)
    login, at, hosts = parts.netloc.rpartition("@")
    netloc, host, port = parts.netloc, None, None
    if "," not in hosts:
        # SQLAlchemy passes both on, over those of the DSN: so decoded as by libpq, and a directory in its own case.
        host, port = _place(hosts)[0] or None, parts.port
    elif "[" in hosts:
        netloc = login + at
        kept.append(("host", hosts))  # where asyncpg, which splits the URL too, takes them as well
    dsn = urlunsplit(("postgresql", netloc, parts.path, urlencode(kept), ""))
    url = URL.create("postgresql+asyncpg", host=host, port=port, database=unquote(parts.path.removeprefix("/")) or None)
    return url, {"dsn": dsn, **arguments}


def connector(conn_string: str, *, generic_plans: bool = False) -> Connector:
    """Return the connector of a connection string that `engine_arguments` takes, for `async_creator_fn`.

    Args:
        conn_string: The connection string.
        generic_plans: Whether the server plans a prepared statement once, by `plan_cache_mode`, unless the string sets
            that; for an engine that no statements but a saver's are executed on.

    Raises:
        InvalidURL: If a port or a parameter of the sockets is not a whole number.
    """
    parts = _split(conn_string)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if authority := parts.netloc.rpartition("@")[2]:
        places = [_place(one) for one in authority.split(",")]
    else:
        names, ports = query.get("host", "").split(","), query.get("port", "").split(",")
        places = list(zip(names, ports * len(names) if len(ports) == 1 else ports, strict=False))
    hosts = [(host, _number(conn_string, "port", port) if port else None) for host, port in places]
    settings = {name: _number(conn_string, name, query[name]) for name in KEEPALIVE if name in query}
    target, options = query.get("target_session_attrs"), query.get("options")
    return Connector(hosts, target, settings, options, generic_plans=generic_plans)


def parse(conn_string: str, driver: str = "asyncpg") -> tuple[SplitResult, list[tuple[str, str]]]:
    """Return the parts of a URL for a driver, and its parameters; raise `InvalidURL` if it can't be parsed."""
    _check_text(conn_string)
    scheme, _, rest = conn_string.partition("://")
    if scheme not in (*_SCHEMES, f"postgresql+{driver}"):
        raise InvalidURL(
            f"{masked(conn_string)!r} names the driver {short_repr(scheme)}; it must be postgresql://, postgres:// or "
            f"postgresql+{driver}:// (the saver brings its own driver, {driver})"
        )
    authority, _, path = rest.partition("/")
    port = re.search(r":(\d+)$", authority)
    # Before an @ that is still to come it would be a piece of a password.
    if port and "@" not in path and "," not in authority:
        _check_port(conn_string, port[1])
    try:
        parts = _split(conn_string)
        if "," not in parts.netloc.rpartition("@")[2]:
            _ = parts.port  # raises a ValueError for one that is not a number
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        if "@" in parts.path or parts.fragment or "\x00" in conn_string or "%00" in conn_string:
            raise ValueError
        conn_string.encode()  # which a lone surrogate prevents
    except ValueError:
        raise InvalidURL(
            f"{masked(conn_string)!r} can't be parsed. Percent-encode special characters in user and password: "
            "/ is %2F, # is %23, ? is %3F, @ is %40."
        ) from None
    return parts, query


def _check_text(conn_string: object) -> None:
    """Raise `InvalidURL` unless a connection string is text that may be a URL."""
    if isinstance(conn_string, URL):
        raise InvalidURL(
            "connection string must be text, not a URL object of SQLAlchemy's. Pass "
            "url.render_as_string(hide_password=False), or make an engine with it and the saver on that."
        )
    wanted = "it must look like postgresql://user:password@host:5432/database"
    if conn_string is None or conn_string == "":
        kind = "None" if conn_string is None else "empty"
        raise InvalidURL(f"connection string is {kind}; {wanted}. Is the variable set that it comes from?")
    if not isinstance(conn_string, str) or "://" not in conn_string:
        if isinstance(conn_string, str) and re.match(r"\s*\w+\s*=", conn_string):
            kind = "libpq key=value pairs"
            wanted += ", with further parameters as in ?sslmode=require&application_name=app"
        else:
            kind = masked(conn_string)
        raise InvalidURL(f"connection string is {kind}; {wanted}")


def _sort(query: list[tuple[str, str]], conn_string: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return a URL's parameters as arguments of the driver's, and those that it reads from the URL itself."""
    arguments: dict[str, Any] = {}
    kept = []
    for name, value in query:
        if name in _ARGUMENTS:
            arguments[name.removeprefix("connect_")] = argument(conn_string, name, value)
        elif name in _IGNORED:
            log.warning("connection string: %s has no counterpart in asyncpg and is ignored", name)
        elif name not in KEEPALIVE:  # see `connector`
            kept.append(("sslmode" if name == "ssl" else name, value))
    return arguments, kept


def argument(conn_string: str, name: str, text: str) -> float:
    """Return the number that a parameter of a URL has; raise `InvalidURL` if it has none."""
    try:
        number: float = _ARGUMENTS[name](text)
        if not math.isfinite(number) or number < 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise InvalidURL(f"{masked(conn_string)!r}: {name} must be a number, not {short_repr(text)}") from None
    return number


def _split(conn_string: str) -> SplitResult:
    """Split a URL with any number of hosts: Python 3.14 refuses an IPv6 address after others."""
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
        raise InvalidURL(f"{masked(conn_string)!r}: {name} must be a whole number, not {short_repr(text)}")
    if name == "port":
        _check_port(conn_string, text)
    return int(text)


def _check_port(conn_string: str, text: str) -> None:
    if len(text) > 5 or not 0 < int(text) < 2**16:
        # Not shown but by `masked`: it may be a password without a host after it.
        raise InvalidURL(f"{masked(conn_string)!r}: the port must be a number from 1 to 65535")
