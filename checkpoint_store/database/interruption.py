"""Statements that were interrupted: nothing of them may reach the server any more."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from checkpoint_store.database.liveness import socket_of


def is_interruption(error: BaseException) -> bool:
    """Return whether the outcome of a statement is unknown, because its caller no longer waits for the answer."""
    return not isinstance(error, Exception) or isinstance(error, TimeoutError)


def discard_unsent(number: int) -> None:
    """Let the system reset a connection when it is closed, and send nothing that it has not sent yet.

    Otherwise it goes on trying in the background for many minutes. If the network is silent meanwhile, and heals, the
    server would carry out a statement that was cancelled long ago, over newer rows.

    Args:
        number: The file descriptor of its socket.
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
