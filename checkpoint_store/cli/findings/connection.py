"""Findings about the way to the server: URL, TLS, a pooler in between, and the step at which connecting failed."""

from __future__ import annotations

import socket
import ssl
from enum import Enum
from typing import NamedTuple

from asyncpg.exceptions import ClientConfigurationError, TargetServerAttributeNotMatched

from checkpoint_store.cli.findings.finding import Finding, duration, failure, ok, warning
from checkpoint_store.conninfo.driver_errors import causes, diagnosis_of, driver_error, sqlstate_of

VERIFY = "sslmode=verify-full&sslrootcert=/path/to/ca.pem"
"""The parameters of a URL with which a certificate is verified."""

_SLOW_CONNECT, _SLOW_TRIP = 1.0, 0.05


class Pooling(Enum):
    """A pooler between the client and the server, as far as it can be told from outside."""

    NONE = "none"
    TRANSACTIONS = "transactions"
    """Two connections had the same session of the server's, one after the other."""
    UNCLEAR = "unclear"
    """They had two sessions: it pools sessions, or others had kept it busy."""


class Opened(NamedTuple):
    """A connection that was opened."""

    url: str
    """Without user and password."""
    host: str
    place: int
    """The place of the host in the URL, from 1."""
    hosts: int
    connect_seconds: float
    trip_seconds: float
    is_socket: bool
    is_local: bool
    tls: str | None
    """The version of the protocol."""
    sslmode: str
    is_verified: bool
    checks_host: bool
    pooling: Pooling


def url(opened: Opened) -> Finding:
    """Judge the URL and the time that its server takes."""
    which = f" (host {opened.place} of {opened.hosts})" if opened.hosts > 1 else ""
    times = f"connected in {duration(opened.connect_seconds)}, a round trip takes {duration(opened.trip_seconds)}"
    found = f"{opened.url}: {opened.host}{which} answered; {times}"
    if opened.trip_seconds > _SLOW_TRIP:
        return warning(
            "url",
            f"{found}. A saver's call takes one or two, so the server, or the way to it, is slow: compare "
            "with a `SELECT 1` on the server's own machine",
        )
    if opened.connect_seconds > _SLOW_CONNECT:
        return warning(
            "url", f"{found}. Connecting is slow: look at name resolution, hosts before it, TLS and the login"
        )
    return ok("url", found)


def tls(opened: Opened) -> Finding:
    """Judge the encryption of the connection."""
    if opened.is_socket:
        return ok("tls", "not needed on a Unix socket")
    mode = f"sslmode={opened.sslmode}"
    if opened.tls is None:
        if opened.is_local:
            return ok("tls", f"not in use ({mode}); the connection stays on this machine")
        found = (
            f"not in use ({mode}): checkpoints cross the network in clear. Let the server offer it, and add to the URL"
        )
        return warning("tls", found, VERIFY)
    if not opened.is_verified:
        found = f"{opened.tls}, but the certificate is not verified ({mode}), so another machine may pose as the server"
        return warning("tls", f"{found}. Add to the URL", VERIFY)
    which = "certificate and host name" if opened.checks_host else "certificate, but not the host name"
    return ok("tls", f"{opened.tls}, verifies {which} ({mode})")


def pooler(opened: Opened) -> Finding:
    """Judge what stands between the client and the server."""
    if opened.pooling is Pooling.NONE:
        return ok("pooler", "none")
    kind = {
        Pooling.TRANSACTIONS: "one that pools transactions, such as PgBouncer, stands before the server",
        Pooling.UNCLEAR: "one that pools sessions, or transactions of others too, stands before the server",
    }[opened.pooling]
    advice = (
        'If it pools transactions, savers need pooler="transaction" (engines of yours: url.pooler_options()), or '
        "PgBouncer 1.21 with max_prepared_statements. Thread locks and large migrations need a URL of the server"
    )
    return ok("pooler", f"{kind}. {advice}")


def failed(error: Exception, shown_url: str) -> Finding:
    """Return the finding about a connection that could not be made; it is named for the step that failed."""
    cause, state = driver_error(error), sqlstate_of(driver_error(error))
    diagnosis = diagnosis_of(error)
    said = diagnosis.message or diagnosis.name or type(cause).__name__
    step, advice, *way_out = _step(error, state)
    return failure(step, f"{shown_url}: {said}. {advice}", *way_out)


def _step(error: Exception, state: str) -> tuple[str, ...]:
    """Return the step of connecting that an error comes from, advice, and lines to paste."""
    kinds = tuple(causes(driver_error(error)))
    if any(isinstance(each, ssl.SSLError) or "rejected SSL" in str(each) for each in kinds):
        return "tls", "The encrypted connection failed: sslmode and sslrootcert in the URL must suit the server", VERIFY
    if any(isinstance(each, socket.gaierror) for each in kinds):
        return "name resolution", "No address is known for the host: correct it in the URL, or look at DNS"
    if any(isinstance(each, TargetServerAttributeNotMatched) for each in kinds):
        return "connect", "The hosts answer, but none is of the kind that target_session_attrs asks for"
    if any(isinstance(each, ClientConfigurationError) for each in kinds):
        return "url", "Correct the URL"
    for prefix, step in _ANSWERS.items():
        if state.startswith(prefix):
            return step
    if any(isinstance(each, TimeoutError) for each in kinds):
        return "connect", "Nothing answered in time: a firewall drops the packets, or host or port is wrong"
    if state:
        return "login", "The server, or a pooler before it, answered and refused"
    return "connect", "No server listens there: is it running, and are host and port right?"


_ANSWERS: dict[str, tuple[str, ...]] = {
    "28": ("login", "The server refused the login: user, password and pg_hba.conf must agree"),
    "3D000": (
        "database",
        "The server runs and took the login, but has no such database",
        "checkpoint-store doctor --url .../postgres",
        "CREATE DATABASE app ENCODING 'UTF8' TEMPLATE template0;",
    ),
    "42501": ("database", "The role may not connect to the database", "GRANT CONNECT ON DATABASE app TO app;"),
    **dict.fromkeys(
        ("22023", "42601", "42704"), ("url", "The server does not take a parameter of the URL: correct it")
    ),
    "53300": (
        "login",
        "All of the server's connections are taken: make pools smaller, end sessions, or raise max_connections",
        "SELECT usename, application_name, state, count(*) FROM pg_stat_activity GROUP BY 1, 2, 3;",
    ),
    "57P03": ("login", "The server is starting, stopping or recovering: try again, and look into its log"),
}
"""Steps by the SQLSTATE, or its beginning, that the server has answered with."""
