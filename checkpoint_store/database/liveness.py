"""Connections that are of no use: closed while they lay idle, opened on another event loop, or interrupted."""

from __future__ import annotations

import asyncio
import re
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Engine, PoolProxiedConnection

from checkpoint_store.database.sqlalchemy_private import raise_connect_error
from checkpoint_store.errors import InvalidURL, WrongThread

_UNKNOWN_ARGUMENT = re.compile(r"^connect\(\) got an unexpected keyword argument ('\w+')$")

_ENDS = (b"", b"E", b"\x15")
"""The end of the stream, an error of the server's, an alert of TLS."""


def take_open(engine: Engine) -> PoolProxiedConnection:
    """Take a connection from the pool; one that was closed while it lay there is replaced."""
    while True:
        try:
            pooled = engine.raw_connection()
        except engine.dialect.loaded_dbapi.Error as error:
            raise_connect_error(error, engine)
        except TypeError as error:
            if (unknown := _UNKNOWN_ARGUMENT.search(str(error))) is None:
                raise
            raise InvalidURL(
                f"the engine's URL has the parameter {unknown[1]}, which {engine.dialect.driver} does not know by that "
                "name. checkpoint_store.url.engine_arguments(url) takes libpq's parameters: it returns a URL and "
                "connect_args for create_async_engine()."
            ) from None
        if is_open(pooled.driver_connection):
            return pooled
        pooled.invalidate()
        pooled.close()


def is_open(driver: Any) -> bool:
    """Return whether an idle connection is open, as far as this side can know."""
    if hasattr(driver, "is_closed"):
        # asyncpg listens all the time; but the loop may have been busy until now.
        return not driver.is_closed() and not has_ended(socket_of(driver))
    # psycopg does not: bytes that have arrived meanwhile may be the server's last word.
    if not driver.closed:
        with suppress(Exception):  # raised at the end of the stream
            while _has_arrived(driver.fileno()):
                driver.pgconn.consume_input()
    return not driver.closed


def has_ended(number: int) -> bool:
    """Return whether the next thing to read from an idle connection's socket is its end, or leads to that."""
    if not _has_arrived(number):
        return False
    sock = socket.socket(fileno=number)
    try:
        sock.setblocking(False)  # as it is; but here a host's socket.setdefaulttimeout() would be waited for
        return sock.recv(1, socket.MSG_PEEK) in _ENDS
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        sock.detach()


def _has_arrived(number: int) -> bool:
    """Return whether there is something to read from a socket, or its end."""
    if not hasattr(select, "poll"):
        return bool(select.select((number,), (), (), 0)[0])
    arrived = select.poll()
    arrived.register(number, select.POLLIN)
    return bool(arrived.poll(0))


def socket_of(driver: Any) -> int:
    """Return the file descriptor of a driver's connection; asyncpg has it only in its transport."""
    return int((driver if hasattr(driver, "fileno") else driver._transport.get_extra_info("socket")).fileno())


def check_loop(driver: Any) -> None:
    """Raise `WrongThread` if a driver's connection belongs to another event loop than the one that runs here."""
    loop = getattr(driver, "_loop", None)  # asyncpg's connections alone depend on one
    if loop is not None and loop is not asyncio.get_running_loop():
        if loop.is_running():
            raise WrongThread(
                "the engine's pool holds connections of another event loop. Make an engine for the saver, or make the "
                "saver before the engine is first used."
            )
        raise left_by_loop()


def left_by_loop() -> WrongThread:
    """Return the error for a pool with connections of an event loop that has ended."""
    return WrongThread(
        "the engine's pool holds connections of an event loop that has ended. Dispose of the engine before its loop "
        "ends: `await engine.dispose()`. Now that it is too late: `await engine.dispose(close=False)`, and call again. "
        "With poolclass=NullPool there is nothing to dispose of. If the saver came from from_conn_string(), make a new "
        "saver."
    )


def is_interruption(error: BaseException) -> bool:
    """Return whether the outcome of a statement is unknown, because its caller no longer waits for the answer."""
    return not isinstance(error, Exception) or isinstance(error, TimeoutError)


def discard_unsent(number: int) -> None:
    """Let the system reset the connection of a socket when it is closed, and send nothing that it has not sent yet.

    Otherwise it goes on trying in the background for many minutes. If the network is silent meanwhile, and heals, the
    server would carry out a statement that was cancelled long ago, over newer rows.
    """
    sock = socket.socket(fileno=number)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        sock.detach()


@contextmanager
def nothing_late(driver: Any) -> Iterator[None]:
    """Discard unsent bytes when the block is interrupted, even if the connection is closed by then."""
    duplicate = None
    with suppress(OSError, AttributeError):  # it may have been lost while it lay in the pool
        # The connection exists until this is closed too.
        duplicate = socket.fromfd(socket_of(driver), socket.AF_INET, socket.SOCK_STREAM)
    try:
        yield
    except BaseException as error:
        if duplicate is not None and is_interruption(error):
            with suppress(OSError):
                discard_unsent(duplicate.fileno())
        raise
    finally:
        if duplicate is not None:
            duplicate.close()
