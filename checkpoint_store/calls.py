"""How code in sync style calls savers: by their sync methods, or in a greenlet by their async ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import closing
from typing import Any, Protocol, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from sqlalchemy.util import await_only

T = TypeVar("T")

Saver = BaseCheckpointSaver[Any]
Listed = Generator[CheckpointTuple, None, None]

_END: Any = object()


class Calls(Protocol):
    """One of the two ways."""

    def call(self, blocking: Callable[..., T], awaiting: Callable[..., Any], *args: Any) -> T:
        """Call a method, given in both forms, in the form that fits."""

    def listed(self, saver: Saver, config: RunnableConfig | None) -> Listed:
        """List a saver's checkpoints; in the other form if it doesn't have the one that fits."""


class Calling:
    """Calls by sync methods, from the thread it is in."""

    def call(self, blocking: Callable[..., T], awaiting: Callable[..., Any], *args: Any) -> T:  # noqa: ARG002
        """Call the blocking form."""
        return blocking(*args)

    def listed(self, saver: Saver, config: RunnableConfig | None) -> Listed:
        """List by `list`; by `alist`, on an event loop made for that, if the saver has nothing else."""
        yield from _first_that_works(_pulled(lambda: saver.list(config), next), _looped(lambda: saver.alist(config)))


class Awaiting:
    """Calls by async methods, in one of SQLAlchemy's greenlets."""

    def call(self, blocking: Callable[..., Any], awaiting: Callable[..., Any], *args: Any) -> Any:  # noqa: ARG002
        """Await the other form."""
        return await_only(awaiting(*args))

    def listed(self, saver: Saver, config: RunnableConfig | None) -> Listed:
        """List by `alist`; by `list`, in worker threads, if the saver has nothing else."""
        yield from _first_that_works(
            _awaited(lambda: saver.alist(config), await_only),
            _pulled(lambda: saver.list(config), lambda *args: await_only(asyncio.to_thread(next, *args))),
        )


def _first_that_works(*ways: Listed) -> Listed:
    """List in the first way that does not turn out to be missing; some savers have a method only to say so."""
    for way in ways:
        with closing(way):
            try:
                found = next(way, _END)
            except NotImplementedError:
                continue
            while found is not _END:
                yield found
                found = next(way, _END)
            return
    raise NotImplementedError("it has neither list nor alist")


def _pulled(start: Callable[[], Iterator[CheckpointTuple]], pull: Callable[..., Any]) -> Listed:
    iterator = start()
    try:
        while (found := pull(iterator, _END)) is not _END:
            yield found
    finally:
        # Some savers hold a lock or a cursor as long as their list is open.
        if (close := getattr(iterator, "close", None)) is not None:
            close()


def _looped(start: Callable[[], AsyncIterator[CheckpointTuple]]) -> Listed:
    with closing(asyncio.new_event_loop()) as loop:
        yield from _awaited(start, loop.run_until_complete)


def _awaited(start: Callable[[], AsyncIterator[CheckpointTuple]], wait: Callable[[Any], Any]) -> Listed:
    async def pull() -> Any:
        return await anext(iterator, _END)

    iterator = start()
    try:
        while (found := wait(pull())) is not _END:
            yield found
    finally:
        if (close := getattr(iterator, "aclose", None)) is not None:
            wait(close())
