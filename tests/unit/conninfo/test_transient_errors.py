"""Which errors pass by themselves: one table, and nothing else."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import exc
from sqlalchemy.dialects.postgresql import asyncpg as asyncpg_dialect

from checkpoint_store.conninfo.transient_errors import (
    LOST_WORKERS,
    TRANSIENT_ERRORS,
    TransientError,
    ends_connections,
    is_conflict,
    name_of,
    transient_error_of,
)
from checkpoint_store.database.error_translation import translate
from checkpoint_store.database.semaphore import CheckoutTimeout
from checkpoint_store.schema import Tables

X = asyncpg.exceptions
GUARANTEES = Path(__file__).parents[3] / "docs" / "explanation" / "guarantees.md"


def told_by_the_server(state: str, function: str = "") -> asyncpg.PostgresError:
    return asyncpg.PostgresError.new({"C": state, "M": "message", "R": function})


def within(orig: BaseException, kind: type[exc.DBAPIError] = exc.DBAPIError, *, lost: bool = False) -> exc.DBAPIError:
    """As SQLAlchemy hands it on."""
    return kind("SELECT", None, orig, connection_invalidated=lost)


def translated(error: Exception) -> exc.DBAPIError:
    """As SQLAlchemy's dialect hands it on, which makes DBAPI errors of asyncpg's."""
    dialect = asyncpg_dialect.PGDialect_asyncpg(dbapi=asyncpg_dialect.PGDialect_asyncpg.import_dbapi())
    orig = dialect.loaded_dbapi.Error("")
    orig.__cause__ = error
    return within(orig, exc.InternalError)


PASSES: dict[str, tuple[BaseException, Any]] = {
    "ended by an administrator": (told_by_the_server("57P01"), "57P01"),
    "the same, by SQLAlchemy": (within(told_by_the_server("57P01")), "57P01"),
    "a crash elsewhere": (told_by_the_server("57P02"), "57P02"),
    "starting": (told_by_the_server("57P03"), "57P03"),
    "idle for too long": (told_by_the_server("57P05"), "57P05"),
    "idle in a transaction": (told_by_the_server("25P03"), "25P03"),
    "a standby": (told_by_the_server("25006"), "25006"),
    "serialization": (told_by_the_server("40001"), "40001"),
    **{f"a worker of Citus: {key}": (told_by_the_server(*key.split()), key) for key in LOST_WORKERS},
    "deadlock": (told_by_the_server("40P01"), "40P01"),
    "no place left": (told_by_the_server("53300"), "53300"),
    "connection lost": (X.ConnectionDoesNotExistError("closed"), "08"),
    "found closed": (within(X.InterfaceError("connection is closed"), lost=True), "08"),
    "found closed while connecting": (X.InterfaceError("connection is closed"), "08"),
    "refused": (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), ConnectionError),
    "reset": (ConnectionResetError(), ConnectionError),
    "no route": (OSError(errno.EHOSTUNREACH, "no route"), ConnectionError),
    "timed out": (TimeoutError(errno.ETIMEDOUT, "timed out"), ConnectionError),
    "several addresses": (OSError("Multiple exceptions: [Errno 111] ..., [Errno 111] ..."), ConnectionError),
    "no socket": (FileNotFoundError(errno.ENOENT, "no such file"), FileNotFoundError),
    "no answer": (TimeoutError(), TimeoutError),
    "no address": (socket.gaierror(socket.EAI_AGAIN, "again"), socket.gaierror),
    "no primary": (X.TargetServerAttributeNotMatched("read-write"), X.TargetServerAttributeNotMatched),
    "protocol torn": (exc.StatementError("", "", None, X.InternalClientError("state 12")), X.InternalClientError),
    "no primary, by SQLAlchemy": (translated(X.TargetServerAttributeNotMatched("")), X.TargetServerAttributeNotMatched),
    "libpq": (within(Exception("connection failed"), exc.OperationalError), exc.OperationalError),
}

STAYS: dict[str, BaseException] = {
    "the pool is used up": exc.TimeoutError("QueuePool limit"),
    "our queue for it too": CheckoutTimeout("waited for 30 s"),
    "a statement's time is up": exc.StatementError("", "", None, TimeoutError()),
    "by the server": told_by_the_server("57014"),
    "a transaction's": told_by_the_server("25P04"),
    "a lock's": told_by_the_server("55P03"),
    "another feature is missing": told_by_the_server("0A000"),
    "a mistake in a server": told_by_the_server("XX000", "elog_finish"),
    "a refused login": told_by_the_server("28P01"),
    "by libpq": within(
        type("Refused", (Exception,), {"pgconn": type("", (), {"used_password": True})()})(), exc.OperationalError
    ),
    "no such database": told_by_the_server("3D000"),
    "dropped": told_by_the_server("57P04"),
    "no table": told_by_the_server("42P01"),
    "a constraint": within(told_by_the_server("23505"), exc.IntegrityError),
    "the disk is full": told_by_the_server("53100"),
    "a certificate": ssl.SSLCertVerificationError("self-signed"),
    "no right to the socket": PermissionError(errno.EACCES, "denied"),
    "no descriptors left": OSError(errno.EMFILE, "too many open files"),
    "misuse": X.InterfaceError("cannot perform operation: another operation is in progress"),
    "a cancellation": asyncio.CancelledError(),
    "Ctrl-C": KeyboardInterrupt(),
    "anything": RuntimeError(),
}


@pytest.mark.parametrize("case", PASSES)
def test_what_passes_is_in_the_table(case: str) -> None:
    """By SQLSTATE, by class of SQLSTATEs or by class of exception, however it is wrapped."""
    error, key = PASSES[case]

    assert transient_error_of(error) is TRANSIENT_ERRORS[key]


@pytest.mark.parametrize("case", STAYS)
def test_what_is_not_in_the_table_does_not_pass(case: str) -> None:
    """Mistakes, and limits that somebody has set."""
    assert transient_error_of(STAYS[case]) is None
    assert not ends_connections(STAYS[case])


def test_the_state_a_server_ended_a_connection_with_counts() -> None:
    """First asyncpg tells of the lost connection: what the server said is its cause."""
    lost = X.ConnectionDoesNotExistError("connection was closed in the middle of operation")
    lost.__cause__ = told_by_the_server("57P01")
    assert transient_error_of(lost) is TRANSIENT_ERRORS["57P01"]

    lost.__cause__ = told_by_the_server("25P04")
    assert transient_error_of(lost) is None, "a transaction's limit is somebody's will"


@pytest.mark.parametrize("state", ["08006", "57P01"])
def test_an_error_that_the_server_passes_on_leaves_its_connection(state: str) -> None:
    """The coordinator of Citus says so of a worker, with the severity ERROR; of the connection itself it is FATAL."""
    passed_on, own = [asyncpg.PostgresError.new({"C": state, "M": "m", "V": kind}) for kind in ("ERROR", "FATAL")]
    assert transient_error_of(passed_on) is transient_error_of(own) is not None
    assert not ends_connections(passed_on)
    assert ends_connections(own)


def test_a_conflict_leaves_the_connection_as_it_is() -> None:
    """So does a worker that the coordinator has lost. Everything else that passes has cost it, or will."""
    conflicts = {state for state, fault in TRANSIENT_ERRORS.items() if not fault.ends_connections}

    assert conflicts == {"40001", "40P01", *LOST_WORKERS}
    assert is_conflict(told_by_the_server("40001"))
    assert not is_conflict(told_by_the_server("57P01"))
    assert not is_conflict(None)


def test_an_error_is_named_without_its_text() -> None:
    """What goes to the log can't have a value in it."""
    assert name_of(within(told_by_the_server("40001"))) == "40001"
    assert name_of(ConnectionRefusedError("secret")) == "ConnectionRefusedError"


def test_the_table_is_frozen_and_documented() -> None:
    """Nobody adds to it at run time, and the page on guarantees has every row with its reason."""
    with pytest.raises(TypeError):
        TRANSIENT_ERRORS["XX000"] = TransientError("", False)  # type: ignore[index]
    page = GUARANTEES.read_text()
    for key, fault in TRANSIENT_ERRORS.items():
        name = key if isinstance(key, str) else key.__name__
        assert f"`{name.partition(' ')[0]}" in page, name
        assert f"{fault.reason} |" in page, name


@pytest.mark.parametrize(("tried", "told"), [(0.999324, "0.999 s"), (3600.0004, "3600 s")])
def test_for_how_long_something_was_tried_is_rounded(tried: float, told: str) -> None:
    """To milliseconds, and an hour is no power of ten."""
    error = translate(ConnectionRefusedError("refused"), "here", Tables(), tried=tried)
    assert f"Tried again for {told} (retry_timeout)" in str(error)
