"""Write the transcripts of reference/command-line.md: the command after each `$` is run, and its output written down.

    python docs/transcripts.py            # rewrite the page
    python docs/transcripts.py --check    # fail if that would change it

The database is a temporary one. What is stored in it is made here, with ids and times that are always the same.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from os import environ
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import msgpack
import psycopg

from checkpoint_store import PostgresSaver
from checkpoint_store.cli import main, text
from checkpoint_store.embedded import EmbeddedPostgres

PAGE = Path(__file__).resolve().parent / "reference" / "command-line.md"
BLOCK = re.compile(r"^```console\n(.+?)^```$", re.DOTALL | re.MULTILINE)
START = datetime(2026, 3, 2, 10, tzinfo=UTC)
NOW = START + timedelta(days=1)

HOSTILE = msgpack.packb({"order": msgpack.ExtType(0, msgpack.packb(["os", "system", "rm -rf / #\x1b[2J\x07"]))})
"""A map whose value asks LangGraph's serializer to call os.system(), with escapes for the terminal."""


class HumanMessage:
    """As LangChain's is stored, whatever version of it is installed."""

    __module__, kind = "langchain_core.messages.human", "human"

    def __init__(self, content: str) -> None:
        self.content = content

    def model_dump(self) -> dict[str, Any]:
        """What the serializer asks for."""
        return {"content": self.content, "type": self.kind, "name": None, "id": f"{len(self.content):04}"}


class AIMessage(HumanMessage):
    """The same of an answer."""

    __module__, kind = "langchain_core.messages.ai", "ai"


def uuid_at(time: datetime, number: int = 0) -> str:
    """Return a checkpoint's id of that time."""
    ticks = int(time.timestamp() * 10) * 10**6 + number + 0x01B21DD213814000
    text = f"{ticks:015x}"
    return f"{text[:8]}-{text[8:12]}-6{text[12:]}-8000-{number:012x}"


class Story:
    """Stores the checkpoints of threads as a graph would.

    Args:
        saver: Where to.
    """

    def __init__(self, saver: PostgresSaver) -> None:
        self.saver = saver
        self.number = 0
        self.states: dict[str | None, tuple[dict[str, Any], dict[str, str]]] = {None: ({}, {})}

    def step(
        self,
        thread: str,
        parent: str | None,
        step: int,
        values: dict[str, Any],
        *,
        source: str = "loop",
        namespace: str = "",
        parents: dict[str, str] | None = None,
        before: timedelta = timedelta(),
        writes: list[tuple[str, Any]] | None = None,
    ) -> str:
        """Store a checkpoint and return its id; other channels keep their values."""
        self.number += 1
        made = START + timedelta(seconds=self.number) - before
        versions = dict.fromkeys(values, f"{self.number:032}.5")
        state, older = self.states[parent]
        state = {channel: value for channel, value in state.items() if channel != "__start__"}
        all_values, all_versions = {**state, **values}, {**older, **versions}
        checkpoint: Any = {
            "v": 4,
            "id": uuid_at(made, self.number),
            "ts": made.isoformat(),
            "channel_values": all_values,
            "channel_versions": all_versions,
            "versions_seen": {},
        }
        config: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": parent}}
        metadata: Any = {"source": source, "step": step, "parents": parents or {}, "user": thread.partition("-")[0]}
        stored = self.saver.put(config, checkpoint, metadata, versions)
        if writes:
            self.saver.put_writes(stored, writes, f"5f1b2c3d-0000-0000-0000-{self.number:012}")
        self.states[checkpoint["id"]] = all_values, all_versions
        return str(checkpoint["id"])

    def trip(self) -> None:
        """A subgraph that asks, an answer, and another one from the same question."""
        thread, said = "ada-trip", [HumanMessage("Three nights in Lisbon, please.")]
        one = self.step(thread, None, -1, {"__start__": {"messages": ["..."]}}, source="input")
        two = self.step(thread, one, 0, {"messages": said, "budget": 600})
        said = [*said, AIMessage("I'll look for a flight and a hotel.")]
        asked: list[tuple[str, Any]] = [("__interrupt__", [{"text": "Book it?", "total": 570}])]
        three = self.step(thread, two, 1, {"messages": said, "holds": {"seat": 240}}, writes=asked)
        within, at = "hotel:8f968eed-ee6a-8d3a-b6f4-c08e0c94ecc1", {"": three}
        inner = self.step(thread, None, -1, {"city": "Lisbon"}, source="input", namespace=within, parents=at)
        self.step(thread, inner, 0, {"rooms": ["Casa do Tejo"]}, namespace=within, parents=at, writes=asked)
        four = self.step(thread, three, 2, {"messages": [*said, AIMessage("Booked.")], "decision": "approve"})
        self.step(thread, four, 3, {"outcome": "booked"})
        fork = self.step(thread, three, 2, {"messages": [*said, AIMessage("Released.")], "decision": "decline"})
        self.step(thread, fork, 3, {"outcome": "released"}, writes=[("outcome", "archived")])

    def others(self) -> None:
        """A long chat, an old report, and a thread that an attacker wrote."""
        parent = None
        for step in range(40):
            text = f"Answer {step}: " + "all is well. " * 60
            values = {"messages": [HumanMessage(f"Question {step}"), AIMessage(text)], "turns": step}
            parent = self.step("bob-chat", parent, step, values)
        parent = None
        for step in range(5):
            parent = self.step("cron-report", parent, step, {"rows": [step] * 20}, before=timedelta(days=90))
        self.step("mallory-inbox", None, 0, {"draft": ["?"], "token": ["?"]}, before=timedelta(days=1))


def fill(url: str) -> None:
    """Store the story."""
    with PostgresSaver.from_conn_string(url, share_pages=False) as saver:
        story = Story(saver)
        story.others()
        story.number = 1000
        story.trip()
    with psycopg.connect(url, autocommit=True) as conn:
        hostile = "UPDATE checkpoint_blobs SET type = %s, blob = %s WHERE channel = %s AND thread_id = 'mallory-inbox'"
        conn.execute(hostile, ("msgpack", HOSTILE, "draft"))
        conn.execute(hostile, ("pickle", b"cos\nsystem\n(S'rm -rf /'\ntR.", "token"))
        conn.execute("VACUUM ANALYZE")


def run(command: str) -> str:
    """Run a command and return what it prints; `; echo $?` after it prints its exit code."""
    words, echo, _ = command.partition("; echo $?")
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed), patch.object(text, "now", lambda: NOW):
        code = main(shlex.split(words)[1:])
    return printed.getvalue() + (f"{code}\n" if echo else "")


def rewritten(page: str) -> str:
    """Return a page with its transcripts made anew; its first command finds a database without tables."""
    filled = False

    def transcript(block: re.Match[str]) -> str:
        nonlocal filled
        lines = []
        for command in re.findall(r"^\$ (.+)$", block[1], re.MULTILINE):
            lines.append(f"$ {command}\n{run(command)}")
            if command == "checkpoint-store upgrade" and not filled:
                fill(environ["CHECKPOINT_STORE_URL"])
                filled = True
        return f"```console\n{''.join(lines)}```"

    with TemporaryDirectory() as folder, chdir(folder):  # for the files that commands write
        return BLOCK.sub(transcript, page)


if __name__ == "__main__":
    with EmbeddedPostgres() as server:
        environ["CHECKPOINT_STORE_URL"] = server.url
        before = PAGE.read_text()
        after = rewritten(before)
    if "--check" in sys.argv:
        sys.exit(0 if after == before else f"{PAGE} is not what the commands print: python docs/transcripts.py")
    PAGE.write_text(after)
