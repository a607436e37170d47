"""What a terminal shows, at any width, and what a pipe gets."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.cells import cell_len

from checkpoint_store import PostgresSaver
from checkpoint_store.cli.text import SHORT_ID
from checkpoint_store.storage.checkpoint_time import first_id_of

UUID = "0b8e6f0c-5a8e-4f2e-9d54-1b6c9a2d3e4f"
SESSION = f"user:ada.lovelace@example.com:session:{UUID}"
THREADS = [UUID, SESSION, "日本語のスレッド" * 4, "🙂" * 30, f"{UUID}|{UUID}"]
CHANNEL = "a_channel_with_a_name_that_is_as_long_as_the_names_of_some_channels_are"

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def filled(url: str, sync_saver: PostgresSaver) -> str:
    """Threads with long ids, in wide characters too, and one with a subgraph and a long channel."""
    for number, thread in enumerate(THREADS):
        parent = None
        for step in range(3):
            made = datetime.now(UTC) - timedelta(days=400 * number + 1, seconds=-step)
            config: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": "", "checkpoint_id": parent}}
            checkpoint: Any = {"v": 4, "id": first_id_of(made), "ts": "", "channel_values": {CHANNEL: ["x" * 999_999]}}
            checkpoint.update(channel_versions={CHANNEL: f"{step:032}"}, versions_seen={})
            metadata: Any = {"step": 123_456 + step, "source": "loop"}
            sync_saver.put(config, checkpoint, metadata, checkpoint["channel_versions"])
            parent = checkpoint["id"]
    return url


def shown(url: str, width: int, *arguments: str) -> list[str]:
    """Return the lines that a terminal of some columns shows, of standard output alone."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-m", "checkpoint_store", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
        env={**environment, "CHECKPOINT_STORE_URL": url, "TERM": "xterm-256color"},
    ) as process:
        os.close(terminal)
        printed = b""
        while part := _part(controller):
            printed += part
        os.close(controller)
        assert process.stderr is not None
        assert process.wait(60) == 0, process.stderr.read()
    return ESCAPES.sub("", printed.decode()).replace("\r\n", "\n").splitlines()


def _part(controller: int) -> bytes:
    try:
        return os.read(controller, 65536)
    except OSError:  # on Linux, at the end
        return b""


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("command", [["threads", "--count"], ["stats"], ["stats", SESSION], ["history", SESSION]])
def test_no_line_is_wider_than_the_terminal(filled: str, command: list[str], width: int) -> None:
    """And no id of a checkpoint is broken; a UUID neither, where it is the id of a thread."""
    lines = shown(filled, width, *command)

    assert lines
    # The title names the thread as it is, so that it can be copied.
    rows = [line for line in lines if not line.startswith(f"{SESSION}: ")]
    assert max(map(cell_len, rows)) <= width
    ids = re.findall(r"\b1[ef][0-9a-f]+-[0-9a-f-]+", "\n".join(rows))
    assert {len(one) for one in ids} <= {SHORT_ID}
    if command == ["threads", "--count"]:
        assert any(line.startswith(f"{UUID} ") for line in lines)
        assert re.search(rf"^user:.*…?{UUID} ", "\n".join(lines), re.MULTILINE)


def test_a_wide_terminal_and_a_pipe_show_everything(filled: str) -> None:
    """At 60 columns the thread, its age and its size are left."""
    names = ["THREAD", "CHECKPOINT", "UPDATED", "(UTC)", "AGE", "STEP", "SOURCE", "CHECKPOINTS", "SIZE"]
    assert shown(filled, 200, "threads", "--count")[0].split() == names
    assert shown(filled, 60, "threads", "--count")[0].split() == ["THREAD", "AGE", "SIZE"]

    environment = {**os.environ, "CHECKPOINT_STORE_URL": filled, "COLUMNS": "20"}
    command = [sys.executable, "-m", "checkpoint_store", "threads", "--count"]
    piped = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert piped[0].split() == names
    assert [line.split()[0] for line in piped[1:]] == THREADS
    assert len({cell_len(line) for line in piped}) == 1


@pytest.mark.parametrize("width", [60, 100])
def test_doctor_folds_its_sentences_to_the_terminal(url: str, sync_saver: PostgresSaver, width: int) -> None:
    """With a hanging indent; a long URL is not broken."""
    lines = [line for line in shown(url, width, "doctor") if "://" not in line]

    assert width - 20 < max(map(cell_len, lines)) <= width
    assert any(line.startswith(" " * 9) for line in lines)
