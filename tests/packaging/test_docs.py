"""The documentation's code does what it says, as printed."""

from __future__ import annotations

import ast
import asyncio
import base64
import importlib.util
import inspect
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.graph import START, MessagesState, StateGraph
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver, encryption, errors, migrations
from checkpoint_store.cli.commands import COMMANDS
from checkpoint_store.schema import VERSION_TABLE, tables
from checkpoint_store.transfer import acopy_threads, copy_threads
from tests.packaging.conftest import WARNINGS

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PACKAGE = REPOSITORY / "checkpoint_store"
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()
PAGES = [REPOSITORY / "README.md", REPOSITORY / "benchmarks" / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.+?)^ *```$", re.DOTALL | re.MULTILINE)

# The first one in Base64 ends without "=", so that who decodes the list in one go gets a key that is none.
KEYS = {"new.key": bytes(range(24)), "old.key": bytes(range(32, 64))}

SECRETS = {"CHECKPOINT_STORE_KEYS": ",".join(base64.b64encode(key).decode() for key in KEYS.values())}

EXTRAS = 'from importlib import metadata; print(*metadata.metadata("checkpoint-store").get_all("Provides-Extra"))'

Shell = Callable[..., str]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    is_file: bool
    """Whether it is the listing of a file, whose name stands above it."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    name = str(page.relative_to(REPOSITORY))
    return [
        Block(
            page=name,
            line=text.count("\n", 0, found.start()) + 2,
            language=found[2],
            text=textwrap.dedent(found[3]),
            is_file=re.search(r"^`[\w/.]+`\n\n\Z", text[: found.start()], re.MULTILINE) is not None,
        )
        for found in FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]

NO_CODE = {"mermaid", "text", ""}
"""Diagrams, and what is neither a program nor a command."""

ELSEWHERE = {
    "README.md": "tests/packaging/test_readme.py",
    "docs/tutorial.md": "tests/packaging/test_tutorial.py",
    "docs/how-to/agent-server.md": "tests/hosts/test_agent_server.py",
    "docs/how-to/host-alembic.md": "tests/hosts/test_recipes.py",
    "docs/how-to/in-your-host.md": "tests/hosts/test_in_your_host.py",
    "docs/how-to/test-your-agents.md": "tests/packaging/test_testing_page.py",
    "docs/reference/command-line.md": "tests/packaging/test_docs.py",
    "docs/reference/transcripts.md": "tests/packaging/test_docs.py",
}
"""Pages whose blocks are run by tests of their own."""

NOT_RUN = {
    "```promql": "needs Prometheus; that the metrics have these names is tests/integration/test_telemetry.py",
    "checkpoint-store upgrade\ncheckpoint-store distribute": "needs Citus; tests/citus/test_distribution.py does it",
    "from checkpoint_store import distribution": "needs Citus; tests/citus/test_distribution.py does it",
    "SELECT citus_add_node": "needs Citus; a worker is added in tests/citus/test_faults.py",
    "CHECKPOINT_STORE_TEST_CITUS=": "needs Citus; a job of CI",
    "make demo": "that it works on a fresh machine is a job of CI, and so is `make test`",
    "mkdir cafe": "installs; that the wheel can be is tests/packaging/test_wheel.py",
    "python -m checkpoint_store.embedded uvicorn": "serves; the service is called in tests/packaging/test_tutorial.py",
    "export CHECKPOINT_STORE_URL=postgresql://postgres:secret@localhost/cafe": "serves, too",
    "python -m benchmarks  ": "takes minutes, on a server of its own",
    "python -m benchmarks.hot_path": "a profiler's output is for people",
    "python -m benchmarks.frames": "counts are for people, and it starts a server of its own",
}
"""By how they begin, with the reason."""


def is_run(block: Block) -> bool:
    return not any(
        f"```{block.language}\n{block.text}".startswith(how) or block.text.startswith(how) for how in NOT_RUN
    )


def run_here(*languages: str) -> list[Any]:
    """The pages that have blocks of these languages to be run by the tests below, each with those blocks."""
    mine = [block for block in BLOCKS if block.language in languages and is_run(block)]
    mine = [block for block in mine if block.page not in ELSEWHERE or is_fragment_of_recipes(block)]
    return [
        pytest.param([block for block in mine if block.page == page], id=page)
        for page in dict.fromkeys(block.page for block in mine)
    ]


def is_fragment_of_recipes(block: Block) -> bool:
    return block.page == "docs/how-to/host-alembic.md" and block.language == "py" and not block.is_file


@pytest.mark.parametrize("blocks", run_here("python"))
def test_the_programs_of_a_page_run(blocks: list[Block], empty_url: str, tmp_path: Path) -> None:
    """One after the other on one database, empty before the first, and then all of them again; nothing warns."""
    for block in [*blocks, *blocks]:
        done = subprocess.run(
            [sys.executable, "-c", block.text],
            cwd=tmp_path,
            env={**os.environ, "PYTHONWARNINGS": WARNINGS, "CHECKPOINT_STORE_URL": empty_url, **SECRETS},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{block.text}\n{done.stderr}"


@pytest.mark.parametrize("blocks", run_here("py"))
def test_the_fragments_of_a_page_run(blocks: list[Block], url: str) -> None:
    """One after the other, where a reader has an engine, a saver and the like; servers they name are the test's."""
    names = surroundings(url)
    for block in blocks:
        text = re.sub(r'(from_conn_string\(\s*)"postgres.*?"', rf'\1"{url}"', block.text)
        code = compile(text, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(in_a_loop(code, names, url))
        else:
            with PostgresSaver.from_conn_string(url) as saver:
                exec(code, {**names, "saver": saver, "new": saver, "engine": create_async_engine(names["primary_url"])})


def surroundings(url: str) -> dict[str, Any]:
    """What the reader of a fragment has by then."""
    return {
        **{name: getattr(errors, name) for name in dir(errors) if isinstance(getattr(errors, name), type)},
        "AsyncPipeline": AsyncPipeline,
        "AsyncPostgresSaver": AsyncPostgresSaver,
        "PostgresSaver": PostgresSaver,
        "acopy_threads": acopy_threads,
        "copy_threads": copy_threads,
        "create_async_engine": create_async_engine,
        "migrations": migrations,
        "timedelta": timedelta,
        "log": logging.getLogger(__name__),
        "url": url,
        "primary_url": "postgresql+asyncpg://",
        "replica_url": "postgresql+asyncpg://",
        "config": {"configurable": {"thread_id": "1", "checkpoint_ns": ""}},
        "thread": {"configurable": {"thread_id": "2"}},
        "message": {"messages": [("user", "Hello")]},
        "EncryptedSerializer": EncryptedSerializer,
        "KeyRing": encryption.KeyRing,
        "key": KEYS["new.key"].hex(),
        "new_key": KEYS["new.key"],
        "old_key": KEYS["old.key"],
        "old": InMemorySaver(),
    }


async def in_a_loop(code: Any, names: dict[str, Any], url: str) -> None:
    """Run a fragment that awaits, with a saver that has something to work on."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    saver = AsyncPostgresSaver(engine)
    await saver.aput(names["config"], empty_checkpoint(), {}, {})
    builder = StateGraph(MessagesState).add_node("answer", lambda state: state).add_edge(START, "answer")
    space = {**names, "engine": engine, "saver": saver, "graph": builder.compile(checkpointer=saver)}
    await eval(code, space)
    for value in space.values():
        if isinstance(value, AsyncEngine):
            await value.dispose()


@pytest.mark.parametrize("blocks", run_here("sql"))
def test_the_sql_of_a_page_runs(blocks: list[Block], empty_url: str) -> None:
    """On a database at head, with the tables in `public` and in the schema that pages name, by whoever owns them."""
    with psycopg.connect(empty_url, autocommit=True) as conn:
        conn.execute(migrations.offline_sql())
        conn.execute(migrations.offline_sql("agents"))
        for block in blocks:
            if "CREATE SCHEMA agents" in block.text:
                conn.execute("DROP SCHEMA agents CASCADE")
            # Roles belong to all databases of a server, and another test may have one of that name.
            role = f"documented_{uuid.uuid4().hex}"
            conn.execute(f"CREATE ROLE {role}")
            text = re.sub(r'\b(TO|AUTHORIZATION) "?\w+"?;', rf"\1 {role};", block.text)
            try:
                for statement in text.split(";\n"):
                    if statement.strip():
                        conn.execute(statement)
            finally:
                conn.execute(f"DROP OWNED BY {role} CASCADE")
                conn.execute(f"DROP ROLE {role}")


@pytest.mark.parametrize("blocks", run_here("sh"))
def test_the_commands_of_a_page_run(
    blocks: list[Block], shell: Shell, make_database: Callable[[], str], tmp_path: Path
) -> None:
    """One after the other, in a folder with the page's ini file, on one database.

    It is empty before the first, or at head where no command of the page migrates. Of what installs only the extras are
    looked at.
    """
    url = make_database()
    extras = shell(f"python -c '{EXTRAS}'", tmp_path).split()
    inis = [block.text for block in BLOCKS if block.language == "ini" and block.page == blocks[0].page]
    (tmp_path / "checkpoint_store.ini").write_text(
        (inis or ["[alembic]\nscript_location = checkpoint_store:_alembic\n"])[0]
    )
    if not any("upgrade" in block.text for block in blocks):
        shell("checkpoint-store upgrade", tmp_path, CHECKPOINT_STORE_URL=url)
    for name, key in KEYS.items():
        (tmp_path / name).write_bytes(key)
    if shutil.which("jq") is None:
        (tmp_path / "jq").write_text("#!/bin/sh\ncat >/dev/null\n")
        (tmp_path / "jq").chmod(0o755)
    for block in blocks:
        lines = ['PATH="$PATH:$PWD"']
        for line in block.text.splitlines():
            if line.startswith("pip install "):
                named = re.findall(r"checkpoint-store\[([\w,]+)\]", line)
                assert {extra for names in named for extra in names.split(",")} <= set(extras), line
            elif not line.startswith("export CHECKPOINT_STORE_URL="):
                lines.append(line)
        shell("\n".join(lines), tmp_path, CHECKPOINT_STORE_URL=url)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_within_the_documentation_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that exists."""
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert page.parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_files_and_tests_that_a_page_names_exist(page: Path) -> None:
    """`tests/file.py` is there, and `tests/file.py::test_name` has that test."""
    for name, test in re.findall(r"`((?:tests|examples|benchmarks)/[\w/.]*)(?:::(\w+))?`", page.read_text()):
        assert (REPOSITORY / name).exists(), name
        if test:
            assert re.search(rf"^(async )?def {test}\(", (REPOSITORY / name).read_text(), re.MULTILINE), (
                f"{name}::{test}"
            )


def test_the_page_of_tables_has_every_table_column_and_index() -> None:
    """And nothing else: a section for each table, a row for each column with its type, each index by name."""
    sections = re.split(r"^## ", (DOCS / "reference/tables.md").read_text(), flags=re.MULTILINE)[1:]
    described = {section.partition("\n")[0]: section for section in sections}
    assert list(described) == [*(table.name for table in tables.all), VERSION_TABLE]
    for table in tables.all:
        rows = re.findall(r"^\| ([\w*, ]+?) \| (\w+) \|", described[table.name], re.MULTILINE)
        columns = {name.strip("*"): kind for names, kind in rows[1:] for name in names.split(", ")}
        assert columns == {each.name: each.type.compile(postgresql.dialect()).lower() for each in table.columns}
        assert all(f"`{index.name}`" in described[table.name] for index in table.indexes)


def test_the_page_of_errors_has_every_error() -> None:
    """A row for each class, with the built-in or other error that it can be caught as; and nothing else."""
    rows = re.findall(r"^\| `(\w+)` \| (?:`(\w+)`)? *\|", (DOCS / "reference/errors.md").read_text(), re.MULTILINE)
    found = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    base = errors.CheckpointStoreError
    assert rows == [
        (each.__name__, next((one.__name__ for one in each.__bases__ if one not in (base, Exception)), ""))
        for each in found
    ]


def test_the_list_of_public_names_is_what_there_is() -> None:
    """Whatever the page describes by its docstring is in the list, each name can be imported, each method called."""
    page = (DOCS / "reference/api.md").read_text()
    listed: dict[str, list[str]] = {}
    for module, names in re.findall(r"^\| `(checkpoint_store[\w.]*)` \| (.+) \|$", page, re.MULTILINE):
        listed.setdefault(module, []).extend(re.findall(r"`(\w+)`", names))
    for module, names in listed.items():
        assert all(hasattr(importlib.import_module(module), name) for name in names), module
        doors = getattr(importlib.import_module(module), "__all__", names)
        assert sorted(doors) == sorted(names), module
    for module, name in re.findall(r"^::: (checkpoint_store\.\w+)\.(\w+)$", page, re.MULTILINE):
        assert name in [*listed.get(module, ()), *listed["checkpoint_store"]]
    for module, members in re.findall(r"^::: (checkpoint_store\.\w+)\n.+\n +members: \[(.+)\]$", page, re.MULTILINE):
        assert listed[module] == members.split(", ")
    methods = page.partition("| both savers' methods |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", methods))
    ours = {
        name
        for name in dir(AsyncPostgresSaver)
        if name[0] != "_" and inspect.getattr_static(AsyncPostgresSaver, name) not in vars(BaseCheckpointSaver).values()
    }
    assert named - {"aget"} == {name for name in ours if f"a{name}" not in ours}


def test_the_map_has_every_public_file_and_every_folder_with_its_sentence() -> None:
    """Whoever looks for a place to add something finds it; the rows are the first sentences of `__init__` files."""
    the_map = CONTRIBUTING.partition("## The map")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+\.py)`", the_map))
    assert {path.name for path in PACKAGE.glob("*.py")} - named == {"__init__.py"}
    rows = dict(re.findall(r"^\| `([\w/]+)/` \| (.+) \|$", the_map, re.MULTILINE))
    folders = [path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    assert rows == {
        str(folder.relative_to(PACKAGE)): (
            ast.get_docstring(ast.parse(folder.joinpath("__init__.py").read_text())) or ""
        ).partition("\n\n")[0]
        for folder in folders
    }


def test_files_and_functions_that_contributing_names_exist() -> None:
    """A path is one from the repository or from the package; a name before it is defined in it."""
    paths = re.findall(r"`((?:[\w.-]+/)*[\w-]+(?:\.py|\.md|\.toml|\.txt|\.yml|/))`", CONTRIBUTING)
    assert len(set(paths)) > 50
    found = {path: next((one / path for one in (REPOSITORY, PACKAGE) if (one / path).exists()), None) for path in paths}
    assert [path for path, file in found.items() if file is None] == []
    places = re.findall(r"`([\w.]+)`(?: or `([\w.]+)`)?\s\(`([\w/]+\.py)`\)", CONTRIBUTING)
    assert len(places) > 20
    for *names, path in places:
        file = found[path]
        assert file is not None
        assert [name for name in names if name and not is_defined(file, name)] == [], path


def is_defined(file: Path, name: str) -> bool:
    """Return whether a module defines a name, or a class of it a method or attribute."""
    body = ast.parse(file.read_text()).body
    for part in name.split("."):
        found = [node for node in body if part in names_of(node)]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


def names_of(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case _:
            return []


def test_every_block_of_code_is_run_by_a_test() -> None:
    """But for those that are named above with the reason; `pytest -s` prints how many there are."""
    code = [block for block in BLOCKS if block.language not in NO_CODE]
    here = {
        block
        for languages in (["python"], ["py"], ["sql"], ["sh"])
        for page in run_here(*languages)
        for block in page.values[0]
    }
    elsewhere = {block for block in code if block.page in ELSEWHERE} - here
    files = {block for block in code if block.language == "ini"} - elsewhere  # of the commands on their pages
    excused = {block for block in code if not is_run(block)}
    left = [f"{block} {block.language}" for block in code if block not in here | elsewhere | files | excused]

    print(f"\n{len(code)} blocks of code, {len(code) - len(excused)} run:", Counter(block.language for block in code))
    assert left == []
    assert len(excused) == len(NOT_RUN)
    assert all((REPOSITORY / test).exists() for test in ELSEWHERE.values())


def test_the_transcripts_are_what_the_commands_print() -> None:
    """Made anew on a server of their own, they are what stands in the pages, to the letter; every command is there."""
    spec = importlib.util.spec_from_file_location("transcripts", DOCS / "transcripts.py")
    assert spec is not None
    assert spec.loader is not None
    transcripts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(transcripts)

    made = transcripts.rewritten()

    assert {path.name: after for path, (_, after) in made.items()} == {
        path.name: before for path, (before, _) in made.items()
    }
    every = {name for summaries in COMMANDS.values() for name in summaries}
    (page,) = [after for path, (_, after) in made.items() if path.name == "transcripts.md"]
    for section, left_out in zip(page.split("\n## ")[1:], TRANSCRIPTS_WITHOUT, strict=True):
        assert every - {*re.findall(r"^\$ checkpoint-store ([\w-]+)", section, re.MULTILINE)} == left_out


TRANSCRIPTS_WITHOUT = [{"demo", "sql"}, {"demo", "reencrypt", "sql"}, {"demo", "reencrypt", "sql"}]
"""The commands that no transcript shows: those that need no database, or keys first."""
