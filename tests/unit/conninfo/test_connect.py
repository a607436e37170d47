"""Which hosts a connection string names, and what is set on the sockets to them."""

from __future__ import annotations

import pytest

from checkpoint_store.errors import InvalidURL
from checkpoint_store.url import connector, engine_arguments


@pytest.mark.parametrize(
    ("place", "hosts"),
    [
        ("u:p@db.example:5433/app", [("db.example", 5433)]),
        ("u:p@h1:1,h2,[::1]:3/app", [("h1", 1), ("h2", None), ("::1", 3)]),
        ("/app?host=/run/a,/run/b&port=1,2", [("/run/a", 1), ("/run/b", 2)]),
        ("/app?host=/run/a,/run/b&port=5433", [("/run/a", 5433), ("/run/b", 5433)]),
        ("u@%2Frun%2Fa/app", [("/run/a", None)]),
    ],
)
def test_hosts_come_in_the_order_of_the_url(place: str, hosts: list[tuple[str, int | None]]) -> None:
    """In every spelling that asyncpg reads."""
    assert list(connector(f"postgresql://{place}").hosts) == hosts


async def test_an_ipv6_address_behind_other_hosts_is_one_of_them() -> None:
    """Python's own way to split URLs refuses it since 3.14, and asyncpg goes that way."""
    url = "postgresql://u:p@127.0.0.1:1,[::1]:1/app?application_name=a"

    with pytest.raises(OSError, match="::1"):  # nobody listens there, which the last of them tells
        await connector(url)(**engine_arguments(url)[1])


def test_libpqs_parameters_for_sockets_are_ours() -> None:
    """Asyncpg would take them for settings of the server."""
    url = "postgresql://h1,h2/app?keepalives_idle=7&tcp_user_timeout=0&target_session_attrs=read-write"

    assert engine_arguments(url)[1] == {"dsn": "postgresql://h1,h2/app?target_session_attrs=read-write"}
    made = connector(url)
    assert made._target == "read-write"
    assert (made._settings["keepalives_idle"], made._settings["tcp_user_timeout"]) == (7, 0)
    assert made._settings["keepalives"] == 1


def test_a_parameter_that_is_no_number_is_refused() -> None:
    """By name, and without the password."""
    with pytest.raises(InvalidURL, match="keepalives_idle must be a whole number, not 'often'") as caught:
        connector("postgresql://u:secret@h/app?keepalives_idle=often")

    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidURL, match="port must be a number from 1 to 65535"):
        connector("postgresql://one:5432,two:65536/app")
    with pytest.raises(InvalidURL, match="port must be a whole number, not 'x'"):
        connector("postgresql://h1:x,h2:2/app")
