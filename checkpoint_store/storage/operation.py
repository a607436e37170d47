"""What an operation is: noted on its function where that is defined, for whoever has to tell one from another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Kind(Enum):
    """What an operation does to what is stored."""

    READ = "read"
    """It writes nothing."""
    STORE = "store"
    """It stores changes, which are its last argument: those of `put` and `put_writes`."""
    OTHER = "other"
    """It may write anything, of its thread if it has one."""


class About(NamedTuple):
    """What is known of an operation."""

    kind: Kind = Kind.OTHER
    name: str = ""
    """What the method of the saver's is called, for those who watch."""
    thread_of: Callable[..., str | None] | None = None
    """Takes its arguments, and returns the thread that it is about."""

    def thread(self, args: Iterable[Any]) -> str | None:
        """Return the thread that a call is about, None for several or any."""
        return None if self.thread_of is None else self.thread_of(*args)


def is_a(
    kind: Kind, *, name: str | None = None, thread_of: Callable[..., str | None] | None = None
) -> Callable[[F], F]:
    """Note of a function what operation it is; what wraps it by `functools.wraps` is the same.

    Args:
        kind: What it does.
        name: What the method of the saver's is called; by default as the function is.
        thread_of: Takes its arguments but executor and statements, and returns the thread that it is about.
    """

    def note(operation: F) -> F:
        operation.about = About(kind, name or operation.__name__, thread_of)  # type: ignore[attr-defined]
        return operation

    return note


def about(operation: Callable[..., Any]) -> About:
    """Return what is known of an operation: of one that notes nothing, that it may write anything."""
    noted = getattr(operation, "about", None)
    return noted if isinstance(noted, About) else About(name=getattr(operation, "__name__", "call").lstrip("_"))
