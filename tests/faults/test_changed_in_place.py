"""Nodes that change their state in place, from another thread, while it is being stored."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("rounds", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", ["cache", "chat", "small", "metadata"])
def test_state_that_changes_while_it_is_stored_ends_no_process_and_fails_no_put(
    url: str, part: str, rounds: int
) -> None:
    """Only LangGraph's serializer goes through it, which may store it half changed, but neither dies nor raises."""
    command = [sys.executable, "-m", "tests.faults.changing", url, part, str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, f"{rounds}\n"), done.stderr[-2000:]
