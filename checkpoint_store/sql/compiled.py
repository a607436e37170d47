"""Core statements, each compiled once for a driver; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import asyncpg

from checkpoint_store.schema import Tables

P = ParamSpec("P")


_ELEMENTS: dict[type[Any], int] = {
    sa.LargeBinary: 17,
    sa.BigInteger: 20,
    sa.Integer: 23,
    sa.Text: 25,
}
"""Types of arrays' elements, and their numbers in PostgreSQL's catalog, which an array in binary has in it."""


class Numbered(NamedTuple):
    """A statement as the server itself takes it, with `$1` for the first parameter."""

    sql: bytes
    parameters: Sequence[tuple[str, int]]
    """The name of each parameter, and of an array the type of its elements; otherwise 0."""
    formats: Sequence[int]
    """Of each parameter, whether it is sent in binary: arrays and bytes are."""


class Statement:
    """A Core statement, compiled once per dialect into the driver's own SQL and the order of its parameters.

    It is executed as driver SQL, because SQLAlchemy's statement cache costs more than the statement: at every call it
    derives a key from the whole construct (0.25 ms for `put_checkpoint`), and on SQLAlchemy 2.0 it can't hold
    PostgreSQL's upserts at all (2 ms to compile one). Nor does a host's `schema_translate_map` apply to our tables.

    The function that builds it is called with the other arguments when it is first compiled.
    """

    def __init__(self, build: Callable[P, sa.Executable], *args: P.args, **options: P.kwargs) -> None:
        self._build = partial(build, *args, **options)
        self._compiled: dict[tuple[str, str, str], tuple[str, Sequence[str] | None]] = {}

    @cached_property
    def construct(self) -> sa.Executable:
        """The Core statement."""
        return self._build()

    @cached_property
    def numbered(self) -> Numbered:
        """The statement for a driver that has no parameters of its own."""
        compiled: Any = self.construct.compile(dialect=asyncpg.dialect())  # type: ignore[attr-defined, no-untyped-call]
        types = [compiled.binds[name].type for name in compiled.positiontup]
        elements = [_ELEMENTS[type(kind.item_type)] if isinstance(kind, sa.ARRAY) else 0 for kind in types]
        parameters = list(zip(compiled.positiontup, elements, strict=True))
        formats = [int(isinstance(kind, sa.ARRAY | sa.LargeBinary)) for kind in types]
        return Numbered(compiled.string.encode(), parameters, formats)

    def sql(self, dialect: sa.Dialect) -> str:
        """Return the SQL text for a dialect."""
        return self._for(dialect)[0]

    def bound(self, dialect: sa.Dialect, binds: Mapping[str, Any]) -> tuple[str, tuple[Any, ...] | Mapping[str, Any]]:
        """Return the SQL text for a dialect, and the binds as its driver takes them: by position or by name."""
        sql, names = self._for(dialect)
        return sql, binds if names is None else tuple(map(binds.__getitem__, names))

    def _for(self, dialect: sa.Dialect) -> tuple[str, Sequence[str] | None]:
        """Return the SQL text, and the parameters' names in order where they have places instead of names."""
        key = (dialect.name, dialect.driver, dialect.paramstyle)
        if (known := self._compiled.get(key)) is None:
            compiled = self.construct.compile(dialect=dialect)  # type: ignore[attr-defined]
            sql = compiled.string
            if dialect.driver == "psycopg":
                # psycopg would send an array of bytes as text, which is twice as long and takes long to escape.
                sql = sql.replace(")s::BYTEA[]", ")b::BYTEA[]")
            known = self._compiled[key] = (sql, compiled.positiontup if compiled.positional else None)
        return known


class Read(NamedTuple):
    """A statement that reads checkpoints, in two forms.

    Joining pages is a large part of the plan, which each execution pays for whether there are pages or not.
    """

    plain: Statement
    """It returns recipes as they are, of the type `schema.PAGED`."""
    joined: Statement
    """It returns the values of recipes."""

    @classmethod
    def of(cls, build: Callable[..., sa.Executable], *args: Any) -> Self:
        """Build both forms by a function that takes `joined`, whether recipes are joined to their values."""
        return cls(Statement(build, *args, joined=False), Statement(build, *args, joined=True))


def compiled(
    build: Callable[Concatenate[Tables, P], sa.Executable], *args: P.args, **options: P.kwargs
) -> cached_property[Statement]:
    """Return an attribute of `Statements`: the statement that a function builds on its tables, once it is needed."""
    return cached_property(lambda sql: Statement(build, sql.tables, *args, **options))


def compiled_read(build: Callable[..., sa.Executable]) -> cached_property[Read]:
    """Return an attribute of `Statements`: both forms of the statement that a function builds; see `Read.of`."""
    return cached_property(lambda sql: Read.of(build, sql.tables))
