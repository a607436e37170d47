"""The help of the commands: in words of ours, by either option."""

from __future__ import annotations

import re

import pytest

from checkpoint_store.cli import main
from checkpoint_store.cli.commands import COMMANDS


@pytest.mark.parametrize("command", [name for names in COMMANDS.values() for name in names])
def test_help_has_no_words_of_python(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the type of an argument, nor braces or inequalities of Typer's."""
    assert main([command, "--help"]) == 0

    printed = capsys.readouterr().out
    assert not re.search(r"<\w+(\[\w+\])?>|\{[A-Z]|x[<>]=", printed)


def test_usage_says_which_arguments_may_be_left_out_or_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets around the one, dots after the other."""
    main(["show", "--help"])
    main(["delete", "--help"])

    printed = capsys.readouterr().out
    assert "show [OPTIONS] THREAD [CHECKPOINT]\n" in printed
    assert "delete [OPTIONS] THREAD...\n" in printed


@pytest.mark.parametrize("command", [[], ["sweep"]])
def test_h_is_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Of all commands and of one."""
    assert main([*command, "--help"]) == 0
    by_name = capsys.readouterr().out
    assert main([*command, "-h"]) == 0

    assert capsys.readouterr().out == by_name


def test_the_help_of_sweep_says_that_it_does_not_ask(capsys: pytest.CaptureFixture[str]) -> None:
    """And names the option to use first."""
    main(["sweep", "--help"])

    printed = " ".join(capsys.readouterr().out.split())
    assert "does not ask: --dry-run shows first" in printed
    assert "if --older-than or --keep-last asks for it" in printed
