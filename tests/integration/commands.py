"""Commands of the command line, run in the process of a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Done(NamedTuple):
    """What a command has come to."""

    code: int
    out: str
    err: str


Cli = Callable[..., Done]
