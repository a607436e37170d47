"""A statement names the thread for each table it touches: one partition or shard can take it.

On one server those of the hot path do, on tables that Citus has distributed all that are about a thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pytest
from sqlalchemy import BindParameter, Delete, FromClause, Insert, Join, Select, Table, Update
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList

from checkpoint_store.schema import Tables
from checkpoint_store.sql.compiled import Read, Statement
from checkpoint_store.sql.distributed_write import Shape
from checkpoint_store.sql.distribution import DistributedTables
from checkpoint_store.sql.statements import Statements
from checkpoint_store.sql.write import COUNTED

SQL = Statements(Tables())
DISTRIBUTED = Statements(DistributedTables())
OURS = {*SQL.tables.all, *DISTRIBUTED.tables.all}
OF_ONE_THREAD = {"thread_id", "checkpoint_ns", "checkpoint_id", "before", "after_row", "filter"}

HOT = {
    "put_checkpoint": SQL.put_checkpoint,
    "put_checkpoint_keeping": SQL.put_checkpoint_keeping,
    "put_writes": SQL.put_writes,
    "store": SQL.store(frozenset({"gate", "kept", *COUNTED})),
    "store of one thread": SQL.store(frozenset({"gate", "one_thread", "kept", *COUNTED})),
    "store without pages": SQL.store(frozenset({"write", "checkpoint", "blob"})),
    "known_pages": SQL.known_pages,
    "get_newest": SQL.get_newest,
    "get_checkpoint": SQL.get_checkpoint,
    "list of a namespace": SQL.list_checkpoints(frozenset({"thread_id", "checkpoint_ns"})),
    "list of a thread": SQL.list_checkpoints(frozenset({"thread_id"})),
    "list by everything": SQL.list_checkpoints(frozenset(OF_ONE_THREAD)),
    "ancestors": SQL.ancestors,
    "has_newer": SQL.has_newer,
}
# Of many calls at once: each row names its own thread, so a server can route rows, not the whole.
OF_MANY_THREADS = {"store", "store of one thread", "store without pages"}

# Those that are built for a set of conditions, or a number of rows.
BUILT: dict[str, Statement | Read] = {
    "put": DISTRIBUTED.put_some(Shape(blobs=2, pages=2, claims=True, anchored=True, has_kept=True)),
    "put of many": DISTRIBUTED.put_some(Shape(blobs=None, pages=None, claims=True, anchored=True, has_kept=False)),
    "put of nothing": DISTRIBUTED.put_some(Shape(blobs=0, pages=0, claims=False, anchored=False, has_kept=False)),
    "writes": DISTRIBUTED.put_some_writes(2, False),
    "many writes": DISTRIBUTED.put_some_writes(None, True),
    "list": DISTRIBUTED.list_checkpoints(frozenset(OF_ONE_THREAD)),
    "list of a thread": DISTRIBUTED.list_checkpoints(frozenset({"thread_id"})),
    "keys": DISTRIBUTED.newest_keys(frozenset()),
    "threads with root": DISTRIBUTED.threads_with_root(frozenset()),
    "threads": DISTRIBUTED.next_threads_by_id(frozenset()),
}
# About a thread and its copy, or with rows that come with a thread each; on Citus not on the way of a run.
OF_SEVERAL_THREADS = {"stored_threads", "copy_rows", "missing_pages", "share_blobs", "move_inline"}
NAMED = [
    name
    for name, each in vars(Statements).items()
    if isinstance(each, cached_property) and name not in OF_SEVERAL_THREADS
]


def forms(statement: Statement | Read) -> list[Statement]:
    return [statement.plain, statement.joined] if isinstance(statement, Read) else [statement]


def tables_in(clause: FromClause) -> Iterator[FromClause]:
    """Return the tables of a FROM, without those inside its subqueries."""
    if isinstance(clause, Join):
        yield from tables_in(clause.left)
        yield from tables_in(clause.right)
    elif getattr(clause, "element", clause) in OURS:
        yield clause


def equalities(*clauses: Any) -> Iterator[tuple[Any, Any]]:
    """Return the sides of the equalities that are joined by AND."""
    for clause in clauses:
        if isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
            yield from equalities(*clause.clauses)
        elif isinstance(clause, BinaryExpression) and clause.operator is operators.eq:
            yield clause.left, clause.right


def joins(clause: FromClause) -> Iterator[Any]:
    if isinstance(clause, Join):
        yield clause.onclause
        yield from joins(clause.left)
        yield from joins(clause.right)


def is_thread(value: Any, *, rows: bool) -> bool:
    """Return whether a value is the thread that came with the call or, for many threads, with the row."""
    if isinstance(value, BindParameter):
        return value.key == "thread_id"
    return rows and getattr(value, "name", None) == "thread_id"


def threads_of(insertion: Insert) -> list[Any]:
    """Return the threads of the rows that are inserted."""
    if insertion.select is None:
        rows = [row for several in insertion._multi_values for row in several] or [insertion._values or {}]
        return [{getattr(key, "name", key): value for key, value in row.items()}["thread_id"] for row in rows]
    return [dict(zip(insertion._select_names or (), insertion.select.selected_columns, strict=True))["thread_id"]]


def froms_of(part: Select[Any]) -> list[FromClause]:
    """Return the same as `get_final_froms`, which compiles for no database: that has no slices of arrays."""
    compiler = asyncpg.dialect().statement_compiler(asyncpg.dialect(), part)
    return part._compile_state_factory(part, compiler)._get_display_froms()


def unrouted(construct: Any, *, rows: bool) -> set[str]:
    """Return the tables that a statement or a part of it reads or writes without naming the thread."""
    missing = set()
    # In a condition on the rows that a statement changes, their table is that of the row, not one to be read.
    changed = {part.table for part in visitors.iterate(construct) if isinstance(part, (Update, Delete))}
    for part in visitors.iterate(construct):
        if isinstance(part, Insert):
            # A column of a table is that of rows which are selected, and looked at by themselves.
            chosen = [thread for thread in threads_of(part) if not isinstance(getattr(thread, "table", None), Table)]
            if not all(is_thread(thread, rows=rows) for thread in chosen):
                missing.add(f"Insert of {part.table.name}")
            continue
        if isinstance(part, Select):
            froms, conditions = froms_of(part), [part.whereclause]
            conditions += [onclause for clause in froms for onclause in joins(clause)]
            known = {*part._correlate, *changed}
            touched = [table for clause in froms for table in tables_in(clause) if table not in known]
        elif isinstance(part, (Update, Delete)):
            touched, conditions = [part.table], list(part._where_criteria)
        else:
            continue
        for table in touched:
            own = table.c.thread_id
            sides = [other for pair in equalities(*conditions) for one, other in (pair, pair[::-1]) if one is own]
            if not any(is_thread(side, rows=rows) for side in sides):
                missing.add(f"{type(part).__name__} of {table.name}")
    return missing


@pytest.mark.parametrize("name", HOT)
def test_every_table_is_asked_for_the_thread(name: str) -> None:
    """Each table has an equality with the thread that came with the call, not with another table's column."""
    for statement in forms(HOT[name]):
        found = {table for table in visitors.iterate(statement.construct) if isinstance(table, Table)}
        assert found, "the walk sees tables"
        assert unrouted(statement.construct, rows=name in OF_MANY_THREADS) == set()


def binds_of(statement: Statement) -> set[str]:
    return {*statement.construct.compile(dialect=asyncpg.dialect()).binds}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [*BUILT, *NAMED])
def test_a_statement_on_distributed_tables_names_the_thread_or_only_reads(name: str) -> None:
    """Citus sends it to one shard if each table is compared with the call's thread; over all it may read keys."""
    for statement in forms(BUILT[name] if name in BUILT else getattr(DISTRIBUTED, name)):
        construct = statement.construct
        if "thread_id" in binds_of(statement):
            assert unrouted(construct, rows=False) == set()
        else:
            changes = [part for part in visitors.iterate(construct) if isinstance(part, (Insert, Update, Delete))]
            locking = [part for part in visitors.iterate(construct) if getattr(part, "_for_update_arg", None)]
            assert not changes
            assert not locking


def test_a_statement_that_does_not_name_the_thread_is_found() -> None:
    """A list of all threads reads every table without naming one, and the walk finds each."""
    missing = unrouted(SQL.list_checkpoints(frozenset()).joined.construct, rows=False)

    assert {each.rpartition(" ")[2] for each in missing} == {
        "checkpoints",
        "checkpoint_blobs",
        "checkpoint_writes",
        "checkpoint_pages",
    }
