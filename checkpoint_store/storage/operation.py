"""An operation: a unit of work in the database, and the declaration that backends, replicas and observers go by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from checkpoint_store.sql.executor import Executor
from checkpoint_store.sql.statements import Statements

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)


class Kind(Enum):
    """The effect of an operation on the tables."""

    PROBE = "probe"
    """Touches no rows of the tables."""
    READ = "read"
    """Writes nothing."""
    STORE = "store"
    """Stores changes, those of `put` and `put_writes`; they are its last argument."""
    WRITE = "write"
    """May write anything: of its thread, if it has one, or of any."""


@dataclass(frozen=True, eq=False, slots=True)
class Operation(Generic[P, T_co]):
    """A unit of work in the database; made by the decorator `operation`, where its function is defined.

    The function is in sync style: SQLAlchemy's greenlets run it on an async engine, a sync engine runs it as it is.
    """

    function: Callable[Concatenate[Executor, Statements, P], T_co]
    kind: Kind
    name: str
    """The saver's method, for observers."""
    in_transaction: bool
    """Whether its statements share a transaction. Otherwise each commits itself."""
    as_script: bool
    """Whether it needs no transaction where the executor runs scripts."""
    thread_of: Callable[..., str | None] | None
    """Takes the arguments, and returns the id of the one thread that a call is about."""
    may_lag: Callable[..., bool] | None
    """Takes the arguments, and returns whether a replica may answer the call; None if it never may."""
    on_replica: Operation[..., Any] | None
    """The operation to run there, if it is another one; where it returns None, the primary is asked."""

    def __call__(self, db: Executor, sql: Statements, *args: P.args, **options: P.kwargs) -> T_co:
        """Call the function, as part of another operation."""
        return self.function(db, sql, *args, **options)

    def thread(self, args: Sequence[Any]) -> str | None:
        """Return the id of the thread that a call is about, None for several or any."""
        return None if self.thread_of is None else self.thread_of(*args)


def operation(
    kind: Kind,
    *,
    name: str = "",
    in_transaction: bool = False,
    as_script: bool = False,
    thread_of: Callable[..., str | None] | None = None,
    may_lag: Callable[..., bool] | None = None,
    on_replica: Operation[..., Any] | None = None,
) -> Callable[[Callable[Concatenate[Executor, Statements, P], T_co]], Operation[P, T_co]]:
    """Make a function an operation.

    Args:
        kind: Its effect on the tables.
        name: The saver's method; by default the function's name.
        in_transaction: Whether its statements share a transaction.
        as_script: Whether it needs none where the executor runs scripts.
        thread_of: Takes the arguments after the statements, and returns the id of the one thread that a call is about.
        may_lag: Takes the same, and returns whether a replica may answer the call; without it a replica never may.
        on_replica: The operation to run there, if it is another one.
    """

    def declare(function: Callable[Concatenate[Executor, Statements, P], T_co]) -> Operation[P, T_co]:
        of = name or function.__name__.lstrip("_")
        return Operation(function, kind, of, in_transaction, as_script, thread_of, may_lag, on_replica)

    return declare
