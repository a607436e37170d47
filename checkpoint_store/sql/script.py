"""Statements with values in the place of parameters, and scripts of several in one text; no I/O.

The server executes a script in one round trip and as one transaction, which it rolls back itself after an error. It
takes no parameters along with one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import asyncpg

from checkpoint_store.sql.compiled import Statement

Step = tuple[Statement, Mapping[str, Any]]
"""A statement and its binds."""

_DIALECT = asyncpg.dialect()  # type: ignore[no-untyped-call]

_PARAMETER = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\$(\d+)""")
"""A parameter; or a literal or a quoted name, in which there is none."""

_PLAIN = re.compile(r"[\w.:|/-]*", re.ASCII)
"""Text that is the same in any encoding, and has nothing that a setting gives another meaning."""


class Constant(str):
    """A text that is a constant in a script whatever is in it: Citus finds the node of a thread by that alone.

    Not so the others, for the sake of databases in another encoding than UTF8.
    """

    __slots__ = ()


def script_of(steps: Sequence[Step]) -> str:
    """Return the script of some statements, which see what other transactions commit before each of them."""
    # A setting of the role's or the host's may be another level. SET TRANSACTION would leave a trace in the session.
    return ";\n".join(["SET LOCAL transaction_isolation = 'read committed'", *[_with_values(*step) for step in steps]])


def planned_for(statement: Statement, binds: Mapping[str, Any]) -> Statement:
    """Return a statement, without binds, that the server plans for these values, whatever its `plan_cache_mode`."""
    return Statement(lambda: sa.text(_with_values(statement, binds).replace(":", "\\:")))


def _with_values(statement: Statement, binds: Mapping[str, Any]) -> str:
    sql, bound = statement.bound(_DIALECT, binds)
    values = tuple(bound)  # by position

    def literal(found: re.Match[str]) -> str:
        return _literal(values[int(found[1]) - 1]) if found[1] else found[0]

    return _PARAMETER.sub(literal, sql)


def _literal(value: str | Sequence[str]) -> str:
    """Return a text, or an array of texts, as SQL that the server reads the same in any session."""
    if isinstance(value, str):
        if _PLAIN.fullmatch(value):
            return f"'{value}'"  # a constant, which the server can plan for
        if isinstance(value, Constant):
            letters = "".join(f"\\U{ord(letter):08x}" for letter in value)
            return f"E'{letters}'"
        return f"convert_from(decode('{value.encode().hex()}', 'hex'), 'UTF8')"
    return f"ARRAY[{', '.join(map(_literal, value))}]"
