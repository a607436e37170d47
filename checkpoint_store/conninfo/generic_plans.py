"""Generic plans: the server plans a prepared statement of ours once for a connection, and not for each execution.

It decides by an estimate of the costs. For a thread's newest checkpoint, where threads are of mixed length, it goes on
planning for ever, which takes as long as the statement itself. Ours are written for one plan.
"""

from __future__ import annotations

from checkpoint_store.conninfo.driver_errors import driver_error, sqlstate_of

_OPTION = "-c plan_cache_mode=force_generic_plan"

_REFUSALS = ("08P01", "0A000", "22023", "42704")
"""SQLSTATEs of poolers and servers that do not know a startup parameter, or `options` at all."""

_WORDS = ("startup parameter", "configuration parameter", "command-line options")
"""Words of their messages, for psycopg, whose errors of a login have no SQLSTATE."""


def with_generic_plans(options: str | None) -> str:
    """Return the startup parameter `options` that asks for generic plans, unless options of the user's do otherwise."""
    return f"{_OPTION} {options}" if options else _OPTION  # of two values the server takes the last


def refuses_options(error: BaseException) -> bool:
    """Return whether a login was refused for its startup parameters, as PgBouncer does."""
    if state := sqlstate_of(error):
        return state in _REFUSALS
    return any(words in str(driver_error(error)) for words in _WORDS)
