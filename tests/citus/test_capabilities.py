"""Every capability of the library on tables that Citus has distributed."""

from __future__ import annotations

import re

from tests.scale.capabilities import outcomes
from tests.scale.place import Place

REFUSED = {"partition": "MigrationError: .*Citus has distributed the tables"}


async def test_all_of_them_work_or_say_why_not(own_citus_url: str) -> None:
    """What came of each is compared with what was stored."""
    found = [outcome async for outcome in outcomes(Place(own_citus_url))]
    assert [str(each) for each in found if not re.match(REFUSED.get(each.name, "$"), each.error)] == []
