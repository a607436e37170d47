"""Every capability of the library, run with each kind of saver on one database; results are compared.

`python -m tests.scale.capabilities URL` prints a line for each: works, or the error. Use a database for this alone: its
tables are migrated and at last partitioned (refused on Citus), and stored rows may be deleted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import traceback
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from tests.scale import saver_trials, tool_trials  # noqa: F401 - they add the capabilities
from tests.scale.place import Place
from tests.scale.walk import CAPABILITIES, Trial, Walk


@dataclass(frozen=True)
class Outcome:
    """The result of a capability with one kind of saver."""

    name: str
    api: str
    error: str

    def __str__(self) -> str:
        return f"{self.name} ({self.api}): {self.error or 'works'}"


async def outcomes(place: Place, names: Sequence[str] | None = None) -> AsyncIterator[Outcome]:
    """Try capabilities, by default all of them, each with a saver of its own."""
    for each in CAPABILITIES.values():
        if names and each.name not in names:
            continue
        for api in each.apis:
            yield Outcome(each.name, api, await _error_of(each.trial, place, api))


async def main() -> int:
    """Walk, print each outcome, and return the exit status: 1 if any was an error."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale.capabilities", description=__doc__)
    parser.add_argument("url", help="libpq's URL of a database for this alone, postgresql://..")
    parser.add_argument("--pooler", choices=["transaction"], help="the option `pooler` of savers and engines")
    parser.add_argument("--direct", metavar="URL", help="the server's own URL, where the first is a pooler's")
    parser.add_argument("--replica", metavar="URL", help="the URL of a streaming replica, for `read_engine`")
    parser.add_argument("--only", action="append", choices=list(CAPABILITIES), help="only this one; may be repeated")
    parser.add_argument("--json", action="store_true", help="print one array of [capability, api, error]")
    options = parser.parse_args()
    place = Place(options.url, options.pooler, options.replica, options.direct)
    found = []
    async for outcome in outcomes(place, options.only):
        found.append(outcome)
        if not options.json:
            print(outcome, flush=True)
    if options.json:
        print(json.dumps([[each.name, each.api, each.error] for each in found]))
    return int(any(each.error for each in found))


async def _error_of(trial: Trial, place: Place, api: str) -> str:
    try:
        async with Walk(place, api) as at:
            await trial(at)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split()) or _place_of(error)}"
    return ""


def _place_of(error: BaseException) -> str:
    """The line of the trial in which an assertion without words has failed."""
    frames = traceback.extract_tb(error.__traceback__)
    return next(f"line {each.lineno}: {each.line}" for each in reversed(frames) if "scale" in each.filename)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
