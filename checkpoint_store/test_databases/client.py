"""The connection of a test process to the keeper of its run's databases."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from checkpoint_store.errors import Unavailable

SERVER = "CHECKPOINT_STORE_TEST_URL"
"""The variable with the server's URL."""

SOCKET, LOCK = "socket", "lock"
"""Files of a run: the keeper's socket, and the lock that whoever starts, connects to or ends the keeper holds."""

END_SECONDS = 30
"""The longest wait for the keeper to end after the last test process."""


class Databases:
    """The databases of a test process, dropped with it.

    Args:
        url: The server's maintenance database, by a role that may create others; None for a server that the keeper
            starts.
        run: A text that the processes of a run have in common, and no other run has; None if there is one process.
    """

    def __init__(self, url: str | None, run: str | None = None) -> None:
        run = run or uuid.uuid4().hex
        name = f"checkpoint_store-{hashlib.sha256(f'{run} {url}'.encode()).hexdigest()[:16]}"
        # A path that fits into a socket's address.
        place = tempfile.gettempdir() if len(tempfile.gettempdir()) < 60 else "/tmp"  # noqa: S108 - as mkdtemp, below
        self._directory = Path(place, name)
        self._socket = self._join(url)
        self._answers = self._socket.makefile("r")

    def create(self, template: str | None = None) -> str:
        """Create a database and return its URL.

        Args:
            template: The database that it is a copy of; by default one that is migrated and has nothing else.

        Raises:
            Unavailable: If the server refuses.
        """
        return str(self._ask("create", template)["url"])

    def drop(self, url: str) -> list[str]:
        """Drop a database, and return the sessions that were left in it."""
        return list(self._ask("drop", url)["left"]) if self._is_open else []

    def close(self) -> None:
        """Drop all databases; the last process of a run waits until nothing is left of it."""
        is_last = self._is_open and self._ask("leave")["is_last"]
        self._hang_up()
        deadline = time.monotonic() + END_SECONDS
        while is_last and self._directory.exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _is_open(self) -> bool:
        return self._socket.fileno() >= 0

    def _ask(self, what: str, url: str | None = None) -> dict[str, Any]:
        try:
            self._socket.sendall(json.dumps({what: url}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(self._answers.readline() or "{}")
        except BaseException:
            self._hang_up()  # after Ctrl-C the next answer would be this request's
            raise
        if "error" in answer or not answer:
            raise Unavailable(f"a database for tests: {answer.get('error', 'the process that makes it has ended')}")
        return answer

    def _hang_up(self) -> None:
        self._answers.close()
        self._socket.close()

    def _join(self, url: str | None) -> socket.socket:
        """Connect to the run's keeper; start one if there is none."""
        while True:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError), (self._directory / LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                # Otherwise a keeper that ends has deleted it meanwhile.
                if (self._directory / LOCK).exists():
                    return self._connect() or self._start(url)

    def _connect(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self._directory / SOCKET))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        return connection

    def _start(self, url: str | None) -> socket.socket:
        command = [sys.executable, "-P", "-m", "checkpoint_store.test_databases.keeper", str(self._directory)]
        environment = {**os.environ, SERVER: url or ""}
        started = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
        connection = self._connect()
        if connection is None:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise Unavailable(f"the databases for tests can't be made: {started.stderr.strip()}")
        return connection
