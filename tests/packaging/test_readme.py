"""The README's code does what it says, as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint_store import __version__, schema

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
SNIPPETS = re.findall(r"^\*\*(.+?)\*\*.*?^```python\n(.+?)^```$", README, re.DOTALL | re.MULTILINE)


def run(command: list[str], url: str) -> str:
    environment = {**os.environ, "CHECKPOINT_STORE_URL": url}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "code"), SNIPPETS, ids=[name for name, _ in SNIPPETS])
def test_each_quick_start_runs_on_an_empty_database(name: str, code: str, empty_url: str) -> None:
    """Whoever copies it gets the answer it promises, and a clean standard error."""
    output = run([sys.executable, "-W", "error", "-c", code], empty_url)

    assert output.startswith("That was message ")


def test_there_are_three_quick_starts() -> None:
    """The pattern above still finds them all."""
    assert len(SNIPPETS) == README.count("```python") == 3


def test_the_pipelines_commands_run(empty_url: str, tmp_path: Path) -> None:
    """The shell block, with the URL of a database that exists and the SQL file out of the way."""
    (block,) = re.findall(r"^```sh\n(export .+?)^```$", README, re.DOTALL | re.MULTILINE)
    export, *commands = block.splitlines()
    assert export.startswith("export CHECKPOINT_STORE_URL=postgresql://")

    run(["sh", "-ec", "\n".join(commands).replace("> checkpoint_store", f"> {tmp_path}/checkpoint_store")], empty_url)

    assert schema.HEAD in (tmp_path / "checkpoint_store.sql").read_text()


def test_the_changelog_knows_this_version() -> None:
    """A release is described before it is made."""
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert f"## [{__version__}]" in changelog or "## [Unreleased]" in changelog
