"""A new project, made by following `docs/how-to/test-your-agents.md` to the letter, from the built wheel."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from pytest_asyncio import __version__ as pytest_asyncio_version

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/how-to/test-your-agents.md").read_text()
LISTINGS = re.findall(r"^`(\w[\w/.]+)`\n\n```\w+\n(.+?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^```sh\n(.+?)\n```$", PAGE, re.MULTILINE)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files of the project's runs, which have none of the variables of this one."""
    folder = Path(tempfile.mkdtemp(prefix="page-"))
    for name in os.environ:
        if name.startswith(("PYTEST_", "CHECKPOINT_STORE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def test_the_page_followed_literally_is_green_and_leaves_nothing_over(
    python: Callable[..., str], temporary: Path, tmp_path: Path
) -> None:
    """With the page's one setting, and no warning for the lack of it; then the same by two workers."""
    for name, text in LISTINGS:
        (tmp_path / name).write_text(text)
    assert (tmp_path / "pytest.ini").exists()  # so that no other project's, in a folder above, is found
    install, *runs = COMMANDS
    assert install.startswith("pip install 'checkpoint-store[testing]'")
    assert [run.split()[0] for run in runs] == ["pytest", "pytest"]

    for run in runs:
        printed = python("-m", *shlex.split(run), cwd=tmp_path)
        assert re.search(r"^=+ 10 passed in ", printed, re.MULTILINE), printed
        assert f"asyncio-{pytest_asyncio_version}" in printed
        assert "PytestDeprecationWarning" not in printed
        assert [path.name for path in temporary.iterdir() if not path.name.startswith("pytest-of-")] == []
        commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
        assert [command for command in commands if str(temporary) in command] == []


def test_the_page_names_every_fixture() -> None:
    """The table has what the plugin has."""
    plugin = (REPOSITORY / "checkpoint_store/testing.py").read_text()
    fixtures = re.findall(r"^@pytest\.fixture.*\ndef (checkpoint_store_\w+)", plugin, re.MULTILINE)
    assert len(fixtures) == 7
    assert sorted(re.findall(r"^\| `(checkpoint_store_\w+)` \|", PAGE, re.MULTILINE)) == sorted(fixtures)
