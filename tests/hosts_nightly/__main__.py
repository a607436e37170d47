"""Our savers in the tests of other projects, counts beside those of their own: python -m tests.hosts_nightly [HOST].

Each host's tests are cloned at a pinned tag and run in an environment of their own. The exit status is 1 if a test
passes with their saver and not with ours, or if fewer pass than `expected.json` says.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from checkpoint_store.embedded import EmbeddedPostgres
from tests.hosts_nightly import agent_server
from tests.hosts_nightly.hosts import HOSTS, clone, environment, run

EXPECTED = Path(__file__).parent / "expected.json"
NAMES = [*HOSTS, "agent-server"]
OUTCOMES = ("passed", "failed", "skipped")
ROW = "{:<13} {:<6} {:>7} {:>7} {:>8}"

Ended = dict[str, str]


def main() -> int:
    """Run each host's tests with both savers, print the counts, and compare them."""
    parser = argparse.ArgumentParser(prog="python -m tests.hosts_nightly", description=__doc__)
    parser.add_argument("host", nargs="*", help=f"all of them unless named: {', '.join(NAMES)}")
    parser.add_argument("--folder", type=Path, default=Path(".nightly"), help="for clones and environments (.nightly)")
    parser.add_argument("--checkout", type=Path, help="a clone that is there already, for one host")
    parser.add_argument("--record", action="store_true", help=f"write the counts to {EXPECTED.name}")
    options = parser.parse_args()

    expected = json.loads(EXPECTED.read_text())
    lost = []
    with ExitStack() as stack:
        url = os.environ.get("CHECKPOINT_STORE_TEST_URL") or stack.enter_context(EmbeddedPostgres()).url
        print(ROW.format("host", "saver", *OUTCOMES), flush=True)
        for name in options.host or NAMES:
            stock, ours = (run_host(name, saver, url, options) for saver in ("stock", "ours"))
            lost += [f"{name}: {test}" for test, outcome in stock.items() if outcome == "passed" != ours.get(test)]
            if options.record:
                expected[name] = {"stock": counted(stock), "ours": counted(ours)}
            elif counted(ours)["passed"] < expected[name]["ours"]["passed"]:
                lost.append(f"{name}: fewer tests passed than {EXPECTED.name} says")
    if options.record:
        EXPECTED.write_text(json.dumps(expected, indent=2) + "\n")
    print(*lost, sep="\n")
    return int(bool(lost))


def run_host(name: str, saver: str, url: str, options: argparse.Namespace) -> Ended:
    """Run the tests of one host with one saver, and print the counts."""
    folder = options.folder.resolve()
    if name == "agent-server":
        python = environment(folder / "environments" / name, agent_server.PACKAGES)
        ended = agent_server.run(python, folder / name, saver=saver, url=url)
    else:
        host, results = HOSTS[name], folder / f"{name}-{saver}.xml"
        python = environment(folder / "environments" / name, host.packages)
        checkout = options.checkout or clone(host, folder / name)
        ended = run(host, python, checkout.resolve(), saver=saver, url=url, results=results)
    print(ROW.format(name, saver, *counted(ended).values()), flush=True)
    return ended


def counted(ended: Ended) -> dict[str, int]:
    """Return how many tests passed, failed and were skipped."""
    found = Counter(ended.values())
    return {outcome: found[outcome] for outcome in OUTCOMES}


if __name__ == "__main__":
    sys.exit(main())
