"""The command `doctor`: everything about a database that keeps savers from working, or slow, and the way out."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from checkpoint_store.cli import DONE, FAILED, MISUSED, NOT_AT_HEAD, UNREACHABLE, output
from checkpoint_store.cli.connection import Json, Schema, Url
from checkpoint_store.cli.text import counted, printable

if TYPE_CHECKING:
    from checkpoint_store.cli.findings.finding import Finding

_IN_A_PIPE = 79
"""The length of lines where there is no terminal, whose width they have otherwise."""

_LEAST = 40

_STYLES = {"ok": "", "warning": "yellow", "failure": "bold red"}
_TOKEN = re.compile(r"""(?:"(?:[^"]|"")*"|'(?:[^']|'')*'|[^\s"'])+""")
"""A part of a line of SQL that is not broken: a quoted name or text has spaces of its own."""


def doctor(url: Url = "", schema: Schema = None, as_json: Json = False) -> None:
    """Check everything that savers need, and say the way out.

    The first command to run where a service is broken or slow. It looks at the connection, the server, the role, the
    tables and the sessions that use them, reads no checkpoint, changes nothing, and goes on where a right is missing.

    Exit code 0 says that there are at most warnings, 3 that only the revision is not this version's, 4 that the server
    can't be reached, 1 that something else has failed.

    \b
    Example:
      checkpoint-store doctor
      checkpoint-store doctor --json | jq '.findings[] | select(.level != "ok")'
    """
    from checkpoint_store.cli.findings.examination import examine

    findings = examine(url, schema)
    counts = {level: sum(one.level == level for one in findings) for level in _STYLES}
    if as_json:
        entries = [{"check": f.check, "level": f.level.value, "found": f.found, "way_out": f.way_out} for f in findings]
        output.document({"findings": entries, **counts})
    else:
        width = max(output.width() or _IN_A_PIPE, _LEAST)
        for finding in findings:
            _print(finding, width)
        output.line(
            f"{counted(counts['failure'], 'failure')}, {counted(counts['warning'], 'warning')}, {counts['ok']} ok"
        )
    raise typer.Exit(_exit_code(findings))


def _exit_code(findings: list[Finding]) -> int:
    failed = {finding.check for finding in findings if finding.level == "failure"}
    if len(findings) == 1:
        return MISUSED if failed == {"url"} else UNREACHABLE
    if failed == {"revision"}:
        return NOT_AT_HEAD
    return FAILED if failed else DONE


def _print(finding: Finding, width: int) -> None:
    text = f"{finding.level.value:8} {finding.check}: {printable(finding.found)}"
    options = {"break_long_words": False, "break_on_hyphens": False}
    for line in textwrap.wrap(text, width, subsequent_indent=" " * 9, **options):  # type: ignore[arg-type]
        output.line(line, _STYLES[finding.level.value])
    for statement in finding.way_out:
        for line in broken(printable(statement), width - 13):
            output.line(" " * 13 + line, "bold")


def broken(statement: str, width: int) -> Iterator[str]:
    """Break a line of SQL where it may be broken, and indent the rest; a command is too short for it."""
    line = ""
    for token in _TOKEN.findall(statement):
        if line and len(line) + 1 + len(token) > width:
            yield line
            line = f"    {token}"
        else:
            line = f"{line} {token}" if line else token
    yield line
