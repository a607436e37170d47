"""Connection strings for psycopg: what they mean is what they mean for asyncpg."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.conninfo.libpq import libpq_arguments
from checkpoint_store.errors import CheckpointStoreError, InvalidURL, Unavailable

KEPT = {"keepalives": 1, "keepalives_idle": 60, "keepalives_interval": 10, "keepalives_count": 5}


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_spelling_of_postgresql_becomes_arguments_of_libpq(scheme: str) -> None:
    """The engine's own URL, which it may print, has no password."""
    url, arguments = libpq_arguments(f"{scheme}://me:s%40crt@db.example:5433/app")

    assert url.render_as_string(hide_password=False) == "postgresql+psycopg://db.example:5433/app"
    login = {"host": "db.example", "port": "5433", "dbname": "app", "user": "me", "password": "s@crt"}
    assert arguments == {**KEPT, "tcp_user_timeout": 30_000, "connect_timeout": 60, "client_encoding": "UTF8", **login}


def test_several_hosts_have_less_time_each() -> None:
    """As libpq reads them, in the URL or among its parameters."""
    for text in ("postgresql://h1:1,h2:2/app", "postgresql:///app?host=h1,h2&port=1,2"):
        _, arguments = libpq_arguments(text)
        assert (arguments["host"], arguments["port"], arguments["connect_timeout"]) == ("h1,h2", "1,2", 5)


@pytest.mark.parametrize("name", ["connect_timeout", "timeout"])
def test_a_time_limit_is_in_whole_seconds(name: str) -> None:
    """Libpq takes no others."""
    assert libpq_arguments(f"postgresql://h/app?{name}=2.5")[1]["connect_timeout"] == 3


def test_libpqs_parameters_are_libpqs_and_others_the_servers() -> None:
    """Settings of the server by their names, as asyncpg has them, are options of libpq's."""
    _, arguments = libpq_arguments(
        "postgresql://h/app?ssl=require&keepalives_idle=7&options=-c%20a.b%3D1&application_name=an%20app"
        "&search_path=agents,%20public&channel_binding=prefer"
    )
    assert arguments["sslmode"] == "require"
    assert arguments["keepalives_idle"] == "7"
    assert arguments["channel_binding"] == "prefer"
    assert arguments["application_name"] == "an app"
    assert arguments["options"] == r"-c a.b=1 -c search_path=agents,\ public"


@pytest.mark.parametrize(
    ("conn_string", "message"),
    [
        ("mysql://me:secret@host/app", "names the driver 'mysql'; it must be postgresql://"),
        ("postgresql+asyncpg://me:secret@host/app", "names the driver 'postgresql\\+asyncpg'"),
        ("host=localhost password=secret", "key=value pairs"),
        ("", "must look like postgresql://"),
        ("postgresql://me:secret@host:port/app", "can't be parsed"),
        ("postgresql://me:secret@host:65536/app", "the port must be a number from 1 to 65535"),
        ("postgresql://me:secret@host/app?keepalives_idle=x", "keepalives_idle must be a whole number, not 'x'"),
        ("postgresql://me:secret@host/app?connect_timeout=soon", "connect_timeout must be a number, not 'soon'"),
        ("postgresql://me:secret@h[ost/app", "can't be parsed"),
    ],
)
def test_an_unusable_string_gets_one_clear_error_without_its_password(conn_string: str, message: str) -> None:
    """The same as for asyncpg."""
    with pytest.raises(InvalidURL, match=message) as caught:
        libpq_arguments(conn_string)
    assert "secret" not in str(caught.value)


def test_a_socket_is_found_by_its_directory(url: str) -> None:
    """And the settings of the URL are those of the session."""
    separator = "&" if "?" in url else "?"
    wanted = f"{url}{separator}application_name=an%20app&statement_timeout=12345&search_path=agents,%20public"
    with PostgresSaver.from_conn_string(wanted) as saver, saver._backend.provider.engine.connect() as conn:
        settings = [
            conn.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("application_name", "statement_timeout", "search_path", "plan_cache_mode")
        ]
    assert settings == ["an app", "12345ms", "agents, public", "force_generic_plan"]


# --- errors of the login ---


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"dbname": "nowhere"}, Unavailable, 'database "nowhere" does not exist'),
        ({"user": "nobody_at_all"}, Unavailable, 'role "nobody_at_all" does not exist'),
        ({"sslmode": "x"}, InvalidURL, "invalid sslmode value"),
        ({"target_session_attrs": "x"}, InvalidURL, "invalid target_session_attrs value"),
        ({"options": "-c no.such=1 -c nosuch=1"}, InvalidURL, "unrecognized configuration parameter"),
    ],
)
def test_a_login_that_is_refused_is_not_tried_again(
    url: str, change: dict[str, str], kind: type[CheckpointStoreError], message: str
) -> None:
    """No retry would help, and libpq keeps the server's SQLSTATE to itself."""
    options = {"connect_args": change, "retry_timeout": 60}
    with PostgresSaver.from_conn_string(url, **options) as saver:  # type: ignore[arg-type]
        with pytest.raises(kind, match=message):
            saver.get({"configurable": {"thread_id": "t"}})
        assert saver._backend.provider.retries == 0


def test_a_standby_is_waited_for(url: str) -> None:
    """No host of the URL takes what it asks for: that may pass."""
    options = {"connect_args": {"target_session_attrs": "standby"}, "retry_timeout": 0.3}
    with (
        PostgresSaver.from_conn_string(url, **options) as saver,  # type: ignore[arg-type]
        pytest.raises(Unavailable, match="server is not in hot standby mode"),
    ):
        saver.get({"configurable": {"thread_id": "t"}})
    assert saver._backend.provider.retries > 1


# --- which driver ---


@pytest.mark.parametrize(
    ("conn_string", "options", "driver"),
    [
        ("postgresql://h/app", {}, "psycopg"),
        ("postgres://h/app?sslmode=require&connect_timeout=2", {}, "psycopg"),
        ("postgresql+psycopg://h/app", {}, "psycopg"),
        ("postgresql+asyncpg://h/app", {}, "asyncpg"),
        ("postgresql://h/app?command_timeout=2", {}, "asyncpg"),
        ("postgresql://h/app", {"connect_args": {"server_settings": {"jit": "off"}}}, "asyncpg"),
        ("postgresql://h/app", {"connect_args": {"keepalives": 0}}, "psycopg"),
        ("postgresql://h/app", {"poolclass": AsyncAdaptedQueuePool}, "asyncpg"),
        ("postgresql://h/app", {"read_engine": create_async_engine("postgresql+asyncpg://h/app")}, "asyncpg"),
        ("postgresql://h/app", {"pooler": "transaction"}, "psycopg"),
    ],
)
def test_the_driver_is_the_urls_or_psycopg_where_it_can_do_what_is_asked(
    conn_string: str, options: dict[str, object], driver: str
) -> None:
    """What only asyncpg knows has it work there."""
    with PostgresSaver.from_conn_string(conn_string, **options) as saver:  # type: ignore[arg-type]
        assert saver._backend.provider.engine.dialect.driver == driver
        assert saver._backend.provider.engine.dialect.is_async == (driver == "asyncpg")


async def test_an_async_saver_works_on_asyncpg() -> None:
    """Whatever is installed."""
    async with AsyncPostgresSaver.from_conn_string("postgresql://h/app") as saver:
        assert saver._backend.provider.engine.dialect.driver == "asyncpg"
    with pytest.raises(InvalidURL, match="the saver brings its own driver, asyncpg"):
        async with AsyncPostgresSaver.from_conn_string("postgresql+psycopg://h/app"):
            pass


def test_without_psycopg_it_works_on_asyncpg(url: str) -> None:
    """And a URL that names psycopg says which extra has it."""
    script = """
        import sys
        sys.modules["psycopg"] = None
        from checkpoint_store import PostgresSaver
        from checkpoint_store.errors import NotInstalled
        with PostgresSaver.from_conn_string(sys.argv[1]) as saver:
            print(saver.get({"configurable": {"thread_id": "t"}}), saver._backend.provider.engine.dialect.driver)
        try:
            with PostgresSaver.from_conn_string(sys.argv[1].replace("postgresql:", "postgresql+psycopg:")):
                pass
        except NotInstalled as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), url]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines() == [
        "None asyncpg",
        'postgresql+psycopg:// needs an extra: pip install "checkpoint-store[psycopg]"',
    ], ended.stderr


def test_a_replicas_engine_may_be_a_sync_one(url: str) -> None:
    """Of the same kind as the saver's."""
    replica = create_engine(url.replace("postgresql:", "postgresql+psycopg:", 1))
    with PostgresSaver.from_conn_string(url, read_engine=replica) as saver:
        assert saver.get({"configurable": {"thread_id": "t"}}) is None
    replica.dispose()
