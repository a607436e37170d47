"""How the tests themselves are run: with a time limit, and with Ctrl-C in whatever way they are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

HANGS = """
import signal
import subprocess
import sys
import time

import pytest

SLEEPS = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}


async def test_that_hangs_and_hangs_again_at_the_end_of_its_block():
    with subprocess.Popen(SLEEPS, **PIPES) as child:
        child.communicate()


@pytest.mark.slow
def test_that_may_take_longer():
    time.sleep(4.5)


@pytest.mark.timeout(120)
def test_whose_child_is_interrupted():
    with subprocess.Popen(SLEEPS, **PIPES) as child:
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait() == -signal.SIGINT
"""


def test_a_test_that_hangs_fails_alone_and_ctrl_c_reaches_children(tmp_path: Path) -> None:
    """After its time, also at the end of a block; and where the shell has all of its job ignore SIGINT."""
    (tmp_path / "test_hangs.py").write_text(HANGS)
    command = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-p", "tests.conftest", "-o", "timeout=4"]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}

    ended = subprocess.run(
        ["/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command, "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=REPOSITORY, env=outside, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert "1 failed, 2 passed" in ended.stdout, ended.stdout + ended.stderr
    assert "Timeout (>4.0s)" in ended.stdout
