"""The end of a saver: the states on the way there, and blocks that close something."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import Enum, auto

log = logging.getLogger("checkpoint_store")


class State(Enum):
    """The states of a provider, and so of its saver."""

    OPEN = auto()
    """Calls are accepted."""
    DRAINING = auto()
    """Calls are refused. Those accepted before are carried out, those in a pipeline too, and retried if need be."""
    CLOSED = auto()
    """Nothing is retried, and no connection is opened in a pool that was disposed of."""


@asynccontextmanager
async def closing(close: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Close something after a block; when both fail, raise the block's error and log the other.

    Args:
        close: The function that closes it.
    """
    try:
        yield
    except BaseException:
        try:
            await close()
        except Exception as error:
            _log(error)
        raise
    await close()


@contextmanager
def closing_blocking(close: Callable[[], object]) -> Iterator[None]:
    """Close something after a block, as `closing`."""
    try:
        yield
    except BaseException:
        try:
            close()
        except Exception as error:
            _log(error)
        raise
    close()


def _log(error: Exception) -> None:
    # Not its text, which may quote values.
    log.warning("after the error that is raised, closing has failed too: %s", type(error).__qualname__)
