"""A shell in which the wheel is installed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Shell = Callable[..., str]

WARNINGS = "error,ignore:'asyncio.iscoroutinefunction':DeprecationWarning"
"""Python's PYTHONWARNINGS for what is tried out: langsmith, which LangGraph imports, is not ready for 3.14."""


@pytest.fixture(scope="session")
def shell(installation: Path) -> Shell:
    """Runs commands where the wheel is installed, with warnings as errors, and returns what they print.

    Keyword arguments are variables of the environment.
    """
    commands = installation / "bin"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"

    def run(script: str, folder: Path, **variables: str) -> str:
        environment = {**inherited, "PATH": path, "PYTHONWARNINGS": WARNINGS, **variables}
        done = subprocess.run(
            ["sh", "-ec", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run
