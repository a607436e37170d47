"""Write the transcripts in reference/: the command after each `$` is run, and its output written down.

    python docs/transcripts.py            # rewrite the pages
    python docs/transcripts.py --check    # fail if that would change them

The databases are temporary ones. What is stored in them is made here, with ids and times that are always the same.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from functools import partial
from os import environ
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import msgpack
import psycopg
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver
from langgraph.checkpoint.sqlite import SqliteSaver

from checkpoint_store import PostgresSaver
from checkpoint_store.cli import main, text
from checkpoint_store.embedded import EmbeddedPostgres

REFERENCE = Path(__file__).resolve().parent / "reference"
BLOCK = re.compile(r"^```console\n(.+?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ (.+)$", re.MULTILINE)
VARYING = [
    (r"^(\w+ +(?:url|version|vacuum|sessions|connections|transaction ids):).*\n(?: {9}.*\n)*", r"\1 ...\n"),
    (r"^(checkpoint_store_(?!info|at_head|table_bytes|table_rows|oldest|newest)\w+{.*}) .*\n", r"\1 ...\n"),
    (r'(server_version=)"[^"]+"', r'\1"..."'),
]
"""What differs from server to server, in the output of `doctor` and `stats --prometheus`, and its place holders."""
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
        self.states: dict[str | None, tuple[dict[str, Any], dict[str, str], dict[str, dict[str, str]]]]
        self.states = {None: ({}, {}, {})}

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
        ran: str = "",
        then: str = "",
        before: timedelta = timedelta(),
        writes: list[tuple[str, Any]] | None = None,
    ) -> str:
        """Store a checkpoint, after a node that ran, and return its id; other channels keep their values."""
        self.number += 1
        made = START + timedelta(seconds=self.number) - before
        if then:
            values = {**values, f"branch:to:{then}": None}
        versions = dict.fromkeys(values, f"{self.number:032}.5")
        state, older, seen = self.states[parent]
        trigger = "__start__" if ran == "__start__" else f"branch:to:{ran}"
        if trigger in older:
            seen = {**seen, ran: {trigger: older[trigger]}}
            versions.setdefault(trigger, f"{self.number:032}.5")
        state = {channel: value for channel, value in state.items() if channel != trigger}
        all_values, all_versions = {**state, **values}, {**older, **versions}
        checkpoint: Any = {
            "v": 4,
            "id": uuid_at(made, self.number),
            "ts": made.isoformat(),
            "channel_values": all_values,
            "channel_versions": all_versions,
            "versions_seen": seen,
        }
        config: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": parent}}
        metadata: Any = {"source": source, "step": step, "parents": parents or {}, "user": thread.partition("-")[0]}
        stored = self.saver.put(config, checkpoint, metadata, versions)
        if writes:
            self.saver.put_writes(stored, writes, f"5f1b2c3d-0000-0000-0000-{self.number:012}")
        self.states[checkpoint["id"]] = all_values, all_versions, seen
        return str(checkpoint["id"])

    def trip(self) -> None:
        """A subgraph that asks, an answer, and another one from the same question."""
        thread, said = "ada-trip", [HumanMessage("Three nights in Lisbon, please.")]
        one = self.step(thread, None, -1, {"__start__": {"messages": ["..."]}}, source="input")
        two = self.step(thread, one, 0, {"messages": said, "budget": 600}, ran="__start__", then="search")
        said = [*said, AIMessage("I'll look for a flight and a hotel.")]
        asked: list[tuple[str, Any]] = [("__interrupt__", [{"text": "Book it?", "total": 570}])]
        values = {"messages": said, "holds": {"seat": 240}}
        three = self.step(thread, two, 1, values, ran="search", then="hotel", writes=asked)
        within, at = "hotel:8f968eed-ee6a-8d3a-b6f4-c08e0c94ecc1", {"": three}
        city = {"__start__": {"city": "Lisbon"}}
        inner = self.step(thread, None, -1, city, source="input", namespace=within, parents=at)
        rooms = {"city": "Lisbon", "rooms": ["Casa do Tejo"]}
        self.step(thread, inner, 0, rooms, ran="__start__", then="choose", namespace=within, parents=at, writes=asked)
        for answer, decision, outcome in (("Booked.", "approve", "booked"), ("Released.", "decline", "released")):
            values = {"messages": [*said, AIMessage(answer)], "decision": decision}
            four = self.step(thread, three, 2, values, ran="hotel", then="report")
            late = [("outcome", "archived")] if outcome == "released" else None
            self.step(thread, four, 3, {"outcome": outcome}, ran="report", writes=late)

    def others(self) -> None:
        """A long chat, an old report, and a thread that an attacker wrote."""
        parent = None
        for step in range(40):
            text = f"Answer {step}: " + "all is well. " * 60
            values = {"messages": [HumanMessage(f"Question {step}"), AIMessage(text)], "turns": step}
            parent = self.step("bob-chat", parent, step, values, ran="answer", then="answer")
        parent = None
        for step in range(5):
            values = {"rows": [step] * 20}
            parent = self.step("cron-report", parent, step, values, ran="count", before=timedelta(days=90))
        self.step("mallory-inbox", None, 0, {"draft": ["?"], "token": ["?"]}, before=timedelta(days=1))


def fill(url: str, *, stock: bool = False) -> None:
    """Store the story, by a saver of ours or by the stock saver."""
    savers: Any = StockSaver.from_conn_string(url) if stock else PostgresSaver.from_conn_string(url, share_pages=False)
    with savers as saver:
        saver.setup()
        story = Story(saver)
        story.others()
        story.number = 1000
        story.trip()
    with psycopg.connect(url, autocommit=True) as conn:
        hostile = "UPDATE checkpoint_blobs SET type = %s, blob = %s WHERE channel = %s AND thread_id = 'mallory-inbox'"
        conn.execute(hostile, ("msgpack", HOSTILE, "draft"))
        conn.execute(hostile, ("pickle", b"cos\nsystem\n(S'rm -rf /'\ntR.", "token"))
        conn.execute("VACUUM ANALYZE")


class Terminal(io.StringIO):
    """What a terminal of 80 columns without colours shows."""

    def isatty(self) -> bool:
        """As a terminal answers."""
        return True


def run(command: str, printed: io.StringIO) -> str:
    """Run a command and return what it prints; `; echo $?` after it prints its exit code."""
    words, echo, _ = command.partition("; echo $?")
    # Progress bars, which a terminal shows and removes again, are on standard error.
    errors = io.StringIO()
    errors.write = printed.write  # type: ignore[method-assign]
    with redirect_stdout(printed), redirect_stderr(errors), patch.object(text, "now", lambda: NOW):
        code = main(shlex.split(words)[1:])
    shown = printed.getvalue()
    for pattern, masked in VARYING:
        shown = re.sub(pattern, masked, shown, flags=re.MULTILINE)
    return shown + (f"{code}\n" if echo else "")


def command_line(page: str, server: str) -> str:
    """Return the page of the command line, made anew; its first command finds a database without tables."""
    environ["CHECKPOINT_STORE_URL"] = server
    filled = False

    def transcript(block: re.Match[str]) -> str:
        nonlocal filled
        lines = []
        for command in COMMAND.findall(block[1]):
            lines.append(f"$ {command}\n{run(command, io.StringIO())}")
            if command == "checkpoint-store upgrade" and not filled:
                fill(server)
                filled = True
        return f"```console\n{''.join(lines)}```"

    return BLOCK.sub(transcript, page)


def three_databases(page: str, server: str) -> str:
    """Return the page of transcripts, made anew: on a terminal, in each section on another database."""
    introduction, *sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    stores: dict[str, Any] = {"ours": fill, "stock": partial(fill, stock=True), "empty": lambda _: None}

    def transcript(block: re.Match[str]) -> str:
        lines = [f"$ {command}\n{run(command, Terminal())}" for command in COMMAND.findall(block[1])]
        return f"```console\n{''.join(lines)}```"

    with psycopg.connect(server, autocommit=True) as admin:
        for place, (name, store) in enumerate(stores.items()):
            admin.execute(f"CREATE DATABASE {name}")
            environ["CHECKPOINT_STORE_URL"] = urlsplit(server)._replace(path=f"/{name}").geturl()
            store(environ["CHECKPOINT_STORE_URL"])
            sections[place] = BLOCK.sub(transcript, sections[place])
    return "".join([introduction, *sections])


PAGES = {"command-line.md": command_line, "transcripts.md": three_databases}


def rewritten() -> dict[Path, tuple[str, str]]:
    """Return each page as it is, and with its transcripts made anew on a server of its own."""
    found = {}
    with TemporaryDirectory() as folder, EmbeddedPostgres() as server, ExitStack() as stack:
        stack.enter_context(chdir(folder))  # for the files that commands write
        stack.enter_context(patch.dict(environ, {"TERM": "dumb", "COLUMNS": "80"}))
        with SqliteSaver.from_conn_string("checkpoints.sqlite") as saver:
            Story(saver).step("carl-chat", None, 0, {"messages": [HumanMessage("Hello?")]}, ran="answer")
        for name, remade in PAGES.items():
            page = (REFERENCE / name).read_text()
            found[REFERENCE / name] = page, remade(page, server.url)
    return found


if __name__ == "__main__":
    changed = {path: after for path, (before, after) in rewritten().items() if after != before}
    if "--check" in sys.argv:
        names = ", ".join(path.name for path in changed)
        sys.exit(f"not what the commands print: {names}. Run python docs/transcripts.py" if changed else 0)
    for path, after in changed.items():
        path.write_text(after)
