"""Connection strings as people have them."""

from __future__ import annotations

import logging
import traceback

import pytest

from checkpoint_store.conninfo.url import engine_arguments, masked
from checkpoint_store.errors import InvalidURL


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_every_spelling_of_postgresql_becomes_a_dsn_for_asyncpg(scheme: str) -> None:
    """The URLs that Heroku, libpq and SQLAlchemy hand out all work, password and all."""
    url, arguments = engine_arguments(f"{scheme}://me:s%40crt@db.example:5433/app")

    assert url.drivername == "postgresql+asyncpg"
    assert (url.host, url.port, url.database) == ("db.example", 5433, "app")
    assert arguments == {"dsn": "postgresql://me:s%40crt@db.example:5433/app"}


def test_the_engines_own_url_has_no_password() -> None:
    """What an engine prints of itself, in logs and traces, can't leak the password."""
    url, _ = engine_arguments("postgresql://%2FVar%2Frun:5433/my%20app")
    assert (url.host, url.port, url.database) == ("/Var/run", 5433, "my app")
    url, _ = engine_arguments("postgresql://me:secret@host/app")

    assert "secret" not in url.render_as_string(hide_password=False)


def test_libpq_parameters_reach_asyncpg() -> None:
    """`sslmode`, `options`, Unix sockets and several hosts are asyncpg's to read."""
    _, arguments = engine_arguments("postgresql://u@h1:1,h2:2/app?sslmode=require&options=-csearch_path%3Dagents")

    assert arguments["dsn"] == "postgresql://u@h1:1,h2:2/app?sslmode=require&options=-csearch_path%3Dagents"
    assert engine_arguments("postgresql://u@/app?host=/run/pg")[1]["dsn"] == "postgresql://u@/app?host=%2Frun%2Fpg"
    assert engine_arguments("postgresql+asyncpg://h/app?ssl=require")[1]["dsn"] == "postgresql://h/app?sslmode=require"


def test_driver_parameters_become_arguments_of_their_type() -> None:
    """Asyncpg takes time-outs as numbers, not as the text a URL has."""
    _, arguments = engine_arguments("postgresql://h/app?command_timeout=2.5&connect_timeout=3&statement_cache_size=0")

    assert arguments == {
        "dsn": "postgresql://h/app",
        "command_timeout": 2.5,
        "timeout": 3.0,
        "statement_cache_size": 0,
    }


def test_parameters_that_asyncpg_lacks_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A URL with channel_binding, as hosted services print it, connects all the same."""
    with caplog.at_level(logging.WARNING):
        _, arguments = engine_arguments("postgresql://h/app?sslmode=require&channel_binding=require")

    assert arguments["dsn"] == "postgresql://h/app?sslmode=require"
    assert "channel_binding has no counterpart in asyncpg" in caplog.text


@pytest.mark.parametrize(
    ("conn_string", "message"),
    [
        ("mysql://me:secret@host/app", "names the driver 'mysql'; it must be postgresql://"),
        ("postgresql+psycopg2://me:secret@host/app", "names the driver 'postgresql\\+psycopg2'"),
        ("sqlite:///file", "names the driver 'sqlite'"),
        ("host=localhost password=secret", r"key=value pairs; it must look like postgresql://.*\?sslmode="),
        ("db.internal", "not a URL; it must look like postgresql://"),
        ("", "must look like postgresql://"),
        (None, "must look like postgresql://"),
        ("postgresql://me:secret@host:port/app", "can't be parsed"),
        ("postgresql://me:secret@host:65536/app", "host:65536/app': the port must be a number from 1 to 65535"),
        ("postgresql://me:secret@host:0/app", "the port must be a number from 1 to 65535"),
        ("postgresql://me:654321/secret@host/app", "can't be parsed"),
        ("postgresql://me:secret@host/app?timeout=soon", "timeout must be a number, not 'soon'"),
    ],
)
def test_an_unusable_string_gets_one_clear_error_without_its_password(conn_string: str, message: str) -> None:
    """The message says what came, what is wanted, and never the password."""
    with pytest.raises(InvalidURL, match=message) as caught:
        engine_arguments(conn_string)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("conn_string", "shown"),
    [
        ("postgresql://me:secret@host/app", "postgresql://host/app"),
        ("postgresql://me:secret@host:5432/app?sslmode=require", "postgresql://host:5432/app"),
        ("postgresql://me:se:cr@et/secret@host/app", "postgresql://host/app"),
        ("postgresql://host/app?user=me&password=secret", "postgresql://host/app"),
        ("postgresql://host/app?password=a@secret", "postgresql://host/app"),
        ("postgresql://me:secret", "postgresql://me:***"),
        ("postgresql://me:pw?secret@host/app", "postgresql://me:***"),
        ("postgresql://me:pw/secret@host:1/app", "postgresql://host:1/app"),
        ("mysql://u/x:secret@h/d", "mysql://h/d"),
        ("host=h password = 'my secret' dbname=app", "not a URL"),
        ("postgresql:secret@h", "not a URL"),
    ],
)
def test_only_scheme_host_and_database_are_shown(conn_string: str, shown: str) -> None:
    """Wherever a password may stand, encoded or not, it is not in what messages show."""
    assert masked(conn_string) == shown


@pytest.mark.parametrize(
    "conn_string",
    [
        "postgresql://u:secret/pw@h:1/db",
        "postgresql://u:secret#pw@h:1/db",
        "postgresql://u:pw?secret@h:1/db",
        "postgresql://us/er:secret@h/db",
        "postgresql://u:secret",
        "host=x password='my secret'",
    ],
)
def test_a_password_that_was_not_encoded_is_not_shown_either(conn_string: str) -> None:
    """The commonest slip gets the advice to encode, and nothing of the password."""
    with pytest.raises(InvalidURL) as caught:
        engine_arguments(conn_string)

    assert "secret" not in "".join(traceback.format_exception(caught.value)[-1:])
