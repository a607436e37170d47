"""The SQL texts of the statements: one each, for any number of rows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cached_property
from itertools import product
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import Dialect
from sqlalchemy.dialects.postgresql import asyncpg, psycopg

import checkpoint_store
from checkpoint_store.schema import HEAD, Tables
from checkpoint_store.sql.compiled import Read, Statement
from checkpoint_store.sql.history import ERROR, INTERRUPT
from checkpoint_store.sql.read import TASKS
from checkpoint_store.sql.statements import Statements

DIALECTS: list[Dialect] = [asyncpg.dialect(), psycopg.dialect()]
CONDITIONS = ["thread_id", "checkpoint_ns", "checkpoint_id", "filter", "before", "after_row"]
THREAD_CONDITIONS = ["after", "prefix", "filter", "count"]


def every_statement(sql: Statements) -> Iterator[tuple[str, Statement]]:
    names = [name for name, found in vars(Statements).items() if isinstance(found, cached_property)]
    found = {name: getattr(sql, name) for name in names}
    found |= {
        f"list_checkpoints of {n}": sql.list_checkpoints(frozenset(CONDITIONS[:n])) for n in range(len(CONDITIONS) + 1)
    }
    for n in range(len(CONDITIONS) + 1):
        found[f"newest_keys of {n}"] = sql.newest_keys(frozenset(CONDITIONS[n:]) - {"thread_id"})
    for order, n in product(("newest", "thread_id", "rootless"), range(len(THREAD_CONDITIONS) + 1)):
        conditions = frozenset({order, *THREAD_CONDITIONS[:n]})
        found[f"list_threads of {conditions}"] = sql.list_threads(conditions)
        found[f"next_roots of {conditions}"] = sql.next_roots(conditions)
        found[f"threads_with_root of {conditions}"] = sql.threads_with_root(conditions)
        found[f"next_threads_by_id of {conditions}"] = sql.next_threads_by_id(conditions)
    for name, statement in found.items():
        if isinstance(statement, Read):
            yield f"{name}, plain", statement.plain
            yield f"{name}, joined", statement.joined
        else:
            yield name, statement


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.driver)
def test_statements_compile_once_to_one_text(dialect: Dialect) -> None:
    """A second call gets the same string, so that the driver finds its prepared statement."""
    sql = Statements(Tables())
    for _, statement in every_statement(sql):
        assert statement.sql(dialect) is statement.sql(dialect)


def test_statements_of_two_savers_have_the_same_text() -> None:
    """A connection of a shared pool has one prepared statement for all savers, not one for each."""
    ours = dict(every_statement(Statements(Tables())))
    theirs = dict(every_statement(Statements(Tables())))

    for name, statement in ours.items():
        assert statement.sql(DIALECTS[0]) == theirs[name].sql(DIALECTS[0])


@pytest.mark.skipif(sqlalchemy.__version__ < "2.1", reason="SQLAlchemy 2.0 has no cache key for PostgreSQL's upserts")
def test_cache_keys_are_stable() -> None:
    """The constructs are plain Core: two builds of one statement have one cache key."""
    ours = dict(every_statement(Statements(Tables())))
    theirs = dict(every_statement(Statements(tables := Tables())))
    again = dict(every_statement(Statements(tables)))

    for name in ours:
        assert theirs[name].construct._generate_cache_key() == again[name].construct._generate_cache_key() is not None


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.driver)
def test_values_travel_as_parameters_only(dialect: Dialect) -> None:
    """No text has a literal but our own JSON keys and constants."""
    own = {"channel_versions", "channel_values", "v", "empty", "pages", "msgpack", TASKS, "{}", ""}
    own |= {"thread_id", "run_id", "object", ":[^|]*", "g", INTERRUPT, ERROR, *Tables().metadata.tables}
    own |= {"run_id", "parents", "counters_since_delta_snapshot", "true", "__", "branch:", ":"}
    own |= {"$.channel_values.* ? (@ == true)"}
    own |= {"number", "null", "transaction_isolation", "{channel_values}", "+", "removal", "graph", "run", "advisory"}
    own |= {"citus", "n", "server_encoding", "UTF8", HEAD, "pg_class", "pg_restore", "psql", "idle", "^pg_[0-9]+_sync_"}
    own |= {"citus.max_intermediate_result_size", "-1"}
    own |= {"1", "D", "c", "f", "trigger", "policy", "rule", "constraint", "column"}
    own |= {"SELECT", "lock_timeout", "statement_timeout", "versions_seen", "source", "loop"}
    own |= {"__error_source_node__", "__resume__", "branch:%", "join:%"}
    own |= SERVER
    own |= {"________-____-6___-____-____________", "0123456789abcdef", "----", "8", "b"}
    for _, statement in every_statement(Statements(Tables())):
        # psycopg writes % twice.
        assert {one.replace("%%", "%") for one in statement.sql(dialect).split("'")[1::2]} <= own


def test_parameters_come_in_the_order_of_the_text() -> None:
    """Asyncpg takes parameters by position, psycopg by name."""
    binds = {"thread_id": "t", "checkpoint_ns": "n", "checkpoint_id": "c"}
    statement = Statements(Tables()).get_checkpoint.plain

    assert statement.bound(DIALECTS[0], binds)[1] == ("t", "n", "c")
    assert statement.bound(DIALECTS[1], binds)[1] == binds


def test_a_schema_qualifies_every_table() -> None:
    """With a schema named, nothing depends on the search_path."""
    for _, statement in every_statement(Statements(Tables('a"b'))):
        text = statement.sql(DIALECTS[0])
        for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_store_version"):
            assert f" {table} " not in text.replace(f'"a""b".{table}', "")


def test_there_is_no_sql_string_in_the_package() -> None:
    """Statements are Core; SQL text is in migrations and what they are made of, in advice, for tests' databases."""
    package = Path(checkpoint_store.__file__).parent
    for path in set(package.rglob("*.py")) - {package / name for name in MADE_OF_SQL}:
        tree = ast.parse(path.read_text())
        docs = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, DOCUMENTED)}
        strings = [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        for string in strings:
            if string not in docs:
                start = string.lstrip()
                assert not start.upper().startswith(SQL), f"{path.name}: {string!r}"
                assert not start.startswith(("DELETE ", "WITH ")), f"{path.name}: {string!r}"
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "text" not in called, f"{path.name} calls text()"


# Settings, privileges and kinds of relations, which the catalog is asked for.
SERVER = {
    *("server_version", "server_version_num", "default_transaction_read_only", "plan_cache_mode", "track_counts"),
    *("max_connections", "reserved_connections", "superuser_reserved_connections", "autovacuum", "on"),
    *("autovacuum_freeze_max_age", "autovacuum_vacuum_max_threshold", "autovacuum_vacuum_threshold"),
    *("autovacuum_vacuum_scale_factor", "autovacuum_enabled=false", "USAGE", "CREATE", "INSERT", "UPDATE", "DELETE"),
    *("r", "m", "f", "p", "D", "trigger", "policy", "client backend", "AccessExclusiveLock"),
}

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
MADE_OF_SQL = (
    "migrations/ddl.py",
    "migrations/indexes.py",
    "migrations/placement.py",
    "distribution.py",
    "partitioning.py",
    "conninfo/generic_plans.py",
    "cli/findings/server.py",
    "cli/findings/tables.py",
    "cli/findings/activity.py",
    "cli/findings/connection.py",
    "test_databases/client.py",
    "test_databases/keeper.py",
)
SQL = ("SELECT ", "INSERT ", "UPDATE ", "DELETE FROM ", "CREATE ", "ALTER ", "DROP ")
"""How SQL begins, in any case; a sentence begins with "Delete" or "With" too, but not in capitals."""
