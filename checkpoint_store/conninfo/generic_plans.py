"""Generic plans: the server plans a prepared statement of ours once for a connection, and not for each execution.

It decides by an estimate of the costs. For a thread's newest checkpoint, where threads are of mixed length, it goes on
planning for ever, which takes as long as the statement itself. Ours are written for one plan.

Not so with Citus, which finds the node for a thread when it plans, and refuses to plan for all of them.
"""

from __future__ import annotations

from checkpoint_store.conninfo.driver_errors import driver_error, sqlstate_of

_OPTION = "-c plan_cache_mode=force_generic_plan"

_OF_CITUS = "-c citus.override_table_visibility=off"
"""The option for Citus: with its views of the catalog, asyncpg's question for a type takes a second."""

HAS_CITUS = "SELECT 1 FROM pg_catalog.pg_extension WHERE extname = 'citus'"

_REFUSALS = ("08P01", "0A000", "22023", "42704")
"""SQLSTATEs of poolers and servers that do not know a startup parameter, or `options` at all."""

_WORDS = ("startup parameter", "configuration parameter", "command-line options")
"""Words of their messages, for psycopg, whose errors of a login have no SQLSTATE."""


class SessionOptions:
    """The startup option of ours that connections to one URL have, as their server takes it.

    Args:
        generic_plans: Whether they ask for generic plans, until that is refused or the server has Citus.
    """

    def __init__(self, *, generic_plans: bool) -> None:
        self._ours = _OPTION if generic_plans else ""
        self.is_settled = not generic_plans
        """Whether it is known if the server has Citus."""

    def before(self, options: str | None) -> str | None:
        """Return `options`, the user's, with ours if there is one: of two values the server takes the last."""
        return f"{self._ours} {options}" if self._ours and options else self._ours or options

    def settle(self, *, has_citus: bool) -> bool:
        """Note whether the server has Citus. Return whether a connection made before has to be made anew."""
        self.is_settled = True
        if has_citus:
            self._ours = _OF_CITUS
        return has_citus

    def refuse(self) -> None:
        """Note that the server, or a pooler, refuses ours."""
        self._ours, self.is_settled = "", True

    def __bool__(self) -> bool:
        """Return whether there is an option of ours."""
        return bool(self._ours)


def refuses_options(error: BaseException) -> bool:
    """Return whether a login was refused for its startup parameters, as PgBouncer does."""
    if state := sqlstate_of(error):
        return state in _REFUSALS
    return any(words in str(driver_error(error)) for words in _WORDS)
