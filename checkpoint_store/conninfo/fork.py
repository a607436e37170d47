"""Locks and callbacks for processes that are forked from this one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def in_children(function: Callable[[], object]) -> None:
    """Have a function called first in every process that is forked from this one, on systems that can fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


class ProcessLock:
    """A lock of this process; each process that is forked from it has one of its own, which is free."""

    def __init__(self) -> None:
        self._renew()
        in_children(self._renew)  # the thread that holds it then is not there

    def _renew(self) -> None:
        self.current = threading.Lock()
        """The lock of this process."""
