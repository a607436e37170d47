"""Files that commands write and read: a written one takes its place at the end, after an error there is none."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO

import typer

from checkpoint_store.errors import InvalidOption

Write = Callable[[str], object]

STANDARD = "-"
"""The name of standard output and standard input, as a file."""


@contextmanager
def written(name: str) -> Iterator[Write]:
    """Yield a function that writes to a file, which only its owner may read.

    A device or a pipe is written to as it is.

    Raises:
        InvalidOption: If it can't be written; also raised by the function.
        typer.Exit: If the reader of a pipe has left.
    """
    path = Path(os.path.realpath(name))  # where a link points to; a circle of links is none
    with _errors(name, "written"):
        if name == STANDARD:
            yield partial(_write, sys.stdout, name)
            sys.stdout.flush()
        elif path.exists() and not path.is_file():
            with path.open("w", encoding="utf-8", newline="\n") as out:
                yield partial(_write, out, name)
        else:
            with _replacing(path) as out:
                yield partial(_write, out, name)


@contextmanager
def read(name: str) -> Iterator[BinaryIO]:
    """Yield a file to read from.

    Raises:
        InvalidOption: If it can't be read.
    """
    with _errors(name, "read"):
        if name == STANDARD:
            yield sys.stdin.buffer
        else:
            with Path(name).open("rb") as opened:
                yield opened


def _write(out: IO[str], name: str, text: str) -> None:
    # Where it happens: further out it would be taken for an error of the connection's.
    with _errors(name, "written"):
        out.write(text)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """Yield a new file, which takes the place of another at the end."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as out:
            yield out
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


@contextmanager
def _errors(name: str, done: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        # No error for whoever reads: the rest goes nowhere, also when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        raise InvalidOption(f"FILE {name!r} can't be {done}: {error.strerror or type(error).__name__}") from None
