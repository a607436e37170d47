"""What belongs to one process and not to those that are forked from it."""

from __future__ import annotations

import os
import threading


class ProcessLock:
    """A lock for as long as the process lives; one that is forked from it has its own, which nobody holds."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            # The thread that holds it then is not in the child.
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self.current = threading.Lock()
        """The lock of this process."""
