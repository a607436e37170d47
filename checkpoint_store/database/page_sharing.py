"""Whether large values are stored as shared pages, which the stock saver can't read."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

ASK_SECONDS = 60.0
"""The seconds between two questions to the database whether the stock saver has set up tables since."""


@dataclass
class PageSharing:
    """Whether large values are stored as pages; bound savers share the database's answer."""

    wanted: bool | None
    """The caller's option; None to share pages unless the stock saver reads the tables."""
    pages: bool | None = None
    """The database's answer; None as long as it has not been asked."""
    _asked: float = -math.inf

    @property
    def decided(self) -> bool | None:
        """Whether values are stored so; None if the database has to be asked, now and then."""
        if self.wanted is not None:
            return self.wanted
        if time.monotonic() - self._asked < ASK_SECONDS:
            return self.pages
        if self.pages is not None:
            self._asked = time.monotonic()  # calls that come meanwhile go by the last answer
        return None

    def found(self, is_adopted: bool) -> bool:
        """Note the database's answer. Return whether values are stored so."""
        self.pages, self._asked = not is_adopted, time.monotonic()
        return self.pages
