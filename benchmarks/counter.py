"""The functions that a call enters, counted by `sys.setprofile`.

It reports every call, and every resumption of a coroutine or generator. Each that enters a function of the package from
another file than the one before it is a change of file. The depth is the largest number of the package's frames on the
stack at once, the coroutines that wait for a greenlet of SQLAlchemy's included.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import sqlalchemy
from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]

import checkpoint_store

OWN = f"{Path(str(checkpoint_store.__file__)).parent}/"
SQLALCHEMY = f"{Path(str(sqlalchemy.__file__)).parent}/"


class Counts(NamedTuple):
    """What happened during a call."""

    changes: int
    depth: int
    own: int
    """Functions of the package entered."""
    sqlalchemy: int
    """Functions of SQLAlchemy entered."""
    python: int
    """All functions of Python entered."""
    c: int
    """Functions of C called from Python."""


class Counter:
    """A profile function that counts during a call, also in threads that start after it was made."""

    def __init__(self) -> None:
        threading.setprofile(self)

    async def count(self, call: Callable[[], Awaitable[object]]) -> Counts:
        """Make a call and count."""
        self._changes = self._depth = self._own = self._sqlalchemy = self._python = self._c = 0
        self._file = ""
        sys.setprofile(self)
        try:
            await call()
        finally:
            sys.setprofile(None)
        return Counts(self._changes, self._depth, self._own, self._sqlalchemy, self._python, self._c)

    async def check(self) -> None:
        """Raise a `RuntimeError` if calls within greenlets, where SQLAlchemy runs operations, are not seen."""

        async def in_a_greenlet() -> None:
            greenlet(lambda: None).switch()

        if (await self.count(in_a_greenlet)).python != 2:
            raise RuntimeError("sys.setprofile does not see calls within a greenlet, where SQLAlchemy runs operations")

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        self._c += event == "c_call"
        if event != "call":
            return
        self._python += 1
        file = frame.f_code.co_filename
        self._sqlalchemy += file.startswith(SQLALCHEMY)
        if file.startswith(OWN):
            self._own += 1
            self._changes += file != self._file
            self._file = file
            self._depth = max(self._depth, sum(one.f_code.co_filename.startswith(OWN) for one in _stack(frame)))


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames on the stack, those of the greenlets that wait for the running one included."""
    running = getcurrent()
    while frame is not None:
        yield frame
        frame = frame.f_back
        if frame is None and running.parent is not None:
            running = running.parent
            frame = running.gr_frame
