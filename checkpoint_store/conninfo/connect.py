"""Connections to a URL: to one host after the other, with sockets that notice when their host is gone.

SQLAlchemy's multi-host URLs (`?host=a:1&host=b:2`) are not used, since they leave the list to asyncpg, which has one
time limit for all hosts together: a host that is switched off uses it up before the next is tried. And asyncpg leaves
it to the system to notice that a silent connection is dead, which takes hours. Here libpq's parameters have the same
meaning as there: `connect_timeout` is each host's, and `keepalives`, `keepalives_idle`, `keepalives_interval`,
`keepalives_count` and `tcp_user_timeout` are set on the socket.

Connections of our own engines ask for generic plans, see `generic_plans`; a pooler may refuse to pass that on, and is
then connected to without it.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg

from checkpoint_store.conninfo.generic_plans import HAS_CITUS, SessionOptions, refuses_options
from checkpoint_store.conninfo.transient_errors import transient_error_of

EACH_SECONDS = 5.0
"""The default time limit for each of several hosts."""

KEEPALIVE = {
    "keepalives": 1,
    # Below the five minutes after which many firewalls forget a silent connection.
    "keepalives_idle": 60,
    "keepalives_interval": 10,
    "keepalives_count": 5,
    # In milliseconds. Hosts that reach each other acknowledge data in less than one second.
    "tcp_user_timeout": 30_000,
}
"""The defaults of a socket's settings; 0 stands for the system's own."""


class Connector:
    """Maker of connections to one URL, in the place of `asyncpg.connect`.

    Args:
        hosts: Names or socket directories, and ports where the URL has them, in the order in which to try them.
        target: The kind of server that the URL asks for, such as `read-write`.
        settings: Those of `KEEPALIVE` that the URL has.
        options: The URL's startup parameter of that name.
        generic_plans: Whether the connections ask for generic plans, until that is refused.
    """

    def __init__(
        self,
        hosts: Sequence[tuple[str, int | None]],
        target: str | None,
        settings: Mapping[str, int],
        options: str | None = None,
        *,
        generic_plans: bool = False,
    ) -> None:
        self.hosts = hosts
        """Names or socket directories, and ports where the URL has them."""
        self._target = target
        self._settings = {**KEEPALIVE, **settings}
        self._options = options
        self._session_options = SessionOptions(generic_plans=generic_plans)

    async def __call__(self, **arguments: Any) -> Any:
        """Connect as `asyncpg.connect` does, with its arguments, its result and its errors."""
        connection = await (self._connect_to_one(**arguments) if len(self.hosts) > 1 else self._connect(arguments))
        self._keep_alive(connection._transport.get_extra_info("socket"))
        return connection

    async def _connect_to_one(self, *, timeout: float = EACH_SECONDS, **arguments: Any) -> Any:
        # A preference is no condition for a single host, so it takes two rounds.
        targets = ("standby", "any") if self._target == "prefer-standby" else (self._target,)
        failure: BaseException | None = None
        for target in targets:
            for host, port in self.hosts:
                place = {"host": host, "port": port, "timeout": timeout, "target_session_attrs": target}
                try:
                    return await self._connect({**arguments, **place})
                except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError) as error:
                    # A login that one host refuses is refused by all.
                    if transient_error_of(error) is None:
                        raise
                    failure = error
        assert failure is not None  # noqa: S101 - there are several hosts
        raise failure

    async def _connect(self, arguments: Mapping[str, Any]) -> Any:
        ours = self._session_options
        if not ours:
            return await asyncpg.connect(**arguments)
        settings = arguments.get("server_settings") or {}
        was_settled = ours.is_settled  # if not, others that connect at the same time do not speak for this one
        options = ours.before(settings.get("options", self._options))
        try:
            connection = await asyncpg.connect(**{**arguments, "server_settings": {**settings, "options": options}})
        except asyncpg.PostgresError as error:
            if not refuses_options(error):
                raise
        else:
            return connection if was_settled else await self._settled(connection, arguments)
        connection = await asyncpg.connect(**arguments)
        ours.refuse()  # it was for this that the login was refused
        return connection

    async def _settled(self, connection: Any, arguments: Mapping[str, Any]) -> Any:
        """Ask on the first connection whether the server has Citus; return it, or another one with what that needs."""
        try:
            has_citus = (await connection.execute(HAS_CITUS)).endswith(" 1")
        except BaseException:
            connection.terminate()
            raise
        if not self._session_options.settle(has_citus=has_citus):
            return connection
        await connection.close()
        return await self._connect(arguments)

    def _keep_alive(self, sock: Any) -> None:
        if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return
        settings = self._settings
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(bool(settings["keepalives"])))
        for name, option in (
            ("keepalives_idle", getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))),
            ("keepalives_interval", getattr(socket, "TCP_KEEPINTVL", None)),
            ("keepalives_count", getattr(socket, "TCP_KEEPCNT", None)),
            ("tcp_user_timeout", getattr(socket, "TCP_USER_TIMEOUT", None)),
        ):
            if option is not None and settings[name]:
                sock.setsockopt(socket.IPPROTO_TCP, option, settings[name])
