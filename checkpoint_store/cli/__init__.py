"""The command line, `checkpoint-store`; it needs the extra `cli`.

Exit codes, which stay as they are:

    0    done
    1    it could not be done: the last line on standard error says why
    2    the command line makes no sense: an unknown option, a URL that is none, a cursor of another list
    3    the database is not at this version's revision: run `checkpoint-store upgrade`
    4    the server can't be reached, or has no connection free: try again later
    130  interrupted by Ctrl-C

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from checkpoint_store.errors import (
    CheckpointStoreError,
    InvalidConfig,
    InvalidOption,
    InvalidURL,
    NotInstalled,
    NotSetUp,
    Unavailable,
)

DONE, FAILED, MISUSED, BEHIND, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130

_CODES: list[tuple[type[CheckpointStoreError], int]] = [
    (Unavailable, UNREACHABLE),
    (InvalidURL, MISUSED),
    (InvalidOption, MISUSED),
    (InvalidConfig, MISUSED),
    (CheckpointStoreError, FAILED),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: What follows `checkpoint-store`; those of the process by default.

    Returns:
        The exit code.
    """
    try:
        from checkpoint_store.cli.commands import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        _complain(NotInstalled('the command line needs an extra: pip install "checkpoint-store[cli]"'))
        return FAILED

    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    from checkpoint_store.cli.connection import Interrupted
    from checkpoint_store.conninfo.driver_errors import diagnosis_of

    for stream in (sys.stdout, sys.stderr):
        # Where the terminal can't show a character, its number says more than a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=None if arguments is None else list(arguments), prog_name="checkpoint-store")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else FAILED if ended.code else DONE
    except Interrupted as interrupted:
        _complain(interrupted, "interrupted")
        return INTERRUPTED
    except KeyboardInterrupt:
        _complain("before anything was changed", "interrupted")
        return INTERRUPTED
    except NotSetUp as error:
        _complain(error)
        return BEHIND
    except CheckpointStoreError as error:
        _complain(error)
        return next(code for kind, code in _CODES if isinstance(error, kind))
    except (SQLAlchemyError, CommandError) as error:
        said = diagnosis_of(error) if isinstance(error, SQLAlchemyError) else None
        _complain(error if said is None else said.message or said.name or type(error).__name__)
        return FAILED
    return DONE


def _complain(error: object, what: str = "error") -> None:
    """Print what went wrong, in one line."""
    from checkpoint_store.cli.clean import clean

    # Behind the ^C that a terminal shows.
    start = "\n" if what == "interrupted" and sys.stderr.isatty() else ""
    print(f"{start}{what}: {clean(' '.join(str(error).split()))}", file=sys.stderr)  # noqa: T201
