"""Every statement of the hot path names the thread for each table it touches: one partition or shard can take it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import BindParameter, Delete, FromClause, Insert, Join, Select, Table, Update
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList

from checkpoint_store.schema import Tables
from checkpoint_store.sql.compiled import Read, Statement
from checkpoint_store.sql.statements import Statements
from checkpoint_store.sql.write import COUNTED

SQL = Statements(Tables())
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


def forms(statement: Statement | Read) -> list[Statement]:
    return [statement.plain, statement.joined] if isinstance(statement, Read) else [statement]


def tables_in(clause: FromClause) -> Iterator[FromClause]:
    """Return the tables of a FROM, without those inside its subqueries."""
    if isinstance(clause, Join):
        yield from tables_in(clause.left)
        yield from tables_in(clause.right)
    elif isinstance(clause, Table) or isinstance(getattr(clause, "element", None), Table):
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


def thread_of(insertion: Insert) -> Any:
    """Return the thread of the rows that are inserted."""
    if insertion.select is None:
        return {getattr(key, "name", key): value for key, value in (insertion._values or {}).items()}["thread_id"]
    return dict(zip(insertion._select_names or (), insertion.select.selected_columns, strict=True))["thread_id"]


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
            if not is_thread(thread_of(part), rows=rows):
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


def test_a_statement_that_does_not_name_the_thread_is_found() -> None:
    """A list of all threads reads every table without naming one, and the walk finds each."""
    missing = unrouted(SQL.list_checkpoints(frozenset()).joined.construct, rows=False)

    assert {each.rpartition(" ")[2] for each in missing} == {
        "checkpoints",
        "checkpoint_blobs",
        "checkpoint_writes",
        "checkpoint_pages",
    }


def test_the_page_on_citus_distributes_every_table() -> None:
    """It has a call for each table, with the column that statements name."""
    page = (Path(__file__).parents[3] / "docs/how-to/citus.md").read_text()
    calls = re.findall(r"^SELECT create_distributed_table\('(\w+)', 'thread_id'(.*)\);$", page, re.MULTILINE)

    assert [name for name, _ in calls] == [table.name for table in Tables().all]
    assert [rest for _, rest in calls] == ["", *[", colocate_with => 'checkpoints'"] * (len(calls) - 1)]
