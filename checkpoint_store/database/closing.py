"""Blocks that close something at their end: what goes wrong in them first is raised, and not what follows from it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

log = logging.getLogger("checkpoint_store")


@asynccontextmanager
async def closing(close: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Close something after a block; when both fail, raise the block's error and log the other.

    Args:
        close: What closes it.
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
