"""What belongs to one process and not to those that are forked from it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def in_children(function: Callable[[], object]) -> None:
    """Have a function called first thing in every process that is forked from this one, where processes can be."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


class ProcessLock:
    """A lock for as long as the process lives; one that is forked from it has its own, which nobody holds."""

    def __init__(self) -> None:
        self._renew()
        in_children(self._renew)  # the thread that holds it then is not there

    def _renew(self) -> None:
        self.current = threading.Lock()
        """The lock of this process."""
