"""The hosts whose own tests are run, pinned, and how a test run ends up as counts."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import psycopg

REPOSITORY = Path(__file__).parents[2]
PLUGINS = Path(__file__).parent / "plugins"
LIMIT = 3600
"""The most seconds that one run of a host's tests may take."""


@dataclass(frozen=True)
class Host:
    """A project whose tests use a saver: its package comes from the index, its tests from the repository at a tag."""

    repository: str
    tag: str
    folder: str
    """Where in the repository its tests are run."""
    packages: tuple[str, ...]
    arguments: tuple[str, ...]
    """For pytest: the tests, the plugin that gives them a saver, and options."""
    app: str = ""
    """The ASGI application that the tests are clients of."""


HOSTS = {
    "langgraph": Host(
        "https://github.com/langchain-ai/langgraph",
        "1.2.11",
        "libs/langgraph",
        (
            *("langgraph==1.2.11", "langgraph-checkpoint-sqlite", "langgraph-checkpoint-postgres", "psycopg-pool"),
            *("anyio", "httpx", "langgraph-cli", "pycryptodome", "pytest-mock", "redis", "syrupy"),
        ),
        ("tests", "-p", "langgraph_savers", "-o", "addopts=", "-n", "2"),
    ),
    "deepagents": Host(
        "https://github.com/langchain-ai/deepagents",
        "deepagents==0.7.8",
        "libs/deepagents",
        (
            *("deepagents==0.7.8", "av", "langchain-openai", "langchain-tests", "langsmith[sandbox]", "pillow"),
            *("pytest-benchmark", "pytest-cov", "pytest-socket"),
        ),
        (
            *(f"tests/unit_tests/test_{name}.py" for name in ("end_to_end", "eviction_replay", "file_system_tools")),
            *(
                f"tests/unit_tests/test_{name}.py"
                for name in ("file_system_tools_async", "messages_reducer", "subagents")
            ),
            *(f"tests/unit_tests/middleware/test_{name}_middleware.py" for name in ("memory", "rubric", "skills")),
            *("-p", "deepagents_savers"),
        ),
    ),
    "aegra": Host(
        "https://github.com/aegra/aegra",
        "v0.10.4",
        "libs/aegra-api",
        (*("aegra-api==0.10.4", "langchain", "langchain-openai", "langchain-mcp-adapters", "pytest-mock"),),
        (
            *("tests/e2e", "-m", "not prod_only and not auth_only"),
            *("--ignore=tests/e2e/manual_auth_tests", "--ignore=tests/e2e/multi_instance"),
        ),
        "aegra_server:app",
    ),
}


def environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """Make an environment if it is missing, install the packages and this library as it is, and return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    tools = ("pytest", "pytest-asyncio", "pytest-rerunfailures", "pytest-timeout", "pytest-xdist", "psycopg[binary]")
    install = [python, "-m", "pip", "install", "--quiet", *tools, *packages, "--editable", f"{REPOSITORY}[psycopg]"]
    subprocess.run(install, check=True)
    return python


def clone(host: Host, folder: Path) -> Path:
    """Clone the host at its tag, unless it is there."""
    if not folder.exists():
        command = ["git", "clone", "--quiet", "--depth", "1", "--branch", host.tag, host.repository, folder]
        subprocess.run(command, check=True)
    return folder


def run(host: Host, python: Path, checkout: Path, *, saver: str, url: str, results: Path) -> dict[str, str]:
    """Run a host's tests with the saver `stock` or `ours`, and return the outcome of each.

    A test that fails is run again, twice at most: many of theirs measure times.
    """
    folder = checkout / host.folder
    results.unlink(missing_ok=True)  # those of the last night
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "PYTHONPATH": os.pathsep.join(map(str, (PLUGINS, checkout / "examples"))),
        "CHECKPOINT_STORE_URL": url,
        "CHECKPOINT_STORE_NIGHTLY_SAVER": saver,
        "LANGSMITH_TRACING": "false",
    }
    options = ("-q", "-p", "no:cacheprovider", "--timeout", "120", "--reruns", "2", f"--junitxml={results}")
    command = [python, "-m", "pytest", *host.arguments, *options, "-o", "asyncio_default_fixture_loop_scope=function"]
    if host.app:
        with served(host.app, python, checkout, variables) as settings:
            subprocess.run(command, cwd=folder, env={**variables, **settings}, timeout=LIMIT, check=False)
    else:
        subprocess.run(command, cwd=folder, env=variables, timeout=LIMIT, check=False)
    return outcomes(results)


def outcomes(results: Path) -> dict[str, str]:
    """Return how each test ended, from JUnit's XML: passed, failed or skipped."""
    ended = {}
    for case in ET.parse(results).iter("testcase"):
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        ended[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return ended


@contextmanager
def served(app: str, python: Path, checkout: Path, variables: dict[str, str]) -> Iterator[dict[str, str]]:
    """Serve an application of Aegra's on a database of its own, and yield its settings, which its tests read too."""
    port, place = 2731, "http://127.0.0.1:2731"
    with fresh_database(variables["CHECKPOINT_STORE_URL"]) as url:
        settings = {
            "DATABASE_URL": url,
            "AEGRA_CONFIG": str(checkout / "aegra.json"),
            "AUTH_TYPE": "noop",
            "REDIS_BROKER_ENABLED": "false",
            "PORT": str(port),
            "SERVER_URL": place,
        }
        server = [python, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
        with running(server, checkout, {**variables, **settings}, f"{place}/health"):
            yield settings


@contextmanager
def running(command: list[str | Path], folder: Path, variables: dict[str, str], ready: str) -> Iterator[None]:
    """Run a server until the block ends; it is entered when the URL `ready` answers."""
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while not answers(ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[2]} did not start: see {log.name}")
                time.sleep(0.5)
            yield
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def answers(url: str) -> bool:
    """Return whether a URL can be fetched."""
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - on this machine
            return True
    except (URLError, OSError):
        return False


@contextmanager
def fresh_database(server: str) -> Iterator[str]:
    """Create a database, yield its URL, and drop it whoever is still connected."""
    name = f"nightly_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
    try:
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
    finally:
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
