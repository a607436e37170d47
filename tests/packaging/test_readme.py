"""The README's code does what it says, as printed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from checkpoint_store import __version__, schema

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.+?)^```$", README, re.DOTALL | re.MULTILINE)
TRY_IT = "python -m checkpoint_store.embedded python chat.py"

Shell = Callable[..., str]


def test_the_quick_starts_run_by_the_command_that_tries_them(shell: Shell, tmp_path: Path) -> None:
    """One below the other in a file, as a reader is told to: each goes on with the thread of the one before."""
    assert TRY_IT in README
    (tmp_path / "chat.py").write_text("\n".join(SNIPPETS))

    output = shell(TRY_IT, tmp_path)

    assert output.splitlines() == [f"That was message {number}." for number in (1, 3, 5)]


def test_the_first_quick_start_is_whole_by_itself(shell: Shell, empty_url: str, tmp_path: Path) -> None:
    """On a server of the reader's own, without tables."""
    (tmp_path / "chat.py").write_text(SNIPPETS[0])

    assert shell("python chat.py", tmp_path, CHECKPOINT_STORE_URL=empty_url) == "That was message 1.\n"


def test_the_quick_starts_go_on_when_they_are_run_again(shell: Shell, empty_url: str, tmp_path: Path) -> None:
    """On a database that stays the thread is still there."""
    (tmp_path / "chat.py").write_text("\n".join(SNIPPETS))

    output = shell("python chat.py; python chat.py", tmp_path, CHECKPOINT_STORE_URL=empty_url)

    assert output.splitlines() == [f"That was message {number}." for number in range(1, 12, 2)]


def test_there_are_three_quick_starts_in_python() -> None:
    """The pattern above still finds them all."""
    assert len(SNIPPETS) == 3


def test_the_pipelines_commands_run(shell: Shell, empty_url: str, tmp_path: Path) -> None:
    """All of the block but the URL, which is that of a database that exists."""
    (block,) = re.findall(r"^```sh\n(export .+?)^```$", README, re.DOTALL | re.MULTILINE)
    export, _, commands = block.partition("\n")
    assert export.startswith("export CHECKPOINT_STORE_URL=postgresql://")

    output = shell(commands, tmp_path, CHECKPOINT_STORE_URL=empty_url)

    assert output == f"{schema.HEAD} (head)\n"


def test_the_two_commands_are_targets() -> None:
    """`make demo` and `make test` are there; CI runs both."""
    block = re.findall(r"^```sh\n(make .+?)^```$", README, re.DOTALL | re.MULTILINE)[0]
    targets = re.findall(r"^make (\w+)", block, re.MULTILINE)
    assert targets == ["demo", "test"]
    workflow = (REPOSITORY / ".github" / "workflows" / "ci.yml").read_text()
    assert all(f"run: make {target}" in workflow for target in targets)


def test_a_stranger_need_not_scroll_for_long() -> None:
    """Two screens and a bit, code and tables included."""
    assert len(README.splitlines()) < 150


def test_the_changelog_knows_this_version() -> None:
    """A release is described before it is made."""
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert f"## [{__version__}]" in changelog or "## [Unreleased]" in changelog
