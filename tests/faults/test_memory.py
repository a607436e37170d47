"""What a process remembers of pages occupies as much as it is said to, whatever it stores, and costs no time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint_store.storage.page_cache import MOST_BYTES
from tests.conftest import REPOSITORY

KINDS = ["repetitive threads", "random threads", "zeros", "schemas", "namespaces"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is looked up in /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_memory_stays_within_its_bound(url: str, kind: str) -> None:
    """1,000 threads of 1 MB, 40 of 10 MB of zeros, 100 schemas, 10,000 namespaces: within 64 MB of the bound."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.memory", url, kind, os.environ.get("MEMORY_SCALE", "1")],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown, slower = map(float, done.stdout.split())
    assert grown < MOST_BYTES + (64 << 20)
    assert slower < 2
