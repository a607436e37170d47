"""The command line, `checkpoint-store`: a file for each kind of command, and their connection, output and text.

It needs the extra `cli`. The exit codes stay as they are:

    0    done
    1    it could not be done: the last line on standard error says why
    2    the command line makes no sense: an unknown option, an invalid URL, a cursor of another list
    3    the database is not at this version's revision: run `checkpoint-store upgrade`
    4    the server can't be reached, or has no connection free: try again later
    130  interrupted by Ctrl-C

Results are printed on standard output, everything else on standard error.

Help and shell completion are quick: a module here imports at its top only the standard library, Typer, and modules of
ours without SQLAlchemy, a driver, Alembic or LangGraph. Its functions import the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from checkpoint_store import errors

DONE, FAILED, MISUSED, NOT_AT_HEAD, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130

_CODES: dict[type[Exception], int] = {
    errors.NotSetUp: NOT_AT_HEAD,
    errors.Unavailable: UNREACHABLE,
    **dict.fromkeys((errors.InvalidURL, errors.InvalidOption, errors.InvalidConfig), MISUSED),
}


class Interrupted(Exception):
    """Raised for Ctrl-C; says which changes are stored, and how to go on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, by default the one of the process's arguments; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal can't show is escaped.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        from checkpoint_store.cli.commands import app

        app(args=None if arguments is None else list(arguments), prog_name="checkpoint-store")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else FAILED if ended.code else DONE
    except Interrupted as interrupted:
        return _interrupted(interrupted)
    except KeyboardInterrupt:
        return _interrupted("before anything was changed")
    except errors.CheckpointStoreError as error:
        _print_error(error)
        return next((code for kind, code in _CODES.items() if isinstance(error, kind)), FAILED)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        _print_error(errors.NotInstalled('the command line needs an extra: pip install "checkpoint-store[cli]"'))
        return FAILED
    except Exception as error:
        message = _foreign_message(error)
        if message is None:
            raise
        _print_error(message)
        return FAILED
    return DONE


def _foreign_message(error: Exception) -> str | None:
    """Return the message of an error of Alembic's or SQLAlchemy's, or None."""
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    from checkpoint_store.conninfo.driver_errors import diagnosis_of

    if isinstance(error, CommandError):
        return str(error)
    if isinstance(error, SQLAlchemyError):
        diagnosis = diagnosis_of(error)
        return diagnosis.message or diagnosis.name or type(error).__name__
    return None


def _interrupted(advice: object) -> int:
    # A terminal shows ^C first.
    _print_error(advice, "\ninterrupted" if sys.stderr.isatty() else "interrupted")
    return INTERRUPTED


def _print_error(error: object, title: str = "error") -> None:
    from checkpoint_store.cli.text import printable

    print(f"{title}: {printable(' '.join(str(error).split()))}", file=sys.stderr)  # noqa: T201
