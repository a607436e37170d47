"""The list of commands, and what help and completion cost."""

from __future__ import annotations

import inspect
import json
import os
import re
import resource
import subprocess
import sys
from typing import Any

import pytest

from checkpoint_store import __version__
from checkpoint_store.cli import FAILED, MISUSED, main
from checkpoint_store.cli.commands import COMMANDS, function_of
from checkpoint_store.migrations.lock import LOCK_SECONDS
from checkpoint_store.storage.sweep import BATCH_SIZE

SUMMARIES = {name: summary for summaries in COMMANDS.values() for name, summary in summaries.items()}

HEAVY = ("sqlalchemy", "asyncpg", "psycopg", "alembic", "langgraph", "langchain_core")

# Without the plugins of the environment that tests run in.
MAIN = "import sys; from checkpoint_store.cli import main; code = main(); "


def python(code: str, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={name: value for name, value in {**os.environ, **variables}.items() if not name.startswith("COV_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", SUMMARIES)
def test_a_summary_is_the_first_line_of_the_docstring(command: str) -> None:
    """It stands in the list of commands too, so that the list needs no module of theirs."""
    assert (inspect.getdoc(function_of(command)) or "").splitlines()[0] == SUMMARIES[command]


def test_the_list_of_commands_imports_none_of_them() -> None:
    """Nor a database driver, SQLAlchemy or Alembic."""
    imported = json.loads(python(f"{MAIN} import json; print(json.dumps([*sys.modules]))", "--help").splitlines()[-1])

    assert not {f"checkpoint_store.cli.{module}" for module in COMMANDS} & {*imported}
    assert not {*HEAVY, "rich"} & {*imported}


@pytest.mark.parametrize("command", SUMMARIES)
def test_the_help_of_a_command_imports_no_driver(command: str) -> None:
    """A module of commands imports what is large in its functions."""
    names = json.loads(
        python(f"{MAIN} import json; print(json.dumps([*sys.modules]))", command, "--help").splitlines()[-1]
    )

    assert [name for name in HEAVY if name in names] == []


@pytest.mark.parametrize(("arguments", "most"), [(["--help"], 0.3), (["--version"], 0.3), (["threads", "--help"], 0.5)])
def test_help_is_quick(arguments: list[str], most: float) -> None:
    """In seconds of CPU, at the best of five: other tests are run at the same time."""
    spent = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        python(f"{MAIN} sys.exit(code)", *arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    assert min(spent) < most


def test_the_version_is_the_packages() -> None:
    """With the name of the program."""
    assert python(f"{MAIN} sys.exit(code)", "--version") == f"checkpoint-store {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("checkpoint-store th", ["threads"]),
        ("checkpoint-store d", ["demo", "delete", "diff", "distribute", "downgrade"]),
        ("checkpoint-store threads --li", ["--limit"]),
    ],
)
def test_the_shell_completes_commands_and_options(typed: str, completed: list[str]) -> None:
    """Without a database, and without the modules of commands that are not completed."""
    variables = {
        "_CHECKPOINT_STORE_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(typed.count(" ")),
        "CHECKPOINT_STORE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    found = python(f"{MAIN} sys.exit(code)", **variables).split()

    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert {*completed} <= {*found}
    assert all(one.startswith(typed.rsplit(maxsplit=1)[-1]) for one in found)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_each_shell(shell: str) -> None:
    """To be put where the shell looks for it."""
    script = python(
        f"{MAIN} sys.exit(code)", "--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )

    assert re.search(r"_CHECKPOINT_STORE_COMPLETE=complete_" + shell, script)


@pytest.mark.parametrize(
    ("command", "option", "default"),
    [
        ("upgrade", "timeout", LOCK_SECONDS),
        ("downgrade", "timeout", LOCK_SECONDS),
        ("distribute", "timeout", LOCK_SECONDS),
        ("sweep", "batch_size", BATCH_SIZE),
    ],
)
def test_a_default_is_the_librarys(command: str, option: str, default: Any) -> None:
    """It is written down twice, because the help imports nothing of the library."""
    assert inspect.signature(function_of(command)).parameters[option].default == default


def test_what_is_missing_is_named_as_in_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """In capitals, which tell it from what is typed as it stands."""
    assert main(["copy", "user-42"]) == MISUSED
    error = capsys.readouterr().err

    assert "copy [OPTIONS] " in error
    assert re.search(r"SOURCE\W+TARGET", error)
    assert error.rstrip().endswith("Missing argument 'TARGET'.")


def test_a_command_that_is_mistyped_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    """From the list of names, without their modules."""
    assert main(["thread"]) == MISUSED

    assert "threads" in capsys.readouterr().err


def test_a_revision_that_does_not_exist_is_answered_with_those_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    """The oldest first."""
    assert main(["sql", "cs99"]) == FAILED

    assert capsys.readouterr().err.endswith(
        "Can't locate revision identified by 'cs99'. Revisions are cs01_baseline, cs02_pages, cs03_lifecycle, "
        "cs04_subgraphs\n"
    )
