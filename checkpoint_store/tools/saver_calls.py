"""How code in sync style calls savers: by their sync methods, or in a greenlet by their async ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import closing
from typing import Any, Protocol, TypeVar

from sqlalchemy.util import await_only

T = TypeVar("T")

Listed = Generator[T, None, None]

_END: Any = object()


class Calls(Protocol):
    """One of the two ways."""

    def call(self, blocking: Callable[..., T], awaiting: Callable[..., Any], *args: Any) -> T:
        """Call a method, given in both forms, in the form that fits."""

    def listed(self, blocking: Callable[[], Iterator[T]], awaiting: Callable[[], AsyncIterator[T]]) -> Listed[T]:
        """Iterate over what a method lists, given in both forms; in the other one if the one that fits is missing."""


class Calling:
    """Calls by sync methods, from the thread it is in."""

    def call(self, blocking: Callable[..., T], awaiting: Callable[..., Any], *args: Any) -> T:  # noqa: ARG002
        """Call the blocking form."""
        return blocking(*args)

    def listed(self, blocking: Callable[[], Iterator[T]], awaiting: Callable[[], AsyncIterator[T]]) -> Listed[T]:
        """List by the blocking form; or by the other, on an event loop that is made for it."""
        yield from _first_that_works(_pulled(blocking, next), _looped(awaiting))


class Awaiting:
    """Calls by async methods, in one of SQLAlchemy's greenlets."""

    def call(self, blocking: Callable[..., Any], awaiting: Callable[..., Any], *args: Any) -> Any:  # noqa: ARG002
        """Await the other form."""
        return await_only(awaiting(*args))

    def listed(self, blocking: Callable[[], Iterator[T]], awaiting: Callable[[], AsyncIterator[T]]) -> Listed[T]:
        """List by the awaiting form; or by the other, in worker threads."""
        yield from _first_that_works(_awaited(awaiting, await_only), _pulled(blocking, _pull_in_thread))


def _pull_in_thread(*args: Any) -> Any:
    return await_only(asyncio.to_thread(next, *args))


def _first_that_works(*ways: Listed[T]) -> Listed[T]:
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


def _pulled(start: Callable[[], Iterator[T]], pull: Callable[..., Any]) -> Listed[T]:
    iterator = start()
    try:
        while (found := pull(iterator, _END)) is not _END:
            yield found
    finally:
        # Some savers hold a lock or a cursor as long as their list is open.
        if (close := getattr(iterator, "close", None)) is not None:
            close()


def _looped(start: Callable[[], AsyncIterator[T]]) -> Listed[T]:
    with closing(asyncio.new_event_loop()) as loop:
        yield from _awaited(start, loop.run_until_complete)


def _awaited(start: Callable[[], AsyncIterator[T]], wait: Callable[[Any], Any]) -> Listed[T]:
    async def pull() -> Any:
        return await anext(iterator, _END)

    iterator = start()
    try:
        while (found := wait(pull())) is not _END:
            yield found
    finally:
        if (close := getattr(iterator, "aclose", None)) is not None:
            wait(close())
