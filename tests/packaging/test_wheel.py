"""The wheel as a user gets it: built, installed in an environment of its own, and run far from the repository."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

REPOSITORY = Path(__file__).parents[2]

SETUP = """
import os
from checkpoint_store import PostgresSaver

with PostgresSaver.from_conn_string(os.environ["CHECKPOINT_STORE_URL"]) as saver:
    saver.setup()
"""

Python = Callable[..., str]


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {name for (name,) in names}


def test_the_wheel_carries_the_migrations_and_the_types_but_no_tests(wheel: Path) -> None:
    """What `alembic upgrade head` and type checkers need is inside; what only developers need is not."""
    names = set(zipfile.ZipFile(wheel).namelist())
    revisions = {f"checkpoint_store/_alembic/versions/{file.name}" for file in REPOSITORY.glob("alembic/versions/*.py")}
    assert revisions
    assert names >= revisions | {
        "checkpoint_store/_alembic/env.py",
        "checkpoint_store/_alembic/script.py.mako",
        "checkpoint_store/py.typed",
        "checkpoint_store/_demo/survive_kill.py",
    }
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"checkpoint_store"}
    assert not [name for name in names if "__pycache__" in name]


def test_the_installed_package_is_the_one_that_runs(python: Python) -> None:
    """The tests below would mean nothing if the repository were imported instead."""
    where = Path(python("-c", "import checkpoint_store; print(checkpoint_store.__file__)").strip())
    assert REPOSITORY not in where.parents
    assert where.parent.parent.name == "site-packages"


def test_a_pipeline_upgrades_and_downgrades_with_alembic_alone(python: Python, empty_url: str) -> None:
    """Two lines of ini and a URL in the environment: `upgrade head` makes the tables, `downgrade base` drops them."""
    python("-m", "alembic", "upgrade", "head", url=empty_url)
    assert tables(empty_url) >= {"checkpoints", "checkpoint_blobs", "checkpoint_writes"}
    assert "(head)" in python("-m", "alembic", "current", url=empty_url)
    python("-m", "alembic", "downgrade", "base", url=empty_url)
    assert not tables(empty_url) & {"checkpoints", "checkpoint_blobs", "checkpoint_writes"}


def test_a_pipeline_can_print_the_sql_and_have_it_applied_by_somebody_else(python: Python, empty_url: str) -> None:
    """`alembic upgrade head --sql` needs no database, and what it prints brings one to head."""
    statements = python("-m", "alembic", "upgrade", "head", "--sql")
    with psycopg.connect(empty_url) as connection:
        connection.execute(statements)
    assert "(head)" in python("-m", "alembic", "current", url=empty_url)


def test_the_command_line_is_installed_with_all_it_needs(python: Python, installation: Path, empty_url: str) -> None:
    """As a script and as a module: it migrates, tells so, and finds its demonstration inside the package."""
    script = str(installation / "bin" / "checkpoint-store")
    assert python(script, "upgrade", url=empty_url).startswith("at cs")
    assert "which is head" in python("-m", "checkpoint_store", "check", url=empty_url)
    found = python("-c", "from checkpoint_store.cli import demo; print(demo.script())").strip()
    assert Path(found).exists()
    assert Path(found).parent.name == "_demo"


def test_setup_finds_the_migrations_inside_the_package(python: Python, empty_url: str) -> None:
    """An installed saver sets its tables up without a repository in sight."""
    python("-c", SETUP, url=empty_url)
    assert tables(empty_url) >= {"checkpoints", "checkpoint_blobs", "checkpoint_writes"}
    assert "(head)" in python("-m", "alembic", "current", url=empty_url)


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("checkpoint_store", ("langgraph", "langchain", "sqlalchemy", "alembic", "asyncpg")),
        ("checkpoint_store.schema, checkpoint_store.migrations", ("langgraph", "langchain")),
    ],
)
def test_an_import_costs_what_it_is_used_for(python: Python, modules: str, unwanted: tuple[str, ...]) -> None:
    """A deploy job that migrates never imports LangGraph, and the package itself imports nothing."""
    imported = python("-c", f"import {modules}, sys; print(*sys.modules)").split()
    assert not [name for name in imported if name.startswith(unwanted)]
