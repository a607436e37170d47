"""Whether Citus has distributed the tables of a schema, as an engine's server has said; savers share the answer."""

from __future__ import annotations

import weakref

from sqlalchemy import Dialect

from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements, statements_of
from checkpoint_store.storage import probes

_placed: weakref.WeakKeyDictionary[Dialect, dict[str | None, bool]] = weakref.WeakKeyDictionary()
"""By dialect, which an engine shares with its execution_options() variants, and by schema."""


def placed_for(dialect: Dialect, db: Executor, sql: Statements) -> Statements:
    """Return the statements for the tables as they are, which the server is asked for once."""
    schema, known = sql.tables.schema, _placed.setdefault(dialect, {})
    if schema not in known:
        known[schema] = probes.are_placed(db, sql)
    return statements_of(schema, distributed=known[schema])


def forget(dialect: Dialect, schema: str | None) -> None:
    """Forget the answer for a schema."""
    _placed.get(dialect, {}).pop(schema, None)
