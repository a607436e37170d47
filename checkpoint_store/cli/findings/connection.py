"""Findings about the way to the server: URL, TLS, a pooler in between, and the step at which connecting failed."""

from __future__ import annotations

import socket
import ssl
from enum import Enum
from typing import NamedTuple

from asyncpg.exceptions import ClientConfigurationError, TargetServerAttributeNotMatched

from checkpoint_store.cli.findings.finding import Finding, duration, failure, ok, warning
from checkpoint_store.conninfo.driver_errors import causes, diagnosis_of, driver_error, sqlstate_of
from checkpoint_store.schema import identifier

VERIFY = "sslmode=verify-full&sslrootcert=/path/to/ca.pem"
"""The parameters of a URL with which a certificate is verified."""

_SLOW_CONNECT, _SLOW_TRIP = 1.0, 0.05

_TIME_LIMITS = ("25P03", "25P04", "57014", "57P05")
"""SQLSTATEs of what ends after a time that a setting allows; a session that is ended is a connection that is lost."""


class Pooling(Enum):
    """A pooler between the client and the server, as far as it can be told from outside."""

    NONE = "none"
    TRANSACTIONS = "transactions"
    """Two connections had the same session of the server's, one after the other."""
    CARRYING = "carrying"
    """Likewise, and prepared statements are carried from one session to another."""
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
    direct = "Thread locks, and migrations of large tables, need a URL of the server itself"
    if opened.pooling is Pooling.CARRYING:
        found = "one that pools transactions and carries prepared statements, such as PgBouncer 1.21 or newer"
        return ok("pooler", f"{found}. {direct}")
    if opened.pooling is Pooling.TRANSACTIONS:
        found = "one that pools transactions, such as PgBouncer, and loses prepared statements: savers need an option"
        return ok("pooler", f"{found}. {direct}", 'pooler="transaction"')
    found = "one that pools sessions, or transactions and is busy; if it is transactions, savers need an option"
    return ok("pooler", f"{found}. {direct}", 'pooler="transaction"')


def failed(error: Exception, shown_url: str, role: str, database: str) -> Finding:
    """Return the finding about a connection that could not be made; it is named for the step that failed.

    Args:
        error: The driver's or the system's.
        shown_url: The URL as it may be shown.
        role: The role that the URL names, for lines to paste.
        database: The database that it names.
    """
    cause = driver_error(error)
    diagnosis = diagnosis_of(error)
    said = diagnosis.message or diagnosis.name or type(cause).__name__
    state = sqlstate_of(cause)
    by_class = () if state in _TIME_LIMITS else _by_class(error)
    step, advice, *way_out = by_class or _by_answer(state, role, database)
    return failure(step, f"{shown_url}: {said}. {advice}", *way_out)


def _by_class(error: Exception) -> tuple[str, ...]:
    """Return the step of connecting that an error without an answer comes from, with advice and lines to paste."""
    kinds = tuple(causes(driver_error(error)))
    text = " ".join(map(str, kinds))
    if any(isinstance(each, ssl.SSLError) for each in kinds) or "rejected SSL" in text or "certificate" in text:
        return "tls", "The encrypted connection failed: sslmode and sslrootcert in the URL must suit the server", VERIFY
    for kind, step in (
        (
            socket.gaierror,
            ("name resolution", "No address is known for the host: correct it in the URL, or look at DNS"),
        ),
        (
            TargetServerAttributeNotMatched,
            ("connect", "The hosts answer, but target_session_attrs asks for another kind"),
        ),
        (ClientConfigurationError, ("url", "Correct the URL")),
        (TimeoutError, ("connect", "Nothing answered in time: a firewall drops the packets, or host or port is wrong")),
        (OSError, ("connect", "No server listens there: is it running, and are host and port right?")),
    ):
        if any(isinstance(each, kind) for each in kinds):
            return step
    return ()


def _by_answer(state: str, role: str, database: str) -> tuple[str, ...]:
    """Return the same of an error that the server, or a pooler, has answered with."""
    place, of_url = identifier(database), ("url", "The server does not take a parameter of the URL: correct it")
    steps: dict[str, tuple[str, ...]] = {
        "28": ("login", "The server refused the login: user, password and pg_hba.conf must agree"),
        "3D000": (
            *(
                "database",
                "The server runs and took the login, but has no such database: correct the URL, or make it by",
            ),
            f"CREATE DATABASE {place} ENCODING 'UTF8' TEMPLATE template0;",
        ),
        "42501": (
            *("database", "The role may not connect to the database"),
            f"GRANT CONNECT ON DATABASE {place} TO {identifier(role)};",
        ),
        **dict.fromkeys(("22023", "42601", "42704"), of_url),
        "53300": (
            *("login", "All connections are taken: make pools smaller, end sessions, or raise max_connections"),
            "SELECT usename, application_name, state, count(*) FROM pg_stat_activity GROUP BY 1, 2, 3;",
        ),
        **dict.fromkeys(
            _TIME_LIMITS,
            (
                *("login", "The server has ended the session by a time limit of the role or the database: raise it"),
                "SELECT setrole::regrole, setconfig FROM pg_db_role_setting;",
            ),
        ),
        "57P03": ("login", "The server is starting, stopping or recovering: try again, and look into its log"),
    }
    found = next((step for prefix, step in steps.items() if state.startswith(prefix)), None)
    return found or ("login", "The server, or a pooler before it, has answered and refused")
