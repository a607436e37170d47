"""Odd input for any argument: text of every plane, numbers without end, deep nesting, objects that raise if asked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import Enum, IntEnum
from typing import Any, TypeVar

from hypothesis import strategies as st

from checkpoint_store.errors import CheckpointStoreError

T = TypeVar("T")

MOST = 2000
"""How long a message may be: it is for a log."""


class Evil(Exception):
    """What hostile objects raise; nobody may call what raises it."""


def refuse(*_: Any, **__: Any) -> Any:
    raise Evil


class Text(str, Enum):
    VALUE = "value"


class Number(IntEnum):
    SEVEN = 7


class EvilObject:
    __eq__ = __ne__ = __bool__ = __len__ = __iter__ = __getitem__ = __repr__ = __str__ = __format__ = refuse
    __hash__ = refuse


class Liar:
    """Says that it has everything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: self


def deep(depth: int, leaf: Any, *, lists: bool) -> Any:
    for _ in range(depth):
        leaf = [leaf] if lists else {"k": leaf}
    return leaf


def cyclic() -> Any:
    value: Any = {"k": []}
    value["k"].append(value)
    return value


SQL = [
    "'; DROP TABLE checkpoints; --",
    '"',
    "\\",
    "%s",
    "$1",
    "%(a)s",
    ":a",
    "{}",
    "E'\\x27'",
    "a\tb\nc",
    "\ufeff",
    "\u202e",
]
characters = st.characters(codec=None) | st.sampled_from("\x00\ud800\udfff\uffff\U0010ffff'\"\\%$:")
texts = st.text(characters, max_size=20) | st.sampled_from(SQL) | st.sampled_from(["x" * 1_000_000, "\U0001f600" * 650])
# Made anew from their names: Hypothesis asks what it draws for a repr, which is where these begin to be evil.
MADE = {
    "text": lambda: Text.VALUE,
    "number": lambda: Number.SEVEN,
    "time": lambda: timedelta(1),
    "object": EvilObject,
    "liar": Liar,
    "class": lambda: object,
    "ellipsis": lambda: ...,
    "huge": lambda: 10**5000,
    "just too huge for JSONB": lambda: 10**4001,
}
evil = st.sampled_from([*MADE]).map(lambda name: MADE[name]())
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(2**63) - 1, 2**64])
    | st.floats()
    | st.binary(max_size=8)
    | texts
)
nested = st.recursive(
    scalars | evil,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts | st.integers() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=6,
)
depths = st.builds(deep, st.sampled_from([100, 250, 254, 255, 300, 1000, 5000]), scalars, lists=st.booleans())
anything = nested | depths | st.builds(cyclic)
some = texts | anything
storable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20)
storable |= st.sampled_from(SQL)


def mostly(sound: st.SearchStrategy[Any], odd: st.SearchStrategy[Any] = some) -> st.SearchStrategy[Any]:
    """What is sound three times out of four: of several arguments that are odd only the first would be looked at."""
    return st.integers(0, 3).flatmap(lambda number: odd if number == 3 else sound)


def outcome(call: Callable[[], T], *names: str) -> tuple[str, T | None]:
    """How a call ends, and what it returned; a refusal has one of the names in it."""
    try:
        return "done", call()
    except CheckpointStoreError as error:
        message = str(error)
    assert len(message) < MOST, f"{len(message)} characters: {message[:200]}..."
    assert not names or any(name in message for name in names), message
    return "refused", None
