"""URLs with several hosts, some of which are gone in one way or another."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from checkpoint_store import AsyncPostgresSaver
from checkpoint_store.errors import Unavailable
from tests.faults.bed import Network

SETTINGS = "&keepalives_idle=7&keepalives_interval=3&keepalives_count=2&tcp_user_timeout=0"
CONFIG: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


@pytest.fixture
def network(url: str) -> Iterator[Network]:
    with Network.before(url) as network:
        yield network


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing, as a host that is about to vanish, or has."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
async def resetting() -> AsyncIterator[int]:
    """A port that hangs up at once, as a load balancer in front of a server that is gone."""
    server = await asyncio.start_server(lambda _, writer: writer.transport.abort(), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def several(url: str, *ports: int, **parameters: Any) -> str:
    info = conninfo_to_dict(url)
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    query = "".join(f"&{name}={value}" for name, value in parameters.items())
    return f"postgresql://{info['user']}@{hosts}/{info['dbname']}?sslmode=disable{query}"


async def test_a_host_that_says_nothing_costs_its_own_time_only(url: str, silent: int, network: Network) -> None:
    """The next one is asked after `connect_timeout`, with no second try."""
    here = several(url, silent, network.port, connect_timeout=0.3)
    async with AsyncPostgresSaver.from_conn_string(here, retry_timeout=0) as saver:
        assert await saver.aget_tuple(CONFIG) is None


async def test_a_host_that_hangs_up_is_passed_over(url: str, resetting: int, network: Network) -> None:
    """So is one where nobody listens."""
    here = several(url, resetting, 1, network.port, target_session_attrs="read-write")
    async with AsyncPostgresSaver.from_conn_string(here, retry_timeout=0) as saver:
        assert await saver.aget_tuple(CONFIG) is None


async def test_a_refused_login_is_not_tried_elsewhere(url: str, network: Network) -> None:
    """A database that does not exist is told at once."""
    asked: list[object] = []
    other = await asyncio.start_server(lambda _, writer: asked.append(writer.close()), "127.0.0.1", 0)
    async with other:
        here = several(url, network.port, other.sockets[0].getsockname()[1]).replace("/test_", "/missing_")
        async with AsyncPostgresSaver.from_conn_string(here) as saver:
            with pytest.raises(Unavailable, match="does not exist"):
                await saver.aget_tuple(CONFIG)
            assert saver.retries == 0
    assert asked == []


async def test_when_no_host_is_there_the_last_failure_is_told(url: str, silent: int, resetting: int) -> None:
    """After the deadline for all of it."""
    here = several(url, 1, silent, resetting, connect_timeout=0.1)
    async with AsyncPostgresSaver.from_conn_string(here, retry_timeout=0.3) as saver:
        with pytest.raises(Unavailable, match=r"Tried again for 0\.3 s"):
            await saver.aget_tuple(CONFIG)


@pytest.mark.parametrize("target", ["read-write", "primary", "any", "prefer-standby"])
async def test_the_kind_of_server_is_asked_of_each_host(url: str, network: Network, target: str) -> None:
    """A primary will do where a standby is only preferred."""
    here = several(url, 1, network.port, target_session_attrs=target)
    async with AsyncPostgresSaver.from_conn_string(here, retry_timeout=0) as saver:
        assert await saver.aget_tuple(CONFIG) is None


@pytest.mark.parametrize(
    "query", ["", "&keepalives_idle=7&keepalives_interval=3&keepalives_count=2&tcp_user_timeout=0"]
)
@pytest.mark.shortcut
async def test_dead_connections_are_noticed(url: str, network: Network, query: str) -> None:
    """The socket asks from time to time whether the other side is there, as the URL says or as we do."""
    async with AsyncPostgresSaver.from_conn_string(network.through(url) + query, pool_size=1) as saver:
        await saver.aget_tuple(CONFIG)
        queue: Any = saver._backend.provider.queue  # type: ignore[attr-defined]
        with queue:
            driver = queue._kept[0].driver
            sock = driver._transport.get_extra_info("socket")

            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_KEEPIDLE"):
                options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
                set_to = [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options]
                assert set_to == ([7, 3, 2, 0] if query else [60, 10, 5, 30_000])
