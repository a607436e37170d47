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


@pytest.mark.parametrize("rounds", [50, pytest.param(3000, marks=pytest.mark.slow)])
def test_messages_that_change_while_they_are_packed_end_no_process(rounds: int) -> None:
    """Nothing of a plain message runs Python code, so it is packed in one go: what is packed can be read again."""
    command = [sys.executable, "-m", "tests.faults.packing", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > rounds
