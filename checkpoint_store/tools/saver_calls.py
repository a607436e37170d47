"""Calls of savers in sync style: by their sync methods, or in a greenlet by their async ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import closing
from typing import Any, TypeVar

from sqlalchemy.util import await_only

T = TypeVar("T")

_END: Any = object()


class SaverCalls:
    """Calls of savers.

    Args:
        awaiting: Their async methods are called, in one of SQLAlchemy's greenlets; by default their sync methods.
    """

    def __init__(self, *, awaiting: bool = False) -> None:
        self._is_awaiting = awaiting

    def call(self, blocking: Callable[..., T], awaiting: Callable[..., Any], *args: Any) -> T:
        """Call a method, given in both forms, in the form that fits."""
        result: T = await_only(awaiting(*args)) if self._is_awaiting else blocking(*args)
        return result

    def items(
        self, blocking: Callable[[], Iterator[T]], awaiting: Callable[[], AsyncIterator[T]]
    ) -> Generator[T, None, None]:
        """Yield the items of a list method, given in both forms; in the other form if the one that fits is missing."""
        if self._is_awaiting:
            forms = _async_items(awaiting, await_only), _items(blocking, _next_in_thread)
        else:
            forms = _items(blocking, next), _items_on_loop(awaiting)
        for form in forms:
            with closing(form):
                try:
                    item = next(form, _END)
                except NotImplementedError:  # some savers have a method only to raise it
                    continue
                while item is not _END:
                    yield item
                    item = next(form, _END)
                return
        raise NotImplementedError("it has neither list nor alist")


def _items(start: Callable[[], Iterator[T]], pull: Callable[..., Any]) -> Generator[T, None, None]:
    iterator = start()
    try:
        while (item := pull(iterator, _END)) is not _END:
            yield item
    finally:
        # Some savers hold a lock or a cursor as long as their list is open.
        if (close := getattr(iterator, "close", None)) is not None:
            close()


def _next_in_thread(*args: Any) -> Any:
    return await_only(asyncio.to_thread(next, *args))


def _async_items(start: Callable[[], AsyncIterator[T]], wait: Callable[..., Any]) -> Generator[T, None, None]:
    iterator = start()
    try:
        while (item := wait(anext(iterator, _END))) is not _END:
            yield item
    finally:
        if (close := getattr(iterator, "aclose", None)) is not None:
            wait(close())


def _items_on_loop(start: Callable[[], AsyncIterator[T]]) -> Generator[T, None, None]:
    with closing(asyncio.new_event_loop()) as loop:
        yield from _async_items(start, loop.run_until_complete)
